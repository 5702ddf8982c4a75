"""Steps of a running cluster, killed at every line."""

from __future__ import annotations

import re

from tests.lab.cluster import Cluster, Config, differences, edited, up, without
from tests.lab.kills import kill_at_every_line, only, prepare_host, run_step, step_texts
from tests.lab.resilience.checks import leftovers
from tests.lab.resilience.results import Record


def remove_worker(cluster: Cluster, host: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Remove a worker; return all steps' texts and the host's plain state."""
    texts = step_texts(cluster)
    with edited(cluster, without(host)):
        up(cluster)
    return texts, cluster.state_of([host])


def test_join_and_its_reset_survive_kills(cluster: Cluster, record: Record) -> None:
    """A worker's join and its reset are killed at every line: the worker joins, and its host is restored"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    texts, plain = remove_worker(cluster, host)
    prepare_host(cluster, host, texts)
    join = texts[f"{host}-join"]
    token = re.search(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", join)
    assert token is not None
    cluster.run(master, f"kubeadm token create {token.group()} --ttl 4h", timeout=600)
    kill_at_every_line(cluster, host, "create", "join", only(join, "join"), record)
    cluster.kubectl(f"wait --for=condition=Ready --timeout=290s node/{host}")
    kill_at_every_line(cluster, host, "delete", "join", join, record)
    run_step(cluster, host, "delete", "claim", texts[f"{host}-claim"])
    cluster.kubectl(f"delete node {host}")
    cluster.run(master, f"kubeadm token delete {token.group()}", timeout=600)
    assert differences(plain, cluster.state_of([host])) == ""


def test_steps_on_a_running_node_survive_kills(cluster: Cluster, record: Record) -> None:
    """The steps on a running node are killed at every line: labels and taints, kube-proxy, verification,
    drain"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    node = f"get node {host} -o jsonpath="

    def change(config: Config) -> None:
        config["hosts"][-1]["labels"] = {"disk": "ssd"}
        config["hosts"][-1]["taints"] = ["dedicated=web:PreferNoSchedule"]

    def kill(on: str, verb: str, step: str, text: str) -> None:
        kill_at_every_line(cluster, on, verb, step, text, record)

    with edited(cluster, change):
        up(cluster)
        texts = step_texts(cluster)
    kill(master, "create", "expected_services", texts["expected-services"])
    kill(master, "create", "admin", only(texts[f"{master}-init"], "admin"))
    kill(host, "create", "verification", texts[f"{host}-verification"])

    cluster.kubectl(f"label node {host} disk-")
    cluster.kubectl(f"taint node {host} dedicated-")
    cluster.kubectl(f"annotate node {host} kubeadm-ipvs/labels- kubeadm-ipvs/taints-")
    kill(master, "create", "nodes", texts["nodes"])
    assert cluster.kubectl(f"{node}'{{.metadata.labels.disk}} {{.spec.taints[*].key}}'") == "ssd dedicated"

    # As after a change of kube-proxy's settings, from a mode that left chains behind.
    cluster.run(host, "rm /var/lib/kubeadm-ipvs/proxy.yaml; iptables -t nat -N KUBE-SVC-OLD")
    kill(host, "update", "proxy", only(texts[f"{host}-join"], "proxy"))
    assert "KUBE-SVC-OLD" not in cluster.run(host, "iptables-save -t nat")

    kill(master, "delete", "node", texts[f"{host}-node"])
    assert host not in cluster.kubectl("get nodes -o name")
    with edited(cluster, without(host)):
        up(cluster)
    assert leftovers(cluster, host) == ""


def test_deregister_step_survives_kills(cluster: Cluster, record: Record) -> None:
    """A removed worker registers again: deleting its Node object is killed at every line"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    texts = step_texts(cluster)
    run_step(cluster, master, "delete", "node", texts[f"{host}-node"])
    assert host not in cluster.kubectl("get nodes -o name")
    # As after a boot between the two steps: kubelet registers the node when it starts.
    cluster.run(host, "systemctl restart kubelet")
    cluster.kubectl(f"wait --for=create --timeout=290s node/{host}")
    kill_at_every_line(cluster, master, "delete", "deregister", texts[f"{host}-deregister"], record)
    assert host not in cluster.kubectl("get nodes -o name")
    with edited(cluster, without(host)):
        up(cluster)
    assert leftovers(cluster, host) == ""


def test_init_and_its_reset_survive_kills(cluster: Cluster, record: Record) -> None:
    """init and its reset are killed at every line: both complete, and the host is restored"""
    host = cluster.hosts[0]
    texts = step_texts(cluster)
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout
    prepare_host(cluster, host, texts)
    init = texts[f"{host}-init"]
    kill_at_every_line(cluster, host, "create", "init", only(init, "init"), record)
    kill_at_every_line(cluster, host, "delete", "init", init, record)
    run_step(cluster, host, "delete", "claim", texts[f"{host}-claim"])
    assert differences(cluster.before, cluster.state()) == ""
