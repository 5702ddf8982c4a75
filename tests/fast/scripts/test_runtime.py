"""The step `runtime`: containerd's configuration and restarts."""

from __future__ import annotations

import base64
import re
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
    calls = root / "calls"
    calls.write_text("")
    bash(with_code(RUNTIME, host_code(root) + code, **VALUES), root=root, check=False)
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


VALUES = {"MIRRORS": "", "IMAGES": "", "SANDBOX_IMAGE": "registry.example.com/pause:3.10"}
V1, V2 = "containerd x v1.7.27", "containerd x v2.1.4"


def host_code(root: Path, version: str = V1) -> str:
    """The host's tools. containerd merges files as 2.1 does, by concatenation."""
    record(root)
    return f"""
systemctl() {{ echo "$*" >>{root}/calls; }}
ctr() {{ :; }}
crictl() {{ :; }}
containerd() {{
  case $* in
    --version) echo '{version}' ;;
    *) ! grep -h broken "$2" "$ROOT"/etc/containerd/conf.d/*.toml 2>/dev/null || return 1
       cat "$2" "$ROOT"/etc/containerd/conf.d/*.toml 2>/dev/null || : ;;
  esac
}}
put_crictl_config() {{ :; }}
remove_pod_networks_at_boot() {{ :; }}
"""


def configure(root: Path, status: int = 0, *, version: str = V1, **values: str) -> str:
    """Run the step and return its messages."""
    return run(RUNTIME, host_code(root, version), root, status, **(VALUES | values)).stderr


# As nvidia-ctk does: comments are gone, and everything is formatted and sorted differently.
NVIDIA = """
imports = ['/etc/containerd/conf.d/*.toml']
version = 2
[plugins]
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'registry.example.com/pause:3.10'
[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '/opt/cni/bin'
conf_dir = '/etc/cni/net.d'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.nvidia]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins.'io.containerd.grpc.v1.cri'.registry]
config_path = '/etc/containerd/certs.d'
"""


def test_edited_configuration_that_fits_stays(tmp_path: Path) -> None:
    config = tmp_path / "etc/containerd/config.toml"
    configure(tmp_path)
    config.write_text(NVIDIA)
    config.chmod(0o600)
    for _ in range(2):
        assert "was edited and stays" in configure(tmp_path, REPAIR="GPUs are gone")
        assert config.read_text() == NVIDIA
    assert config.stat().st_mode & 0o777 == 0o600
    # The drift check no longer reports it.
    assert str(config) in (tmp_path / "var/lib/kubeadm-ipvs/files").read_text()
    run(RUNTIME, "create() { checksum_matches $CONTAINERD_CONFIG; }\n", tmp_path)


def test_edited_configuration_gets_a_new_sandbox_image(tmp_path: Path) -> None:
    config = tmp_path / "etc/containerd/config.toml"
    configure(tmp_path)
    config.write_text(NVIDIA)
    configure(tmp_path, SANDBOX_IMAGE="mirror.example.com/pause:3.11")
    assert config.read_text() == NVIDIA.replace(
        "registry.example.com/pause:3.10", "mirror.example.com/pause:3.11"
    )


def test_edited_configuration_that_breaks_the_node_is_reported(tmp_path: Path) -> None:
    config = tmp_path / "etc/containerd/config.toml"
    configure(tmp_path)
    edited = NVIDIA.replace("SystemdCgroup = true", "SystemdCgroup = false").replace("config_path", "#")
    config.write_text(edited)
    messages = configure(tmp_path, 1)
    runc = "plugins.io.containerd.grpc.v1.cri.containerd.runtimes.runc.options.SystemdCgroup"
    assert f"- {runc} is false, not true" in messages
    assert '.registry.config_path is missing: "/etc/containerd/certs.d"' in messages
    assert "/etc/containerd/conf.d/NAME.toml" in messages
    assert config.read_text() == edited
    # A repair was requested, so it wins, and nothing is lost.
    assert "the edited file is now" in configure(tmp_path, REPAIR="today")
    assert "SystemdCgroup = true" in config.read_text()
    (aside,) = config.parent.glob("config.toml.edited-*")
    assert aside.read_text() == edited


def test_file_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    config = put(tmp_path, "etc/containerd/config.toml", "# kubeadm-ipvs\nversion = 2\n")
    record(tmp_path)
    run(RUNTIME, "create() { store_checksum $CONTAINERD_CONFIG; }\n", tmp_path)
    configure(tmp_path)
    assert "SystemdCgroup = true" in config.read_text()


def test_configuration_of_a_new_package_is_replaced(tmp_path: Path) -> None:
    config = put(tmp_path, "etc/containerd/config.toml", "version = 2\n")
    configure(tmp_path)
    assert "SystemdCgroup = true" in config.read_text()
    assert not list(config.parent.glob("config.toml.*"))


def test_killed_write_is_not_taken_for_an_edit(tmp_path: Path) -> None:
    configure(tmp_path)
    killed = (
        host_code(tmp_path)
        + 'mv() { if [[ $* == *config.toml ]]; then kill -KILL $$; fi; command mv "$@"; }\n'
    )
    values = VALUES | {"SANDBOX_IMAGE": "other/pause:1"}
    bash(with_code(RUNTIME, killed, **values), root=tmp_path, check=False)
    assert "edited" not in configure(tmp_path)


