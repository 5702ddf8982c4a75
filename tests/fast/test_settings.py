"""Loading settings: validation, the message for each problem, derived values."""

from __future__ import annotations

import base64
import copy
import json
import re
import runpy
import socket
import struct
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from components import configuration
from model.field_types import Mirror, seconds, share_of
from model.settings import PREFIX, Settings, fields
from model.settings_file import RENAMED, load
from model.settings_problems import Location, Problem, SettingsError, path_of
from tests.fast import graph
from tests.fast.sample_settings import with_addresses
from tests.stacks import PROJECT

Raw = dict[str, Any]


def key_of(kind: str, filling: int) -> str:
    """A well-formed public key with arbitrary content."""
    blob = struct.pack(">I", len(kind)) + kind.encode() + bytes([filling]) * 36
    return f"{kind} {base64.b64encode(blob).decode()}"


ED25519 = key_of("ssh-ed25519", 1)
ECDSA = key_of("ecdsa-sha2-nistp256", 2)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Valid settings, as in a stack file."""
    (tmp_path / "id").write_text(
        "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    (tmp_path / "id.pub").write_text(f"{ED25519} me\n")
    (tmp_path / "known_hosts").write_text(
        "".join(f"[127.0.0.1]:2210{n} {key_of('ssh-ed25519', n)}\n" for n in (1, 2, 3))
    )
    (tmp_path / "packages.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    return {
        "hosts": [
            {
                "name": name,
                "role": "worker" if number else "control-plane",
                "address": f"192.168.166.{101 + number}",
                "ssh": {"host": "127.0.0.1", "port": 22101 + number},
            }
            for number, name in enumerate(("master", "node1", "node2"))
        ],
        "ssh": {"privateKeyFile": "id", "knownHostsFile": "known_hosts"},
        "packages": {"key": "packages.asc"},
    }


def put(path: str, value: Any) -> Callable[[Raw], None]:
    """A change that sets a path such as `hosts.1.ssh.port`, and adds missing sections."""

    def change(raw: Raw) -> None:
        *parents, last = path.split(".")
        place: Any = raw
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value

    return change


def drop(path: str) -> Callable[[Raw], None]:
    """A change that removes a path."""

    def change(raw: Raw) -> None:
        *parents, last = path.split(".")
        place: Any = raw
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        del place[last]

    return change


def problems_of(raw: Raw, base: Path) -> list[Problem]:
    with pytest.raises(SettingsError) as caught:
        load(raw, base)
    return caught.value.problems


# A change, the path of the only problem that it causes, and words in the problem's text.
BAD: list[tuple[Callable[[Raw], None], str, list[str]]] = [
    # Types and names.
    (put("hosts", "master"), "hosts", ["list"]),
    (put("hosts", []), "hosts", ["empty", "control plane"]),
    (drop("hosts"), "hosts", ["missing"]),
    (put("hosts.1", "node1"), "hosts[1]", ["names and values"]),
    (put("cluster", [1]), "cluster", ["names and values"]),
    (put("clusterr", {}), "clusterr", ["isn't a setting", "did you mean `cluster`?"]),
    (put("cluster.kubernetes_version", "1.37.2"), "cluster.kubernetes_version", ["`kubernetesVersion`"]),
    (
        put("cluster.timeouts.kubernetesApiCal", "1m"),
        "cluster.timeouts.kubernetesApiCal",
        ["`kubernetesApiCall`"],
    ),
    (put("hosts.0.adress", "192.168.166.9"), "hosts[0].adress", ["`address`"]),
    (put("hosts.2.ssh.zzz", 1), "hosts[2].ssh.zzz", ["known names", "hostKey"]),
    (put("network.flannel.backend", "ipsec"), "network.flannel.backend", ["`vxlan`", "`host-gw`"]),
    (put("firewall", "off"), "firewall", ["`open`", "`disable`", "`leave`"]),
    (put("proxy.mode", "userspace"), "proxy.mode", ["`ipvs`", "`nftables`", "`iptables`"]),
    (put("cluster.extraEnvs", {"NO PROXY": "x"}), "cluster.extraEnvs", ["'NO PROXY'"]),
    (put("cluster.extraEnvs", {"A": "x\ny"}), "cluster.extraEnvs", ["one line"]),
    # Pulumi stores the variables in plain text.
    *[
        (put("cluster.extraEnvs", {name: value}), "cluster.extraEnvs", [name, "plain text", "needs no login"])
        for name, value in (
            ("HTTPS_PROXY", "https://user:s3cret@proxy:3128"),
            ("HTTPS_PROXY", "http://t0ken@proxy"),
            ("https_proxy", "user:s3cret@proxy:3128"),
            ("ALL_PROXY", "socks5://user:s3c/ret@proxy"),
            ("BACKENDS", "http://a,http://user:s3cret@b"),
        )
    ],
    (put("cluster.kubelet", {"maxPods": "many"}), "cluster.kubelet.maxPods", ["whole number"]),
    (put("cluster.kubelet", {"maxPods": 256}), "cluster.kubelet.maxPods", ["/24", "253 pods", "at most 255"]),
    (put("cluster.kubelet", {"maxPods": "500"}), "cluster.kubelet.maxPods", ["is 500", "at most 255"]),
    (put("cluster.kubelet", {"maxPods": 5}), "cluster.kubelet.maxPods", ["control plane", "at least 6"]),
    (put("cluster.kubelet", {"maxPod": 9}), "cluster.kubelet.maxPod", ["`maxPods`"]),
    (
        put("cluster.kubelet", {"systemReserved": {"cpu": "lots"}}),
        "cluster.kubelet.systemReserved",
        ["`500m`"],
    ),
    # Values with which kubelet doesn't start.
    (
        put("cluster.kubelet", {"imageGcHighThresholdPercent": 80}),
        "cluster.kubelet.imageGcHighThresholdPercent",
        ["81"],
    ),
    (put("cluster.kubelet", {"containerLogMaxFiles": 1}), "cluster.kubelet.containerLogMaxFiles", ["from 2"]),
    (
        put("cluster.kubelet", {"containerLogMaxSize": "10m"}),
        "cluster.kubelet.containerLogMaxSize",
        ["`10Mi`"],
    ),
    (
        put("cluster.kubelet", {"containerLogMaxSize": "10MB"}),
        "cluster.kubelet.containerLogMaxSize",
        ["`10Mi`"],
    ),
    (
        put("cluster.kubelet", {"kubeReserved": {"cpus": "200m"}}),
        "cluster.kubelet.kubeReserved",
        ["cpus", "cpu, memory"],
    ),
    (
        put("cluster.kubelet", {"systemReserved": {"memory": "10%"}}),
        "cluster.kubelet.systemReserved",
        ["10%"],
    ),
    (
        put("cluster.kubelet", {"evictionHard": {"memory.free": "9Mi"}}),
        "cluster.kubelet.evictionHard",
        ["memory.available"],
    ),
    (
        put("cluster.kubelet", {"evictionHard": {"memory.available": "0"}}),
        "cluster.kubelet.evictionHard",
        ["above zero"],
    ),
    (
        put("cluster.kubelet", {"evictionHard": {"nodefs.available": "150%"}}),
        "cluster.kubelet.evictionHard",
        ["up to 100"],
    ),
    (
        put("cluster.kubelet", {"shutdownGracePeriod": "500ms"}),
        "cluster.kubelet.shutdownGracePeriod",
        ["one second"],
    ),
    (
        put("cluster.kubelet", {"shutdownGracePeriod": "2562048h"}),
        "cluster.kubelet.shutdownGracePeriod",
        ["too long", "2562047h"],
    ),
    (put("cluster.kubelet", {"resolvConf": "resolv.conf"}), "cluster.kubelet.resolvConf", ["full path"]),
    (put("cluster.kubelet", {"resolvConf": "/etc/a file"}), "cluster.kubelet.resolvConf", ["full path"]),
    (put("proxy.udpTimeout", "9999999h"), "proxy.udpTimeout", ["too long"]),
    (put("stepTimeouts", {"rollout": 60}), "stepTimeouts.rollout", ["from 120"]),
    (put("hosts.0.taints", ["dedicated"]), "hosts[0].taints", ["`key=value:Effect`", "NoSchedule"]),
    (put("hosts.0.taints", ["a=b:NoExecute", "a=c:NoExecute"]), "hosts[0].taints", ["twice"]),
    (put("preflight.ignore", "NumCPU"), "preflight.ignore", ["list"]),
    (put("preflight.ignore", ["all"]), "preflight.ignore[0]", ["'all'", "name the checks", "`NumCPU`"]),
    (put("preflight.ignore", ["Mem", "ALL"]), "preflight.ignore[1]", ["'ALL'", "name the checks"]),
    (put("preflight.ignore", ["NumCPU,Mem"]), "preflight.ignore[0]", ["'NumCPU,Mem'", "one name"]),
    (put("preflight.ignore", ["Port-"]), "preflight.ignore[0]", ["`Port-6443`"]),
    (put("preflight.ignore", ["-NumCPU"]), "preflight.ignore[0]", ["`NumCPU`"]),
    (put("preflight.ignore", ["NumCPU\n"]), "preflight.ignore[0]", ["`NumCPU`"]),
    (put("preflight.ignore", [""]), "preflight.ignore[0]", ["`NumCPU`"]),
    (put("preflight.ignore", [1]), "preflight.ignore[0]", ["in quotes"]),
    (put("preflight.ignore", ["NumCPU", "numcpu"]), "preflight.ignore", ["numcpu twice"]),
    (put("preflight.ignored", ["NumCPU"]), "preflight.ignored", ["`ignore`"]),
    (put("production", "maybe"), "production", ["true or false"]),
    (put("proxy.scheduler", "random"), "proxy.scheduler", ["`rr`", "`wlc`"]),
    (put("proxy.strictArp", "yes"), "proxy.strictArp", ["true or false"]),
    (put("nginx.replicas", 1.5), "nginx.replicas", ["whole number"]),
    (put("nginx.replicas", True), "nginx.replicas", ["whole number"]),
    (put("nginx.replicas", 0), "nginx.replicas", ["from 1"]),
    (put("verification.requests", -3), "verification.requests", ["from 1"]),
    (put("stepTimeouts.init", 0), "stepTimeouts.init", ["from 1"]),
    (put("runtime.mirrors", ["a"]), "runtime.mirrors", ["names and values"]),
    # Versions.
    (put("cluster.kubernetesVersion", "1.37"), "cluster.kubernetesVersion", ["x.y.z"]),
    (put("cluster.kubernetesVersion", 1.37), "cluster.kubernetesVersion", ["in quotes", '"1.37"']),
    (put("cluster.kubernetesVersion", "v1.37.2"), "cluster.kubernetesVersion", ["`1.37.2`"]),
    (put("cluster.kubernetesVersion", "1.37.0-rc.1"), "cluster.kubernetesVersion", ["released"]),
    (put("cluster.kubernetesVersion", "1.33.9"), "cluster.kubernetesVersion", ["too old", "1.34"]),
    (
        put("cluster.kubernetesVersion", "1.40.0"),
        "cluster.kubernetesVersion",
        ["KubeProxyIPVS", "off by default from 1.40", "removed in 1.43"],
    ),
    (put("cluster.kubernetesVersion", "1.43.1"), "cluster.kubernetesVersion", ["removed in 1.43"]),
    (put("cluster.kubernetesVersion", "2.0.0"), "cluster.kubernetesVersion", ["1.34 to 1.39"]),
    # Hosts.
    (put("hosts.1.name", "Node_1"), "hosts[1].name", ["RFC 1123"]),
    (put("hosts.1.name", "n" * 64), "hosts[1].name", ["at most 63"]),
    (put("hosts.1.name", "-node"), "hosts[1].name", ["RFC 1123"]),
    (drop("hosts.1.name"), "hosts[1].name", ["missing", "`name: node1`"]),
    (put("hosts.2.name", "node1"), "hosts[2].name", ["hosts[1].name"]),
    (put("hosts.1.role", "master"), "hosts[1].role", ["`control-plane`", "`worker`"]),
    (drop("hosts.1.role"), "hosts[1].role", ["missing", "`role: worker`"]),
    (put("hosts.0.role", "worker"), "hosts", ["no control plane"]),
    (put("hosts.2.role", "control-plane"), "hosts[2].role", ["second control plane", "hosts[0]"]),
    (drop("hosts.2.address"), "hosts[2].address", ["missing"]),
    (put("hosts.2.address", "192.168.166.300"), "hosts[2].address", ["IPv4 address"]),
    (put("hosts.2.address", "fd00::1"), "hosts[2].address", ["IPv6"]),
    (put("hosts.2.address", "127.0.0.1"), "hosts[2].address", ["can't reach"]),
    (put("hosts.2.address", "192.168.166.102"), "hosts[2].address", ["hosts[1].address"]),
    (put("hosts.2.ssh.port", 22102), "hosts[2].ssh", ["127.0.0.1:22102", "hosts[1]"]),
    (put("hosts.2.ssh.port", 0), "hosts[2].ssh.port", ["1 to 65535"]),
    (put("hosts.2.ssh.port", 22999), "hosts[2].ssh.hostKey", ["missing", "127.0.0.1 port 22999"]),
    (put("hosts.2.ssh.host", "no spaces"), "hosts[2].ssh.host", ["DNS name"]),
    (put("hosts.2.ssh.hostKey", "AAAA"), "hosts[2].ssh.hostKey", ["isn't a host key"]),
    (
        put("hosts.2.ssh.hostKey", "ssh-rsa " + ED25519.split()[1]),
        "hosts[2].ssh.hostKey",
        ["isn't a host key"],
    ),
    (
        put("hosts.2.ssh.hostKey", "ssh-rsa AAAAB3NzaC1yc2EAAAAB"),
        "hosts[2].ssh.hostKey",
        ["ssh-rsa", "ssh-ed25519"],
    ),
    (put("hosts.2.labels", {"tier": 1}), "hosts[2].labels.tier", ["in quotes"]),
    (put("hosts.2.labels", {"tier": "a b"}), "hosts[2].labels", ["tier", "63"]),
    (put("hosts.2.labels", {"bad key": "a"}), "hosts[2].labels", ["bad key"]),
    (
        put("hosts.2.labels", {"node-role.kubernetes.io/worker": ""}),
        "hosts[2].labels",
        ["kubelet refuses"],
    ),
    # Networks.
    (put("network.podSubnet", "10.244.0.0"), "network.podSubnet", ["no prefix length"]),
    (put("network.podSubnet", "10.244.1.0/16"), "network.podSubnet", ["`10.244.0.0/16`"]),
    (put("network.podSubnet", "fd00::/48"), "network.podSubnet", ["IPv6"]),
    (put("network.podSubnet", "10.244.0.0/25"), "network.podSubnet", ["/24"]),
    (put("network.podSubnet", "10.244.0.0/24"), "network.podSubnet", ["room for 1", "3 hosts"]),
    (put("network.podSubnet", "10.0.0.0/7"), "network.podSubnet", ["/8 to /24"]),
    (put("network.podSubnet", "10.96.0.0/16"), "network.podSubnet", ["overlaps", "10.96.0.0/12"]),
    (put("network.podSubnet", "192.168.0.0/16"), "network.podSubnet", ["hosts[0].address"]),
    (put("network.serviceSubnet", "192.168.160.0/20"), "network.serviceSubnet", ["hosts[2].address"]),
    (put("network.serviceSubnet", "10.96.0.0/29"), "network.serviceSubnet", ["tenth", "/28"]),
    (put("network.serviceSubnet", "10.0.0.0/8"), "network.serviceSubnet", ["/12"]),
    (put("network.serviceSubnet", "abc/12"), "network.serviceSubnet", ["IPv4 network"]),
    (put("network.dnsDomain", "cluster_local"), "network.dnsDomain", ["DNS name"]),
    (
        put("network.flannel.interfaceRegex", "("),
        "network.flannel.interfaceRegex",
        ["isn't a regular expression"],
    ),
    (put("network.flannel.resyncSeconds", 0), "network.flannel.resyncSeconds", ["seconds"]),
    (put("network.flannel.interfaceRegex", r"^eth1\Z"), "network.flannel.interfaceRegex", ["`^eth1$`"]),
    (put("network.flannel.interfaceRegex", "^eth1++$"), "network.flannel.interfaceRegex", ["possessive"]),
    (put("network.flannel.interfaceRegex", "(?!lo)"), "network.flannel.interfaceRegex", ["look-around"]),
    (put("network.flannel.image", "flannel"), "network.flannel.image", ["has no version"]),
    # Cluster and proxy.
    (put("cluster.apiServer", "https://127.0.0.1:6443"), "cluster.apiServer", ["without a scheme"]),
    (put("cluster.apiServer", "127.0.0.1"), "cluster.apiServer", ["host:port"]),
    (put("cluster.apiServer", "127.0.0.1:99999"), "cluster.apiServer", ["host:port"]),
    (put("cluster.certSANs", ["https://a"]), "cluster.certSANs[0]", ["DNS name"]),
    (put("cluster.encryptionAlgorithm", "ED25519"), "cluster.encryptionAlgorithm", ["`ECDSA-P256`"]),
    (put("cluster.joinTokenMinutes", 0), "cluster.joinTokenMinutes", ["minutes"]),
    (put("cluster.timeouts.discovery", "0s"), "cluster.timeouts.discovery", ["above zero"]),
    (put("cluster.timeouts.discovery", "5"), "cluster.timeouts.discovery", ["`5s`"]),
    (put("cluster.timeouts.discovery", 5), "cluster.timeouts.discovery", ["`5s`"]),
    (put("cluster.timeouts.discovery", "5 minutes"), "cluster.timeouts.discovery", ["`1m30s`"]),
    (put("proxy.syncPeriod", "0s"), "proxy.syncPeriod", ["above zero"]),
    (put("proxy.minSyncPeriod", "1m"), "proxy.minSyncPeriod", ["proxy.syncPeriod 5s"]),
    *(
        (put("proxy.maxUnavailable", value), "proxy.maxUnavailable", [f"is '{value}'", "`1`, `10%`"])
        for value in (0, -1, 1000000, "0", "0%", "101%", "010%", "10.5%", "10 %", "%", "", "all")
    ),
    (put("proxy.maxUnavailable", True), "proxy.maxUnavailable", []),
    (put("proxy.maxUnavailable", 1.5), "proxy.maxUnavailable", []),
    (put("verification.peers", 0), "verification.peers", ["whole number"]),
    (put("proxy.tcpTimeout", "-1s"), "proxy.tcpTimeout", ["negative"]),
    (put("proxy.excludeCidrs", ["10.0.0.1/8"]), "proxy.excludeCidrs[0]", ["`10.0.0.0/8`"]),
    (put("proxy.excludeCidrs", "10.0.0.0/8"), "proxy.excludeCidrs", ["list"]),
    # Application, images, packages.
    (put("nginx.nodePort", 8080), "nginx.nodePort", ["30000 to 32767"]),
    (put("nginx.nodePort", 32768), "nginx.nodePort", ["30000 to 32767"]),
    (put("nginx.image", "Nginx:1.29"), "nginx.image", ["isn't an image"]),
    (
        put("cluster.imageRepository", "https://registry.k8s.io"),
        "cluster.imageRepository",
        ["without scheme"],
    ),
    (
        put("runtime.mirrors", {"docker.io": ["10.0.2.2:5000"]}),
        'runtime.mirrors["docker.io"][0]',
        ["http://"],
    ),
    (put("runtime.mirrors", {"docker.io": []}), "runtime.mirrors", ["no mirror for docker.io"]),
    (put("runtime.mirrors", {"https://docker.io": ["http://m"]}), "runtime.mirrors", ["https://docker.io"]),
    (put("runtime.mirrors", {"docker.io": ["http://m", "http://m"]}), "runtime.mirrors", ["twice"]),
    (
        put("runtime.mirrors", {"docker.io": ["http://u:p@m"]}),
        'runtime.mirrors["docker.io"][0]',
        ["user name", "plain text", "needs no login"],
    ),
    *[
        (put("runtime.mirrors", {"docker.io": [url]}), 'runtime.mirrors["docker.io"][0]', words)
        for url, words in (
            # containerd ignores a hosts.toml that it can't parse, and pulls from upstream.
            ('https://m/a"b', ["contains '\"'", "percent-encoded"]),
            ("https://m/a\\b", ["contains '\\\\'"]),
            ("https://m/a\nb", ["contains '\\n'"]),
            ("https://m/a\x7fb", ["contains '\\x7f'"]),
            ("https://m/a b", ["contains ' '"]),
            (" https://m", ["contains ' '"]),
            ("https://m/%zz", ["contains '%'"]),
            ("https://m/ä", ["contains 'ä'"]),
            ("https://m/a?", ["contains '?'"]),
            ("https://m/a?token=s3cret", ["contains '?'"]),
            ("https://m/a#b", ["contains '#'"]),
            ("https://user:s3c/ret@m", ["user name"]),
            ("https://user:s3 cret@m", ["user name"]),
            ("ftp://user:s3cret@m", ["user name"]),
            # containerd adds /v2 to a path that doesn't end with it.
            ("https://harbor.example/v2/proj", ["/v2/proj/v2/", "overridePath: true", "Harbor"]),
            ("https://harbor.example/v2/proj/", ["/v2/proj/v2/"]),
            ("https://m/a/v2/b/v2", ["/a/v2/b/v2/", "overridePath"]),
        )
    ],
    *[
        (put("runtime.mirrors", {"docker.io": [mirror]}), 'runtime.mirrors["docker.io"][0]', words)
        for mirror, words in (
            (7, ["is 7", "write a URL"]),
            ({}, ["has no url", "{url: "]),
            ({"url": 7}, ["has no url"]),
            ({"url": "https://m/v2/a", "overridePath": False}, ["overridePath: true"]),
            ({"url": "https://m/v2/a", "overridePath": "yes"}, ['overridePath: "yes"', "true or false"]),
            ({"url": "https://m", "override_path": True}, ["has override_path", "overridePath"]),
            ({"url": "https://m", "password": "s3cret"}, ["has password", "docs/air-gap.md"]),
            ({"url": "https://u:s3cret@m"}, ["user name", "plain text"]),
            ({"url": "http://m", "ca": "ca.crt"}, ["https://"]),
            ({"url": "https://m", "ca": 7}, ["has ca: 7", "path"]),
        )
    ],
    *[
        (
            put("runtime.mirrors", {"docker.io": [{"url": "https://m", "ca": file}]}),
            'runtime.mirrors["docker.io"][0].ca',
            words,
        )
        for file, words in (
            ("no-such.crt", ["no-such.crt, which doesn't exist"]),
            ("id.pub", ["isn't a CA certificate"]),
            ("id", ["private key", "only certificates"]),
            ("~nobody-here/ca.crt", ["home directory"]),
        )
    ],
    (
        put("runtime.mirrors", {"docker.io": f"https://s3cret-{'x' * 60}@m"}),
        'runtime.mirrors["docker.io"]',
        ["https://...@m", "write a list"],
    ),
    (put("cluster.apiServer", "https://user:s3cret@m"), "cluster.apiServer", ["without a scheme"]),
    (put("packages.repository", "ftp://x/"), "packages.repository", ["http://"]),
    (put("packages.repository", "https://u:s3cret@x/"), "packages.repository", ["plain text", "auth.conf.d"]),
    (put("packages.repository", 'https://x/"/{minor}'), "packages.repository", ["contains '\"'"]),
    (put("packages.key", "https://u:s3cret@x/key"), "packages.key", ["plain text", "path of a file"]),
    (put("packages.key", "http://x/key"), "packages.key", ["replace", "https://", "path of a file"]),
    (
        put("packages", {"repository": "http://mirror/{minor}/{format}"}),
        "packages.key",
        ["is missing", "packages.repository", "http://mirror", "same connection", "https://"],
    ),
    (put("packages", {"repository": "HTTP://mirror/"}), "packages.key", ["is missing"]),
    (put("packages.repository", "http://x/{version}/"), "packages.repository", ["{version}", "{minor}"]),
    (put("packages.revision", "1.1; rm"), "packages.revision", ["`*`"]),
    (put("packages.key", "no-such.asc"), "packages.key", ["doesn't exist"]),
    (put("packages.key", "id.pub"), "packages.key", ["isn't an armored key"]),
    (put("packages.key", "ftp://x/key"), "packages.key", ["https://"]),
    # SSH access.
    (put("ssh.privateKeyFile", "absent"), "ssh.privateKeyFile", ["doesn't exist"]),
    (put("ssh.privateKeyFile", "id.pub"), "ssh.privateKeyFile", ["isn't a private key"]),
    (put("ssh.privateKeyFile", "."), "ssh.privateKeyFile", ["is a directory"]),
    (put("ssh.privateKeyFile", "~nobody-of-that-name/id"), "ssh.privateKeyFile", ["no home directory"]),
    (put("ssh.knownHostsFile", "absent"), "ssh.knownHostsFile", ["doesn't exist"]),
    (put("ssh.user", "root toor"), "ssh.user", ["valid user name"]),
    (put("ssh.user", "-oProxyCommand=x"), "ssh.user", ["valid user name", "hyphen"]),
    (put("ssh.user", "ops\n"), "ssh.user", ["valid user name"]),
    (put("ssh.user", "ops\x7f"), "ssh.user", ["valid user name"]),
    (put("ssh.user", "CORP\\"), "ssh.user", ["valid user name"]),
    (put("ssh.user", "a;reboot"), "ssh.user", ["valid user name"]),
    (put("hosts.2.ssh.user", ""), "hosts[2].ssh.user", ["valid user name"]),
    (put("ssh.proxyJump", "bastion:0"), "ssh.proxyJump", ["[USER@]HOST[:PORT]"]),
    (put("ssh.proxyJump", "bastion:ssh"), "ssh.proxyJump", ["[USER@]HOST[:PORT]"]),
    (put("ssh.proxyJump", "-x@bastion"), "ssh.proxyJump", ["[USER@]HOST[:PORT]"]),
    (put("ssh.proxyJump", "ssh://bastion"), "ssh.proxyJump", ["[USER@]HOST[:PORT]"]),
    (put("ssh.proxyJump", "a,b"), "ssh.proxyJump", ["one jump host"]),
    (put("ssh.proxyJump", "bastion"), "ssh.proxyJumpHostKey", ["missing", "for bastion port 22"]),
    (put("hosts.2.ssh.proxyJump", "b:2222"), "hosts[2].ssh.proxyJumpHostKey", ["for b port 2222"]),
    (put("ssh.port", "ssh"), "ssh.port", ["whole number"]),
    (put("ssh.dialTimeoutSeconds", 0), "ssh.dialTimeoutSeconds", ["from 1"]),
]
BAD_IDS = [f"{number}-{path}" for number, (_, path, _) in enumerate(BAD)]


@pytest.mark.parametrize(("change", "path", "words"), BAD, ids=BAD_IDS)
def test_invalid_setting_is_the_only_problem(
    raw: Raw, tmp_path: Path, change: Callable[[Raw], None], path: str, words: list[str]
) -> None:
    change(raw)
    problems = problems_of(raw, tmp_path)
    # A network that contains the addresses of three hosts is three problems with one path.
    assert {problem.path for problem in problems} == {path}
    text = "\n".join(problem.text for problem in problems)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("change", [change for change, _, _ in BAD], ids=BAD_IDS)
def test_no_message_contains_a_login(raw: Raw, tmp_path: Path, change: Callable[[Raw], None]) -> None:
    change(raw)
    message = str(SettingsError(problems_of(raw, tmp_path)))
    assert not re.search("s3|t0ken|ret@", message)


@pytest.mark.parametrize("change", [change for change, _, _ in BAD], ids=BAD_IDS)
def test_problem_ends_the_program_before_any_effect(
    raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Raw], None]
) -> None:
    change(raw)
    texts = {
        f"{PREFIX}{name}": part if isinstance(part, str) else json.dumps(part) for name, part in raw.items()
    }
    monkeypatch.setattr(configuration, "PROJECT", tmp_path)
    connections: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connections.append(address))

    def program() -> None:
        pulumi.runtime.set_all_config(texts)
        with pytest.raises(pulumi.RunError, match="nothing was changed"):
            runpy.run_path(str(PROJECT / "__main__.py"))

    assert graph.run(program, lambda _: {}).requests == {}
    assert connections == []


def test_valid_settings_load(raw: Raw, tmp_path: Path) -> None:
    settings = load(raw, tmp_path)
    assert [host.name for host in settings.hosts] == ["master", "node1", "node2"]
    assert settings.control_plane.name == "master"
    assert [host.name for host in settings.workers] == ["node1", "node2"]


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.2.2:22500",
        "https://m/",
        "https://[fd00::1]:5000",
        "https://m/v2",
        "https://m/v2/",
        "https://artifactory.example/artifactory/api/docker/docker-remote",
        "https://nexus.example/repository/docker-proxy/",
        "https://m/a%20b/v21/c",
    ],
)
def test_mirror_url_that_containerd_understands_is_unchanged(raw: Raw, tmp_path: Path, url: str) -> None:
    raw["runtime"] = {"mirrors": {"docker.io": [url]}}
    assert load(raw, tmp_path).runtime.mirrors == {"docker.io": (Mirror(url),)}


def test_mirror_has_options(raw: Raw, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    harbor = {"url": "https://harbor.example/v2/proj/", "overridePath": "true", "ca": "ca.crt"}
    raw["runtime"] = {"mirrors": {"docker.io": [harbor, "https://m"]}}
    mirrors = load(raw, tmp_path).runtime.mirrors["docker.io"]
    assert mirrors == (Mirror(harbor["url"], True, str(tmp_path / "ca.crt")), Mirror("https://m"))


@pytest.mark.parametrize(
    "packages",
    [
        {"repository": "https://mirror/"},
        {"repository": "http://mirror/", "key": "packages.asc"},
        {"repository": "http://mirror/", "key": "https://mirror/key.asc"},
        {"repository": "http://mirror/", "manage": False},
    ],
)
def test_key_that_cant_be_replaced_is_accepted(raw: Raw, tmp_path: Path, packages: Raw) -> None:
    load(raw | {"packages": packages}, tmp_path)


def test_missing_key_is_listed_with_other_problems(raw: Raw, tmp_path: Path) -> None:
    raw["packages"] = {"repository": "http://mirror/", "revision": "1.1; rm"}
    paths = [problem.path for problem in problems_of(raw, tmp_path)]
    assert paths == ["packages.key", "packages.revision"]


@pytest.mark.parametrize("count", [6, 110, 253, 255])
def test_nodes_subnet_holds_accepted_pods(raw: Raw, tmp_path: Path, count: int) -> None:
    raw["cluster"] = {"kubelet": {"maxPods": count}}
    assert load(raw, tmp_path).cluster.kubelet.max_pods == count


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "10.0.0.0/8,.example"},
        {"CONTACT": "ops@example.com"},
        {"A": "", "GOMAXPROCS": "1"},
    ],
)
def test_variables_without_logins_are_accepted(raw: Raw, tmp_path: Path, variables: Raw) -> None:
    raw["cluster"] = {"extraEnvs": variables}
    assert load(raw, tmp_path).cluster.extra_envs == variables


def test_labs_stack_file_lacks_only_generated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = yaml.safe_load((PROJECT / "Pulumi.dev.yaml").read_text())["config"]
    raw = {name.partition(":")[2]: value for name, value in config.items()}
    problems = problems_of(raw, PROJECT)
    assert [problem.path for problem in problems] == [
        "extends",
        "packages.key",
        "ssh.knownHostsFile",
        "ssh.privateKeyFile",
    ]
    assert all("`python -m lab up`" in problem.text for problem in problems)


def test_one_message_lists_all_problems_by_path(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"] += [copy.deepcopy(raw["hosts"][2]) for _ in range(9)]
    for number, host in enumerate(raw["hosts"][3:], 3):
        host |= {"name": f"node{number}", "address": f"192.168.166.{101 + number}"}
        host["ssh"] = {"hostKey": ED25519}
    raw["hosts"][2]["name"] = "NODE"
    raw["hosts"][10]["adress"] = "x"
    raw["cluster"] = {"kubernetesVersion": "1.40.0", "nope": 1}
    raw["network"] = {"podSubnet": "10.96.0.0/16"}
    raw["ssh"]["privateKeyFile"] = "absent"
    with pytest.raises(SettingsError) as caught:
        load(raw, tmp_path)
    paths = [
        "cluster.kubernetesVersion",
        "cluster.nope",
        "hosts[2].name",
        "hosts[10].adress",
        "network.podSubnet",
        "ssh.privateKeyFile",
    ]
    assert [problem.path for problem in caught.value.problems] == paths
    lines = str(caught.value).splitlines()
    assert "6 problems" in lines[0]
    assert [line.split(": ")[0].strip() for line in lines[1:]] == paths


def test_invalid_value_hides_no_other_problem(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"][0]["address"] = "nonsense"
    raw["hosts"][2]["name"] = "node1"
    raw["network"] = {"podSubnet": "nonsense", "serviceSubnet": "192.168.166.0/24"}
    paths = [problem.path for problem in problems_of(raw, tmp_path)]
    assert paths == [
        "hosts[0].address",
        "hosts[2].name",
        "network.podSubnet",
        "network.serviceSubnet",
        "network.serviceSubnet",
    ]


def test_invalid_values_placeholder_is_never_reported(raw: Raw, tmp_path: Path) -> None:
    with_addresses(raw, "10.244.0.1", "10.244.0.2", "10.244.0.3")
    raw["network"] = {"podSubnet": "nonsense"}
    raw["proxy"] = {"syncPeriod": "nonsense", "minSyncPeriod": "1m"}
    assert [problem.path for problem in problems_of(raw, tmp_path)] == [
        "network.podSubnet",
        "proxy.syncPeriod",
    ]


def test_unknown_role_is_one_problem(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"][0]["role"] = "leader"
    assert [problem.path for problem in problems_of(raw, tmp_path)] == ["hosts[0].role"]


def test_all_hosts_without_a_key_are_reported(raw: Raw, tmp_path: Path) -> None:
    del raw["ssh"]["knownHostsFile"]
    problems = problems_of(raw, tmp_path)
    assert [problem.path for problem in problems] == [f"hosts[{number}].ssh.hostKey" for number in range(3)]
    assert "ssh.knownHostsFile" in problems[0].text


def test_numbers_and_booleans_may_be_quoted(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"][0]["ssh"]["port"] = "22101"
    raw["proxy"] = {"strictArp": "true"}
    raw["nginx"] = {"nodePort": "30081", "replicas": "3"}
    settings = load(raw, tmp_path)
    assert settings.hosts[0].ssh.port == 22101
    assert settings.proxy.strict_arp is True
    assert (settings.nginx.node_port, settings.nginx.replicas) == (30081, 3)


@pytest.mark.parametrize("name", ["ops@corp.example.com", r"CORP\ops", "1000", "svc+k8s", "host$", "jürgen"])
def test_directory_users_may_log_in(raw: Raw, tmp_path: Path, name: str) -> None:
    raw["ssh"]["user"] = name
    settings = load(raw, tmp_path)
    assert settings.ssh_user(settings.hosts[0]) == name


def test_preflight_checks_have_kubeadms_names(raw: Raw, tmp_path: Path) -> None:
    names = ("numcpu", "FileContent--proc-sys-net-bridge-bridge-nf-call-iptables", "Port-6443", "Mem")
    assert load(raw, tmp_path).preflight.ignore == ()
    preflight = load(raw | {"preflight": {"ignore": list(names)}}, tmp_path).preflight
    assert preflight.ignore == names
    assert preflight.ignores("NumCPU")
    assert not preflight.ignores("Swap")


def test_sections_may_be_json_text(raw: Raw, tmp_path: Path) -> None:
    raw["stepTimeouts"] = {"init": 99}
    texts = {name: json.dumps(value) for name, value in raw.items()} | {"firewall": "leave"}
    assert load(texts, tmp_path) == load(raw | {"firewall": "leave"}, tmp_path)


def test_name_without_a_value_is_ignored(raw: Raw, tmp_path: Path) -> None:
    assert load(raw | {"proxy": None, "nginx": {"image": None}}, tmp_path) == load(raw, tmp_path)


def share(folder: Path, **sections: Any) -> str:
    """Write a file for a stack file to extend, and return its name."""
    config = {f"{PREFIX}{name}": value for name, value in sections.items()}
    (folder / "common.yaml").write_text(yaml.safe_dump({"config": config}))
    return "common.yaml"


def test_own_settings_take_precedence_over_shared_ones(raw: Raw, tmp_path: Path) -> None:
    raw["extends"] = share(
        tmp_path,
        firewall="leave",
        cluster={"kubelet": {"maxPods": 50, "podPidsLimit": 9}, "certSANs": ["a", "b"]},
        runtime={"mirrors": {"docker.io": ["http://d"], "ghcr.io": ["http://g"]}},
        packages={"key": "nowhere.asc"},
    )
    raw["cluster"] = {"kubelet": {"maxPods": 70}, "certSANs": ["c"]}
    raw["runtime"] = {"mirrors": {"docker.io": ["http://own"]}}
    settings = load(raw, tmp_path)
    assert settings.firewall == "leave"
    assert (settings.cluster.kubelet.max_pods, settings.cluster.kubelet.pod_pids_limit) == (70, 9)
    assert settings.cluster.cert_sans == ("c",)
    assert settings.runtime.mirrors == {
        "docker.io": (Mirror("http://own"),),
        "ghcr.io": (Mirror("http://g"),),
    }
    assert settings.packages.key == str(tmp_path / "packages.asc")


def test_name_without_value_drops_the_shared_one(raw: Raw, tmp_path: Path) -> None:
    raw["extends"] = share(tmp_path, nginx={"replicas": 5, "nodePort": 30100})
    settings = load(raw | {"nginx": {"replicas": None}}, tmp_path)
    assert (settings.nginx.replicas, settings.nginx.node_port) == (2, 30100)


def test_problem_names_its_file(raw: Raw, tmp_path: Path) -> None:
    raw["extends"] = share(
        tmp_path,
        cluster={"kubernetesVersion": "1.40.0", "nope": 1, "joinTokenMinutes": 0},
        runtime={"mirrors": {"docker.io": []}},
        nginx="web",
        ssh={"knownHostsFile": "absent", "privateKeyFile": "absent"},
    )
    raw["cluster"] = {"joinTokenMinutes": 5000}
    raw["runtime"] = {"mirrors": {"ghcr.io": ["http://m"]}}
    raw["proxy"] = {"scheduler": "random"}
    del raw["ssh"]["knownHostsFile"]
    problems = problems_of(raw, tmp_path)
    assert [(problem.path, problem.file) for problem in problems] == [
        ("cluster.joinTokenMinutes", ""),
        ("cluster.kubernetesVersion", "in common.yaml"),
        ("cluster.nope", "in common.yaml"),
        ("nginx", "in common.yaml"),
        ("proxy.scheduler", ""),
        ("runtime.mirrors", "partly in common.yaml"),
        ("ssh.knownHostsFile", "in common.yaml"),
    ]
    assert "  cluster.kubernetesVersion (in common.yaml): is 1.40.0" in str(SettingsError(problems))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "doesn't exist"),
        ("config: [", "isn't valid YAML"),
        ("kubeadm-ipvs:firewall: leave\n", "`config:`"),
        ("config: text\n", "`config:`"),
        ("config: {}\nencryptionsalt: v1:x\n", "`config:`"),
        ("config: {aws:region: eu-west-1}\n", "aws:region"),
        ("config: {firewall: leave}\n", "contains firewall"),
        ("config: {kubeadm-ipvs:extends: other.yaml}\n", "can't extend another file"),
    ],
)
def test_unusable_shared_file_is_the_only_problem(
    raw: Raw, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "common.yaml").write_text(text)
    [problem] = problems_of(raw | {"extends": "common.yaml"}, tmp_path)
    assert (problem.path, problem.file) == ("extends", "")
    assert problem.text.startswith("is common.yaml, which ")
    assert words in problem.text


def test_loading_doesnt_change_its_input(raw: Raw, tmp_path: Path) -> None:
    raw["cluster"] = {"nope": 1}
    before = copy.deepcopy(raw)
    problems_of(raw, tmp_path)
    assert raw == before


def test_paths_start_at_the_base_or_home(raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "key.asc").write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    monkeypatch.setenv("HOME", str(home))
    raw["packages"]["key"] = "~/key.asc"
    settings = load(raw, tmp_path)
    assert settings.packages.key == str(home / "key.asc")
    assert settings.ssh.private_key_file == str(tmp_path / "id")


def test_hosts_own_key_takes_precedence(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"][0]["ssh"]["hostKey"] = ED25519 + " root@master"
    settings = load(raw, tmp_path)
    assert settings.host_key(settings.hosts[0]) == ED25519
    assert settings.host_key(settings.hosts[1]) == key_of("ssh-ed25519", 2)


def test_addresses_and_names_are_derived(raw: Raw, tmp_path: Path) -> None:
    raw["cluster"] = {"apiServer": "Api.example:22643", "certSANs": ["api.example", "10.9.8.7"]}
    settings = load(raw, tmp_path)
    assert settings.minor == "1.37"
    assert settings.service_address == "10.96.0.1"
    assert settings.dns_address == "10.96.0.10"
    assert settings.control_plane_endpoint == "192.168.166.101:6443"
    assert settings.api_server == "Api.example:22643"
    assert settings.cert_sans == ("api.example", "10.9.8.7")
    assert (
        load({k: v for k, v in raw.items() if k != "cluster"}, tmp_path).api_server == "192.168.166.101:6443"
    )


def test_existing_clusters_version_is_only_a_default(raw: Raw, tmp_path: Path) -> None:
    def version(**sections: Any) -> tuple[str, bool]:
        settings = load(raw | sections, tmp_path, "1.36.3")
        return settings.cluster.kubernetes_version, settings.version_is_written

    assert not load(raw, tmp_path).version_is_written
    assert version() == version(cluster={"name": "a"}) == version(cluster={"kubernetesVersion": None})
    assert version() == ("1.36.3", True)
    assert version(cluster={"kubernetesVersion": "1.35.1"}) == ("1.35.1", True)
    shared = share(tmp_path, cluster={"kubernetesVersion": "1.34.4"})
    assert version(extends=shared, cluster={"name": "a"}) == ("1.34.4", True)


def test_existing_clusters_version_must_be_supported(raw: Raw, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.kubernetesVersion: is 1\.33\.1, which is too old"):
        load(raw, tmp_path, "1.33.1")


@pytest.mark.parametrize(
    ("previous", "written", "version"),
    [
        (None, None, Settings.model_fields["cluster"].default.kubernetes_version),
        ("1.36.3", None, "1.36.3"),
        ("1.36.3", "1.35.1", "1.35.1"),
    ],
)
def test_existing_cluster_keeps_its_version(
    raw: Raw,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    previous: str | None,
    written: str | None,
    version: str,
) -> None:
    raw["cluster"] = {"kubernetesVersion": written}
    monkeypatch.setattr(configuration, "PROJECT", tmp_path)

    def program() -> None:
        pulumi.runtime.set_all_config({f"{PREFIX}{name}": json.dumps(part) for name, part in raw.items()})
        assert configuration.settings_of_stack(previous).cluster.kubernetes_version == version

    graph.run(program, lambda _: {})


@pytest.mark.parametrize(
    ("version", "pause"),
    [
        ("1.34.4", "3.10.1"),
        ("1.35.1", "3.10.1"),
        ("1.36.3", "3.10.2"),
        ("1.37.2", "3.10.2"),
        ("1.39.0", "3.10.2"),
    ],
)
def test_sandbox_image_matches_kubeadms_minor(raw: Raw, tmp_path: Path, version: str, pause: str) -> None:
    raw["cluster"] = {"kubernetesVersion": version, "imageRepository": "mirror.example:5000/k8s"}
    settings = load(raw, tmp_path)
    assert settings.pause_image == f"mirror.example:5000/k8s/pause:{pause}"
    assert settings.kube_proxy_image == f"mirror.example:5000/k8s/kube-proxy:v{version}"


@pytest.mark.parametrize(("effect", "spread"), [("NoSchedule", 1), ("NoExecute", 1), ("PreferNoSchedule", 2)])
def test_tainted_workers_dont_count_for_nginxs_spread(
    raw: Raw, tmp_path: Path, effect: str, spread: int
) -> None:
    raw["hosts"][2]["taints"] = [f"dedicated=db:{effect}"]
    assert load(raw, tmp_path).nginx_spread == spread


def test_taints_that_leave_nginx_no_host_are_refused(raw: Raw, tmp_path: Path) -> None:
    for host in raw["hosts"][1:]:
        host["taints"] = ["dedicated=db:NoSchedule"]
    assert [problem.path for problem in problems_of(raw, tmp_path)] == ["hosts"]


@pytest.mark.parametrize(
    ("hosts", "replicas", "spread"), [(3, 2, 2), (2, 2, 1), (3, 1, 1), (1, 2, 1), (3, 5, 2)]
)
def test_nginx_is_spread_over_all_usable_workers(
    raw: Raw, tmp_path: Path, hosts: int, replicas: int, spread: int
) -> None:
    raw["hosts"] = raw["hosts"][:hosts]
    raw["nginx"] = {"replicas": replicas}
    assert load(raw, tmp_path).nginx_spread == spread


# From ssh-keygen. cryptography can write such a key only with the package bcrypt, but reads it without.
ENCRYPTED_OPENSSH = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBiXn2E+u
Ob3D8QeySoUW5gAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIECeFHv6Npsf0HFd
bKrkdyl10zI73S6MENjGMVRrZBJnAAAAkKn1kmTw7gYozlQJgP+ZuytcRCrY1EZPQ46ts4
dyqyYAYERO+Ti+F9HcgTPPOV4raVMiJ+oymrOozHU7JV2qYMa9C8SqFtxgEULHv4vHp+Wj
LHyvYNpj1G31YTdYPQ+Tlqe8pAkrl4KYLcA3WBaqmorM0Nw3zrG4ZexUeBD8n3AFXLCCBN
kneSnGW4k3opPajw==
-----END OPENSSH PRIVATE KEY-----
"""


