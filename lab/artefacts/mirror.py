"""A mirror's packages and images, complete in one folder of the cache: the lab serves them from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common import paths
from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab.artefacts import (
    aptrepo,
    cache,
    command,
    debian,
    debs,
    gobuild,
    images,
    kernel,
    oci,
    registry,
    upstream,
)

Source = Literal["auto", "build", "upstream"]

KUBERNETES_VERSION = "1.37.2"
DEBIAN_RELEASE = "trixie"

# What the program may install from the distribution, and ufw, which a test's host has in firewalld's place;
# their dependencies come along.
HOST_PACKAGES = (
    "ca-certificates",
    "conntrack",
    "curl",
    "ebtables",
    "ethtool",
    "gnupg",
    "iproute2",
    "ipset",
    "iptables",
    "ipvsadm",
    "nftables",
    "mount",
    "openssl",
    "socat",
    "ufw",
    "util-linux",
)
_HOST_SET = "hosts"

_CONTENTS = "contents.json"

# Go targets beside Kubernetes and CoreDNS, which come in versions.
_REST = (gobuild.CRICTL, gobuild.CNI_PLUGINS, gobuild.CNI_PLUGIN_FLANNEL, gobuild.ETCD, gobuild.FLANNEL)

# Modules whose text decides what the mirror looks like.
_MAKERS = ("aptrepo.py", "debs.py", "images.py", "oci.py", "registry.py", "mirror.py")


@dataclass(frozen=True)
class Item:
    """One line of what a mirror holds."""

    kind: str  # program, package or image
    what: str
    version: str  # what it really is; an image's tag may ask for another
    source: str
    size: int  # bytes; of an image: its layers as they are fetched
    seconds: float | None = None  # that building took, when it was built


@dataclass(frozen=True)
class Mirror:
    """A finished mirror."""

    root: Path  # to be served over HTTP: kubernetes/v<minor>/deb/, debian/<release>/
    registry_data: Path  # docker-registry's storage, filled
    key: Path  # the armored public key that signs the package lists
    source: str  # "built" or "upstream", and why
    images: tuple[str, ...]  # full upstream references
    preload: Path  # folder with an archive of the images, for `ctr images import`
    items: tuple[Item, ...]  # all that is in it, and where that comes from


def ensure_mirror(
    progress: Progress,
    source: Source = "auto",
    kubernetes_version: str = KUBERNETES_VERSION,
    debian_release: str = DEBIAN_RELEASE,
    endpoints: upstream.Endpoints | None = None,
) -> Mirror:
    """The mirror, checked if it is in the cache, else made.

    :param source: `build` from Go modules and Debian packages; `upstream`: fetch what upstream publishes;
        `auto`: upstream where all of it answers, else build. What `auto` has chosen once it stays with
        as long as the result is in the cache.
    :param kubernetes_version: such as `1.37.2`.
    :param debian_release: the hosts' release, by its code name.
    :raises UserError: something can't be had; what is finished stays in the cache.
    """
    told = progress.scope("mirror")
    ends = endpoints or upstream.Endpoints()
    signer = aptrepo.Signer(told)
    wanted = _Wanted(kubernetes_version, debian_release, ends, signer)
    kind, reason = _choose(source, wanted, told)
    if kind == "upstream" and source == "auto":
        try:
            return _mirror(wanted, "upstream", reason, told)
        except UserError as trouble:
            cause = trouble.what.splitlines()[0]
            reason = f"built, since upstream answers but doesn't give everything ({cause})"
            told.say(str(trouble))
    return _mirror(wanted, "built" if source == "auto" else kind, reason, told)


def _mirror(wanted: _Wanted, kind: str, reason: str, progress: Progress) -> Mirror:
    maker = _fetch if kind == "upstream" else _build

    def make(partial: Path) -> dict[str, str]:
        progress.say(f"source: {reason}")
        command.check(building=kind == "built")
        items = maker(wanted, partial, progress)
        (partial / _CONTENTS).write_text(json.dumps([asdict(item) for item in items], indent=1) + "\n")
        return {"source": reason}

    folder = cache.cached("mirror", wanted.key(kind), progress, make)
    items = tuple(Item(**fields) for fields in json.loads((folder / _CONTENTS).read_text()))
    return Mirror(
        root=folder / "www",
        registry_data=folder / "registry",
        key=folder / "packages.asc",
        source=cache.about(folder)["source"],
        images=tuple(item.what for item in items if item.kind == "image"),
        preload=folder / "preload",
        items=items,
    )


@dataclass(frozen=True)
class _Wanted:
    """What the mirror is to hold."""

    kubernetes: str
    debian: str
    endpoints: upstream.Endpoints
    signer: aptrepo.Signer

    @property
    def minor(self) -> str:
        return self.kubernetes.rpartition(".")[0]

    def key(self, kind: str) -> str:
        """The name in the cache of a mirror of this kind, `built` or `upstream`."""
        here = Path(__file__).parent
        parts: list[bytes | str] = [
            *((here / name).read_bytes() for name in _MAKERS),
            *(path.read_bytes() for path in sorted((here / "files").iterdir())),
            self.signer.public.read_bytes(),
            debian.sources(self.debian),
        ]
        if kind == "built":
            parts += [target.key for target in _targets(self.kubernetes)]
        else:
            parts += [self.endpoints.packages, *sorted(self.endpoints.registries.values())]
        return f"{self.kubernetes}-{self.debian}-{kind}-{digest_of(*parts)[:16]}"


def _targets(kubernetes_version: str) -> tuple[gobuild.Target, ...]:
    return (gobuild.kubernetes(kubernetes_version), *gobuild.COREDNS, *_REST)


def _choose(source: Source, wanted: _Wanted, progress: Progress) -> tuple[str, str]:
    """The kind of mirror, and the reason in words."""
    if source == "build":
        return "built", "built, as asked for"
    if source == "upstream":
        return "upstream", "upstream, as asked for"
    for kind in ("upstream", "built"):
        if (paths.cache_dir() / "mirror" / wanted.key(kind) / cache.MANIFEST).exists():
            return kind, f"{kind}, as before"
    with progress.step("asking whether upstream can be reached"):
        problems = upstream.probe(wanted.endpoints, wanted.minor)
    if problems:
        return "built", f"built, since upstream can't be reached ({upstream.in_words(problems)})"
    return "upstream", "upstream, since all of it can be reached"


def _build(wanted: _Wanted, folder: Path, progress: Progress) -> list[Item]:
    references = images.references(wanted.kubernetes)  # before the work begins: it may be unknown
    sets = {_HOST_SET: HOST_PACKAGES, **images.DEBIAN_SETS}
    pause = folder / "pause"
    # Go's builds use all processors each; what waits for the network or is small runs beside them.
    with ThreadPoolExecutor(max_workers=2) as pool:
        fetched = pool.submit(debian.fetch, wanted.debian, sets, progress)
        compiled = pool.submit(images.compile_pause, pause)
        kubernetes_target = gobuild.kubernetes(wanted.kubernetes)
        kubernetes = gobuild.build(kubernetes_target, progress)
        images.check_tags(kubernetes / "kubeadm", wanted.kubernetes)
        crictl, cni, cni_flannel, etcd, flannel = rest = [gobuild.build(target, progress) for target in _REST]
        coredns_target, coredns = gobuild.build_first(gobuild.COREDNS, progress)
        packages = fetched.result()
        compiled.result()

    programs = images.Programs(
        kubernetes=kubernetes,
        etcd=etcd,
        coredns=coredns,
        coredns_version=coredns_target.name.removeprefix("coredns-"),
        flannel=flannel,
        cni_flannel=cni_flannel,
        pause=pause,
    )
    layout = oci.Layout(folder / "images")

    def pack() -> list[Item]:
        with progress.step("packing Kubernetes' packages"):
            target = _packages_folder(wanted, folder)
            wanted_debs = debs.kubernetes_debs(wanted.kubernetes, kubernetes, crictl, cni)
            made = debs.pack(wanted_debs, target / "amd64")
            aptrepo.write_index(target, made, f"Kubernetes v{wanted.minor}, built", wanted.signer)
        return _package_items(made, "built")

    def make_images() -> list[Item]:
        with progress.step("making the images"):
            images.build(layout, wanted.kubernetes, programs, packages.sets)
        pause.unlink()
        return _finish_images(layout, folder, progress)

    built = zip((kubernetes_target, coredns_target, *_REST), (kubernetes, coredns, *rest), strict=True)
    go = [_program_item(target, path) for target, path in built]
    made = _together(pack, make_images, lambda: _debian_repository(wanted, packages, folder, progress))
    lacking = set(references.values()) - {item.what for item in made if item.kind == "image"}
    if lacking:
        raise UserError(f"nobody has made the images {', '.join(sorted(lacking))}")
    return [*go, *made]


def _fetch(wanted: _Wanted, folder: Path, progress: Progress) -> list[Item]:
    references = sorted(images.references(wanted.kubernetes).values())
    # Kept by an interrupted run, unlike the folder, which begins empty.
    layout = oci.Layout(paths.cache_dir() / "upstream" / wanted.key("upstream"))

    def fetch_packages() -> list[Item]:
        target = _packages_folder(wanted, folder)
        made = upstream.fetch_packages(wanted.endpoints, wanted.kubernetes, target / "amd64", progress)
        aptrepo.write_index(target, made, f"Kubernetes v{wanted.minor}, upstream's", wanted.signer)
        return _package_items(made, "upstream")

    def copy_images() -> list[Item]:
        upstream.copy_images(wanted.endpoints, references, layout, progress)
        layout.folder.rename(folder / "images")
        return _finish_images(oci.Layout(folder / "images"), folder, progress)

    def fetch_debian() -> list[Item]:
        packages = debian.fetch(wanted.debian, {_HOST_SET: HOST_PACKAGES}, progress)
        return _debian_repository(wanted, packages, folder, progress)

    return _together(fetch_packages, copy_images, fetch_debian)


def _program_item(target: gobuild.Target, folder: Path) -> Item:
    about = cache.about(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != cache.MANIFEST)
    source = f"Go modules, Go {about['go']}"
    return Item("program", target.name, target.version, source, size, float(about["seconds"]))


def _package_items(made: Sequence[Path], source: str) -> list[Item]:
    parts = [(path.name.split("_"), path.stat().st_size) for path in made]
    return [Item("package", name, version, source, size) for (name, version, _), size in parts]


def _together(*work: Callable[[], list[Item]]) -> list[Item]:
    """Run at the same time; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        futures = [pool.submit(part) for part in work]
    return [item for future in futures for item in future.result()]


