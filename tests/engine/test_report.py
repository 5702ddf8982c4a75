"""The report of a change, by what the real engine previews of the real program.

The cluster is in the state as after a first `up` (tests/engine/finished.py). What is expected of each kind
of change is a page in data/report. To write them anew, and then review the difference:

    GOLDEN=write .venv/bin/python -m pytest tests/engine/test_report.py
"""

from __future__ import annotations

import copy
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
from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.engine.finished import NAME, Environment
from tests.fast.test_graph import TOKEN
from tools import ci, env, policy

PAGES = Path(__file__).parent / "data" / "report"
FINE, FAILED, DESTRUCTIVE = 0, 1, 3
LATEST = "docker.io/library/nginx:latest"

Edit = Callable[[dict[str, Any], Environment], None]


@dataclass(frozen=True)
class Kind:
    """A kind of change, and the status of the check."""

    edit: Edit
    status: int = FINE


def settings(**sections: Any) -> Edit:
    return lambda written, _: written.update({**sections})


def swap_roles(written: dict[str, Any], _: Environment) -> None:
    written["hosts"][0]["role"], written["hosts"][1]["role"] = "worker", "control-plane"


def in_file(path: str, old: str, new: str) -> Edit:
    def edit(_: dict[str, Any], there: Environment) -> None:
        file = there.stack.folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


def without_object(path: str, number: int) -> Edit:
    def edit(_: dict[str, Any], there: Environment) -> None:
        file = there.stack.folder / path
        documents = file.read_text().split("---\n")
        del documents[number]
        file.write_text("---\n".join(documents))

    return edit


def in_host(number: int, **values: Any) -> Edit:
    return lambda written, _: written["hosts"][number].update(values)


WAY_IN = settings(ssh={"privateKeyFile": "login-key", "dialAttempts": 20})
KINDS = {
    "nothing": Kind(settings()),
    "worker-added": Kind(lambda written, there: written["hosts"].append(there.spare)),
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
    "way-in": Kind(WAY_IN),
    "certificate-names": Kind(lambda written, _: written["cluster"].update(certSANs=["api.test"])),
    "sandbox-image": Kind(settings(registry={"imageRepository": "registry.example.com/k8s"})),
    # Its ConfigMap is made anew: the provider changes none in place.
    "flannel-backend": Kind(settings(network={"flannel": {"backend": "host-gw"}}), DESTRUCTIVE),
    "version": Kind(lambda written, _: written["cluster"].update(kubernetesVersion="1.38.0"), FAILED),
    "kubelet": Kind(lambda written, _: written["cluster"].update(kubelet={"maxPods": 60})),
    "proxy-mode": Kind(settings(proxy={"mode": "nftables"})),
    "scheduler": Kind(settings(proxy={"scheduler": "wrr"})),
    "registry-mirror": Kind(settings(registry={"mirrors": {"docker.io": ["https://mirror.example.com"]}})),
    "manifest-edit": Kind(in_file("manifests/nginx.yaml", "port: 80", "port: 81")),
    "service-port": Kind(settings(nginx={"nodePort": 30081})),
    "service-removed": Kind(without_object("manifests/nginx.yaml", 1), DESTRUCTIVE),
    "replicas": Kind(settings(nginx={"replicas": 3})),
    "pod-subnet": Kind(settings(network={"podSubnet": "10.200.0.0/16"}), DESTRUCTIVE),
    "script": Kind(
        in_file("scripts/lib.sh", "# shellcheck shell=bash", "# shellcheck shell=bash\n# Another.")
    ),
    "policy-warned": Kind(settings(nginx={"image": LATEST})),
    "policy-refused": Kind(settings(production=True, nginx={"image": LATEST}), FAILED),
    "bad-configuration": Kind(
        settings(proxy={"scheduler": "wrong"}, network={"podSubnet": "10.0.0.0/16"}), FAILED
    ),
}


@dataclass(frozen=True)
class Known:
    """The environment before its cluster was made, and after."""

    fresh: Environment
    finished: Environment
    secrets: tuple[str, ...]


