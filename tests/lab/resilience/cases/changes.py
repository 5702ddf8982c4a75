"""Changes to a running cluster: edit the settings, run `pulumi up`, keep the cluster.

Each case reverts its change, so the next one finds the cluster as the fixture left it.
"""

from __future__ import annotations

import re
import time
from typing import Any

from tests.lab.cluster import Cluster, Config, assert_balances, drift, edited, identity, proxy, repaired, up
from tests.lab.prober import LOST_AT_MOST, external_requests, host_requests, probing
from tests.lab.resilience.results import Record

# Settings, and the mode and the scheduler that each kernel must have afterwards.
MODES = (
    ({"scheduler": "lc"}, "ipvs", "lc"),
    ({"mode": "nftables"}, "nftables", ""),
    ({"mode": "iptables"}, "iptables", ""),
)


def test_proxy_mode_and_scheduler_change_live(cluster: Cluster, record: Record) -> None:
    """kube-proxy changes live from IPVS rr to lc, nftables, iptables and back, with requests from outside
    and inside"""
    old_identity = identity(cluster)
    address = cluster.kubectl("get service nginx -o jsonpath='{.spec.clusterIP}'")
    outside = external_requests(cluster.lab.status().node_ports)
    with host_requests(cluster, cluster.hosts[-1], address) as inside, probing(outside | inside) as counts:
        for values, mode, scheduler in MODES:
            began = time.monotonic()
            with edited(cluster, proxy(**values)):
                up(cluster)
                assert_balances(cluster, mode, scheduler)
            record(f"to {mode} {scheduler}".rstrip() + f": {time.monotonic() - began:.0f} s")
        began = time.monotonic()
        up(cluster)
        assert_balances(cluster, "ipvs", "rr")
        record(f"back to ipvs rr: {time.monotonic() - began:.0f} s")
    assert identity(cluster) == old_identity
    for name, count in counts.items():
        record(f"{name}: {count}")
        assert len(count.lost) < count.sent * LOST_AT_MOST, [str(count), *count.lost[-3:]]


def test_image_change_loses_no_request(cluster: Cluster, record: Record) -> None:
    """nginx's image changes and changes back under load, and no request is lost"""
    # Another name of the same image, because the lab has only one image of nginx.
    name = "docker.io/library/nginx"
    listed = cluster.run(cluster.hosts[-1], f"ctr -n k8s.io images ls name=={name}:1.29")
    digest = f"{name}@{listed.splitlines()[1].split()[2]}"

    def change(config: Config) -> None:
        config["nginx"] = {**config.get("nginx", {}), "image": digest}

    def pods() -> int:
        return len(cluster.kubectl("get pods -l app.kubernetes.io/name=nginx -o name").split())

    address = cluster.kubectl("get service nginx -o jsonpath='{.spec.clusterIP}'")
    outside = external_requests(cluster.lab.status().node_ports)
    with (
        host_requests(cluster, cluster.hosts[-1], address) as inside,
        probing(outside | inside, 0.1) as counts,
    ):
        replicas = pods()
        with edited(cluster, change):
            up(cluster)
            assert digest in cluster.kubectl("get deployment nginx -o yaml")
        up(cluster)
        # An old pod serves for a while after its end was requested.
        deadline = time.monotonic() + 300
        while pods() > replicas:
            assert time.monotonic() < deadline
            time.sleep(5)
    for url, count in counts.items():
        record(f"{url}: {count}")
    # Fewer requests would prove nothing.
    assert all(count.sent > 50 for count in counts.values()), counts
    assert not any(count.lost for count in counts.values()), [count.lost[:3] for count in counts.values()]


def test_node_and_certificate_settings_change_in_place(cluster: Cluster) -> None:
    """Labels, taints, kubelet settings, registry mirrors and certificate SANs change in place"""
    old_identity = identity(cluster)
    worker = cluster.hosts[-1]

    def change(config: Config) -> None:
        config["hosts"][-1]["labels"] = {"disk": "ssd", "example.com/rack": "r1"}
        config["hosts"][-1]["taints"] = ["dedicated=web:PreferNoSchedule"]
        config["cluster"]["certSANs"] = [*config["cluster"]["certSANs"], "k8s.example.com"]
        config["cluster"]["kubelet"] = {"maxPods": 42}
        config["runtime"]["mirrors"]["quay.io"] = ["http://10.0.2.2:22500"]

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
        request = "get --raw /readyz --server https://192.168.166.101:6443 --tls-server-name k8s.example.com"
        assert cluster.kubectl(request) == "ok"
    up(cluster)
    assert cluster.kubectl(f"{node}'{{.metadata.labels.disk}}{{.spec.taints}}'") == ""
    for host in cluster.hosts:
        assert "maxPods" not in cluster.run(host, "cat /var/lib/kubelet/config.yaml")
        assert "quay.io" not in cluster.run(host, "ls /etc/containerd/certs.d")
    assert identity(cluster) == old_identity


def replaced(preview: str) -> list[str]:
    """The lines about resources that a preview replaces, except the digests of what steps should have run."""
    rows = [line for line in preview.splitlines() if line.startswith((" +-", " ++", " --"))]
    return [row for row in rows if " pulumi:index:Stash " not in row]


def shorten_certificates(cluster: Cluster) -> None:
    """Replace the control plane's certificates by ones that expire in ten days."""
    cluster.run(
        cluster.hosts[0],
        "umask 077; sed 's/^kind: ClusterConfiguration$/&\\ncertificateValidityPeriod: 240h0m0s/' "
        "/var/lib/kubeadm-ipvs/kubeadm.yaml >/run/short.yaml; "
        "kubeadm certs renew all --config /run/short.yaml; rm /run/short.yaml",
    )