def pem(form: serialization.PrivateFormat, password: bytes | None) -> str:
    key = (
        ed25519.Ed25519PrivateKey.generate()
        if form is serialization.PrivateFormat.OpenSSH
        else rsa.generate_private_key(65537, 2048)
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, encryption).decode()


@pytest.mark.parametrize(
    ("key", "refused"),
    [
        (pem(serialization.PrivateFormat.OpenSSH, None), False),
        (ENCRYPTED_OPENSSH, True),
        (pem(serialization.PrivateFormat.PKCS8, None), False),
        (pem(serialization.PrivateFormat.PKCS8, b"secret"), True),
        (pem(serialization.PrivateFormat.TraditionalOpenSSL, None), False),
        (pem(serialization.PrivateFormat.TraditionalOpenSSL, b"secret"), True),
        ("-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY-----\n", False),
    ],
    ids=["openssh", "openssh-encrypted", "pkcs8", "pkcs8-encrypted", "pem", "pem-encrypted", "unreadable"],
)
def test_private_key_with_a_passphrase_is_refused(raw: Raw, tmp_path: Path, key: str, refused: bool) -> None:
    (tmp_path / raw["ssh"]["privateKeyFile"]).write_text(key)
    if not refused:
        load(raw, tmp_path)
        return
    with pytest.raises(SettingsError, match=r"ssh\.privateKeyFile: .* has a passphrase; .*ssh-add"):
        load(raw, tmp_path)


