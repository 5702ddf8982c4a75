"""Finding, downloading and building the engine."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from common import gobuild, versions
from common.errors import UserError
from common.progress import Progress
from tests.fast.fake_programs import program, toolbox
from tools import engine

pytestmark = pytest.mark.usefixtures("isolated")

QUIET = Progress(quiet=True)


def test_pinned_versions_are_built() -> None:
    wrapper = (gobuild.PULUMI.wrapper / "go.mod").read_text()
    assert re.search(rf"pulumi/pkg/v3 v{re.escape(versions.ENGINE)}$", wrapper, re.MULTILINE)
    assert versions.ENGINE in " ".join(gobuild.PULUMI.ldflags)
    host = (gobuild.PULUMI_LANGUAGE_PYTHON.wrapper / "go.mod").read_text()
    assert re.search(rf"pulumi/sdk/v3 v{re.escape(versions.LANGUAGE_HOST)}$", host, re.MULTILINE)


def test_recent_engine_on_path_is_used(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "pulumi", "echo v3.300.1")
    program(tmp_path / "bin" / "pulumi-language-python")
    pulumi, host = engine.tools(QUIET)
    assert (pulumi.version, pulumi.source, pulumi.path) == ("3.300.1", "PATH", tmp_path / "bin" / "pulumi")
    assert host.path == tmp_path / "bin" / "pulumi-language-python"


@pytest.mark.parametrize("script", ["echo v3.10.0", "echo nonsense", "exit 1"])
def test_unsuitable_engine_on_path_is_reported(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_ours", lambda progress: (toolbox().pulumi, toolbox().language_host))
    output = io.StringIO()
    program(tmp_path / "bin" / "pulumi", script)
    pulumi, _ = engine.tools(Progress(output))
    assert pulumi.path == Path("/usr/bin/pulumi")
    assert f"not using {tmp_path / 'bin' / 'pulumi'}" in output.getvalue()
    assert versions.MINIMUM_ENGINE in output.getvalue()


def test_projects_own_programs_on_path_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = program(tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "x" / "pulumi-resource-command")
    monkeypatch.setenv("PATH", str(ours.parent))
    assert engine.on_path("pulumi-resource-command") is None
    theirs = program(tmp_path / "bin" / "pulumi-resource-command")
    monkeypatch.setenv("PATH", f"{ours.parent}{os.pathsep}{theirs.parent}")
    assert engine.on_path("pulumi-resource-command") == theirs


def release(folder: Path, *, damaged: bool = False) -> str:
    """Create upstream's files of the pinned version; returns their folder's URL."""
    folder.mkdir()
    name = f"pulumi-v{versions.ENGINE}-linux-{engine._architecture()}.tar.gz"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for part in ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-language-go"):
            data = f"#!/bin/sh\necho {part}\n".encode()
            member = tarfile.TarInfo(f"pulumi/{part}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / name).write_bytes(content.getvalue() + (b"x" if damaged else b""))
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    (folder / f"pulumi-{versions.ENGINE}-checksums.txt").write_text(f"{digest}  {name}\n")
    return folder.as_uri()


def test_upstreams_release_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UPSTREAM", release(tmp_path / "upstream"))
    monkeypatch.setattr(engine, "reachable", lambda host: True)
    pulumi, host = engine.tools(QUIET)
    assert (pulumi.source, host.version) == ("upstream release", versions.ENGINE)
    output = subprocess.run([str(host.path)], capture_output=True, text=True).stdout
    assert output == "pulumi-language-python\n"
    assert {path.name for path in pulumi.path.parent.iterdir()} >= {"pulumi", "pulumi-language-python-exec"}
    assert not (pulumi.path.parent / "pulumi-language-go").exists()
    monkeypatch.setattr(engine, "reachable", lambda host: pytest.fail("used the network again"))
    assert engine.tools(QUIET)[0].path == pulumi.path


def test_release_with_wrong_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UPSTREAM", release(tmp_path / "upstream", damaged=True))
    with pytest.raises(UserError, match="SHA-256"):
        engine._from_release(QUIET)


def test_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert engine.reachable("127.0.0.1", port)
    assert not engine.reachable("127.0.0.1", port)
