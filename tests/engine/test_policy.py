"""The policy pack, run by the real engine on copies of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common import paths
from common.progress import Progress
from tests import stacks
from tests.engine.stack import LIMIT_SECONDS, Stack, forget_state, make_committed_stack, replace_in
from tools import env, policy

Copy = Callable[[str], Stack]


@pytest.fixture
def copy(toolbox: env.Toolbox, tmp_path: Path) -> Copy:
    """A function that creates a committed stack in a copy of the checkout. The engine runs the pack."""
    variables = policy.with_pack(env.environment(toolbox), Progress())

    return lambda name: make_committed_stack(tmp_path, variables, name)


def preview(stack: Stack) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Preview with the pack; return the run and the level of each broken rule."""
    done = stack.plain_preview("--policy-pack", str(stack.folder / "policy"))
    return done, levels_in(done.stdout)


def levels_in(text: str) -> dict[str, str]:
    return {rule: level for level, rule in re.findall(r"\[(mandatory|advisory)\] +([a-z-]+) ", text)}


def test_committed_prod_passes_the_mandatory_rules(copy: Copy, tmp_path: Path) -> None:
    stack = copy("prod")
    # The command creates the stack again, in the project's own backend. It would refuse a stack file that
    # still has the lines of the copy's backend.
    forget_state(stack.folder, "prod")
    done = subprocess.run(
        [str(stacks.PROJECT / ".venv/bin/python"), "-m", "tools", "policy", "--stack", "prod"],
        cwd=stack.folder,
        env={
            **os.environ,
            **{name: stack.environment[name] for name in ("HOME", "PULUMI_HOME")},
            "XDG_CACHE_HOME": str(paths.cache_dir().parent),
            "XDG_STATE_HOME": str(tmp_path / "state"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert levels_in(text) == {"single-control-plane": "advisory"}, text


def test_broken_mandatory_rules_fail_the_preview(copy: Copy) -> None:
    stack = copy("prod")
    # Pulumi rewrote the file in its own format when it created the stack.
    file = stack.folder / "Pulumi.prod.yaml"
    written = r"^ *kubeadm-ipvs:production: .*\n"
    text, count = re.subn(written, "", file.read_text(), flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)
    replace_in(file, "replicas: 6", "replicas: 6\n    image: nginx:latest")
    replace_in(stack.folder / "manifests/nginx.yaml", "kubeadm-ipvs/node-port", "example.com/other")
    replace_in(stack.folder / "components/remote.py", "host_key=settings.host_key(host)", 'host_key=""')

    run, levels = preview(stack)

    assert run.returncode != 0
    assert levels.pop("single-control-plane") == "advisory"
    broken = {"ssh-host-keys-pinned", "production-protected", "images-pinned", "node-ports-documented"}
    assert broken <= set(levels), run.stdout
    assert set(levels.values()) == {"mandatory"}


def test_levels_outside_production(copy: Copy) -> None:
    stack = copy("staging")
    replace_in(stack.folder / "manifests/nginx.yaml", "kubeadm-ipvs/node-port", "example.com/other")
    with (stack.folder / "__main__.py").open("a") as program:
        program.write('pulumi.export("password", "plain")\n')
        program.write('pulumi.export("token", pulumi.Output.secret("marked"))\n')

    run, levels = preview(stack)

    assert run.returncode != 0
    # The first is only a warning, so the preview continues and finds the second at the end.
    assert levels == {"node-ports-documented": "advisory", "no-plain-secrets": "mandatory"}, run.stdout
    assert "output password of" in run.stdout
    assert "output token of" not in run.stdout + run.stderr
