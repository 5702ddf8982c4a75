"""The report on changes, from the real engine's previews of the real program.

The stack is in the state after its first `up` (tests/engine/finished.py). The expected page for each kind of
change is in data/report. To regenerate the pages, run this command and review the diff:

    GOLDEN=write .venv/bin/python -m pytest tests/engine/test_report.py
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.progress import Progress
from model.kubeadm import join_token
from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import NAME, Environment
from tests.engine.stack import replace_in
from tools import ci, env, policy

PAGES = Path(__file__).parent / "data" / "report"
OK, FAILED, DESTRUCTIVE = 0, 1, 3
LATEST = "docker.io/library/nginx:latest"

Edit = Callable[[dict[str, Any], Environment], None]


@dataclass(frozen=True)
class Kind:
    """A kind of change, and the exit status of its report."""

    edit: Edit
    status: int = OK


def settings(**sections: Any) -> Edit:
    return lambda written, _: written.update({**sections})


def swap_roles(written: dict[str, Any], _: Environment) -> None:
    written["hosts"][0]["role"], written["hosts"][1]["role"] = "worker", "control-plane"


def in_file(path: str, old: str, new: str) -> Edit:
    def edit(_: dict[str, Any], environment: Environment) -> None:
        replace_in(environment.stack.folder / path, old, new)

    return edit


def without_object(path: str, number: int) -> Edit:
    def edit(_: dict[str, Any], environment: Environment) -> None:
        file = environment.stack.folder / path
        documents = file.read_text().split("---\n")
        del documents[number]
        file.write_text("---\n".join(documents))

    return edit


def in_host(number: int, **values: Any) -> Edit:
    return lambda written, _: written["hosts"][number].update(values)


SSH_ACCESS = settings(ssh={"privateKeyFile": "login-key", "dialAttempts": 20})
KINDS = {
    "nothing": Kind(settings()),
    "worker-added": Kind(lambda written, environment: written["hosts"].append(environment.spare)),
    "worker-removed": Kind(lambda written, _: written["hosts"].pop(), DESTRUCTIVE),
    "host-renamed": Kind(in_host(2, name="node9"), DESTRUCTIVE),
    "host-moved": Kind(in_host(2, address="10.0.0.99"), DESTRUCTIVE),
    "control-plane-renamed": Kind(in_host(0, name="first"), DESTRUCTIVE),
    "control-plane-demoted": Kind(swap_roles, FAILED),
    "cluster-name": Kind(lambda written, _: written["cluster"].update(name="mine")),
    "host-labels": Kind(in_host(2, labels={"example.com/disk": "ssd"})),
    "host-taints": Kind(in_host(2, taints=["example.com/only=web:NoSchedule"])),
    "host-repaired": Kind(in_host(1, repair="2026-01-31")),
    "control-plane-repaired": Kind(in_host(0, repair="2026-01-31")),
    "firewall": Kind(settings(firewall="leave")),
    "ssh-access": Kind(SSH_ACCESS),
    "certificate-names": Kind(lambda written, _: written["cluster"].update(certSANs=["api.test"])),
    "sandbox-image": Kind(
        lambda written, _: written["cluster"].update(imageRepository="registry.example.com/k8s")
    ),
    # The provider replaces flannel's ConfigMap; it can't change one in place.
    "flannel-backend": Kind(settings(network={"flannel": {"backend": "host-gw"}}), DESTRUCTIVE),
    "version": Kind(lambda written, _: written["cluster"].update(kubernetesVersion="1.38.0"), FAILED),
    "kubelet": Kind(lambda written, _: written["cluster"].update(kubelet={"maxPods": 60})),
    "proxy-mode": Kind(settings(proxy={"mode": "nftables"})),
    "scheduler": Kind(settings(proxy={"scheduler": "wrr"})),
    "registry-mirror": Kind(settings(runtime={"mirrors": {"docker.io": ["https://mirror.example.com"]}})),
    "manifest-edit": Kind(in_file("manifests/nginx.yaml", "port: 80", "port: 81")),
    "service-port": Kind(settings(nginx={"nodePort": 30081})),
    "service-removed": Kind(without_object("manifests/nginx.yaml", 1), DESTRUCTIVE),
    "replicas": Kind(settings(nginx={"replicas": 3})),
    "pod-subnet": Kind(settings(network={"podSubnet": "10.200.0.0/16"}), DESTRUCTIVE),
    "script": Kind(
        in_file("scripts/lib/step.sh", "# shellcheck shell=bash", "# shellcheck shell=bash\n# Changed.")
    ),
    "policy-warned": Kind(settings(nginx={"image": LATEST})),
    "policy-violated": Kind(settings(production=True, nginx={"image": LATEST}), FAILED),
    "bad-configuration": Kind(
        settings(proxy={"scheduler": "wrong"}, network={"podSubnet": "10.0.0.0/16"}), FAILED
    ),
}


@dataclass(frozen=True)
class Made:
    """The environment before and after its first `up`, and its secrets."""

    fresh: Environment
    finished: Environment
    secrets: tuple[str, ...]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("report")
    variables = policy.with_pack(env.environment(toolbox), Progress())
    with finished.environment(folder / "made", variables, cluster) as environment:
        fresh = environment.copy(folder / "fresh")
        environment.stack.up()
        login = (environment.stack.folder / "login-key").read_text().splitlines()
        exported = json.loads(environment.stack.call("stack", "export", "--show-secrets").stdout)
        [stash] = [
            resource
            for resource in exported["deployment"]["resources"]
            if resource["urn"].endswith("::join-tokens")
        ]
        key = json.loads(stash["outputs"]["output"]["plaintext"])
        yield Made(fresh, environment, (key, join_token(key, "node1"), cluster.token, *login[1:-1]))


def report(environment: Environment, before: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    """Preview like `tools ci preview`, and report like a workflow's step."""
    stack = environment.stack
    previews = stack.folder.parent / "previews"
    succeeded = ci.write_preview(stack.folder, NAME, previews, stack.environment)
    planned, errors = previews / f"{NAME}.json", previews / f"{NAME}.errors"
    assert planned.exists() != errors.exists()
    assert planned.exists() or not succeeded
    arguments = ["--preview", f"{NAME}={planned}"] if planned.exists() else ["--errors", f"{NAME}={errors}"]
    arguments += ["--policy", f"{NAME}={previews / f'{NAME}.policy.json'}"]
    if before is not None:
        (previews / "before.yaml").write_text(before)
        arguments += ["--settings-before", f"{NAME}={previews / 'before.yaml'}"]
    return subprocess.run(
        [sys.executable, "-m", "tools", "report", *arguments, *options],
        cwd=stack.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def normalized(text: str) -> str:
    """Replace ports and keys, which differ from run to run."""
    text = re.sub(r"(ssh\.port: )\d+", r"\1PORT", text)
    return re.sub(r"ssh-ed25519 [A-Za-z0-9+/=]+", "ssh-ed25519 KEY", text)


def compare(name: str, text: str) -> None:
    page = PAGES / f"{name}.md"
    if os.environ.get("GOLDEN") == "write":
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(normalized(text))
    assert normalized(text) == page.read_text(), f"{page} differs; to regenerate it, see {__file__}"


@pytest.mark.parametrize("name", KINDS)
def test_change_produces_the_expected_page(name: str, made: Made, tmp_path: Path) -> None:
    environment = made.finished.copy(tmp_path / "copy")
    before = environment.file.read_text()
    written = copy.deepcopy(environment.settings)
    KINDS[name].edit(written, environment)
    environment.write(written)
    done = report(environment, before)
    assert done.stderr == ""
    assert done.returncode == KINDS[name].status, done.stdout
    assert [secret for secret in made.secrets if secret in done.stdout] == []
    compare(name, done.stdout)


def test_new_cluster_lists_every_object(made: Made, tmp_path: Path) -> None:
    environment = made.fresh.copy(tmp_path / "copy")
    done = report(environment, None)
    assert done.returncode == OK, done.stderr
    for manifest in sorted((environment.stack.folder / "manifests").glob("*.yaml")):
        for kind in re.findall(r"^kind: (\w+)$", manifest.read_text(), re.MULTILINE):
            assert f"+ create {kind}/" in done.stdout
    compare("new-cluster", done.stdout)


def test_changed_control_plane_changes_no_object(made: Made, tmp_path: Path) -> None:
    """The kubeconfig is among the results of `init`, and the objects depend on it."""
    environment = made.finished.copy(tmp_path / "copy")
    written = copy.deepcopy(environment.settings)
    SSH_ACCESS(written, environment)
    environment.write(written)
    planned, done = environment.stack.preview(), environment.stack.up()
    for run in (planned, done):
        assert "update master-init" in run.ops
        assert {step.op for step in run.steps if step.type.startswith("kubernetes:")} <= {"same"}


def test_approved_change_passes_but_stays_listed(made: Made, tmp_path: Path) -> None:
    environment = made.finished.copy(tmp_path / "copy")
    before = environment.file.read_text()
    environment.write({**environment.settings, "hosts": environment.settings["hosts"][:2]})
    done = report(environment, before, "--allow-destructive")
    assert done.returncode == OK, done.stderr
    compare("worker-removed-approved", done.stdout)


def test_every_page_belongs_to_a_kind() -> None:
    expected = {*KINDS, "new-cluster", "worker-removed-approved"}
    assert {page.stem for page in PAGES.glob("*.md")} == expected
