"""The Go programs that the lab builds: Kubernetes, the other programs in images, and the lab's network."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.gobuild import Target

WRAPPERS = Path(__file__).parent / "go"


def kubernetes(version: str) -> Target:
    """The programs of a Kubernetes release, such as `1.37.2`.

    Raises:
        UserError: There is no wrapper module for that release.
    """
    major, minor, _ = version.split(".")
    package = "k8s.io/component-base/version"
    target = Target(
        name=f"kubernetes-{version}",
        programs={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kubeadm",
                "kubelet",
                "kubectl",
                "kube-proxy",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
            )
        },
        ldflags=(
            f"-X {package}.gitVersion=v{version}",
            f"-X {package}.gitMajor={major}",
            f"-X {package}.gitMinor={minor}",
            f"-X {package}.gitTreeState=clean",
        ),
        wrappers=WRAPPERS,
    )
    if not target.wrapper.exists():
        known = sorted(path.name.removeprefix("kubernetes-") for path in WRAPPERS.glob("kubernetes-*"))
        raise UserError(
            f"can't build Kubernetes {version}: {WRAPPERS} has wrapper modules only for {', '.join(known)}",
            f"choose one of these versions, or add a wrapper module as {WRAPPERS / 'README.md'} describes",
        )
    return target


ETCD_VERSION = "3.7.0"
ETCD = Target(
    name="etcd",
    programs={
        "etcd": "go.etcd.io/etcd/server/v3",
        "etcdctl": "go.etcd.io/etcd/etcdctl/v3",
        "etcdutl": "go.etcd.io/etcd/etcdutl/v3",
    },
    wrappers=WRAPPERS,
)


def _coredns(version: str) -> Target:
    programs = {"coredns": "github.com/coredns/coredns"}
    return Target(name=f"coredns-{version}", programs=programs, wrappers=WRAPPERS)


# kubeadm 1.37 requires 1.14.6, but some Go proxies don't have all of its modules. 1.13.1 reads the same
# Corefile, so it is the fallback. The image's labels name the version that was built.
COREDNS = (_coredns("1.14.6"), _coredns("1.13.1"))

CRICTL_VERSION = "1.36.0"
CRICTL = Target(
    name="cri-tools",
    programs={"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"},
    ldflags=(f"-X sigs.k8s.io/cri-tools/pkg/version.Version=v{CRICTL_VERSION}",),
    wrappers=WRAPPERS,
)

CNI_PLUGINS_VERSION = "1.7.1"
CNI_PLUGINS = Target(
    name="cni-plugins",
    programs={
        path.rpartition("/")[2]: f"github.com/containernetworking/plugins/plugins/{path}"
        for path in (
            "ipam/dhcp",
            "ipam/host-local",
            "ipam/static",
            "main/bridge",
            "main/dummy",
            "main/host-device",
            "main/ipvlan",
            "main/loopback",
            "main/macvlan",
            "main/ptp",
            "main/tap",
            "main/vlan",
            "meta/bandwidth",
            "meta/firewall",
            "meta/portmap",
            "meta/sbr",
            "meta/tuning",
            "meta/vrf",
        )
    },
    ldflags=(
        "-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion="
        f"v{CNI_PLUGINS_VERSION}",
    ),
    wrappers=WRAPPERS,
)

# flannel's own plugin isn't available as a module. This is its predecessor, from before flannel's plugin got
# a repository of its own: it reads the same subnet file and the same settings.
CNI_PLUGIN_FLANNEL_VERSION = "0.9.1"
CNI_PLUGIN_FLANNEL = Target(
    name="cni-plugin-flannel",
    programs={"flannel": "github.com/containernetworking/plugins/plugins/meta/flannel"},
    wrappers=WRAPPERS,
)

FLANNEL_VERSION = "0.28.9"
FLANNEL = Target(
    name="flannel",
    programs={"flanneld": "github.com/flannel-io/flannel"},
    ldflags=(f"-X github.com/flannel-io/flannel/pkg/version.Version=v{FLANNEL_VERSION}",),
    # Use Go's own resolver and user lookup: those of the C library don't work in a static program.
    tags=("netgo", "osusergo"),
    static_c=True,
    wrappers=WRAPPERS,
)

LAB_NETWORK = Target(
    name="lab-network", programs={"lab-network": "kubeadm-ipvs/build/lab-network"}, wrappers=WRAPPERS
)
