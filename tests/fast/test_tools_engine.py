"""Where the engine, the plugins and the environment come from."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import gobuild
from tools import __main__ as cli
from tools import engine, env, versions
from tools.engine import Tool
from tools.plugins import install

QUIET = Progress(quiet=True)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache and state of the test's own, and an empty PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for proxy in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(proxy, raising=False)


def program(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def box(*plugins: Tool) -> env.Toolbox:
    pulumi = Tool("pulumi", "1", "PATH", Path("/usr/bin/pulumi"))
    return env.Toolbox(pulumi, Tool("pulumi-language-python", "1", "PATH", Path("/usr/bin/x")), plugins)


def test_the_pinned_versions_are_those_that_are_built() -> None:
    wrapper = (gobuild.PULUMI.wrapper / "go.mod").read_text()
    assert re.search(rf"pulumi/pkg/v3 v{re.escape(versions.ENGINE)}$", wrapper, re.MULTILINE)
    assert versions.ENGINE in " ".join(gobuild.PULUMI.ldflags)
    host = (gobuild.PULUMI_LANGUAGE_PYTHON.wrapper / "go.mod").read_text()
    assert re.search(rf"pulumi/sdk/v3 v{re.escape(versions.LANGUAGE_HOST)}$", host, re.MULTILINE)


def test_the_pinned_plugins_are_those_that_the_sdk_packages_ask_for() -> None:
    from importlib.metadata import version

    assert {name: version(f"pulumi-{name}") for name in versions.PLUGINS} == versions.PLUGINS


def test_a_recent_engine_on_path_is_used_with_its_language_host(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "pulumi", "echo v3.300.1")
    program(tmp_path / "bin" / "pulumi-language-python")
    pulumi, host = engine.tools(QUIET)
    assert (pulumi.version, pulumi.source, pulumi.path) == ("3.300.1", "PATH", tmp_path / "bin" / "pulumi")
    assert host.path == tmp_path / "bin" / "pulumi-language-python"


@pytest.mark.parametrize("says", ["echo v3.10.0", "echo nonsense", "exit 1"])
def test_an_engine_on_path_that_will_not_do_is_named_and_not_used(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_ours", lambda progress: (box().pulumi, box().language_host))
    said = io.StringIO()
    program(tmp_path / "bin" / "pulumi", says)
    pulumi, _ = engine.tools(Progress(said))
    assert pulumi.path == Path("/usr/bin/pulumi")
    assert str(tmp_path / "bin" / "pulumi") in said.getvalue()
    assert versions.MINIMUM_ENGINE in said.getvalue()


def test_what_this_project_put_on_path_does_not_count_as_the_persons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = program(tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "x" / "pulumi-resource-command")
    monkeypatch.setenv("PATH", str(ours.parent))
    assert engine.on_path("pulumi-resource-command") is None
    theirs = program(tmp_path / "bin" / "pulumi-resource-command")
    monkeypatch.setenv("PATH", f"{ours.parent}{os.pathsep}{theirs.parent}")
    assert engine.on_path("pulumi-resource-command") == theirs


def release(folder: Path, *, broken: bool = False) -> str:
    """Upstream's files of the pinned version, as a URL."""
    folder.mkdir()
    name = f"pulumi-v{versions.ENGINE}-linux-{engine._architecture()}.tar.gz"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for part in ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-language-go"):
            data = f"#!/bin/sh\necho {part}\n".encode()
            member = tarfile.TarInfo(f"pulumi/{part}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / name).write_bytes(content.getvalue() + (b"x" if broken else b""))
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    (folder / f"pulumi-{versions.ENGINE}-checksums.txt").write_text(f"{digest}  {name}\n")
    return folder.as_uri()


def test_upstreams_release_is_taken_when_its_checksum_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "UPSTREAM", release(tmp_path / "upstream"))
    monkeypatch.setattr(engine, "reachable", lambda host: True)
    pulumi, host = engine.tools(QUIET)
    assert (pulumi.source, host.version) == ("upstream release", versions.ENGINE)
    assert (
        subprocess.run([str(host.path)], capture_output=True, text=True).stdout == "pulumi-language-python\n"
    )
    assert {path.name for path in pulumi.path.parent.iterdir()} >= {"pulumi", "pulumi-language-python-exec"}
    assert not (pulumi.path.parent / "pulumi-language-go").exists()
    # The next time nothing is asked of the network.
    monkeypatch.setattr(engine, "reachable", lambda host: pytest.fail("asked the network"))
    assert engine.tools(QUIET)[0].path == pulumi.path


