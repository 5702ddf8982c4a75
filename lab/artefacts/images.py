"""Builds the mirror's container images: upstream's names and tags with content built here.

Almost all images share one small base layer. kube-proxy and flannel also share a layer with iptables and
similar tools. The labels of each image state what it really contains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from lab.artefacts import targets
from lab.artefacts.command import run
from lab.artefacts.oci import Image, Layout, Tree

_FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class Tags:
    """The tags that a minor release of kubeadm requires and that can't be derived from its version."""

    etcd: str
    coredns: str
    pause: str


TAGS = {"1.37": Tags(etcd="3.7.0-0", coredns="v1.14.6", pause="3.10.2")}
FLANNEL_TAG = f"v{targets.FLANNEL_VERSION}"
FLANNEL_CNI_TAG = "v1.9.1-flannel1"
NGINX_TAG = "1.29"

# The Debian packages in each layer, by the layer's name. Their dependencies are included as well.
DEBIAN_SETS: dict[str, tuple[str, ...]] = {
    "shell": ("busybox-static",),
    "net": ("iptables", "ipset", "nftables", "conntrack", "kmod"),
    "nginx": ("nginx",),
}
# Dependencies that the programs don't load: a layer omits the packages that match its pattern.
_EXCLUDED_PACKAGES = {
    "shell": r"(?!busybox-static$).*",
    "net": r"gcc-.*-base|openssl-provider-legacy|debconf|perl-base",
    # Only nginx-common's maintainer scripts need the others.
    "nginx": r"(?!(nginx|nginx-common|nginx-core|libc6|libgcc-s1|libcrypt1|libpcre2-8-0|libssl3(t64)?"
    r"|zlib1g|libzstd1)$).*",
}
_EXCLUDED_FOLDERS = (
    "etc/default",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/ufw",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/share/apport",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/vim",
    "usr/share/zsh",
)
_FOLDERS = (
    "dev", "etc", "proc", "root", "run", "sys", "usr/bin", "usr/lib/modules", "usr/lib64", "usr/local/bin",
    "usr/sbin", "var/cache", "var/lib", "var/log",
)  # fmt: skip
_USERS = b"""\
root:x:0:0:root:/root:/bin/sh
nginx:x:101:101:nginx:/var/cache/nginx:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
_GROUPS = b"""\
root:x:0:
nginx:x:101:
nogroup:x:65534:
"""
# /etc/hosts comes before DNS, as usual.
_NSSWITCH = b"""\
passwd: files
group: files
hosts: files dns
protocols: files
services: files
"""
_APPLETS = (
    "[", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "du", "echo",
    "env", "expr", "false", "find", "grep", "head", "hostname", "id", "kill", "ln", "ls", "mkdir", "mktemp",
    "mv", "nc", "nslookup", "od", "printf", "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq",
    "sh", "sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "timeout", "top", "touch", "tr",
    "true", "uname", "uniq", "vi", "wc", "wget", "which", "xargs",
)  # fmt: skip


@dataclass(frozen=True)
class Programs:
    """Folders with the programs to put into images."""

    kubernetes: Path
    etcd: Path
    coredns: Path
    coredns_version: str
    flannel: Path
    cni_flannel: Path
    pause: Path  # the program itself


def references(kubernetes_version: str) -> dict[str, str]:
    """The images that a cluster with its example workload needs.

    Returns:
        Full upstream references by short name.

    Raises:
        UserError: `TAGS` lacks the release.
    """
    minor = kubernetes_version.rpartition(".")[0]
    if minor not in TAGS:
        raise UserError(
            f"lab/artefacts/images.py has no image tags for Kubernetes {minor} (it has {', '.join(TAGS)})",
            f"run `kubeadm config images list` with kubeadm {minor} and add the tags it prints to TAGS there",
        )
    tags, tag = TAGS[minor], f"v{kubernetes_version}"
    return {
        "kube-apiserver": f"registry.k8s.io/kube-apiserver:{tag}",
        "kube-controller-manager": f"registry.k8s.io/kube-controller-manager:{tag}",
        "kube-scheduler": f"registry.k8s.io/kube-scheduler:{tag}",
        "kube-proxy": f"registry.k8s.io/kube-proxy:{tag}",
        "etcd": f"registry.k8s.io/etcd:{tags.etcd}",
        "coredns": f"registry.k8s.io/coredns/coredns:{tags.coredns}",
        "pause": f"registry.k8s.io/pause:{tags.pause}",
        "flannel": f"ghcr.io/flannel-io/flannel:{FLANNEL_TAG}",
        "flannel-cni-plugin": f"ghcr.io/flannel-io/flannel-cni-plugin:{FLANNEL_CNI_TAG}",
        "nginx": f"docker.io/library/nginx:{NGINX_TAG}",
    }


def check_tags(kubeadm: Path, kubernetes_version: str) -> None:
    """Check that `references` has every image that kubeadm requires.

    Raises:
        UserError: An image is missing.
    """
    argv = [kubeadm, "config", "images", "list", "--kubernetes-version", f"v{kubernetes_version}"]
    required = set(run(argv, "listing kubeadm's images").decode().split())
    missing = required - set(references(kubernetes_version).values())
    if missing:
        raise UserError(
            f"kubeadm {kubernetes_version} requires images that the mirror doesn't have: "
            f"{', '.join(sorted(missing))}",
            "correct TAGS in lab/artefacts/images.py",
        )


def compile_pause(target: Path) -> None:
    """Compile the sandbox container's program, statically linked.

    Raises:
        UserError: gcc isn't installed or fails.
    """
    argv = ["gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-o", target, _FILES / "pause.c"]
    run(argv, "compiling pause")


def build(
    layout: Layout, kubernetes_version: str, programs: Programs, debian: Mapping[str, Sequence[Path]]
) -> None:
    """Write all images to the layout.

    Args:
        layout: Receives the images.
        kubernetes_version: Such as `1.37.2`.
        programs: The programs to put into them.
        debian: Package files by name of their set in `DEBIAN_SETS`.
    """
    trees = {
        "base": _base(),
        "pause": _program("pause", programs.pause),
        "shell": _shell(debian["shell"]),
        "net": _net(debian["net"]),
        "nginx": _nginx(debian["nginx"]),
        "etcd": _programs(programs.etcd, ("etcd", "etcdctl", "etcdutl")),
        "coredns": _program("coredns", programs.coredns / "coredns"),
        "flannel": _program("opt/bin/flanneld", programs.flannel / "flanneld"),
        "flannel-cni-plugin": _program("flannel", programs.cni_flannel / "flannel"),
    }
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"):
        trees[name] = _programs(programs.kubernetes, (name,))
    with ThreadPoolExecutor(max_workers=2) as pool:
        layers = dict(zip(trees, pool.map(layout.add_layer, trees.values()), strict=True))

    names = references(kubernetes_version)
    from_modules = "built from its Go modules"

    def add(name: str, below: Sequence[str], version: str, about: str, entrypoint: str, **more: str) -> None:
        layout.add_image(
            Image(
                names[name],
                tuple(layers[layer] for layer in (*below, name)),
                version=version,
                about=f"{about}, for hosts without access to upstream",
                entrypoint=(entrypoint,),
                user=more.get("user", ""),
                stop_signal=more.get("stop_signal", ""),
                command=tuple(more["command"].split("|")) if "command" in more else (),
            )
        )

    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        add(name, ["base"], f"v{kubernetes_version}", from_modules, f"/usr/local/bin/{name}")
    tools = ["base", "shell", "net"]
    add("kube-proxy", tools, f"v{kubernetes_version}", from_modules, "/usr/local/bin/kube-proxy")
    add("etcd", ["base"], f"v{targets.ETCD_VERSION}", from_modules, "/usr/local/bin/etcd")
    add("coredns", ["base"], f"v{programs.coredns_version}", from_modules, "/coredns")
    own = "this project's own implementation"
    add("pause", [], names["pause"].rpartition(":")[2], own, "/pause", user="65535:65535")
    add("flannel", tools, FLANNEL_TAG, from_modules, "/opt/bin/flanneld")
    plugin = f"v{targets.CNI_PLUGIN_FLANNEL_VERSION} of the CNI plugins"
    about = "an older version of the plugin, built from the Go module of the CNI plugins"
    add("flannel-cni-plugin", ["base", "shell"], plugin, about, "/flannel")
    version = _debian_version(debian["nginx"], "nginx")
    options = {"command": "-g|daemon off;", "stop_signal": "SIGQUIT"}
    add("nginx", ["base", "shell"], version, "Debian's nginx", "/usr/sbin/nginx", **options)


def _base() -> Tree:
    tree = Tree()
    for path in _FOLDERS:
        tree.folder(path)
    tree.folder("tmp", 0o1777)
    tree.folder("var/tmp", 0o1777)
    for name in Tree.MERGED:
        tree.link(name, f"usr/{name}")
    tree.link("var/run", "/run")
    tree.file("etc/passwd", _USERS)
    tree.file("etc/group", _GROUPS)
    tree.file("etc/nsswitch.conf", _NSSWITCH)
    return tree


def _program(path: str, source: Path) -> Tree:
    tree = Tree()
    tree.file(path, source, 0o755)
    return tree


def _programs(folder: Path, names: Sequence[str]) -> Tree:
    tree = Tree()
    for name in names:
        tree.file(f"usr/local/bin/{name}", folder / name, 0o755)
    return tree


def _packages(name: str, packages: Sequence[Path]) -> Tree:
    tree = Tree()
    for package in packages:
        if not re.fullmatch(_EXCLUDED_PACKAGES[name], package.name.split("_")[0]):
            tree.deb(package, without=_EXCLUDED_FOLDERS)
    return tree


def _shell(packages: Sequence[Path]) -> Tree:
    tree = _packages("shell", packages)
    for applet in _APPLETS:
        tree.link(f"usr/bin/{applet}", "busybox")
    return tree


def _net(packages: Sequence[Path]) -> Tree:
    tree = _packages("net", packages)
    # On Debian update-alternatives selects nftables or the legacy tables. The images must use nftables, like
    # the kubelet on the hosts: rules in both kinds of tables would conflict.
    for family in ("iptables", "ip6tables"):
        for action in ("", "-save", "-restore"):
            tree.link(f"usr/sbin/{family}{action}", f"{family}-nft{action}")
            if f"usr/sbin/{family}-nft{action}" not in tree.entries:
                raise UserError(f"Debian's iptables package no longer contains {family}-nft{action}")
    return tree


def _nginx(packages: Sequence[Path]) -> Tree:
    tree = _packages("nginx", packages)
    # Replace Debian's configuration and pages.
    replaced = ("etc/nginx/", "var/www", "var/log/nginx", "usr/share/nginx/html/")
    tree.entries = {path: entry for path, entry in tree.entries.items() if not path.startswith(replaced)}
    tree.file("etc/nginx/nginx.conf", b"user nginx;\n" + (_FILES / "nginx.conf").read_bytes())
    tree.file("etc/nginx/conf.d/default.conf", _FILES / "default.conf")
    tree.file("usr/share/nginx/html/index.html", _FILES / "index.html")
    for path in ("var/lib/nginx", "var/log/nginx", "var/cache/nginx"):
        tree.folder(path)
    return tree


def _debian_version(packages: Sequence[Path], name: str) -> str:
    for package in packages:
        found = re.fullmatch(rf"{name}_([^_]+)_\w+\.deb", package.name)
        if found:
            return found.group(1)
    raise UserError(f"apt didn't download Debian's package {name}")
