"""The step `runtime`: containerd's configuration and restarts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.fast.shell import bash, put, record, run, stdout_of, with_code

RUNTIME = "steps/runtime.sh"


def test_removed_mirror_is_deleted_and_users_mirror_stays(tmp_path: Path) -> None:
    certs = tmp_path / "etc/containerd/certs.d"

    def write(mirrors: str) -> None:
        run(RUNTIME, "create() { write_mirrors; }\n", tmp_path, MIRRORS=mirrors)

    put(tmp_path, "etc/containerd/certs.d/example.com/hosts.toml", "# mine\n")
    write("docker.io http://a:5000\nghcr.io http://b:5000 http://c:5000")
    assert 'host."http://c:5000"' in (certs / "ghcr.io/hosts.toml").read_text()
    assert 'server = "https://registry-1.docker.io"' in (certs / "docker.io/hosts.toml").read_text()
    write("docker.io http://a:5000")
    assert sorted(path.parent.name for path in certs.glob("*/hosts.toml")) == ["docker.io", "example.com"]
    assert not (certs / "ghcr.io").exists()


@pytest.mark.parametrize(
    ("version", "images", "pods", "sandbox"),
    [
        (
            "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6",
            "io.containerd.grpc.v1.cri",
            "io.containerd.grpc.v1.cri",
            "sandbox_image",
        ),
        (
            "containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376",
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "pinned_images.sandbox",
        ),
    ],
)
def test_configuration_matches_containerds_version(
    tmp_path: Path, version: str, images: str, pods: str, sandbox: str
) -> None:
    """containerd's docs/cri/config.md describes both formats."""
    code = f"containerd() {{ echo '{version}'; }}\ncreate() {{ runtime_config; }}\n"
    output = stdout_of(RUNTIME, code, tmp_path, SANDBOX_IMAGE="registry.example.com/pause:3.10")
    plugins = tomllib.loads(output)["plugins"]
    image = plugins[images]
    for name in sandbox.split("."):
        image = image[name]
    assert image == "registry.example.com/pause:3.10"
    assert plugins[images]["registry"]["config_path"] == "/etc/containerd/certs.d"
    assert plugins[pods]["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    network = plugins[pods]["cni"]
    assert [network["conf_dir"], *network.get("bin_dirs", [network.get("bin_dir")])] == [
        "/etc/cni/net.d",
        "/opt/cni/bin",
    ]


def test_unsupported_containerd_is_refused(tmp_path: Path) -> None:
    code = "containerd() { echo 'containerd x v3.0.0'; }\ncreate() { runtime_config; }\n"
    assert "next: install containerd 1.7 or 2" in run(RUNTIME, code, tmp_path, 1).stderr


def systemctl_calls(root: Path, code: str = "") -> list[str]:
    """The step's systemctl calls on a host where containerd is running."""
    record(root)
    calls = root / "calls"
    calls.write_text("")
    tools = f"""
systemctl() {{ echo "$*" >>{calls}; }}
ctr() {{ :; }}
crictl() {{ :; }}
containerd() {{ echo containerd x v1.7.24; }}
write_mirrors() {{ :; }}
put_crictl_config() {{ :; }}
remove_pod_networks_at_boot() {{ :; }}
"""
    text = with_code(RUNTIME, tools + code, MIRRORS="", IMAGES="", SANDBOX_IMAGE="pause")
    bash(text, root=root, check=False)
    return calls.read_text().splitlines()


def test_killed_restart_is_repeated(tmp_path: Path) -> None:
    systemctl_calls(tmp_path, "systemctl() { if [[ $1 == restart ]]; then kill -KILL $$; fi; }\n")
    assert (tmp_path / "etc/containerd/config.toml").exists()
    assert "restart containerd" in systemctl_calls(tmp_path)
    assert "restart containerd" not in systemctl_calls(tmp_path), "nothing has changed since then"


def test_repair_restarts_containerd_once(tmp_path: Path) -> None:
    systemctl_calls(tmp_path)
    repair = "REPAIR='after a bad night'\n"
    assert "restart containerd" in systemctl_calls(tmp_path, repair)
    assert "restart containerd" not in systemctl_calls(tmp_path, repair)
    assert "restart containerd" not in systemctl_calls(tmp_path)