def test_a_release_that_was_tampered_with_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UPSTREAM", release(tmp_path / "upstream", broken=True))
    with pytest.raises(UserError, match="SHA-256"):
        engine._from_release(QUIET)


def test_a_port_that_is_closed_is_not_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert engine.reachable("127.0.0.1", port)
    assert not engine.reachable("127.0.0.1", port)


def test_plugins_come_from_path_then_the_plugin_cache_then_here(tmp_path: Path) -> None:
    version = versions.PLUGINS["command"]
    found = install.plugins(QUIET, Path("pulumi"), ask_upstream=False)
    assert [tool.source for tool in found] == [install.STAND_IN] * 2
    cached = program(
        tmp_path / "home" / "plugins" / f"resource-command-v{version}" / "pulumi-resource-command"
    )
    found = install.plugins(QUIET, Path("pulumi"), ask_upstream=False)
    assert (found[0].source, found[0].path) == ("plugin cache", cached)
    ambient = program(tmp_path / "bin" / "pulumi-resource-command")
    found = install.plugins(QUIET, Path("pulumi"), ask_upstream=False)
    assert (found[0].source, found[0].path) == ("PATH", ambient)


def test_missing_plugins_are_installed_where_upstream_is_reachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "reachable", lambda host: True)
    pulumi = program(
        tmp_path / "engine" / "pulumi",
        '[ "$4" = command ] || exit 1\n'
        'd="$PULUMI_HOME/plugins/resource-$4-v$5"; /bin/mkdir -p "$d"\n'
        'echo > "$d/pulumi-resource-$4"',
    )
    found = install.plugins(QUIET, pulumi, ask_upstream=True)
    assert [tool.source for tool in found] == ["plugin cache", install.STAND_IN]


def test_a_launcher_starts_the_stand_in_from_anywhere(tmp_path: Path) -> None:
    start = install.launcher("command") / "pulumi-resource-command"
    running = subprocess.Popen(
        [str(start), "127.0.0.1:1"],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        text=True,
    )
    try:
        assert running.stdout is not None
        assert int(running.stdout.readline()) > 0
    finally:
        running.kill()
        running.wait()


def test_the_passphrase_is_made_once_for_its_owner_only() -> None:
    file = env.passphrase_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    assert len(first) > 30
    assert env.passphrase_file().read_text() == first
    assert [path.name for path in file.parent.iterdir()] == ["passphrase"]


def test_the_environment_puts_own_programs_first_and_drops_those_of_last_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "old"
    new = tmp_path / "cache" / "kubeadm-ipvs" / "plugins" / "new"
    monkeypatch.setenv("PATH", f"{old}{os.pathsep}/usr/bin")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "of another stack")
    tools = box(Tool("pulumi-resource-command", "1", install.STAND_IN, new / "pulumi-resource-command"))
    variables = env.environment(tools)
    assert variables["PATH"].split(os.pathsep)[1:] == [str(new), "/usr/bin"]
    assert (Path(variables["PATH"].split(os.pathsep)[0]) / "python").exists()
    assert "PULUMI_CONFIG_PASSPHRASE" not in variables
    assert variables["PULUMI_BACKEND_URL"].startswith("file:///")
    shell = env.exports(tools)
    assert "unset PULUMI_CONFIG_PASSPHRASE" in shell.splitlines()
    done = subprocess.run(
        ["/bin/sh", "-c", f'{shell}\necho "$PULUMI_BACKEND_URL"'], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == variables["PULUMI_BACKEND_URL"]


def test_an_agent_that_does_not_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
    assert "SSH_AUTH_SOCK" not in env.environment(box())
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(where))
        agent.listen()
        assert env.environment(box())["SSH_AUTH_SOCK"] == str(where)


def test_the_doctor_names_each_program_its_version_and_where_it_comes_from() -> None:
    table = cli.table(box(Tool("pulumi-resource-command", "for 1.2.1", install.STAND_IN, Path("/x/y"))))
    assert re.search(r"pulumi-resource-command +for 1.2.1 +stand-in of this project +/x/y", table)


def test_trouble_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> env.Toolbox:
        raise UserError("no engine", "install Go")

    monkeypatch.setattr(env, "toolbox", fail)
    assert cli.main(["env"]) == 1
    assert capsys.readouterr().err == "error: no engine\n  -> install Go\n"
