"""A living cluster is changed by an edit of its settings and `pulumi up`, and stays the one it was.

Each test puts back what it has changed: those after it find the cluster as the fixture made it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from tests.lab.cluster import Cluster, Config, balances, drift, edited, identity, proxy, repaired, up
from tests.lab.prober import LOST_AT_MOST, from_a_host, from_outside, probing

# The settings, and the mode and the scheduler that each kernel must then show.
MODES = (
    ({"scheduler": "lc"}, "ipvs", "lc"),
    ({"mode": "nftables"}, "nftables", ""),
    ({"mode": "iptables"}, "iptables", ""),
)


def test_proxy_mode_and_scheduler_change_live_and_back(
    cluster: Cluster, figure: Callable[[str], None]
) -> None:
    """IPVS rr to lc, nftables, iptables and back to IPVS rr, live, asked from outside and inside meanwhile"""
    same = identity(cluster)
    address = cluster.kubectl("get service nginx -o jsonpath='{.spec.clusterIP}'")
    outside = from_outside(cluster.lab.status().node_ports)
    with from_a_host(cluster, cluster.hosts[-1], address) as inside, probing(outside | inside) as counts:
        for values, mode, scheduler in MODES:
            began = time.monotonic()
            with edited(cluster, proxy(**values)):
                up(cluster)
                balances(cluster, mode, scheduler)
            figure(f"to {mode} {scheduler}".rstrip() + f": {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        up(cluster)
        balances(cluster, "ipvs", "rr")
        figure(f"back to ipvs rr: {time.monotonic() - began:.0f} s")
    assert identity(cluster) == same
    for name, count in counts.items():
        figure(f"{name}: {count}")
        assert len(count.lost) < count.asked * LOST_AT_MOST, [str(count), *count.lost[-3:]]


def test_labels_taints_kubelet_mirrors_and_certificate_names_change_in_place(cluster: Cluster) -> None:
    same = identity(cluster)
    worker = cluster.hosts[-1]

    def change(config: Config) -> None:
        config["hosts"][-1]["labels"] = {"disk": "ssd", "example.com/rack": "r1"}
        config["hosts"][-1]["taints"] = ["dedicated=web:PreferNoSchedule"]
        config["cluster"]["certSANs"] = [*config["cluster"]["certSANs"], "k8s.example.com"]
        config["cluster"]["kubelet"] = {"maxPods": 42}
        config["registry"]["mirrors"]["quay.io"] = ["http://10.0.2.2:22500"]

    node = f"get node {worker} -o jsonpath="
    with edited(cluster, change):
        up(cluster)
        labels = cluster.kubectl(f"{node}'{{.metadata.labels.disk}} {{.metadata.labels.example\\.com/rack}}'")
        assert labels == "ssd r1"
        assert cluster.kubectl(f"{node}'{{.spec.taints[*].key}}'") == "dedicated"
        for host in cluster.hosts:
            assert "maxPods: 42" in cluster.run(host, "cat /var/lib/kubelet/config.yaml")
            assert "10.0.2.2" in cluster.run(host, "cat /etc/containerd/certs.d/quay.io/hosts.toml")
        assert cluster.kubectl(f"{node}'{{.status.capacity.pods}}'") == "42"
        asked = "get --raw /readyz --server https://192.168.166.101:6443 --tls-server-name k8s.example.com"
        assert cluster.kubectl(asked) == "ok"
    up(cluster)
    assert cluster.kubectl(f"{node}'{{.metadata.labels.disk}}{{.spec.taints}}'") == ""
    for host in cluster.hosts:
        assert "maxPods" not in cluster.run(host, "cat /var/lib/kubelet/config.yaml")
        assert "quay.io" not in cluster.run(host, "ls /etc/containerd/certs.d")
    assert identity(cluster) == same


def test_certificates_that_end_soon_are_found_and_renewed(
    cluster: Cluster, figure: Callable[[str], None]
) -> None:
    master = cluster.hosts[0]
    kubeconfig, nodes = identity(cluster)
    cluster.run(
        master,
        "umask 077; sed 's/^kind: ClusterConfiguration$/&\\ncertificateValidityPeriod: 240h0m0s/' "
        "/var/lib/kubeadm-ipvs/kubeadm.yaml >/run/short.yaml; "
        "kubeadm certs renew all --config /run/short.yaml; rm /run/short.yaml",
    )
    found = drift(cluster)[master]
    assert {"/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/admin.conf"} <= found
    figure(f"{len(found)} files found with certificates that end in ten days")
    with edited(cluster, repaired(master)):
        preview = cluster.pulumi("preview")
        assert preview.returncode == 0, preview.stdout
        assert "replace" not in preview.stdout
        began = time.monotonic()
        up(cluster)
        figure(f"renewed in {time.monotonic() - began:.0f} s")
    assert not any(drift(cluster).values())
    assert identity(cluster)[0] != kubeconfig, "the administrator's new certificate"
    assert identity(cluster)[1] == nodes
    up(cluster)


def held(cluster: Cluster) -> dict[str, tuple[Any, Any]]:
    """Each resource's inputs and outputs as the state has them."""
    return {item["urn"]: (item.get("inputs"), item.get("outputs")) for item in cluster.resources()}


