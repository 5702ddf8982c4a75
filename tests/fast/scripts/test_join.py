"""The step `join`: joining, joining again, retries."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.fast.shell import bash, home_of, put, record, stdout_of, with_code

JOIN = "steps/join.sh"


@pytest.mark.parametrize(
    ("kubectl", "restarted"),
    [
        ("echo node/node1", False),
        ("echo 'Error from server (NotFound): nodes \"node1\" not found' >&2; return 1", True),
        ("echo 'Unable to connect to the server: EOF' >&2; return 1", False),
    ],
)
def test_deleted_node_registers_again(tmp_path: Path, kubectl: str, restarted: bool) -> None:
    code = f"""
node_finished() {{ true; }}
converge_kubelet() {{ :; }}
kubectl() {{ {kubectl}; }}
systemctl() {{ echo "systemctl $*"; }}
"""
    assert stdout_of(JOIN, code, tmp_path) == ("systemctl restart kubelet\n" if restarted else "")


@pytest.mark.parametrize(
    ("credentials", "calls"),
    [(True, ["converge"]), (False, ["reset", "systemctl restart containerd", "kubeadm 5 join"])],
)
def test_worker_reset_by_hand_joins_again(tmp_path: Path, credentials: bool, calls: list[str]) -> None:
    record(tmp_path)
    home = home_of(tmp_path)
    for mark in ("node.started", "node.done"):
        (home / mark).touch()
    if credentials:
        put(tmp_path, "etc/kubernetes/kubelet.conf")
    code = """
reset_node() { echo reset; }
run_kubeadm() { echo "kubeadm $*"; }
converge_kubelet() { echo converge; }
ensure_registered() { :; }
systemctl() { echo "systemctl $*"; }
"""
    assert stdout_of(JOIN, code, tmp_path, CONFIG="c", KUBELET="k", PROXY="p").splitlines() == calls
    assert (home / "node.done").exists()


FLAGS = 'KUBELET_KUBEADM_ARGS="--node-ip={} --node-labels=disk=ssd"\n'
PODS = (
    "true DaemonSet kube-system kube-proxy-x\ntrue Node kube-system static\n DaemonSet default agent\n"
    "true  default bare\ntrue DaemonSet mine exporter\n"
)


@pytest.mark.parametrize("interrupted", [False, True])
def test_new_address_reaches_kubelet_and_host_network_pods(tmp_path: Path, interrupted: bool) -> None:
    record(tmp_path)
    address = "10.0.0.99" if interrupted else "10.0.0.12"
    flags = put(tmp_path, "var/lib/kubelet/kubeadm-flags.env", FLAGS.format(address))
    marker = home_of(tmp_path) / "address.changing"
    if interrupted:
        marker.touch()
    put(tmp_path, "pods", PODS)
    code = f"""
systemctl() {{ echo "systemctl $*" >&5; }}
kubectl() {{
  case $* in
    *" get node "*) printf '%s' '10.0.0.99 fd00::2' ;;
    *" get pods "*) cat {tmp_path}/pods ;;
    *) echo "${{*:4}}" >&5 ;;
  esac
}}
create() {{ converge_address; }}
exec 5>&1
"""
    assert stdout_of(JOIN, code, tmp_path, NODE_ADDRESS="10.0.0.99").splitlines() == [
        "systemctl restart kubelet",
        "-n kube-system delete pod kube-proxy-x --ignore-not-found --wait=false",
        "-n mine delete pod exporter --ignore-not-found --wait=false",
    ]
    assert flags.read_text() == FLAGS.format("10.0.0.99")
    assert not marker.exists()
    assert stdout_of(JOIN, code, tmp_path, NODE_ADDRESS="10.0.0.99") == ""


def test_token_isnt_reported(tmp_path: Path) -> None:
    """The engine logs what the step reports, and the state keeps its results."""
    record(tmp_path)
    token = "abcdef.0123456789abcdef"
    code = f"""
systemctl() {{ :; }}
reset_node() {{ :; }}
kubeadm() {{
  echo "[preflight] using the token {token}"
  echo "[discovery] \"{token}\" is invalid"
  echo "error: cannot use {token}"
  return 1
}}
"""
    values = {"CONFIG": f"token: {token}", "KUBELET": "k", "PROXY": "p", "NODE_ADDRESS": "10.0.0.1"}
    done = bash(with_code(JOIN, code, **values), root=tmp_path, check=False)
    assert "using the token [token]" in done.stderr and "error: cannot use [token]" in done.stderr
    assert token.partition(".")[2] not in done.stdout + done.stderr
    left = [
        path for path in tmp_path.rglob("*") if path.is_file() and token in path.read_text(errors="replace")
    ]
    assert left == []


READY = 'a Node with name "node1" and status "Ready" already exists in the cluster. You must delete'


@pytest.mark.parametrize(
    ("unfinished", "error", "runs"),
    [
        (True, READY, 3),
        (False, READY, 1),
        (False, "Get: context deadline exceeded", 3),
        (True, "no such image", 1),
    ],
    ids=["its own previous kubelet", "another host of that name", "a slow API server", "anything else"],
)
def test_kubeadm_retries_only_transient_errors(
    tmp_path: Path, unfinished: bool, error: str, runs: int
) -> None:
    record(tmp_path)
    home = home_of(tmp_path)
    if unfinished:
        (home / "node.started").touch()
    (home / "kubeadm.yaml").touch()
    code = f"""
reset_node() {{ :; }}
systemctl() {{ :; }}
pause() {{ :; }}
kubeadm() {{
  echo run >>{tmp_path}/runs
  if (($(wc -l <{tmp_path}/runs) < 3)); then echo {shlex.quote("error: " + error)}; return 1; fi
}}
create() {{ begin_node; run_kubeadm 3 join; }}
"""
    done = bash(with_code("lib/kubeadm.sh", code), root=tmp_path, check=False)
    assert len((tmp_path / "runs").read_text().split()) == runs
    assert (done.returncode == 0) == (runs == 3), done.stderr
