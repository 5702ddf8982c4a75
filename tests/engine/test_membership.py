"""A first run, and adding and removing a host: who is logged in to, what is shown, what the state keeps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.kubeadm import join_token
from report.plan import COMMAND, STASH
from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import NAME, Environment
from tests.engine.stack import Run
from tools import env

# The access check, which also delivers the scripts; preparation, join, verification.
WORKER_LOGINS = 4
# The access check; preparation, init, nodes, expected services, verification.
CONTROL_PLANE_LOGINS = 6
STATE_BYTES = 60_000  # docs/decisions/0037 has the parts
"""How much a host may add to the state file."""


@dataclass(frozen=True)
class Made:
    """The environment before and after its first `up`.

    Attributes:
        first: The first `up`.
        logins: How many times each host was logged in to by that run.
    """

    fresh: Environment
    finished: Environment
    first: Run
    logins: dict[str, int]


def logins(environment: Environment) -> dict[str, int]:
    return {name: len(server.logins) for name, server in environment.servers.items()}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("membership")
    with finished.environment(folder / "made", env.environment(toolbox), cluster) as environment:
        # As in a large cluster, where a host more or less concerns few others: a worker requests the host
        # before it, the firewalls let in a network instead of each host, and there are fewer pods than
        # workers.
        environment.settings["verification"] = {"peers": 1}
        environment.settings["firewallSources"] = {"hosts": ["10.0.0.0/24"]}
        environment.settings["nginx"] = {"replicas": 1}
        environment.write(environment.settings)
        fresh = environment.copy(folder / "fresh")
        first = environment.stack.up()
        yield Made(fresh, environment, first, logins(environment))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Environment:
    """A copy of the finished cluster to change, without calls yet."""
    made.finished.calls.clear()
    made.finished.failing.clear()
    return made.finished.copy(tmp_path / "copy")


def add_spare(environment: Environment) -> None:
    environment.write({**environment.settings, "hosts": [*environment.settings["hosts"], environment.spare]})


def changed(run: Run) -> set[str]:
    """The commands that a run changes, or may change."""
    return {step.name for step in run.steps if step.type == COMMAND and step.op not in ("same", "refresh")}


def contacted(environment: Environment, before: dict[str, int]) -> dict[str, int]:
    """How many times each host was logged in to since then; others are missing."""
    return {name: count - before[name] for name, count in logins(environment).items() if count > before[name]}


# -- logins


def test_first_run_logs_in_a_few_times_per_host(made: Made) -> None:
    assert made.logins["master"] <= CONTROL_PLANE_LOGINS
    for worker in ("node1", "node2"):
        assert made.logins[worker] <= WORKER_LOGINS
    for name, server in made.finished.servers.items():
        delivered = 0 if name == "node3" else 1
        assert len(server.deliveries) >= delivered


def test_more_workers_need_no_more_logins_elsewhere(made: Made, tmp_path: Path) -> None:
    environment = made.fresh.copy(tmp_path / "copy")
    add_spare(environment)
    for server in environment.servers.values():
        server.scripts = "none"
    before = logins(environment)
    environment.stack.up()
    found = contacted(environment, before)
    assert found.pop("master") <= CONTROL_PLANE_LOGINS
    assert set(found) == {"node1", "node2", "node3"}
    assert max(found.values()) <= WORKER_LOGINS


def test_run_without_changes_logs_in_nowhere(copy: Environment) -> None:
    before = logins(copy)
    copy.stack.up("--expect-no-changes")
    assert copy.stack.preview().ops == []
    assert contacted(copy, before) == {}


# -- adding and removing a host


def test_preview_of_an_added_host_shows_no_other_worker(copy: Environment) -> None:
    add_spare(copy)
    plan = copy.stack.preview()
    cluster_wide = {"nodes", "expected-services", "master-verification"}
    own = {f"node3-{step}" for step in ("claim", "preparation", "join", "node", "deregister", "verification")}
    assert changed(plan) == own | cluster_wide
    for step in plan.steps:
        if step.name in cluster_wide:
            assert step.op == "update", step
        elif step.op != "same":
            # The rest are values in the state, and components.
            assert step.name in own or step.type == STASH or step.type.startswith("kubeadm-ipvs:"), step
            assert not step.name.startswith(("node1", "node2")), step


def test_added_host_is_joined_without_logins_to_other_workers(copy: Environment) -> None:
    add_spare(copy)
    before = logins(copy)
    run = copy.stack.up()
    assert not [op for op in run.ops if op.startswith(("delete ", "replace ")) and "-desired" not in op]
    found = contacted(copy, before)
    assert set(found) == {"master", "node3"}
    assert found["node3"] <= WORKER_LOGINS
    assert found["master"] <= 4, "the access check, nodes, expected services, verification"
    assert copy.calls == [
        "node3: create preparation node3",
        "node3: create join node3",
        "master: update nodes master",
        "master: update expected_services master",
        *sorted(copy.calls[-2:]),
    ]
    assert set(copy.calls[-2:]) == {
        "master: update verification master",
        "node3: create verification node3",
    }
    copy.calls.clear()
    copy.stack.up("--expect-no-changes")
    assert copy.calls == []


def test_removed_host_changes_no_other_worker(copy: Environment) -> None:
    hosts = [host for host in copy.settings["hosts"] if host["name"] != "node2"]
    copy.write({**copy.settings, "hosts": hosts})
    plan = copy.stack.preview()
    assert {name for name in changed(plan) if not name.startswith("node2-")} == {
        "nodes",
        "expected-services",
        "master-verification",
    }
    before = logins(copy)
    copy.stack.up()
    assert set(contacted(copy, before)) == {"master", "node2"}
    assert [call for call in copy.calls if call.startswith("node2: ")] == ["node2: delete claim node2"]
    assert not [call for call in copy.calls if call.startswith("node1: ")]
    copy.stack.up("--expect-no-changes")


def test_small_cluster_updates_and_verifies_every_host(copy: Environment) -> None:
    """By default, the firewalls let in each host, and with few hosts each of them requests all others."""
    defaults = ("verification", "firewallSources", "nginx")
    settings = {name: value for name, value in copy.settings.items() if name not in defaults}
    copy.write(settings)
    copy.stack.up()
    copy.calls.clear()
    copy.write({**settings, "hosts": [*settings["hosts"], copy.spare]})
    copy.stack.up()
    steps = ("preparation", "verification")
    for step in steps:
        assert {call.partition(":")[0] for call in copy.calls if f" {step} " in call} == set(finished.HOSTS)
    others = [call for call in copy.calls if call.startswith(("node1: ", "node2: "))]
    assert {call.split()[2] for call in others} == set(steps)


def test_failed_addition_is_completed_by_the_next_run(copy: Environment) -> None:
    add_spare(copy)
    copy.failing.add("node3: create join node3")
    copy.stack.up(fails=True)
    copy.failing.clear()
    copy.calls.clear()
    copy.stack.up()
    assert copy.calls[0] == "node3: create join node3"
    assert not [call for call in copy.calls if call.startswith(("node1", "node2"))]
    copy.stack.up("--expect-no-changes")


# -- secrets


def secrets(environment: Environment, cluster: ApiServer) -> dict[str, str]:
    """The stack's secrets by a name."""
    exported = json.loads(environment.stack.call("stack", "export", "--show-secrets").stdout)
    stashes = {
        entry["urn"].rpartition("::")[2]: entry["outputs"].get("output")
        for entry in exported["deployment"]["resources"]
        if entry["type"] == STASH
    }
    key = str(json.loads(stashes["join-tokens"]["plaintext"]))
    assert len(key) == 64
    tokens = {f"token of {name}": join_token(key, name) for name in finished.HOSTS}
    assert len(set(tokens.values())) == len(tokens)
    login = (environment.stack.folder / "login-key").read_text().splitlines()[1]
    return {
        "token key": key,
        **tokens,
        **{f"second part of the {name}": token.partition(".")[2] for name, token in tokens.items()},
        "the kubeconfig's token": cluster.token,
        "login key": login,
    }


