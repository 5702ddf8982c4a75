"""The output of a real Pulumi run: progress, counts, causes of failures, times."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from tests.engine.ssh_server import SshServer, ssh_server
from tests.live_engine import Engine
from tools import env, runs, stack, timeline, watch
from tools.critical import Timeline

PROGRAM = """
import json
import os
import pulumi
from pulumi_command import remote

given = json.loads(os.environ["GIVEN"])

class Part(pulumi.ComponentResource):
    def __init__(self, kind, name):
        super().__init__(f"kubeadm-ipvs:index:{kind}", name)

def step(name, parent, create, opts=None):
    return remote.Command(
        name,
        connection=remote.ConnectionArgs(
            host="127.0.0.1", port=given["port"], user="root",
            host_key=given["host_key"], private_key=pulumi.Output.secret(given["private_key"]),
        ),
        create=create, update=create, add_previous_output_in_env=False, logging=remote.Logging.STDERR,
        opts=pulumi.ResourceOptions.merge(pulumi.ResourceOptions(parent=parent), opts),
    )

if given.get("invalid"):
    raise pulumi.RunError("hosts[0].address: not an address")
claim = step("master-claim", Part("PreparedHost", "master"), "echo 'master: claim: checking' >&2")
replaced = pulumi.ResourceOptions(replace_on_changes=["input"])
pulumi.Stash("master-init-desired", input=given["init"], opts=replaced)
after = lambda *steps: pulumi.ResourceOptions(depends_on=list(steps))
init = step("master-init", Part("ControlPlane", "cp"), given["init"], after(claim))
step("flannel-object", Part("Manifest", "flannel"), "true", after(init))
"""


@dataclass
class Project:
    """A project with a stack, and a host."""

    folder: Path
    toolbox: env.Toolbox
    server: SshServer

    def variables(self, **given: object) -> dict[str, str]:
        """The environment of a command. `given` is passed to the program."""
        connection = {
            "port": self.server.port,
            "host_key": self.server.host_key,
            "private_key": self.server.private_key,
        }
        return env.environment(self.toolbox) | {"GIVEN": json.dumps({**connection, "init": "true", **given})}

    def pulumi(self, command: str, **given: object) -> tuple[watch.Watcher, list[str]]:
        """Run a command; return the results and the progress lines without their times."""
        stream = io.StringIO()
        variables = self.variables(**given)
        try:
            with runs.recorded("t", command, variables, self.folder) as record:
                result = watch.run(
                    [command, "--yes", "--stack", "t"], variables, self.folder, Progress(stream), record
                )
        except UserError as error:
            error.add_note(stream.getvalue())
            raise
        return result, [line.partition("] ")[2] for line in stream.getvalue().splitlines()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a temporary backend."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        toolbox = env.toolbox(Progress(quiet=True))
        (folder / "Pulumi.yaml").write_text("name: watched\nruntime: python\n")
        (folder / "__main__.py").write_text(PROGRAM)
        stack.ensure("t", toolbox, Progress(quiet=True), folder)
        with ssh_server(folder / "host") as server:
            yield Project(folder, toolbox, server)


def test_up_reports_counts_and_step_output(project: Project) -> None:
    result, lines = project.pulumi("up", init="sleep 0.3")
    assert "plan: 3 resources to change" in lines
    assert "master: claim: checking" in lines
    ends = [line for line in lines if " created (" in line]
    assert [line.split(" (")[0] for line in ends] == [
        "1/3 master-claim created",
        "2/3 master-init created",
        "3/3 flannel-object created",
    ]
    assert result.changes == {"create": 7}, "components and the stack count too; stashes don't"
    assert [span.name for span in result.spans] == ["prepare hosts", "init", "flannel"]
    assert result.spans[1].took >= 0.3


def test_replaced_stash_is_not_counted(project: Project) -> None:
    project.pulumi("up")
    result, lines = project.pulumi("up", init="true # changed")
    assert "plan: 1 resource to change" in lines
    assert result.changes == {"update": 1}


def test_unchanged_stack_reports_nothing_to_change(project: Project) -> None:
    project.pulumi("up")
    result, lines = project.pulumi("up")
    assert "plan: nothing to change" in lines
    assert result.changes == {}
    assert result.spans == []


def test_pending_creates_are_cleared_by_a_later_run(project: Project, tmp_path: Path) -> None:
    project.pulumi("destroy")
    held = tmp_path / "held"
    variables = project.variables(init=f"touch {held}; while [ -e {held} ]; do sleep 0.1; done")
    engine = Engine("up", stack="t", folder=project.folder, environment=variables)
    try:
        assert engine.wait_until_started("create master-init"), engine.diagnostics
        deadline = time.monotonic() + 120
        while not held.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        engine.kill()
        held.unlink(missing_ok=True)
        engine.kill_plugins()
    progress = Progress(quiet=True)

    def interrupted() -> bool:
        _, lines = project.pulumi("up")
        return any("master-init, interrupted while creating" in line for line in lines)

    stack.unlock("t", project.toolbox, progress, project.folder)
    assert interrupted()
    assert interrupted(), "Pulumi keeps it forever"
    stack.clear_pending_creates("t", project.toolbox, progress, project.folder)
    assert not interrupted()


def test_failed_step_is_named_with_its_cause(project: Project) -> None:
    with pytest.raises(UserError) as caught:
        project.pulumi("up", init="echo 'master: init: FAILED: no etcd' >&2; exit 3")
    assert "pulumi up --yes --stack t failed at master-init" in caught.value.what
    assert "master: init: FAILED: no etcd" in caught.value.what
    assert "master-init FAILED" in caught.value.__notes__[0]
    project.pulumi("up")


def test_invalid_configuration_has_no_traceback(project: Project) -> None:
    with pytest.raises(UserError) as caught:
        project.pulumi("up", invalid=True)
    assert "hosts[0].address: not an address" in caught.value.what
    assert "Traceback" not in str(caught.value)
    assert "plan:" not in caught.value.__notes__[0], "an incomplete plan isn't reported"


def test_destroy_reports_deletions(project: Project) -> None:
    project.pulumi("up")
    result, lines = project.pulumi("destroy")
    assert sum(" deleted (" in line for line in lines) == 3
    assert set(result.changes) == {"delete"}


def path_of(run: Timeline) -> list[str]:
    return [watch.Urn.parse(step.bar.urn).name for step in run.path]


def test_run_is_recorded_without_resource_contents(project: Project) -> None:
    project.pulumi("destroy")
    project.pulumi("up", init="sleep 0.5")
    made = timeline.last("t")
    assert path_of(made) == ["master-claim", "master-init", "flannel-object"]
    assert made.by_dependencies and made.exact
    assert made.path[1].bar.took >= 0.5
    assert list(made.groups()) == ["master", "cluster"]
    project.pulumi("destroy")
    gone = timeline.last("t")
    assert (gone.command, path_of(gone)) == ("destroy", path_of(made)[::-1])
    assert gone.by_dependencies, "dependencies are read before the state is emptied"
    kept = "".join(file.read_text() for file in runs.folder("t").iterdir())
    assert "checking" not in kept and "BEGIN OPENSSH" not in kept and "sleep" not in kept