@pytest.fixture(scope="module")
def known(
    tmp_path_factory: pytest.TempPathFactory, toolbox: env.Toolbox, cluster: ApiServer
) -> Iterator[Known]:
    folder = tmp_path_factory.mktemp("report")
    variables = policy.with_pack(env.environment(toolbox), Progress())
    with finished.environment(folder / "made", variables, cluster) as made:
        fresh = made.copy(folder / "fresh")
        made.stack.up()
        login = (made.stack.folder / "login-key").read_text().splitlines()
        yield Known(fresh, made, (TOKEN, cluster.token, *login[1:-1]))


def reported(there: Environment, before: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    """Preview as `tools.ci` does, and report as a workflow's step does."""
    previews = there.stack.folder.parent / "previews"
    good = ci.previewed(there.stack.folder, NAME, previews, there.stack.environment)
    planned, errors = previews / f"{NAME}.json", previews / f"{NAME}.errors"
    assert planned.exists() != errors.exists()
    assert planned.exists() or not good
    arguments = ["--preview", f"{NAME}={planned}"] if planned.exists() else ["--errors", f"{NAME}={errors}"]
    arguments += ["--policy", f"{NAME}={previews / f'{NAME}.policy.json'}"]
    if before is not None:
        (previews / "before.yaml").write_text(before)
        arguments += ["--settings-before", f"{NAME}={previews / 'before.yaml'}"]
    return subprocess.run(
        [sys.executable, "-m", "tools.report", *arguments, *options],
        cwd=there.stack.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def steady(text: str) -> str:
    """Without what each run has of its own: ports and keys."""
    text = re.sub(r"(ssh\.port: )\d+", r"\1PORT", text)
    return re.sub(r"ssh-ed25519 [A-Za-z0-9+/=]+", "ssh-ed25519 KEY", text)


def compare(name: str, text: str) -> None:
    page = PAGES / f"{name}.md"
    if os.environ.get("GOLDEN") == "write":
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(steady(text))
    assert steady(text) == page.read_text(), f"{page} has it otherwise"


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_change_is_told_in_words(name: str, known: Known, tmp_path: Path) -> None:
    there = known.finished.copy(tmp_path / "copy")
    before = there.file.read_text()
    written = copy.deepcopy(there.settings)
    KINDS[name].edit(written, there)
    there.write(written)
    done = reported(there, before)
    assert done.stderr == ""
    assert done.returncode == KINDS[name].status, done.stdout
    assert [secret for secret in known.secrets if secret in done.stdout] == []
    compare(name, done.stdout)


def test_a_new_cluster_is_told_with_every_object_of_the_manifests(known: Known, tmp_path: Path) -> None:
    there = known.fresh.copy(tmp_path / "copy")
    done = reported(there, None)
    assert done.returncode == FINE, done.stderr
    for manifest in sorted((there.stack.folder / "manifests").glob("*.yaml")):
        for kind in re.findall(r"^kind: (\w+)$", manifest.read_text(), re.MULTILINE):
            assert f"+ create {kind}/" in done.stdout
    compare("new-cluster", done.stdout)


def test_a_cluster_that_is_read_again_is_the_same_one_in_the_preview_too(
    known: Known, tmp_path: Path
) -> None:
    there = known.finished.copy(tmp_path / "copy")
    written = copy.deepcopy(there.settings)
    WAY_IN(written, there)
    there.write(written)
    planned, done = there.stack.preview(), there.stack.up()
    objects = {step.name for step in planned.steps if step.type.startswith("kubernetes:")}
    assert "update master-admin" in done.ops
    # Not known in the preview is only whether the provider would write them otherwise.
    assert {step.op for step in planned.steps if step.name in objects} == {"update"}
    assert {step.op for step in done.steps if step.name in objects} == {"same"}


def test_what_is_meant_passes_and_is_still_told(known: Known, tmp_path: Path) -> None:
    there = known.finished.copy(tmp_path / "copy")
    before = there.file.read_text()
    there.write({**there.settings, "hosts": there.settings["hosts"][:2]})
    done = reported(there, before, "--allow-destructive")
    assert done.returncode == FINE, done.stderr
    compare("worker-removed-and-meant", done.stdout)


def test_every_page_is_of_a_kind() -> None:
    made = {*KINDS, "new-cluster", "worker-removed-and-meant"}
    assert {page.stem for page in PAGES.glob("*.md")} == made
