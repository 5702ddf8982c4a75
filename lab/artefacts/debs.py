"""Debian packages of Kubernetes, with upstream's names, versions and files, made from programs built here.

They have no maintainer scripts. After installing them, enable and start the kubelet, as with upstream's
packages.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.artefacts.command import run

_FILES = Path(__file__).parent / "files"

CRI_TOOLS_VERSION = "1.36.0"
KUBERNETES_CNI_VERSION = "1.7.1"
_ORIGIN = "Built from its Go modules, for hosts without access to upstream."
REVISION = "1.1"  # the first package revision of an upstream release


@dataclass(frozen=True)
class Deb:
    """A package to make.

    Attributes:
        version: Includes the revision.
        files: Source file by path on the host, without the leading slash.
        folders: Empty folders to create, without the leading slash.
    """

    name: str
    version: str
    summary: str
    files: dict[str, Path]
    depends: str = ""
    folders: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The name of the package file, the same as upstream's."""
        return f"{self.name}_{self.version}_amd64.deb"


def kubernetes_debs(version: str, kubernetes: Path, crictl: Path, cni: Path) -> tuple[Deb, ...]:
    """The packages of a Kubernetes release.

    Args:
        version: The release, such as `1.37.2`.
        kubernetes: The folder with kubeadm, kubelet and kubectl.
        crictl: The folder with crictl.
        cni: The folder with the CNI plugins.
    """
    release = f"{version}-{REVISION}"
    plugins = sorted(path for path in cni.iterdir() if os.access(path, os.X_OK))
    return (
        Deb(
            "kubeadm",
            release,
            "Command-line utility for administering a Kubernetes cluster",
            {
                "usr/bin/kubeadm": kubernetes / "kubeadm",
                "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": _FILES / "10-kubeadm.conf",
            },
        ),
        Deb(
            "kubelet",
            release,
            "Node agent for Kubernetes clusters",
            {
                "usr/bin/kubelet": kubernetes / "kubelet",
                "usr/lib/systemd/system/kubelet.service": _FILES / "kubelet.service",
            },
            depends="iptables (>= 1.4.21), kubernetes-cni (>= 1.2.0), iproute2, mount, util-linux",
            folders=("etc/kubernetes/manifests", "var/lib/kubelet"),
        ),
        Deb(
            "kubectl",
            release,
            "Command-line utility for interacting with a Kubernetes cluster",
            {"usr/bin/kubectl": kubernetes / "kubectl"},
        ),
        Deb(
            "cri-tools",
            f"{CRI_TOOLS_VERSION}-{REVISION}",
            "Command-line utility for interacting with a container runtime",
            {"usr/bin/crictl": crictl / "crictl"},
        ),
        Deb(
            "kubernetes-cni",
            f"{KUBERNETES_CNI_VERSION}-{REVISION}",
            "Binaries required to provision kubernetes container networking",
            {f"opt/cni/bin/{path.name}": path for path in plugins},
            folders=("etc/cni/net.d",),
        ),
    )


def pack(debs: Sequence[Deb], folder: Path) -> tuple[Path, ...]:
    """Write the package files to a folder. With the same dpkg-deb, builds are reproducible.

    Raises:
        UserError: dpkg-deb fails.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        return tuple(pool.map(lambda deb: _pack(deb, folder), debs))


def _pack(deb: Deb, folder: Path) -> Path:
    target = folder / deb.file_name
    with tempfile.TemporaryDirectory(prefix=".deb-", dir=folder) as name:
        root = Path(name) / "root"
        root.mkdir()
        root.chmod(0o755)
        for path in deb.folders:
            _folder(root, path)
        for path, source in deb.files.items():
            _folder(root, str(Path(path).parent))
            shutil.copyfile(source, root / path)
            (root / path).chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        fields = {
            "Package": deb.name,
            "Version": deb.version,
            "Architecture": "amd64",
            "Maintainer": "kubeadm-ipvs <mirror@localhost>",
            "Installed-Size": str(size // 1024),
            "Depends": deb.depends,
            "Section": "admin",
            "Priority": "optional",
            "Homepage": "https://kubernetes.io",
            "Description": f"{deb.summary}\n {_ORIGIN}",
        }
        control = "".join(f"{key}: {value}\n" for key, value in fields.items() if value)
        _folder(root, "DEBIAN")
        (root / "DEBIAN/control").write_text(control)
        (root / "DEBIAN/control").chmod(0o644)
        # Light compression, because unpacking is slow on an emulated host.
        argv = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--threads-max=1", "--build", root, target]
        run(argv, f"packing {deb.file_name}", environment={"SOURCE_DATE_EPOCH": "0"})
    return target


def _folder(root: Path, path: str) -> None:
    """Create a folder and its parents with mode 0755, whatever the umask."""
    folder = root
    for part in Path(path).parts:
        folder /= part
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
