"""The programs that the lab needs: checks and installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import apt
from common.errors import UserError
from common.progress import Progress
from lab import requirements
from lab.artefacts import command
from tests.fast.fake_programs import program


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that is searched for programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(apt, "_SBIN", "")
    return tmp_path


def test_all_missing_programs_are_reported_together(bin_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        requirements.check()
    message = str(caught.value)
    for line in ("qemu-system-x86_64 isn't installed (package qemu-system-x86)", "package docker-registry"):
        assert line in message
    assert ".venv/bin/python -m lab requirements --install" in message


def test_only_rpm_labs_need_rpm_tools(bin_folder: Path) -> None:
    packages = {"rpm", "createrepo-c"}
    assert packages <= {requirement.package for requirement in requirements.missing("rpm")}
    assert not packages & {requirement.package for requirement in requirements.missing()}
    with pytest.raises(UserError, match="requirements --install --family rpm"):
        requirements.check("rpm")


def test_missing_program_is_reported_with_its_package(bin_folder: Path) -> None:
    with pytest.raises(UserError, match="apt install qemu-utils"):
        requirements.program("qemu-img")


def test_programs_are_found_in_sbin(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbin = tmp_path / "sbin"
    sbin.mkdir()
    program(sbin / "mkfs.ext4")
    assert requirements.find("mkfs.ext4") is None
    monkeypatch.setattr(apt, "_SBIN", str(sbin))
    assert requirements.find("mkfs.ext4") == str(sbin / "mkfs.ext4")


@pytest.mark.parametrize(
    ("system", "version", "kvm", "wanted"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, (7, "7.2"), False, True),
        ({"ID": "debian", "VERSION_ID": "12"}, (7, "7.2"), True, False),
        ({"ID": "debian", "VERSION_ID": "12"}, (10, "10.0"), False, False),
        ({"ID": "debian", "VERSION_ID": "12"}, None, True, True),
        ({"ID": "debian", "VERSION_ID": "13"}, None, False, False),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, (6, "6.2"), False, False),
    ],
)
def test_backports_are_used_on_debian_12_without_kvm(
    monkeypatch: pytest.MonkeyPatch,
    system: dict[str, str],
    version: tuple[int, str] | None,
    kvm: bool,
    wanted: bool,
) -> None:
    monkeypatch.setattr(requirements, "can_open_kvm", lambda: kvm)
    monkeypatch.setattr(requirements, "os_release", lambda: system)
    monkeypatch.setattr(requirements, "qemu_version", lambda: version)
    packages = ["qemu-system-x86"] if version is None else []
    assert requirements._wants_backports(packages) is wanted


def test_only_missing_packages_are_installed(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    for requirement in requirements.REQUIREMENTS:
        if requirement.what not in ("mmdebstrap",) and not requirement.what.startswith("/"):
            program(bin_folder / requirement.what, "echo 'QEMU emulator version 10.0.2'")
    have = tuple(r for r in requirements.REQUIREMENTS if not r.what.startswith("/"))
    monkeypatch.setattr(requirements, "REQUIREMENTS", have)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    program(
        bin_folder / "apt-get",
        f'cd {bin_folder}; echo "$*" >>{calls}; case "$*" in *install*) /bin/cp tar mmdebstrap;; esac',
    )
    (bin_folder / "env").symlink_to("/usr/bin/env")
    requirements.install(Progress(quiet=True))
    lines = calls.read_text().splitlines()
    assert lines[0].endswith("update")
    assert lines[1].endswith("install -y --no-install-recommends mmdebstrap")
    requirements.install(Progress(quiet=True))
    assert calls.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("installed", "system", "package"),
    [("", "debian", ("chromium",)), ("chromium-browser", "debian", ()), ("", "ubuntu", ())],
)
def test_browser_is_installed_if_apt_has_one(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch, installed: str, system: str, package: tuple[str, ...]
) -> None:
    monkeypatch.setattr(requirements, "os_release", lambda: {"ID": system})
    if installed:
        program(bin_folder / installed)
    assert requirements.browser_package(Progress(quiet=True)) == package


def test_missing_apt_is_reported(bin_folder: Path) -> None:
    with pytest.raises(UserError, match="no apt-get"):
        requirements.install(Progress(quiet=True))


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_backports_come_from_configured_debian_mirror(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None
) -> None:
    source = tmp_path / "backports.sources"
    monkeypatch.setattr(requirements, "_BACKPORTS_FILE", source)
    monkeypatch.setattr(requirements, "_wants_backports", lambda packages: True)
    monkeypatch.setattr(requirements, "missing", lambda family="deb": ())
    monkeypatch.setenv("KUBEADM_IPVS_DEBIAN_MIRROR", "http://mirror.example.com/debian")
    program(bin_folder / "apt-get")
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    requirements.install(Progress(quiet=True))
    assert "URIs: http://mirror.example.com/debian\n" in source.read_text()


def test_requirements_include_those_of_the_mirror() -> None:
    packages = {requirement.package for requirement in requirements.wanted()}
    always = {command.PACKAGES[name] for name in command._ALWAYS}
    assert always - packages == {"apt"}  # checked separately


def test_apt_lock_of_another_program_is_waited_for(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None
) -> None:
    monkeypatch.setattr(apt, "_LOCK_PAUSE_SECONDS", 0.0)
    (bin_folder / "env").symlink_to("/usr/bin/env")
    once = tmp_path / "called"
    locked = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
    program(bin_folder / "apt-get", f'[ -e {once} ] || {{ : >{once}; echo "{locked}" >&2; exit 100; }}')
    apt.apt_get(Progress(quiet=True), ["update"])
    once.unlink()
    monkeypatch.setattr(apt, "_LOCK_SECONDS", 0.0)
    with pytest.raises(UserError, match="Could not get lock"):
        apt.apt_get(Progress(quiet=True), ["update"])


@pytest.mark.parametrize(("missing", "verbs"), [(True, ["mask", "unmask", "disable"]), (False, [])])
def test_only_newly_installed_registry_has_service_disabled(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None,
    missing: bool, verbs: list[str],
) -> None:  # fmt: skip
    calls, systemd = tmp_path / "calls", tmp_path / "systemd"
    systemd.mkdir()
    calls.touch()
    monkeypatch.setattr(requirements, "_SYSTEMD", systemd)
    program(bin_folder / "systemctl", f'echo "$1 $2" >>{calls}')
    with requirements._without_service(["docker-registry"] if missing else ["mmdebstrap"]):
        before = calls.read_text().splitlines()
    lines = [f"{verb} docker-registry.service" for verb in verbs]
    assert before == lines[:1]
    assert calls.read_text().splitlines() == lines