def test_up_and_timer_renew_expiring_certificates(cluster: Cluster, record: Record) -> None:
    """`up` announces and renews expiring certificates; a timer renews them too, and is removed without a
    trace"""
    master, unit = cluster.hosts[0], "kubeadm-ipvs-certificates"
    kubeconfig, nodes = identity(cluster)

    def timer(config: Config) -> None:
        config["cluster"]["certificates"] = {"renewTimer": True}

    shorten_certificates(cluster)
    with edited(cluster, timer):
        # The step that sets up the timer reads the expiry; from then on the program knows it.
        up(cluster)
        assert cluster.run(master, f"systemctl is-active {unit}.timer").strip() == "active"
        short = cluster.output("certificatesExpire")
        preview = cluster.pulumi("preview")
        assert preview.returncode == 0, preview.stdout
        assert "the cluster's certificates expire on" in preview.stdout
        assert replaced(preview.stdout) == []
        began = time.monotonic()
        up(cluster)
        record(f"renewed by up in {time.monotonic() - began:.0f} s")
        assert cluster.output("certificatesExpire") > short
        assert not any(drift(cluster).values())
        renewed = identity(cluster)
        assert renewed[0] != kubeconfig
        done = cluster.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes")
        assert done.returncode == 0, done.stdout

        shorten_certificates(cluster)
        assert drift(cluster)[master]
        began = time.monotonic()
        cluster.run(master, f"systemctl start {unit}.service", timeout=900)
        record(f"renewed by the timer's service in {time.monotonic() - began:.0f} s")
        assert not any(drift(cluster).values())
    up(cluster)
    units = "systemctl list-unit-files --no-legend; find /etc/systemd /var/lib/kubeadm-ipvs"
    assert not re.search(rf"{unit}|renewal\.sh", cluster.run(master, units))
    assert identity(cluster)[1] == nodes


def test_expiring_certificates_are_found_and_renewed(cluster: Cluster, record: Record) -> None:
    """Expiring certificates are found, and renewed by a repair"""
    master = cluster.hosts[0]
    kubeconfig, nodes = identity(cluster)
    shorten_certificates(cluster)
    found = drift(cluster)[master]
    assert {"/etc/kubernetes/pki/apiserver.crt", "/etc/kubernetes/admin.conf"} <= found
    record(f"{len(found)} files found with certificates that expire in ten days")
    with edited(cluster, repaired(master)):
        preview = cluster.pulumi("preview")
        assert preview.returncode == 0, preview.stdout
        assert replaced(preview.stdout) == []
        began = time.monotonic()
        up(cluster)
        record(f"renewed in {time.monotonic() - began:.0f} s")
    assert not any(drift(cluster).values())
    assert identity(cluster)[0] != kubeconfig, "the administrator's new certificate"
    assert identity(cluster)[1] == nodes
    up(cluster)


def resources(cluster: Cluster) -> dict[str, tuple[Any, Any]]:
    """Each resource's inputs and outputs in the state."""
    return {item["urn"]: (item.get("inputs"), item.get("outputs")) for item in cluster.resources()}


def test_another_kubernetes_version_is_rejected_at_preview(cluster: Cluster) -> None:
    """Another Kubernetes version is rejected at preview, and nothing is touched"""
    before = resources(cluster)

    def change(config: Config) -> None:
        config["cluster"]["kubernetesVersion"] = "1.37.3"

    with edited(cluster, change):
        for command in (["preview"], ["up", "--yes"], ["up", "--yes", "--skip-preview"]):
            done = cluster.pulumi(*command)
            assert done.returncode != 0
            assert "cluster.kubernetesVersion is 1.37.3, but the cluster runs 1.37.2" in done.stdout
            assert "Nothing was changed" in done.stdout
    assert resources(cluster) == before


def other_pods(config: Config) -> None:
    """Change the pod subnet, which requires a new cluster."""
    config["network"] = {**config.get("network", {}), "podSubnet": "10.200.0.0/16"}


def test_preview_explains_a_new_cluster(cluster: Cluster) -> None:
    """A preview explains what a new cluster would reset"""
    with edited(cluster, other_pods):
        done = cluster.pulumi("preview")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this change replaces the cluster: network.podSubnet 10.244.0.0/16 -> 10.200.0.0/16" in done.stdout
    assert f"Reset and set up again: {', '.join(cluster.hosts)}" in done.stdout
    assert re.search(r"\+-.*master-init", done.stdout), done.stdout


def test_another_pod_subnet_makes_a_new_cluster(cluster: Cluster, record: Record) -> None:
    """Another pod subnet makes a new cluster on the same hosts, and reverting it makes one more"""
    first = identity(cluster)[0]

    def assert_new_cluster(subnet: str) -> None:
        began = time.monotonic()
        up(cluster)
        record(f"{subnet}0.0/16: new cluster in {time.monotonic() - began:.0f} s")
        cluster.wait_for_node_ports(300)
        pods = "get pods -l app.kubernetes.io/name=nginx -o jsonpath='{.items[*].status.podIP}'"
        assert all(address.startswith(subnet) for address in cluster.kubectl(pods).split())
        assert_balances(cluster, "ipvs", "rr")
        assert not any(drift(cluster).values())

    with edited(cluster, other_pods):
        assert_new_cluster("10.200.")
        second = identity(cluster)[0]
    assert_new_cluster("10.244.")
    assert len({first, second, identity(cluster)[0]}) == 3


def test_production_protects_the_control_plane(cluster: Cluster) -> None:
    """`production` protects the control plane from replacement"""
    with edited(cluster, lambda config: config.update(production=True)):
        up(cluster)

        with edited(cluster, other_pods):
            done = cluster.pulumi("preview")
        assert done.returncode != 0
        assert "protect" in done.stdout + done.stderr
    up(cluster)