def test_another_version_is_refused_at_preview_and_nothing_is_touched(cluster: Cluster) -> None:
    before = held(cluster)

    def change(config: Config) -> None:
        config["cluster"]["kubernetesVersion"] = "1.37.3"

    with edited(cluster, change):
        for command in (["preview"], ["up", "--yes"], ["up", "--yes", "--skip-preview"]):
            done = cluster.pulumi(*command)
            assert done.returncode != 0
            assert "cluster.kubernetesVersion is 1.37.3, and the cluster runs 1.37.2" in done.stdout
            assert "Nothing was touched" in done.stdout
    assert held(cluster) == before


def other_pods(config: Config) -> None:
    """Another pod subnet, which no cluster keeps its identity over."""
    config["network"] = {**config.get("network", {}), "podSubnet": "10.200.0.0/16"}


def test_a_preview_says_in_words_what_a_new_cluster_costs(cluster: Cluster) -> None:
    with edited(cluster, other_pods):
        done = cluster.pulumi("preview")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this change makes a new cluster: network.podSubnet 10.244.0.0/16 -> 10.200.0.0/16" in done.stdout
    assert f"Reset and made anew: {', '.join(cluster.hosts)}" in done.stdout
    assert re.search(r"\+-.*master-init", done.stdout), done.stdout


def test_a_new_cluster_is_made_on_the_same_hosts(cluster: Cluster, figure: Callable[[str], None]) -> None:
    """Another pod subnet makes a new cluster on the same hosts, and taking it back makes one more"""
    former = identity(cluster)[0]

    def made(subnet: str) -> None:
        began = time.monotonic()
        up(cluster)
        figure(f"{subnet}0.0/16: made anew in {time.monotonic() - began:.0f} s")
        cluster.wait_for_answers(300)
        pods = "get pods -l app.kubernetes.io/name=nginx -o jsonpath='{.items[*].status.podIP}'"
        assert all(address.startswith(subnet) for address in cluster.kubectl(pods).split())
        balances(cluster, "ipvs", "rr")
        assert not any(drift(cluster).values())

    with edited(cluster, other_pods):
        made("10.200.")
        other = identity(cluster)[0]
    made("10.244.")
    assert len({former, other, identity(cluster)[0]}) == 3


def test_production_protects_the_control_plane_from_replacement(cluster: Cluster) -> None:
    with edited(cluster, lambda config: config.update(production=True)):
        up(cluster)

        with edited(cluster, other_pods):
            done = cluster.pulumi("preview")
        assert done.returncode != 0
        assert "protect" in done.stdout + done.stderr
    up(cluster)