def test_settings_load_without_cryptography(
    raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy pack's environment doesn't have the package."""
    (tmp_path / raw["ssh"]["privateKeyFile"]).write_text(ENCRYPTED_OPENSSH)
    for module in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    load(raw, tmp_path)


@pytest.mark.parametrize("old", RENAMED, ids=path_of)
def test_old_names_are_reported_with_current_ones(raw: Raw, tmp_path: Path, old: Location) -> None:
    put(path_of(old), {})(raw)
    [problem] = problems_of(raw, tmp_path)
    assert (problem.path, problem.text) == (path_of(old), f"is called `{RENAMED[old]}` now")


def test_current_names_exist() -> None:
    paths = set(fields())
    sections = {path.rpartition(".")[0] for path in paths}
    assert set(RENAMED.values()) <= paths | sections
    assert not {path_of(old) for old in RENAMED} & paths


def test_package_repositorys_placeholders_are_replaced(raw: Raw, tmp_path: Path) -> None:
    upstream = load({k: v for k, v in raw.items() if k != "packages"}, tmp_path)
    assert upstream.package_repository("deb") == "https://pkgs.k8s.io/core:/stable:/v1.37/deb/"
    raw["packages"]["repository"] = "http://10.0.2.2:22080/kubernetes/v{minor}/{format}"
    ours = load(raw, tmp_path)
    assert ours.package_repository("deb") == "http://10.0.2.2:22080/kubernetes/v1.37/deb/"


def test_host_without_ssh_host_uses_its_address(raw: Raw, tmp_path: Path) -> None:
    raw["hosts"][1]["ssh"] = {"hostKey": ED25519, "user": "admin"}
    settings = load(raw, tmp_path)
    assert settings.ssh_endpoint(settings.hosts[1]) == ("192.168.166.102", 22)
    assert [settings.ssh_user(host) for host in settings.hosts] == ["root", "admin", "root"]


@pytest.mark.parametrize(
    ("text", "length"), [("5s", "5"), ("1m30s", "90"), ("1.5h", "5400"), ("250ms", "0.25"), ("0s", "0")]
)
def test_durations_have_kubernetes_form(text: str, length: str) -> None:
    assert seconds(text) == Decimal(length)


@pytest.mark.parametrize(
    ("share", "total", "count"),
    [
        ("1", 100, 1),
        ("5", 2, 5),
        ("10%", 0, 1),
        ("10%", 2, 1),
        ("10%", 19, 1),
        ("10%", 20, 2),
        ("10%", 99, 9),
        ("1%", 99, 1),
        ("100%", 99, 99),
    ],
)
def test_share_is_at_least_one(share: str, total: int, count: int) -> None:
    assert share_of(share, total) == count


@pytest.mark.parametrize(
    ("given", "lanes"), [(None, 1), (1, 1), (2, 2), ("2", 2), ("50%", 1), ("100%", 2), ("999999", 999999)]
)
def test_workers_change_in_the_configured_lanes(
    raw: Raw, tmp_path: Path, given: str | int | None, lanes: int
) -> None:
    if given is not None:
        raw["proxy"] = {"maxUnavailable": given}
    settings = load(raw, tmp_path)
    assert len(settings.workers) == 2
    assert settings.proxy_lanes == lanes


def test_settings_that_werent_loaded_have_no_host_key(raw: Raw, tmp_path: Path) -> None:
    bare = Settings.model_validate_json(json.dumps(raw))
    with pytest.raises(LookupError, match="master"):
        bare.host_key(bare.hosts[0])