def _packages_folder(wanted: _Wanted, folder: Path) -> Path:
    target = folder / f"www/kubernetes/v{wanted.minor}/deb"
    (target / "amd64").mkdir(parents=True)
    shutil.copyfile(wanted.signer.public, folder / "packages.asc")
    return target


def _debian_repository(
    wanted: _Wanted, packages: debian.Packages, folder: Path, progress: Progress
) -> list[Item]:
    target = folder / "www/debian" / wanted.debian
    target.mkdir(parents=True)
    with progress.step(f"writing the package list of debian/{wanted.debian}"):
        copies = []
        for package in packages.sets[_HOST_SET]:
            copies.append(target / package.name)
            shutil.copyfile(package, copies[-1])
        aptrepo.write_index(target, copies, f"Debian {wanted.debian}, a part", wanted.signer)
    asked = [item for item in _package_items(copies, f"Debian {wanted.debian}") if item.what in HOST_PACKAGES]
    rest = [path for path in copies if path.name.split("_")[0] not in HOST_PACKAGES]
    size = sum(path.stat().st_size for path in rest)
    return [*asked, Item("package", f"{len(rest)} packages these need", "", f"Debian {wanted.debian}", size)]


def _finish_images(layout: oci.Layout, folder: Path, progress: Progress) -> list[Item]:
    items = []
    for reference, digest in sorted(layout.references().items()):
        manifest = layout.manifest(digest)
        labels = manifest.get("annotations", {})
        version = labels.get("org.opencontainers.image.version", reference.rpartition(":")[2])
        about = labels.get("org.opencontainers.image.description", "upstream")
        size = sum(layer["size"] for layer in manifest["layers"])
        items.append(Item("image", reference, version, about, size))
    registry.fill(layout, folder / "registry", progress)
    (folder / "preload").mkdir()
    with progress.step("writing the archive to preload"):
        layout.write_archive(folder / "preload/images.tar", layout.references())
    # All of it is in the registry's storage and in the archive now.
    shutil.rmtree(layout.folder)
    return items