@pytest.mark.parametrize("version", [V1, V2])
def test_drop_ins_are_imported_and_checked(tmp_path: Path, version: str) -> None:
    plugin = "io.containerd.grpc.v1.cri" if version == V1 else "io.containerd.cri.v1.runtime"
    runtimes = f"[plugins.'{plugin}'.containerd.runtimes"
    put(tmp_path, "etc/containerd/conf.d/99-nvidia.toml", f"{runtimes}.nvidia]\nruntime_type = 'x'\n")
    configure(tmp_path, version=version)
    config = tmp_path / "etc/containerd/config.toml"
    assert tomllib.loads(config.read_text())["imports"] == ["/etc/containerd/conf.d/*.toml"]
    before = config.read_text()
    put(tmp_path, "etc/containerd/conf.d/cgroups.toml", f"{runtimes}.runc.options]\nSystemdCgroup = false\n")
    messages = configure(tmp_path, 1, version=version, SANDBOX_IMAGE="other/pause:1")
    assert "SystemdCgroup is false, not true" in messages
    assert "listed above: 99-nvidia.toml cgroups.toml" in messages
    put(tmp_path, "etc/containerd/conf.d/cgroups.toml", "broken = \n")
    assert "containerd can't read its configuration: broken" in configure(tmp_path, 1, version=version)
    assert config.read_text() == before


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"


def test_mirror_options_are_written(tmp_path: Path) -> None:
    """containerd's docs/hosts.md describes the format."""
    folder = tmp_path / "etc/containerd/certs.d/docker.io"
    ca = base64.b64encode(CERTIFICATE.encode()).decode()
    mirrors = (
        f"docker.io https://a/v2/hub#override_path https://b#ca={ca} https://c/v2/d#override_path#ca={ca}"
    )
    configure(tmp_path, MIRRORS=mirrors)
    hosts = tomllib.loads((folder / "hosts.toml").read_text())["host"]
    base = {"capabilities": ["pull", "resolve"]}
    assert hosts == {
        "https://a/v2/hub": base | {"override_path": True},
        "https://b": base | {"ca": "kubeadm-ipvs-2.pem"},
        "https://c/v2/d": base | {"override_path": True, "ca": "kubeadm-ipvs-3.pem"},
    }
    assert (folder / "kubeadm-ipvs-3.pem").read_text() == f"{CERTIFICATE}\n"
    configure(tmp_path, MIRRORS=f"docker.io https://a https://b#ca={ca}")
    assert sorted(path.name for path in folder.iterdir()) == ["hosts.toml", "kubeadm-ipvs-2.pem"]
    configure(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("ours", [True, False])
def test_others_mirror_file_is_never_lost(tmp_path: Path, ours: bool) -> None:
    file = tmp_path / "etc/containerd/certs.d/docker.io/hosts.toml"
    if ours:
        configure(tmp_path, MIRRORS="docker.io https://a")
    theirs = "# kubeadm-ipvs\n[host.'https://a'.header]\nauthorization = 'Basic abc'\n"
    put(tmp_path, "etc/containerd/certs.d/docker.io/hosts.toml", theirs)
    messages = configure(tmp_path, 1, MIRRORS="docker.io https://b")
    assert "to keep it, remove docker.io from runtime.mirrors" in messages
    if ours:
        configure(tmp_path)
    assert file.read_text() == theirs
    configure(tmp_path, MIRRORS="docker.io https://b", REPAIR="today")
    assert "https://b" in file.read_text()
    assert [path.read_text() for path in file.parent.glob("hosts.toml.edited-*")] == [theirs]


def restore(root: Path, *, present: bool) -> str:
    """Restore a host that had containerd, with or without a configuration, and return the messages."""
    paths = ["/etc/containerd", "/etc/containerd/config.toml", "/etc/containerd/certs.d", "/etc/crictl.yaml"]
    files = {"absent": "\n".join(paths[present:]) + "\n", "copied": "", "present": "", "image_list": ""}
    record(root, **files, units="containerd disabled inactive\n")
    code = """
unit_active() { false; }
systemctl() { :; }
have() { false; }
create() {
  restore_runtime
  restore_files
}
"""
    return run("steps/claim.sh", code, root).stderr


def test_restored_host_has_no_files_of_ours(tmp_path: Path) -> None:
    ca = base64.b64encode(CERTIFICATE.encode()).decode()
    configure(tmp_path, MIRRORS=f"docker.io https://b#ca={ca}")
    put(tmp_path, "etc/containerd/config.toml.rpmsave")
    assert "stays" not in restore(tmp_path, present=False)
    assert not (tmp_path / "etc/containerd").exists()


@pytest.mark.parametrize("present", [False, True])
def test_restored_host_keeps_others_files_for_containerd(tmp_path: Path, present: bool) -> None:
    folder = tmp_path / "etc/containerd"
    configure(tmp_path, MIRRORS="docker.io https://a")
    (folder / "config.toml").write_text(NVIDIA)
    (folder / "certs.d/docker.io/hosts.toml").write_text("# kubeadm-ipvs\nserver = 'mine'\n")
    put(tmp_path, "etc/containerd/conf.d/99-nvidia.toml", "version = 2\n")
    put(tmp_path, "etc/containerd/certs.d/quay.io/hosts.toml", "# mine\n")
    messages = restore(tmp_path, present=present)
    assert "/etc/containerd/config.toml was edited: the edited file is now" in messages
    left = {re.sub(r"-\d{8}T.*", "", str(f.relative_to(folder))) for f in folder.rglob("*") if f.is_file()}
    assert left == {
        "config.toml.edited",
        "certs.d/docker.io/hosts.toml.edited",
        "certs.d/quay.io/hosts.toml",
        "conf.d/99-nvidia.toml",
    }
    assert ("it has files that this program didn't create" in messages) is not present
