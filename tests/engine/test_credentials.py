"""Other login credentials in the settings: of another operator, or after a key or user was replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from common.paths import project_dir
from model.settings import Host, HostSsh, Settings, Ssh
from tests.engine import finished, own_scripts
from tests.engine.api_server import ApiServer
from tests.engine.finished import Environment
from tests.engine.ssh_server import SshServer, private, public, ssh_agent
from tests.engine.stack import Run, Stack
from tools import check, credentials, env

# Real steps, which run the test's scripts: one that is only deleted, one that changes the host, a secret one.
PROGRAM = (
    own_scripts.PRELUDE
    + """
from model.settings import Settings

ssh_access.LIMITED_PAUSE_SECONDS = 0.1
settings = Settings.model_validate_json(given["settings"])
parent = pulumi.ComponentResource("test:index:Host", "node1")
runner, last = remote.Runner(settings, settings.hosts[0], "test", parent), None
for name in ("claim", "preparation", "join"):
    step = steps.Step(
        name,
        (SCRIPTS[name],),
        None if name == "claim" else lambda _: 60,
        delete_limit=(lambda _: 60) if name == "claim" else None,
        changes=name == "preparation",
        secret=name == "join",
    )
    opts = pulumi.ResourceOptions(depends_on=[last] if last else None)
    last = runner.step(step, parent, values={{"WANTED": given["wanted"]}}, opts=opts)
    pulumi.export(name, pulumi.Output.unsecret(last.stdout))
"""
)
SCRIPT = """run_step() { mkdir -p "$root/var/lib/kubeadm-ipvs"; echo "$1 $STEP $WANTED" | tee -a log; }
"""
# As in earlier versions: the text is all that runs, and its output has no frame.
EARLIER = """
remote.step_text = lambda step, values: f"echo $1 $2 {{values['WANTED']}} | tee -a log\\n"
"""
SUDO = """#!/bin/sh
shift
echo sudo >>log
exec "$@"
"""


@dataclass
class Operator:
    """Somebody who runs Pulumi on the stack with settings of their own."""

    stack: Stack
    host: SshServer
    settings: Settings
    scripts: Path

    def runs(self, wanted: str = "one") -> Stack:
        """The stack with this operator's settings."""
        given = {"settings": self.settings.model_dump_json(by_alias=True), "scripts": str(self.scripts)}
        self.stack.extra["GIVEN"] = json.dumps({**given, "wanted": wanted})
        return self.stack

    def change(self, wanted: str, *, fails: bool = False) -> Run:
        """Run an update that changes all steps."""
        return self.runs(wanted).up(fails=fails)

    def with_login(self, key: asyncssh.SSHKey | None = None, user: str = "root") -> Operator:
        """Another operator, or the same one after a change of the settings."""
        file = None
        if key is not None:
            file = self.scripts / f"key-{public(key)[-10:].replace('/', '_')}"
            file.touch(mode=0o600)
            file.write_text(private(key))
        ssh = self.settings.ssh.model_copy(
            update={"private_key_file": None if file is None else str(file), "user": user}
        )
        settings = self.settings.model_copy(update={"ssh": ssh})
        return Operator(self.stack, self.host, settings, self.scripts)


@pytest.fixture
def operator(
    stack: Stack, host: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Operator]:
    """An operator whose key file the host accepts; no step has run yet."""
    scripts = own_scripts.write(tmp_path / "scripts", claim=SCRIPT, preparation=SCRIPT, join=SCRIPT)
    program(tmp_path, "sudo", SUDO)
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{stack.environment['PATH']}")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(check, "project_dir", lambda: stack.folder)
    ssh = HostSsh(host="127.0.0.1", port=host.port, host_key=host.host_key)
    settings = Settings(
        hosts=(Host(name="node1", role="control-plane", address="10.0.0.11", ssh=ssh),),
        ssh=Ssh(dial_timeout_seconds=2, dial_attempts=1, wait_seconds=5),
    )
    stack.program(PROGRAM.format(project=str(project_dir())))
    first = Operator(stack, host, settings, scripts)
    yield first.with_login(asyncssh.import_private_key(host.private_key))


