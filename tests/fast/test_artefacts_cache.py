"""What is built is found again, checked, made again when damaged, and goes on when interrupted."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import cache, gobuild, mirror

QUIET = Progress(quiet=True)
WRAPPERS = sorted(path for path in gobuild.WRAPPERS.iterdir() if path.is_dir())
TARGETS = (
    gobuild.PULUMI,
    gobuild.PULUMI_LANGUAGE_PYTHON,
    gobuild.kubernetes("1.37.2"),
    gobuild.ETCD,
    *gobuild.COREDNS,
    gobuild.CRICTL,
    gobuild.CNI_PLUGINS,
    gobuild.CNI_PLUGIN_FLANNEL,
    gobuild.FLANNEL,
    gobuild.ACTIONLINT,
    gobuild.LAB_NETWORK,
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Maker:
    """Makes a folder of two files, and counts how often."""

    def __init__(self) -> None:
        self.runs = 0
        self.found: list[str] = []

    def __call__(self, folder: Path) -> dict[str, str]:
        self.runs += 1
        self.found = sorted(path.name for path in folder.iterdir())
        (folder / "program").write_text("content")
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep/file").write_text("more")
        return {"go": "1.26"}


def test_a_finished_folder_is_used_again_and_tells_how_it_was_made() -> None:
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make)
    assert cache.cached("kind", "key", QUIET, make) == folder
    assert make.runs == 1
    assert cache.about(folder)["go"] == "1.26"
    assert float(cache.about(folder)["seconds"]) >= 0


@pytest.mark.parametrize("harm", ["changed", "removed", "deep", "manifest removed", "manifest garbled"])
def test_a_damaged_folder_is_made_again_and_that_is_said(harm: str) -> None:
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make)
    manifest = folder / cache.MANIFEST
    match harm:
        case "changed":
            (folder / "program").write_text("CONTENT")
        case "removed":
            (folder / "program").unlink()
        case "deep":
            (folder / "deep/file").write_text("less")
        case "manifest removed":
            manifest.unlink()
        case "manifest garbled":
            manifest.write_text(manifest.read_text()[:-20])
    said = io.StringIO()
    cache.cached("kind", "key", Progress(said), make)
    assert make.runs == 2
    assert "making it again" in said.getvalue()
    assert cache.damage(folder) is None


def failing(folder: Path) -> dict[str, str]:
    (folder / "half").write_text("x")
    raise UserError("the network is gone")


@pytest.mark.parametrize(("resume", "found"), [(False, []), (True, ["half"])])
def test_after_a_failure_nothing_is_there_and_the_next_run_begins_where_it_may(
    resume: bool, found: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="network"):
        cache.cached("kind", "key", QUIET, failing, resume=resume)
    assert not (tmp_path / "cache/kubeadm-ipvs/kind/key").exists()
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make, resume=resume)
    assert make.found == found
    assert cache.damage(folder) is None


def test_two_that_want_the_same_at_once_make_it_once() -> None:
    make, begun, go_on = Maker(), threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, str]:
        begun.set()
        assert go_on.wait(20)
        return make(folder)

    first = threading.Thread(target=lambda: cache.cached("kind", "key", QUIET, slow))
    heard = io.StringIO()
    second = threading.Thread(target=lambda: cache.cached("kind", "key", Progress(heard), make))
    first.start()
    assert begun.wait(20)
    second.start()
    deadline = time.monotonic() + 20
    while "another process is at it" not in heard.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go_on.set()
    first.join(20)
    second.join(20)
    assert make.runs == 1


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda path: path.name)
def test_every_wrapper_module_pins_its_modules_and_belongs_to_a_target(wrapper: Path) -> None:
    assert wrapper.name in {target.name for target in TARGETS}
    sums = (wrapper / "go.sum").read_text()
    assert " h1:" in sums
    for line in (wrapper / "go.mod").read_text().splitlines():
        assert "latest" not in line


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_imports_the_programs_that_it_builds(target: gobuild.Target) -> None:
    own = re.search(r"^module (\S+)$", (target.wrapper / "go.mod").read_text(), re.MULTILINE)
    assert own is not None
    if set(target.programs.values()) == {own[1]}:
        return  # a program of this project, in that folder
    imports = (target.wrapper / "programs.go").read_text()
    for package in target.programs.values():
        assert f'"{package}"' in imports
    assert target.version.startswith("v")
    # A program's version is written into it by the linker: it must be the module's.
    for flag in target.ldflags:
        if flag.rpartition(".")[2].split("=")[0] in ("Version", "gitVersion", "BuildVersion"):
            assert flag.endswith(f"={target.version}")


def test_the_key_follows_the_wrapper_and_the_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gobuild, "WRAPPERS", tmp_path)
    wrapper = tmp_path / "some"
    wrapper.mkdir()
    (wrapper / "go.mod").write_text("module some\n\ngo 1.26\n")
    (wrapper / "go.sum").write_text("one h1:x\n")
    target = gobuild.Target("some", {"program": "example.org/program"})
    before = target.key
    os.utime(wrapper / "go.sum", (1, 1))
    assert target.key == before
    assert dataclasses.replace(target, ldflags=("-X a=b",)).key != before
    (wrapper / "go.sum").write_text("one h1:y\n")
    assert target.key != before


def test_a_kubernetes_release_without_a_wrapper_is_refused_naming_those_there_are() -> None:
    with pytest.raises(UserError, match=r"1\.37\.2"):
        gobuild.kubernetes("1.12.0")


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", "pulumi"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("github.com/coredns/coredns", "coredns"),
    ],
)
def test_a_programs_file_has_the_name_that_go_gives_it(package: str, name: str) -> None:
    assert gobuild.executable_name(package) == name


FAKE_GO = """\
#!/bin/sh
# Behaves as a Go of version VERSION that can fetch CAN; writes what it is asked for into LOG.
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
    monkeypatch.setattr(gobuild, "WRAPPERS", tmp_path / "go")
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


SOME = gobuild.Target("some", {"one": "example.org/one", "two": "example.org/two"})


def test_a_go_that_is_new_enough_is_used_as_it_is(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    go = gobuild.find_go((1, 26, 0), QUIET)
    assert (go.toolchain, go.version) == ("local", "1.26.8")


def test_an_older_go_fetches_the_toolchain_that_is_needed(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.23.2", "1.26.0")
    go = gobuild.find_go((1, 26), QUIET)
    assert (go.toolchain, go.version) == ("go1.26.0", "1.26.0")


def test_a_go_that_cannot_be_made_to_do_is_followed_by_apts(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.19.8", "1.19.8")
    asked: list[str] = []

    def install(package: str, progress: Progress) -> None:
        asked.append(package)
        fake_go(tmp_path, monkeypatch, "1.26.4", "1.26.0")

    monkeypatch.setattr(gobuild, "_apt_package", lambda: "golang-1.26-go")
    monkeypatch.setattr(gobuild, "_apt_install", install)
    assert gobuild.find_go((1, 26, 0), QUIET).version == "1.26.4"
    assert asked == ["golang-1.26-go"]


def test_without_any_usable_go_the_message_names_the_version_to_install(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.19.8", "1.19.8")
    monkeypatch.setattr(gobuild, "_apt_package", lambda: "golang-1.26-go")
    monkeypatch.setattr(gobuild, "_apt_install", lambda package, progress: None)
    with pytest.raises(UserError, match=r"install Go 1\.26\.0"):
        gobuild.find_go((1, 26, 0), QUIET)


def test_an_interrupted_build_compiles_only_what_is_missing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    partial = tmp_path / f"cache/kubeadm-ipvs/go/{SOME.key}.partial"
    (partial / ".link-killed").mkdir(parents=True)
    (partial / "one").write_text("built before")
    folder = gobuild.build(SOME, QUIET)
    assert (folder / "one").read_text() == "built before"
    assert (folder / "two").read_text() == "built\n"
    assert sorted(json.loads((folder / cache.MANIFEST).read_text())["sha256"]) == ["one", "two"]
    (build,) = [line for line in log.read_text().splitlines() if line.startswith("local build")]
    assert build.endswith("example.org/two")
    assert "example.org/one" not in build
    assert "-trimpath" in build
    assert "-mod=readonly" in build


def test_a_program_that_does_not_compile_is_shown_with_gos_words(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    Path(f"{log}.fails-two").touch()
    with pytest.raises(UserError, match="it doesn't compile"):
        gobuild.build(SOME, QUIET)
    Path(f"{log}.fails-two").unlink()
    assert (gobuild.build(SOME, QUIET) / "two").exists()


def test_a_version_whose_modules_are_not_to_be_had_gives_way_to_the_next(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_go(tmp_path, monkeypatch, "1.26.8", "1.26.0")
    other = gobuild.Target("other", {"one": "example.org/one"})
    assert gobuild.build_first((SOME, other), QUIET)[0] == SOME
    Path(f"{log}.modules-missing").touch()
    with pytest.raises(gobuild.ModulesMissing, match="module not found"):
        gobuild.build_first((other, other), QUIET)
    # What doesn't compile is a fault to be seen, and no reason to take another version.
    Path(f"{log}.modules-missing").unlink()
    Path(f"{log}.fails-one").touch()
    third = dataclasses.replace(other, ldflags=("-X a=b",))
    with pytest.raises(UserError, match="it doesn't compile"):
        gobuild.build_first((third, SOME), QUIET)


def test_pruning_keeps_what_is_asked_for_and_what_someone_is_making() -> None:
    make = Maker()
    for key in ("wanted", "old"):
        cache.cached("kind", key, QUIET, make)
    with pytest.raises(UserError):
        cache.cached("kind", "given-up", QUIET, failing, resume=True)
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, str]:
        begun.set()
        assert go_on.wait(20)
        return make(folder)

    working = threading.Thread(target=lambda: cache.cached("kind", "in-work", QUIET, slow))
    working.start()
    assert begun.wait(20)
    assert cache.prune("kind", ["wanted"]) == ["given-up", "old"]
    go_on.set()
    working.join(20)
    runs = make.runs
    for key in ("wanted", "in-work"):
        cache.cached("kind", key, QUIET, make)
    assert make.runs == runs, "these two should have stayed"
    assert cache.prune("kind", []) == ["in-work", "wanted"]


def test_pruning_a_site_keeps_those_in_use_and_the_last_of_each_kind(tmp_path: Path) -> None:
    keys = [
        "1.37.2-trixie-built-01",
        "1.37.2-trixie-built-02",
        "1.37.2-trixie-built-03",
        "1.37.2-bookworm-built-04",
    ]
    folders = [cache.cached("mirror", key, QUIET, Maker()) for key in keys]
    for age, folder in enumerate(folders):
        os.utime(folder, (age, age))
    mirror.prune(QUIET, [folders[0] / "www", tmp_path / "elsewhere"])
    assert [folder.exists() for folder in folders] == [True, False, True, True]
