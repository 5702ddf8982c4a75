"""What the lab needs on the developer's machine, and what it says when that isn't there."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab import requirements
from lab.artefacts import command


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(requirements, "_SBIN", "")
    return tmp_path


def add(folder: Path, name: str, script: str = "") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_every_missing_program_is_named_with_its_package_at_once(bin_folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        requirements.check()
    message = str(caught.value)
    for line in ("qemu-system-x86_64 isn't installed (package qemu-system-x86)", "package docker-registry"):
        assert line in message
    assert "python3 -m lab requirements --install" in message


def test_only_labs_of_the_dnf_family_need_what_makes_rpms(bin_folder: Path) -> None:
    packages = {"rpm", "createrepo-c"}
    assert packages <= {requirement.package for requirement in requirements.missing("rpm")}
    assert not packages & {requirement.package for requirement in requirements.missing()}
    with pytest.raises(UserError, match="requirements --install --family rpm"):
        requirements.check("rpm")


def test_a_missing_program_in_use_names_its_package(bin_folder: Path) -> None:
    with pytest.raises(UserError, match="apt install qemu-utils"):
        requirements.program("qemu-img")


def test_programs_are_found_where_only_administrators_look(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbin = tmp_path / "sbin"
    sbin.mkdir()
    add(sbin, "mkfs.ext4")
    assert requirements.find("mkfs.ext4") is None
    monkeypatch.setattr(requirements, "_SBIN", str(sbin))
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
def test_backports_are_wanted_on_debian_12_where_an_old_qemu_would_emulate_or_none_is_there(
    monkeypatch: pytest.MonkeyPatch,
    system: dict[str, str],
    version: tuple[int, str] | None,
    kvm: bool,
    wanted: bool,
) -> None:
    monkeypatch.setattr(requirements, "kvm_opens", lambda: kvm)
    monkeypatch.setattr(requirements, "os_release", lambda: system)
    monkeypatch.setattr(requirements, "qemu_version", lambda: version)
    packages = ["qemu-system-x86"] if version is None else []
    assert requirements._wants_backports(packages) is wanted


def test_installing_asks_apt_for_exactly_what_is_missing(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    for requirement in requirements.REQUIREMENTS:
        if requirement.what not in ("mmdebstrap",) and not requirement.what.startswith("/"):
            add(bin_folder, requirement.what, "echo 'QEMU emulator version 10.0.2'")
    have = tuple(r for r in requirements.REQUIREMENTS if not r.what.startswith("/"))
    monkeypatch.setattr(requirements, "REQUIREMENTS", have)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    add(
        bin_folder,
        "apt-get",
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
    ("here", "system", "package"),
    [("", "debian", ("chromium",)), ("chromium-browser", "debian", ()), ("", "ubuntu", ())],
)
def test_a_browser_is_wanted_where_none_is_and_apt_has_one(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch, here: str, system: str, package: tuple[str, ...]
) -> None:
    monkeypatch.setattr(requirements, "os_release", lambda: {"ID": system})
    if here:
        add(bin_folder, here)
    assert requirements.browser_package(Progress(quiet=True)) == package


def test_without_apt_the_packages_are_named(bin_folder: Path) -> None:
    with pytest.raises(UserError, match="no apt-get"):
        requirements.install(Progress(quiet=True))


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_backports_come_from_the_mirror_that_everything_else_of_debian_comes_from(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None
) -> None:
    source = tmp_path / "backports.sources"
    monkeypatch.setattr(requirements, "_BACKPORTS_FILE", source)
    monkeypatch.setattr(requirements, "_wants_backports", lambda packages: True)
    monkeypatch.setattr(requirements, "missing", lambda family="deb": ())
    monkeypatch.setenv("KUBEADM_IPVS_DEBIAN_MIRROR", "http://mirror.example.com/debian")
    add(bin_folder, "apt-get")
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    requirements.install(Progress(quiet=True))
    assert "URIs: http://mirror.example.com/debian\n" in source.read_text()


def test_what_making_a_site_needs_is_installed_with_the_rest() -> None:
    packages = {requirement.package for requirement in requirements.wanted()}
    always = {command.PACKAGES[name] for name in command._ALWAYS}
    assert always - packages == {"apt"}  # without it nothing is installed at all


def test_apts_lock_on_its_lists_is_waited_for(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None
) -> None:
    monkeypatch.setattr(requirements, "_LOCK_PAUSE_SECONDS", 0.0)
    (bin_folder / "env").symlink_to("/usr/bin/env")
    once = tmp_path / "asked"
    locked = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
    add(bin_folder, "apt-get", f'[ -e {once} ] || {{ : >{once}; echo "{locked}" >&2; exit 100; }}')
    requirements.apt(Progress(quiet=True), ["update"])
    once.unlink()
    monkeypatch.setattr(requirements, "_LOCK_SECONDS", 0.0)
    with pytest.raises(UserError, match="Could not get lock"):
        requirements.apt(Progress(quiet=True), ["update"])


@pytest.mark.parametrize(("lacking", "asked"), [(True, ["mask", "unmask", "disable"]), (False, [])])
def test_a_registry_that_is_installed_now_gets_no_service_and_one_that_was_there_keeps_its_own(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_root: None,
    lacking: bool, asked: list[str],
) -> None:  # fmt: skip
    calls, systemd = tmp_path / "calls", tmp_path / "systemd"
    systemd.mkdir()
    calls.touch()
    monkeypatch.setattr(requirements, "_SYSTEMD", systemd)
    add(bin_folder, "systemctl", f'echo "$1 $2" >>{calls}')
    with requirements._without_service(["docker-registry"] if lacking else ["mmdebstrap"]):
        before = calls.read_text().splitlines()
    lines = [f"{verb} docker-registry.service" for verb in asked]
    assert before == lines[:1]
    assert calls.read_text().splitlines() == lines