def program(folder: Path, name: str, text: str) -> Path:
    """A program on the host's PATH."""
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def new_key(host: SshServer, *, instead: bool = False) -> asyncssh.SSHKey:
    """A new key that the host accepts, besides the others or instead of them."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    host.authorized = {public(key)} | (set() if instead else host.authorized)
    return key


def test_other_key_file_changes_nothing(operator: Operator, host: SshServer) -> None:
    assert operator.runs().up().ops[-1:] != []
    commands = list(host.commands)
    for other in (new_key(host), None):
        second = operator.with_login(other)
        plan = second.runs().preview()
        assert (plan.ops, "tools credentials" in plan.text) == ([], False)
        run = second.runs().up()
        assert run.ops == []
        assert "tools credentials --stack test --write" in run.text
    assert host.commands == commands
    assert operator.runs().up().ops == []


def test_later_steps_use_the_login_that_worked(operator: Operator, host: SshServer) -> None:
    operator.runs().up()
    second = operator.with_login(asyncssh.generate_private_key("ssh-ed25519"), user="ops")
    run = second.change("two")
    assert {"update node1-claim", "update node1-preparation", "update node1-join"} <= set(run.ops)
    assert host.lines()[2:] == ["update preparation two", "update join two"]
    assert set(host.logins) == {"root"}


def test_rejected_login_of_the_state_names_the_way_out(operator: Operator, host: SshServer) -> None:
    operator.runs().up()
    second = operator.with_login(new_key(host, instead=True))
    text = second.change("two", fails=True).text
    assert "rejects the login with the key in the state (SHA256:" in text
    assert ".venv/bin/python -m tools credentials --stack test --write" in text
    assert host.private_key.splitlines()[1] not in text


def test_login_that_never_worked_isnt_kept(operator: Operator, host: SshServer) -> None:
    wrong = operator.with_login(asyncssh.generate_private_key("ssh-ed25519"))
    assert "rejects the login" in wrong.runs().up(fails=True).text
    assert host.commands == []
    operator.runs().up()
    assert host.lines() == ["create preparation one", "create join one"]


def test_command_replaces_key_and_user_without_running_steps(operator: Operator, host: SshServer) -> None:
    operator.runs().up()
    before, commands = operator.stack.raw_state(), list(host.commands)
    second = operator.with_login(new_key(host, instead=True), user="ops")
    shown = credentials.run("test", second.settings, write=False)
    assert "node1  root with the key SHA256:" in shown and "ops with the key SHA256:" in shown
    assert shown.endswith("nothing was changed; add --write to replace the logins in the state\n")
    assert operator.stack.raw_state() == before
    assert "replaced in the state" in credentials.run("test", second.settings, write=True)
    assert "every step in the state has" in credentials.run("test", second.settings, write=False)
    state = operator.stack.raw_state()
    assert host.private_key.splitlines()[1] not in state and "PRIVATE KEY" not in state
    assert second.runs().preview().ops == []
    run = second.runs().up()
    assert (run.ops, "tools credentials" in run.text, host.commands) == ([], False, commands)
    second.change("two")
    assert host.lines()[2:] == ["sudo", "update preparation two", "sudo", "update join two"]
    operator.stack.destroy()
    assert host.lines()[-2:] == ["sudo", "delete claim two"]
    assert host.logins[-1] == "ops"


def test_command_replaces_a_key_by_the_agent(operator: Operator, host: SshServer) -> None:
    operator.runs().up()
    credentials.run("test", operator.with_login(None).settings, write=True)
    assert operator.with_login(None).runs().preview().ops == []
    with ssh_agent(host.private_key) as socket:
        operator.stack.extra["SSH_AUTH_SOCK"] = socket
        operator.with_login(None).change("two")
        assert operator.with_login(None).runs("two").up().ops == []
    del operator.stack.extra["SSH_AUTH_SOCK"]
    credentials.run("test", operator.settings, write=True)
    assert operator.runs("two").preview().ops == []
    operator.change("three")
    assert host.lines()[-2:] == ["update preparation three", "update join three"]


def test_turned_away_step_is_retried_after_a_pause(operator: Operator, host: SshServer) -> None:
    host.refusing = 5
    text = operator.runs().up().text
    assert "the host no longer accepts connections" in text and "a rate limit?" in text
    assert host.lines() == ["create preparation one", "create join one"]


def test_output_of_an_earlier_version_is_accepted(operator: Operator, host: SshServer) -> None:
    """Its steps have no frame, and a run with `--target` may leave some of them as they are."""
    before, after = PROGRAM.split("\nparent = ")
    earlier = f"{before}\n{EARLIER}\nparent = {after}"
    operator.stack.program(earlier.format(project=str(project_dir())))
    operator.runs().up()
    assert host.lines() == ["create preparation one", "create join one"]
    operator.stack.program(PROGRAM.format(project=str(project_dir())))
    urn = next(entry["urn"] for entry in operator.stack.state() if entry["urn"].endswith("join"))
    operator.runs().up("--target", urn)
    assert host.lines()[2:] == ["update join one"]
    assert operator.stack.output("preparation") == "create preparation one"
    operator.runs().up()
    assert operator.stack.output("preparation") == "update preparation one"


def test_step_that_ran_nothing_fails_the_run(operator: Operator, tmp_path: Path) -> None:
    steps_do_nothing = f"""#!/bin/sh