def assert_secret(values: dict[str, str], **texts: str) -> None:
    found = {
        (name, where) for name, value in values.items() for where, text in texts.items() if value in text
    }
    assert found == set()


def shown(run: Run) -> str:
    return "\n".join([run.text, *run.messages, *run.progress])


def test_secrets_stay_out_of_state_and_output(made: Made, copy: Environment, cluster: ApiServer) -> None:
    values = secrets(copy, cluster)
    add_spare(copy)
    copy.failing.add("node3: create join node3")
    preview, failed = copy.stack.preview(), copy.stack.up(fails=True)
    copy.failing.clear()
    commands = "\n".join(command for server in copy.servers.values() for command in server.commands)
    assert_secret(
        values,
        first=shown(made.first),
        preview=shown(preview),
        failed=shown(failed),
        added=shown(copy.stack.up()),
        state=copy.stack.raw_state(),
        commands=commands,
    )
    plain = copy.stack.call("stack", "output").stdout
    assert "kubeconfig" in plain
    assert_secret(values, outputs=plain, destroyed=shown(copy.stack.destroy()))


def test_failed_init_shows_no_kubeconfig(
    tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's errors have everything that a step has printed."""
    answer = finished.answer

    def printing(command: str, cluster: ApiServer) -> str:
        # All of the results, but the connection is lost before their end.
        return answer(command, cluster).rpartition("--- kubeadm-ipvs: end")[0]

    with finished.environment(tmp_path, env.environment(toolbox), cluster) as environment:
        monkeypatch.setattr(finished, "answer", printing)
        failed = environment.stack.up(fails=True)
        assert "master: init: the host reported success, but it returned output without" in failed.text
        assert_secret(
            {"the kubeconfig's token": cluster.token},
            failed=shown(failed),
            state=environment.stack.raw_state(),
        )


# -- the state


def state_file(environment: Environment) -> Path:
    [file] = (environment.stack.folder.parent / "backend/.pulumi/stacks").glob(f"*/{NAME}.json")
    return file


def parts(file: Path) -> Counter[str]:
    """The bytes of each field of each type of resource, over all resources."""
    found: Counter[str] = Counter()
    resources: list[dict[str, Any]] = json.loads(file.read_text())["checkpoint"]["latest"]["resources"]
    for resource in resources:
        kind = resource["type"].rpartition(":")[2]
        for field, value in resource.items():
            # The fields of inputs and outputs, but not those of a secret.
            nested = field in ("inputs", "outputs") and "ciphertext" not in value
            for part, item in value.items() if nested else [("", value)]:
                name = f"{kind} {field}{part and f'.{part}'}"
                found[name] += len(json.dumps({part or field: item}, separators=(",", ":"))) - 1
    return found


def test_state_of_a_host_is_small(copy: Environment) -> None:
    """Every run reads and writes the whole state, which has to be kept and sent."""
    file = state_file(copy)
    size, before = file.stat().st_size, parts(file)
    add_spare(copy)
    copy.stack.up()
    grown = file.stat().st_size - size
    largest = (parts(file) - before).most_common(40)
    report = "\n".join(f"{count:7} {name}" for name, count in largest)
    assert grown <= STATE_BYTES, f"{grown} bytes for one host; the largest parts:\n{report}"