def prune(progress: Progress, in_use: Iterable[Path]) -> None:
    """Remove from the cache what earlier versions of this code or of what it builds have left.

    :param in_use: folders of mirrors that labs serve (a `Mirror.root`); they stay.
    """
    root = paths.cache_dir()
    mirrors, debian_folders = root / "mirror", root / "debian"
    served = {path.relative_to(mirrors).parts[0] for path in in_use if path.is_relative_to(mirrors)}
    # Of a kind (version, Debian release, built or upstream's) the one that was used last stays.
    finished = sorted((path.parent for path in mirrors.glob(f"*/{cache.MANIFEST}")), key=_used)
    newest = {path.name.rpartition("-")[0]: path.name for path in finished}
    fetched = sorted((path.parent for path in debian_folders.glob(f"*/{cache.MANIFEST}")), key=_used)
    packages = {path.name.partition("-")[0]: path.name for path in fetched}
    targets = [gobuild.PULUMI, gobuild.PULUMI_LANGUAGE_PYTHON, gobuild.ACTIONLINT, gobuild.LAB_NETWORK]
    for wrapper in gobuild.WRAPPERS.glob("kubernetes-*"):
        targets += _targets(wrapper.name.removeprefix("kubernetes-"))
    wanted = {
        "mirror": {*served, *newest.values()},
        "go": {target.key for target in targets},
        "debian": set(packages.values()),
        "kernel": {kernel.key()},
    }
    for kind, keys in wanted.items():
        for key in cache.prune(kind, keys):
            progress.say(f"prune: {kind}/{key}")
    # Images of a copy that was interrupted wait for a mirror that was begun.
    for folder in (root / "upstream").glob("*"):
        if not (mirrors / f"{folder.name}.partial").exists():
            shutil.rmtree(folder)


def _used(folder: Path) -> float:
    return folder.stat().st_mtime


def table(mirror: Mirror) -> str:
    """What the mirror holds, for a person: what, version, source, size, seconds."""
    rows = [("", "WHAT", "VERSION", "SIZE", "SECONDS", "SOURCE")]
    for item in mirror.items:
        seconds = "" if item.seconds is None else f"{item.seconds:.0f}"
        rows.append((item.kind, item.what, item.version, f"{item.size / 1e6:.1f} MB", seconds, item.source))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "".join(
        "  ".join(
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, [*widths, 0], strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )
