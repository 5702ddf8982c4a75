"""Cache folders: reuse, verification, interruption, concurrent use and pruning."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest

from common import cache
from common.errors import UserError
from common.progress import Progress

pytestmark = pytest.mark.usefixtures("temporary_cache")

QUIET = Progress(quiet=True)


class Maker:
    """Fills a folder with two files and counts the calls."""

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


def test_finished_folder_is_reused_with_its_facts() -> None:
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make)
    assert cache.cached("kind", "key", QUIET, make) == folder
    assert make.runs == 1
    assert cache.about(folder)["go"] == "1.26"
    assert float(cache.about(folder)["seconds"]) >= 0


@pytest.mark.parametrize("damage", ["changed", "removed", "deep", "manifest removed", "manifest garbled"])
def test_damaged_folder_is_made_again_and_reported(damage: str) -> None:
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make)
    manifest = folder / cache.MANIFEST
    match damage:
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
    output = io.StringIO()
    cache.cached("kind", "key", Progress(output), make)
    assert make.runs == 2
    assert "rebuilding it" in output.getvalue()
    assert cache.damage(folder) is None


def failing(folder: Path) -> dict[str, str]:
    (folder / "half").write_text("x")
    raise UserError("the network is gone")


@pytest.mark.parametrize(("resume", "found"), [(False, []), (True, ["half"])])
def test_run_after_a_failure_resumes_if_allowed(resume: bool, found: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="network"):
        cache.cached("kind", "key", QUIET, failing, resume=resume)
    assert not (tmp_path / "cache/kubeadm-ipvs/kind/key").exists()
    make = Maker()
    folder = cache.cached("kind", "key", QUIET, make, resume=resume)
    assert make.found == found
    assert cache.damage(folder) is None


def test_concurrent_requests_make_the_folder_once() -> None:
    make, begun, proceed = Maker(), threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, str]:
        begun.set()
        assert proceed.wait(20)
        return make(folder)

    first = threading.Thread(target=lambda: cache.cached("kind", "key", QUIET, slow))
    output = io.StringIO()
    second = threading.Thread(target=lambda: cache.cached("kind", "key", Progress(output), make))
    first.start()
    assert begun.wait(20)
    second.start()
    deadline = time.monotonic() + 20
    while "another process" not in output.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    proceed.set()
    first.join(20)
    second.join(20)
    assert make.runs == 1


def test_pruning_keeps_wanted_and_unfinished_folders() -> None:
    make = Maker()
    for key in ("wanted", "old"):
        cache.cached("kind", key, QUIET, make)
    with pytest.raises(UserError):
        cache.cached("kind", "abandoned", QUIET, failing, resume=True)
    begun, proceed = threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, str]:
        begun.set()
        assert proceed.wait(20)
        return make(folder)

    worker = threading.Thread(target=lambda: cache.cached("kind", "unfinished", QUIET, slow))
    worker.start()
    assert begun.wait(20)
    assert cache.prune("kind", ["wanted"]) == ["abandoned", "old"]
    proceed.set()
    worker.join(20)
    runs = make.runs
    for key in ("wanted", "unfinished"):
        cache.cached("kind", key, QUIET, make)
    assert make.runs == runs, "pruning removed a folder that it should keep"
    assert cache.prune("kind", []) == ["unfinished", "wanted"]
