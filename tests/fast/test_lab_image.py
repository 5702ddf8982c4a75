"""The hosts' disk image: building it, the privileges needed, pruning."""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path

import pytest

from common import paths
from common.errors import UserError
from common.progress import Progress
from lab import image, image_root, requirements
from tests.fast.saved_lab import QUIET

pytestmark = pytest.mark.usefixtures("temporary_cache")


def test_initramfs_is_a_valid_cpio_archive() -> None:
    archive = image_root.cpio_newc(
        [("bin", 0o40755, b""), ("bin/x", 0o100755, b"odd"), ("init", 0o100755, b"")]
    )
    assert len(archive) % 4 == 0
    names, offset = [], 0
    while offset < len(archive):
        header = archive[offset : offset + 110]
        assert header[:6] == b"070701"
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        names.append(archive[offset + 110 : offset + 110 + name_size - 1].decode())
        offset += -(-(110 + name_size) // 4) * 4
        if names[-1] == "bin/x":
            assert archive[offset : offset + size] == b"odd"
        offset += -(-size // 4) * 4
    assert names == ["bin", "bin/x", "init", "TRAILER!!!"]


def test_partitions_are_adjacent() -> None:
    table = image_root.partition_table(8 << 30, 512 << 20)
    assert len(table) == 512
    assert table[-2:] == b"\x55\xaa"
    first, second = table[446:462], table[462:478]
    start = int.from_bytes(first[8:12], "little"), int.from_bytes(second[8:12], "little")
    size = int.from_bytes(first[12:16], "little"), int.from_bytes(second[12:16], "little")
    assert start[0] * 512 == image_root.ROOT_START
    assert start[1] == start[0] + size[0]
    assert (size[0] * 512, size[1] * 512) == (8 << 30, 512 << 20)


def test_image_with_selinux_labels_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("lab.requirements.program", lambda name: "true")
    monkeypatch.setattr("lab.requirements.find", lambda name: None)
    assert "--map-root-user" in image.as_root(QUIET)
    with pytest.raises(UserError, match="only root can write SELinux labels"):
        image.as_root(QUIET, labels=True)
    monkeypatch.setattr("lab.requirements.find", lambda name: "/usr/bin/sudo")
    assert image.as_root(QUIET, labels=True)[0] == "/usr/bin/sudo"


def test_sudo_keeps_proxy_without_revealing_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(argv: list[str], what: str) -> None:
        commands.append(argv)
        Path(next(word for word in argv if word.endswith(".draft"))).touch()

    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example.com:3128")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(requirements, "program", lambda name: name)
    monkeypatch.setattr(image, "as_root", lambda progress: ["/usr/bin/sudo", "unshare"])
    monkeypatch.setattr(image, "_run", run)
    image.ensure_base("trixie", "deb", QUIET)
    (command,) = commands
    assert command[:3] == ["/usr/bin/sudo", "--preserve-env=http_proxy,https_proxy,no_proxy", "mmdebstrap"]
    assert "secret" not in " ".join(command)


def test_pruning_waits_for_build_and_removes_interrupted_one() -> None:
    folder = paths.cache_dir() / "image"
    work = folder / "work-1"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({"owner": [os.getuid(), os.getgid()]}))
    existed: list[bool] = []

    class ReleasesLock(io.StringIO):
        def flush(self) -> None:
            if "another process is using it" in self.getvalue() and not holder.closed:
                existed.append(work.exists())
                holder.close()

    holder = (folder / ".image.lock").open("a")
    fcntl.flock(holder, fcntl.LOCK_EX)
    image.prune(set(), Progress(ReleasesLock()), everything=False)
    assert existed == [True]
    assert not work.exists()


def test_build_made_with_sudo_is_removed_with_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    work = paths.cache_dir() / "image/work-1"
    work.mkdir(parents=True)
    commands: list[list[str]] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(requirements, "program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(image, "as_root", lambda progress: ["unshare"])
    monkeypatch.setattr(image, "_run", lambda argv, what: commands.append(argv))
    for owner in ([1000, 1000], [0, 0]):
        (work / "plan.json").write_text(json.dumps({"owner": owner}))
        image._remove_builds(QUIET)
    assert [command[0] for command in commands] == ["/usr/bin/sudo", "unshare"]
