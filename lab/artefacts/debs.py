"""The packages of Kubernetes, with upstream's names, versions and files, from programs built here.

They have no maintainer scripts: as with upstream's, enabling and starting the kubelet is the
installer's work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lab.artefacts.command import run

_FILES = Path(__file__).parent / "files"

CRI_TOOLS_VERSION = "1.36.0"
KUBERNETES_CNI_VERSION = "1.7.1"
_ORIGIN = "Built from its Go modules for a mirror without access to upstream."
REVISION = "1.1"  # the package revision upstream begins with


@dataclass(frozen=True)
class Deb:
    """A package to be made."""

    name: str
    version: str  # with the revision
    summary: str
    files: dict[str, Path]  # path on the host, without the leading slash -> the file to put there
    depends: str = ""
    folders: tuple[str, ...] = field(default=())  # empty folders to make

    @property
    def file_name(self) -> str:
        """The package file's name, as upstream has it."""
        return f"{self.name}_{self.version}_amd64.deb"


def kubernetes_debs(version: str, kubernetes: Path, crictl: Path, cni: Path) -> tuple[Deb, ...]:
    """The packages of a Kubernetes release.

    :param kubernetes, crictl, cni: the folders with the programs.
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
    """Make the package files in a folder; the same input makes the same bytes with the same dpkg-deb.

    :raises UserError: dpkg-deb fails.
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
        # Weakly packed: installing is what takes time on an emulated host.
        argv = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z1", "--threads-max=1", "--build", root, target]
        run(argv, f"packing {deb.file_name}", environment={"SOURCE_DATE_EPOCH": "0"})
    return target


def _folder(root: Path, path: str) -> None:
    """Make a folder and its parents with mode 0755, whatever the umask."""
    spot = root
    for part in Path(path).parts:
        spot /= part
        spot.mkdir(exist_ok=True)
        spot.chmod(0o755)
