"""Go programs: wrapper modules, choosing a Go version, building."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from common import cache, gobuild
from common.errors import UserError
from common.progress import Progress
from lab.artefacts import targets

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)
WRAPPERS = sorted(
    path for folder in (gobuild.WRAPPERS, targets.WRAPPERS) for path in folder.iterdir() if path.is_dir()
)
TARGETS = (
    gobuild.PULUMI,
    gobuild.PULUMI_LANGUAGE_PYTHON,
    gobuild.ACTIONLINT,
    targets.kubernetes("1.37.2"),
    targets.ETCD,
    *targets.COREDNS,
    targets.CRICTL,
    targets.CNI_PLUGINS,
    targets.CNI_PLUGIN_FLANNEL,
    targets.FLANNEL,
    targets.LAB_NETWORK,
)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda path: path.name)
def test_wrapper_module_is_pinned_and_has_a_target(wrapper: Path) -> None:
    assert wrapper.name in {target.name for target in TARGETS}
    sums = (wrapper / "go.sum").read_text()
    assert " h1:" in sums
    for line in (wrapper / "go.mod").read_text().splitlines():
        assert "latest" not in line


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_target_builds_what_its_wrapper_module_imports(target: gobuild.Target) -> None:
    own = re.search(r"^module (\S+)$", (target.wrapper / "go.mod").read_text(), re.MULTILINE)
    assert own is not None
    if set(target.programs.values()) == {own[1]}:
        return  # the module is the program itself
    imports = (target.wrapper / "programs.go").read_text()
    for package in target.programs.values():
        assert f'"{package}"' in imports
    assert target.version.startswith("v")
    # The linker writes a version into the program. It must be the module's.
    for flag in target.ldflags:
        if flag.rpartition(".")[2].split("=")[0] in ("Version", "gitVersion", "BuildVersion"):
            assert flag.endswith(f"={target.version}")


def test_key_depends_on_wrapper_module_and_flags(tmp_path: Path) -> None:
    wrapper = tmp_path / "some"
    wrapper.mkdir()
    (wrapper / "go.mod").write_text("module some\n\ngo 1.26\n")
    (wrapper / "go.sum").write_text("one h1:x\n")
    target = gobuild.Target("some", {"program": "example.org/program"}, wrappers=tmp_path)
    before = target.key
    os.utime(wrapper / "go.sum", (1, 1))
    assert target.key == before
    assert dataclasses.replace(target, ldflags=("-X a=b",)).key != before
    (wrapper / "go.sum").write_text("one h1:y\n")
    assert target.key != before


def test_unknown_kubernetes_release_is_refused() -> None:
    with pytest.raises(UserError, match=r"only for 1\.37\.2"):
        targets.kubernetes("1.12.0")


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", "pulumi"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("github.com/coredns/coredns", "coredns"),
    ],
)
def test_executable_name_is_the_one_that_go_uses(package: str, name: str) -> None:
    assert gobuild.executable_name(package) == name


FAKE_GO = """\
#!/bin/sh
# Behaves like Go VERSION, which can download the toolchain CAN. Logs its arguments to LOG.
echo "$GOTOOLCHAIN $*" >> LOG
case "$1" in
version)
    case "$GOTOOLCHAIN" in
    local) echo "go version goVERSION linux/amd64" ;;
    goCAN) echo "go version goCAN linux/amd64" ;;
    *) exit 1 ;;
    esac ;;
list)
    if [ -e LOG.modules-missing ]; then echo "module not found" >&2; exit 1; fi
    echo example.org/program ;;
