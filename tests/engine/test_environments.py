"""The real engine previews every committed stack, in a copy of the checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from model.settings_file import load
from tests import stacks
from tests.engine.stack import make_committed_stack
from tools import env


@pytest.mark.parametrize("name", stacks.committed())
def test_committed_stack_previews_as_a_new_cluster(
    name: str, toolbox: env.Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_committed_stack(tmp_path, env.environment(toolbox), name)

    run = stack.preview()

    monkeypatch.setenv("HOME", stack.environment["HOME"])
    settings = load(stacks.settings_of(name), stacks.PROJECT)
    assert {step.op for step in run.steps} == {"create"}
    for host in settings.hosts:
        preparation = run.step(f"{host.name}-preparation").state["inputs"]
        assert f"FIREWALL={settings.firewall}\n" in preparation["stdin"]
        assert preparation["create"].startswith("sudo ") == (settings.ssh_user(host) != "root")
    assert bool(run.step(f"{settings.control_plane.name}-init").state.get("protect")) == settings.production
    assert run.step("Deployment/default/nginx").state["inputs"]["spec"]["replicas"] == settings.nginx.replicas


def test_file_backends_need_passphrase_or_key_service(toolbox: env.Toolbox, tmp_path: Path) -> None:
    variables = env.environment(toolbox) | {"PULUMI_BACKEND_URL": tmp_path.as_uri()}
    del variables["PULUMI_CONFIG_PASSPHRASE_FILE"]
    (tmp_path / "Pulumi.yaml").write_text("name: secrets\nruntime: python\n")

    def init(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["pulumi", "stack", "init", "prod", "--non-interactive", *arguments]
        return subprocess.run(argv, cwd=tmp_path, env=variables, capture_output=True, text=True)

    without = init()
    assert without.returncode != 0
    assert "passphrase must be set" in without.stderr
    assert "unknown secrets provider" in init("--secrets-provider", "none").stderr


def test_secret_setting_is_rejected(toolbox: env.Toolbox, tmp_path: Path) -> None:
    stack = make_committed_stack(tmp_path, env.environment(toolbox), "dev")
    secret = "http://me:hush@proxy.example.com:3128"
    path = "kubeadm-ipvs:cluster.extraEnvs.HTTPS_PROXY"
    argv = ["pulumi", "config", "set", "--stack", stack.name, "--secret", "--path", path, secret]
    subprocess.run(argv, cwd=stack.folder, env=stack.environment, check=True, capture_output=True)
    run = stack.preview(fails=True)
    assert "Set without --secret: cluster" in "\n".join(run.messages)
    assert "hush" not in run.text