case $* in *deliver) exec {shutil.which("timeout")} "$@" ;; esac
"""
    wrong = program(tmp_path, "timeout", steps_do_nothing)
    for run in (operator.runs().up(fails=True), operator.runs().up(fails=True)):
        assert "node1: preparation: the host reported success, but it returned nothing" in run.text
        assert "set `repair` on node1 to a new text and run `pulumi up`" in run.text
    wrong.unlink()
    operator.change("two")
    assert operator.stack.output("preparation") == "update preparation two"


def test_restored_host_isnt_restored_again(operator: Operator, host: SshServer) -> None:
    """Its scripts are gone too."""
    operator.runs().up()
    shutil.rmtree(host.folder / "var/lib/kubeadm-ipvs")
    shutil.rmtree(host.folder / "run/kubeadm-ipvs")
    operator.stack.destroy()
    assert host.lines() == ["create preparation one", "create join one"]


def test_lost_scripts_are_delivered_again_after_a_repair(operator: Operator, host: SshServer) -> None:
    operator.runs().up()
    shutil.rmtree(host.folder / "run/kubeadm-ipvs")
    # As if somebody had removed them after the access check.
    lost = operator.change("two", fails=True)
    assert "node1: preparation: FAILED: no scripts in" in lost.text
    assert "set `repair` to a new text and run `pulumi up`" in lost.text
    host.scripts = "none"
    operator.change("two")
    assert host.lines()[2:] == ["update preparation two", "update join two"]


@pytest.fixture(scope="module")
def finished_cluster(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Environment]:
    """A finished cluster of three hosts."""
    folder = tmp_path_factory.mktemp("credentials")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as environment:
        environment.stack.up()
        environment.calls.clear()
        yield environment


def test_other_credentials_change_no_step_of_a_cluster(
    finished_cluster: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = finished_cluster.copy(tmp_path / "copy")
    key = made.stack.folder / "login-key"
    key.write_text(private(asyncssh.generate_private_key("ssh-ed25519")))
    made.write({**made.settings, "ssh": {"user": "ops", "privateKeyFile": "login-key"}})
    assert made.stack.up("--expect-no-changes").ops == []
    monkeypatch.setattr(check, "project_dir", lambda: made.stack.folder)
    for name, value in made.stack.environment.items():
        monkeypatch.setenv(name, value)
    shown = credentials.run(finished.NAME, check.settings_of(finished.NAME), write=True)
    assert len(shown.split("\n\n")[0].splitlines()) == 4, "a row for each host"
    assert made.stack.up("--expect-no-changes").ops == []
    assert made.calls == []


@pytest.mark.parametrize(("host", "step"), [("master", "init"), ("node1", "join")])
def test_step_that_printed_nothing_is_repeated_by_repair(
    host: str,
    step: str,
    tmp_path: Path,
    toolbox: env.Toolbox,
    cluster: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next move that `components/remote.py` prints for these steps replaces nothing."""
    answer = finished.answer

    def answer_nothing(command: str, cluster: ApiServer) -> str:
        return "" if f" create {step} {host}" in command else answer(command, cluster)

    monkeypatch.setattr(finished, "answer", answer_nothing)
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as made:
        failed = made.stack.up(fails=True)
        assert f"{host}: {step}: the host reported success, but it returned nothing" in failed.text
        settings = deepcopy(made.settings)
        next(entry for entry in settings["hosts"] if entry["name"] == host)["repair"] = "once"
        made.write(settings)
        made.calls.clear()
        run = made.stack.up()
        assert f"{host}: update {step} {host}" in made.calls
        replaced = {step.name for step in run.steps if step.op not in ("same", "create", "update", "refresh")}
        assert {name for name in replaced if not name.endswith("-desired")} == set()
        made.stack.up("--expect-no-changes")