build)
    for word; do
        if [ "$before" = -o ]; then out=$word; fi
        before=$word
    done
    for word; do
        case "$word" in
        example.org/*)
            if [ -e "LOG.fails-${word##*/}" ]; then echo "it doesn't compile" >&2; exit 1; fi
            echo "built" > "$out/${word##*/}" ;;
        esac
    done ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the fake Go. Also writes the wrapper modules of the targets `some` and `other`."""
    monkeypatch.setattr(gobuild, "USUAL_PLACES", ())
    for name in ("some", "other"):
        wrapper = tmp_path / "go" / name
        wrapper.mkdir(parents=True)
        (wrapper / "go.mod").write_text(f"module {name}\n\ngo 1.26.0\n\nrequire example.org v1.0.0\n")
    return tmp_path / "log"


def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, can: str) -> None:
    folder = tmp_path / f"bin-{version}"
    folder.mkdir()
    text = FAKE_GO.replace("VERSION", version).replace("CAN", can).replace("LOG", str(tmp_path / "log"))
    (folder / "go").write_text(text)
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.fixture
def some(tmp_path: Path) -> gobuild.Target:
    programs = {"one": "example.org/one", "two": "example.org/two"}
    return gobuild.Target("some", programs, wrappers=tmp_path / "go")


def test_new_enough_go_is_used_directly(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    go = gobuild.find_go((1, 26, 0), QUIET)
    assert (go.toolchain, go.version) == ("local", "1.26.8")


def test_older_go_downloads_the_needed_toolchain(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.23.2", "1.26.0")
    go = gobuild.find_go((1, 26), QUIET)
    assert (go.toolchain, go.version) == ("go1.26.0", "1.26.0")


def test_unusable_go_is_replaced_by_debians(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.19.8", "1.19.8")
    installed: list[str] = []

    def install(package: str, progress: Progress) -> None:
        installed.append(package)
        fake_go(tmp_path, monkeypatch, "1.26.4", "1.26.0")

    monkeypatch.setattr(gobuild, "_apt_package", lambda: "golang-1.26-go")
    monkeypatch.setattr(gobuild, "_apt_install", install)
    assert gobuild.find_go((1, 26, 0), QUIET).version == "1.26.4"
    assert installed == ["golang-1.26-go"]


def test_missing_go_is_reported_with_the_needed_version(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.19.8", "1.19.8")
    monkeypatch.setattr(gobuild, "_apt_package", lambda: "golang-1.26-go")
    monkeypatch.setattr(gobuild, "_apt_install", lambda package, progress: None)
    with pytest.raises(UserError, match=r"install Go 1\.26\.0"):
        gobuild.find_go((1, 26, 0), QUIET)


def test_interrupted_build_compiles_only_missing_programs(
    log: Path, some: gobuild.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    partial = tmp_path / f"cache/kubeadm-ipvs/go/{some.key}.partial"
    (partial / ".link-killed").mkdir(parents=True)
    (partial / "one").write_text("built before")
    folder = gobuild.build(some, QUIET)
    assert (folder / "one").read_text() == "built before"
    assert (folder / "two").read_text() == "built\n"
    assert sorted(json.loads((folder / cache.MANIFEST).read_text())["sha256"]) == ["one", "two"]
    (build,) = [line for line in log.read_text().splitlines() if line.startswith("local build")]
    assert build.endswith("example.org/two")
    assert "example.org/one" not in build
    assert "-trimpath" in build
    assert "-mod=readonly" in build


def test_compile_error_is_shown_and_can_be_retried(
    log: Path, some: gobuild.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    Path(f"{log}.fails-two").touch()
    with pytest.raises(UserError, match="it doesn't compile"):
        gobuild.build(some, QUIET)
    Path(f"{log}.fails-two").unlink()
    assert (gobuild.build(some, QUIET) / "two").exists()


def test_next_version_is_built_if_modules_are_missing(
    log: Path, some: gobuild.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    other = gobuild.Target("other", {"one": "example.org/one"}, wrappers=tmp_path / "go")
    assert gobuild.build_first((some, other), QUIET)[0] == some
    Path(f"{log}.modules-missing").touch()
    with pytest.raises(gobuild.ModulesMissing, match="module not found"):
        gobuild.build_first((other, other), QUIET)
    # A compile error must be reported, not hidden by building another version.
    Path(f"{log}.modules-missing").unlink()
    Path(f"{log}.fails-one").touch()
    third = dataclasses.replace(other, ldflags=("-X a=b",))
    with pytest.raises(UserError, match="it doesn't compile"):
        gobuild.build_first((third, some), QUIET)
