"""The container images of a mirror: names and tags are upstream's, the content is built here.

All begin with the same small layer; kube-proxy and flannel share one with iptables and
its like. Each image's labels say what is really in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from lab.artefacts import gobuild
from lab.artefacts.command import run
from lab.artefacts.oci import Image, Layout, Tree

_FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class Tags:
    """The tags that one minor release's kubeadm asks for, beside its own version."""

    etcd: str
    coredns: str
    pause: str


TAGS = {"1.37": Tags(etcd="3.7.0-0", coredns="v1.14.6", pause="3.10.2")}
FLANNEL_TAG = f"v{gobuild.FLANNEL_VERSION}"
FLANNEL_CNI_TAG = "v1.9.1-flannel1"
NGINX_TAG = "1.29"

# Debian packages whose files go into layers, by the name of the layer.
DEBIAN_SETS: dict[str, tuple[str, ...]] = {
    "shell": ("busybox-static",),
    "net": ("iptables", "ipset", "nftables", "conntrack", "kmod"),
    "nginx": ("nginx",),
}
# What these programs don't load, of all that their packages depend on.
_LEFT_OUT = {
    "shell": r"(?!busybox-static$).*",
    "net": r"gcc-.*-base|openssl-provider-legacy|debconf|perl-base",
    # nginx-common needs the rest for its maintainer scripts only.
    "nginx": r"(?!(nginx|nginx-common|nginx-core|libc6|libgcc-s1|libcrypt1|libpcre2-8-0|libssl3(t64)?"
    r"|zlib1g|libzstd1)$).*",
}
_WITHOUT = (
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
# Names in /etc/hosts first, as everywhere else.
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
    """Folders of finished programs."""

    kubernetes: Path
    etcd: Path
    coredns: Path
    coredns_version: str
    flannel: Path
    cni_flannel: Path
    pause: Path  # the file


def references(kubernetes_version: str) -> dict[str, str]:
    """Short name -> full upstream reference, of every image that a cluster and its example need.

    :raises UserError: nobody has written down that release's tags.
    """
    minor = kubernetes_version.rpartition(".")[0]
    if minor not in TAGS:
        raise UserError(
            f"which images Kubernetes {minor} needs isn't known here (known: {', '.join(TAGS)})",
            f"add what `kubeadm config images list` of {minor} prints to lab/artefacts/images.py",
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
    """Compare what is known here with what kubeadm itself asks for.

    :raises UserError: they differ.
    """
    argv = [kubeadm, "config", "images", "list", "--kubernetes-version", f"v{kubernetes_version}"]
    asked = set(run(argv, "asking kubeadm for its images").decode().split())
    lacking = asked - set(references(kubernetes_version).values())
    if lacking:
        raise UserError(
            f"kubeadm {kubernetes_version} asks for images unknown here: {', '.join(sorted(lacking))}",
            "correct TAGS in lab/artefacts/images.py",
        )


def compile_pause(target: Path) -> None:
    """Compile the sandbox container's program, static.

    :raises UserError: gcc isn't there or fails.
    """
    argv = ["gcc", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-o", target, _FILES / "pause.c"]
    run(argv, "compiling pause")


def build(
    layout: Layout, kubernetes_version: str, programs: Programs, debian: Mapping[str, Sequence[Path]]
) -> None:
    """Write every image into the layout.

    :param debian: name of a set -> its package files (see `DEBIAN_SETS`).
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
                about=f"{about}, for a mirror without access to upstream",
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
    add("etcd", ["base"], f"v{gobuild.ETCD_VERSION}", from_modules, "/usr/local/bin/etcd")
    add("coredns", ["base"], f"v{programs.coredns_version}", from_modules, "/coredns")
    own = "a program of our own for the same task"
    add("pause", [], names["pause"].rpartition(":")[2], own, "/pause", user="65535:65535")
    add("flannel", tools, FLANNEL_TAG, from_modules, "/opt/bin/flanneld")
    plugin = f"v{gobuild.CNI_PLUGIN_FLANNEL_VERSION} of the CNI plugins"
    about = "the plugin as it was when it was one of the CNI plugins, built from their Go module"
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
        if not re.fullmatch(_LEFT_OUT[name], package.name.split("_")[0]):
            tree.deb(package, without=_WITHOUT)
    return tree


def _shell(packages: Sequence[Path]) -> Tree:
    tree = _packages("shell", packages)
    for applet in _APPLETS:
        tree.link(f"usr/bin/{applet}", "busybox")
    return tree


def _net(packages: Sequence[Path]) -> Tree:
    tree = _packages("net", packages)
    # Debian chooses between nftables and the legacy tables by alternatives. Here it is nftables, as
    # the kubelet on the hosts has it: the two kinds of tables must not be mixed.
    for family in ("iptables", "ip6tables"):
        for action in ("", "-save", "-restore"):
            tree.link(f"usr/sbin/{family}{action}", f"{family}-nft{action}")
            if f"usr/sbin/{family}-nft{action}" not in tree.entries:
                raise UserError(f"Debian's iptables package holds no {family}-nft{action} any more")
    return tree


def _nginx(packages: Sequence[Path]) -> Tree:
    tree = _packages("nginx", packages)
    # Debian's own configuration and pages give way to ours.
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
    raise UserError(f"Debian's package {name} isn't among those fetched")
