"""The scripts `node` and `deregister`: draining and removal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import home_of, put, run, stdout_of

NODE = "steps/node.sh"
DEREGISTER = "steps/deregister.sh"
ADMIN = "etc/kubernetes/admin.conf"


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        ("net/http: TLS handshake timeout", 3),
        ("The connection to the server 10.0.0.1:6443 was refused", 3),
        ("Error from server (Forbidden): nodes is forbidden", 1),
    ],
)
def test_kubectl_is_retried_after_connection_errors(tmp_path: Path, error: str, calls: int) -> None:
    log = put(tmp_path, "calls")
    code = f"""
kubectl() {{
  echo "$*" >>{log}
  if (($(wc -l <{log}) < 3)); then echo '{error}' >&2; return 1; fi
  echo node/node2
}}
pause() {{ :; }}
create() {{ kube get node node2; }}
"""
    done = run(NODE, code, tmp_path, 0 if calls == 3 else 1)
    assert log.read_text().splitlines() == ["get node node2"] * calls
    assert error in done.stderr
    assert done.stdout == ("node/node2\n" if calls == 3 else "")


@pytest.mark.parametrize("script", [NODE, DEREGISTER])
def test_unreachable_api_server_fails_the_removal(tmp_path: Path, script: str) -> None:
    put(tmp_path, ADMIN)
    code = "kubectl() { echo 'net/http: TLS handshake timeout' >&2; return 1; }\n"
    values = {"NODE": "node2", "DRAIN_SECONDS": "5", "NO_CONNECTION_SECONDS": "0"}
    done = run(script, code, tmp_path, 1, verb="delete", **values)
    assert "can't ask the API server whether the node node2 exists" in done.stderr
    assert "the cluster has no node" not in done.stderr


@pytest.mark.parametrize(
    ("ready", "commands"),
    [("Unknown", ["delete node node2"]), ("True", ["drain node2", "delete node node2"])],
)
def test_unresponsive_worker_is_removed_without_draining(
    tmp_path: Path, ready: str, commands: list[str]
) -> None:
    put(tmp_path, ADMIN)
    log = put(tmp_path, "calls")
    code = f"""
kubectl() {{
  echo "$*" >>{log}
  case $* in *jsonpath*) printf %s {ready} ;; *"-o name") echo node/node2 ;; esac
}}
"""
    run(NODE, code, tmp_path, verb="delete", NODE="node2", DRAIN_SECONDS="5")
    calls = log.read_text().splitlines()[2:]
    assert [call[: len(command)] for call, command in zip(calls, commands, strict=True)] == commands


@pytest.mark.parametrize("disabled", [True, False])
def test_drain_skips_eviction_if_disabled(tmp_path: Path, disabled: bool) -> None:
    put(tmp_path, ADMIN)
    values = {"DISABLE_EVICTION": "true" if disabled else "", "NODE": "node2", "DRAIN_SECONDS": "5"}
    run("steps/init.sh", "create() { store_disable_eviction; }\n", tmp_path, **values)
    # Scripts in the states of existing stacks use this file name.
    assert (home_of(tmp_path) / "override-budgets").exists() == disabled
    code = """
kubectl() {
  echo "$*" >&2
  case $* in *jsonpath*) printf True ;; *"-o name") echo node/node2 ;; esac
}
"""
    calls = run(NODE, code, tmp_path, verb="delete", **values).stderr
    assert ("--disable-eviction" in calls) == disabled


@pytest.mark.parametrize(
    ("cluster", "node", "calls"),
    [
        (True, "node/node2", ["delete node node2 --ignore-not-found"]),
        (True, "", []),
        (False, "node/node2", []),
    ],
    ids=["registered again", "no node", "no cluster"],
)
def test_node_that_registered_again_is_removed(
    tmp_path: Path, cluster: bool, node: str, calls: list[str]
) -> None:
    if cluster:
        put(tmp_path, ADMIN)
    log = put(tmp_path, "calls")
    code = f"""
kubectl() {{
  echo "$*" >>{log}
  case $* in *" get "*) printf %s "{node}" ;; esac
}}
"""
    run(DEREGISTER, code, tmp_path, verb="delete", NODE="node2")
    lines = log.read_text().splitlines()
    assert [line for line in lines if " get " not in f" {line} "] == calls
    assert bool(lines) == cluster


@pytest.mark.parametrize("script", [NODE, DEREGISTER])
def test_nothing_happens_on_create(tmp_path: Path, script: str) -> None:
    values = {"NODE": "node2", "DRAIN_SECONDS": "5"}
    assert stdout_of(script, "kubectl() { echo called; }\n", tmp_path, **values) == ""
