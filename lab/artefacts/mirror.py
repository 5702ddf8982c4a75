"""Makes a mirror: all packages and images that a lab needs, in one cache folder that the lab serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common import cache, gobuild, paths
from common.errors import UserError
from common.files import digest_of
from common.progress import Progress
from lab.artefacts import (
    aptrepo,
    command,
    debian,
    debs,
    images,
    kernel,
    oci,
    registry,
    targets,
    upstream,
)

Source = Literal["auto", "build", "upstream"]

KUBERNETES_VERSION = "1.37.2"
DEBIAN_RELEASE = "trixie"

# The packages that the program may install from the distribution, and ufw, which a test uses instead of
# firewalld. The mirror also holds their dependencies.
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

# The Go targets with a single version, unlike Kubernetes and CoreDNS.
_REST = (targets.CRICTL, targets.CNI_PLUGINS, targets.CNI_PLUGIN_FLANNEL, targets.ETCD, targets.FLANNEL)

# The modules that determine a mirror's contents. Their source is part of its cache key.
_MODULES = ("aptrepo.py", "debs.py", "images.py", "oci.py", "registry.py", "mirror.py")


@dataclass(frozen=True)
class Item:
    """One entry in the list of a mirror's contents.

    Attributes:
        kind: `program`, `package` or `image`.
        what: Its name, or an image's reference.
        version: The actual version, which may differ from an image's tag.
        source: Where it comes from, in words.
        size: In bytes. The size of an image is that of its compressed layers.
        seconds: How long it took to build; None if it wasn't built.
    """

    kind: str
    what: str
    version: str
    source: str
    size: int
    seconds: float | None = None


@dataclass(frozen=True)
class Mirror:
    """A finished mirror.

    Attributes:
        root: The folder to serve over HTTP, with `kubernetes/v<minor>/deb/` and `debian/<release>/`.
        registry_data: The storage folder for docker-registry, with all images.
        key: The armored public key that verifies the package indexes.
        source: "built" or "upstream", followed by the reason.
        images: Full upstream references.
        preload: A folder with an archive of the images, for `ctr images import`.
        items: The contents and their origins.
    """

    root: Path
    registry_data: Path
    key: Path
    source: str
    images: tuple[str, ...]
    preload: Path
    items: tuple[Item, ...]


def ensure_mirror(
    progress: Progress,
    source: Source = "auto",
    kubernetes_version: str = KUBERNETES_VERSION,
    debian_release: str = DEBIAN_RELEASE,
    endpoints: upstream.Endpoints | None = None,
) -> Mirror:
    """The mirror, verified if it is in the cache, otherwise made.

    Args:
        progress: Reports each step.
        source: `build` builds from Go modules and Debian packages, `upstream` downloads what upstream
            publishes. `auto` uses a mirror from the cache if there is one; otherwise it downloads if all of
            upstream is reachable and builds if not.
        kubernetes_version: Such as `1.37.2`.
        debian_release: The hosts' release, by code name.
        endpoints: Where to find upstream, if not in the usual places.

    Raises:
        UserError: Something can't be downloaded or built. Finished parts stay in the cache.
    """
    scope = progress.scope("mirror")
    spec = _Spec(kubernetes_version, debian_release, endpoints or upstream.Endpoints(), aptrepo.Signer(scope))
    kind, reason = _choose(source, spec, scope)
    if kind == "upstream" and source == "auto":
        try:
            return _mirror(spec, "upstream", reason, scope)
        except UserError as error:
            cause = error.what.splitlines()[0]
            reason = f"built, because upstream is reachable but incomplete ({cause})"
            scope.say(str(error))
    return _mirror(spec, "built" if source == "auto" else kind, reason, scope)


def _mirror(spec: _Spec, kind: str, reason: str, progress: Progress) -> Mirror:
    fill = _download if kind == "upstream" else _build

    def make(partial: Path) -> dict[str, str]:
        progress.say(f"source: {reason}")
        command.check(building=kind == "built")
        items = fill(spec, partial, progress)
        (partial / _CONTENTS).write_text(json.dumps([asdict(item) for item in items], indent=1) + "\n")
        return {"source": reason}

    folder = cache.cached("mirror", spec.key(kind), progress, make)
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
class _Spec:
    """The contents of a mirror to make."""

    kubernetes: str
    debian: str
    endpoints: upstream.Endpoints
    signer: aptrepo.Signer

    @property
    def minor(self) -> str:
        return self.kubernetes.rpartition(".")[0]

    def key(self, kind: str) -> str:
        """The cache key of a mirror whose kind is `built` or `upstream`."""
        here = Path(__file__).parent
        parts: list[bytes | str] = [
            *((here / name).read_bytes() for name in _MODULES),
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
    return (targets.kubernetes(kubernetes_version), *targets.COREDNS, *_REST)


def _choose(source: Source, spec: _Spec, progress: Progress) -> tuple[str, str]:
    """The kind of mirror to make, and the reason."""
    if source == "build":
        return "built", "built, as requested"
    if source == "upstream":
        return "upstream", "upstream, as requested"
    for kind in ("upstream", "built"):
        if (paths.cache_dir() / "mirror" / spec.key(kind) / cache.MANIFEST).exists():
            return kind, f"{kind}, as before"
    with progress.step("checking whether upstream is reachable"):
        problems = upstream.probe(spec.endpoints, spec.minor)
    if problems:
        return "built", f"built, because upstream isn't reachable ({upstream.summary(problems)})"
    return "upstream", "upstream, because all of it is reachable"


def _build(spec: _Spec, folder: Path, progress: Progress) -> list[Item]:
    references = images.references(spec.kubernetes)  # fails for an unknown release, before the long work
    sets = {_HOST_SET: HOST_PACKAGES, **images.DEBIAN_SETS}
    pause = folder / "pause"
    # Each Go build uses all CPUs, so only the download and one small compilation run in parallel.
    with ThreadPoolExecutor(max_workers=2) as pool:
        download = pool.submit(debian.fetch, spec.debian, sets, progress)
        compiled = pool.submit(images.compile_pause, pause)
        kubernetes_target = targets.kubernetes(spec.kubernetes)
        kubernetes = gobuild.build(kubernetes_target, progress)
        images.check_tags(kubernetes / "kubeadm", spec.kubernetes)
        crictl, cni, cni_flannel, etcd, flannel = rest = [gobuild.build(target, progress) for target in _REST]
        coredns_target, coredns = gobuild.build_first(targets.COREDNS, progress)
        debian_packages = download.result()
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
        with progress.step("packaging Kubernetes"):
            target = _packages_folder(spec, folder)
            packages = debs.kubernetes_debs(spec.kubernetes, kubernetes, crictl, cni)
            made = debs.pack(packages, target / "amd64")
            aptrepo.write_index(target, made, f"Kubernetes v{spec.minor}, built", spec.signer)
        return _package_items(made, "built")

    def make_images() -> list[Item]:
        with progress.step("building the images"):
            images.build(layout, spec.kubernetes, programs, debian_packages.sets)
        pause.unlink()
        return _finish_images(layout, folder, progress)

    built = zip((kubernetes_target, coredns_target, *_REST), (kubernetes, coredns, *rest), strict=True)
    go = [_program_item(target, path) for target, path in built]
    made = _in_parallel(
        pack, make_images, lambda: _debian_repository(spec, debian_packages, folder, progress)
    )
    missing = set(references.values()) - {item.what for item in made if item.kind == "image"}
    if missing:
        raise UserError(f"no code in lab/artefacts/images.py builds {', '.join(sorted(missing))}")
    return [*go, *made]


def _download(spec: _Spec, folder: Path, progress: Progress) -> list[Item]:
    references = sorted(images.references(spec.kubernetes).values())
    # Outside the mirror's folder, which starts empty, so that images survive an interrupted run.
    layout = oci.Layout(paths.cache_dir() / "upstream" / spec.key("upstream"))

    def fetch_packages() -> list[Item]:
        target = _packages_folder(spec, folder)
        made = upstream.fetch_packages(spec.endpoints, spec.kubernetes, target / "amd64", progress)
        aptrepo.write_index(target, made, f"Kubernetes v{spec.minor}, from upstream", spec.signer)
        return _package_items(made, "upstream")

    def copy_images() -> list[Item]:
        upstream.copy_images(spec.endpoints, references, layout, progress)
        layout.folder.rename(folder / "images")
        return _finish_images(oci.Layout(folder / "images"), folder, progress)

    def fetch_debian() -> list[Item]:
        packages = debian.fetch(spec.debian, {_HOST_SET: HOST_PACKAGES}, progress)
        return _debian_repository(spec, packages, folder, progress)

    return _in_parallel(fetch_packages, copy_images, fetch_debian)


def _program_item(target: gobuild.Target, folder: Path) -> Item:
    about = cache.about(folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != cache.MANIFEST)
    source = f"Go modules, Go {about['go']}"
    return Item("program", target.name, target.version, source, size, float(about["seconds"]))


def _package_items(made: Sequence[Path], source: str) -> list[Item]:
    parts = [(path.name.split("_"), path.stat().st_size) for path in made]
    return [Item("package", name, version, source, size) for (name, version, _), size in parts]


def _in_parallel(*work: Callable[[], list[Item]]) -> list[Item]:
    """Run functions in parallel; when all are done, raise the first failure."""
    with ThreadPoolExecutor(max_workers=len(work)) as pool:
        futures = [pool.submit(part) for part in work]
    return [item for future in futures for item in future.result()]


def _packages_folder(spec: _Spec, folder: Path) -> Path:
    target = folder / f"www/kubernetes/v{spec.minor}/deb"
    (target / "amd64").mkdir(parents=True)
    shutil.copyfile(spec.signer.public, folder / "packages.asc")
    return target


def _debian_repository(
    spec: _Spec, packages: debian.Packages, folder: Path, progress: Progress
) -> list[Item]:
    target = folder / "www/debian" / spec.debian
    target.mkdir(parents=True)
    with progress.step(f"indexing debian/{spec.debian}"):
        copies = []
        for package in packages.sets[_HOST_SET]:
            copies.append(target / package.name)
            shutil.copyfile(package, copies[-1])
        aptrepo.write_index(target, copies, f"Debian {spec.debian}, partial", spec.signer)
    source = f"Debian {spec.debian}"
    requested = [item for item in _package_items(copies, source) if item.what in HOST_PACKAGES]
    rest = [path for path in copies if path.name.split("_")[0] not in HOST_PACKAGES]
    size = sum(path.stat().st_size for path in rest)
    return [*requested, Item("package", f"{len(rest)} dependencies of these", "", source, size)]


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
    with progress.step("writing the preload archive"):
        layout.write_archive(folder / "preload/images.tar", layout.references())
    # The registry's storage and the archive now hold copies of everything in it.
    shutil.rmtree(layout.folder)
    return items


def prune(progress: Progress, in_use: Iterable[Path]) -> None:
    """Remove from the cache whatever the current code no longer uses.

    Args:
        progress: Reports each removed folder.
        in_use: Folders that labs serve, such as a `Mirror.root`. Their mirrors are kept.
    """
    root = paths.cache_dir()
    mirrors, debian_folders = root / "mirror", root / "debian"
    served = {path.relative_to(mirrors).parts[0] for path in in_use if path.is_relative_to(mirrors)}
    # Keep the most recently used mirror of each Kubernetes version, Debian release and kind.
    finished = sorted((path.parent for path in mirrors.glob(f"*/{cache.MANIFEST}")), key=_used)
    newest = {path.name.rpartition("-")[0]: path.name for path in finished}
    downloaded = sorted((path.parent for path in debian_folders.glob(f"*/{cache.MANIFEST}")), key=_used)
    packages = {path.name.partition("-")[0]: path.name for path in downloaded}
    programs = [gobuild.PULUMI, gobuild.PULUMI_LANGUAGE_PYTHON, gobuild.ACTIONLINT, targets.LAB_NETWORK]
    for wrapper in targets.WRAPPERS.glob("kubernetes-*"):
        programs += _targets(wrapper.name.removeprefix("kubernetes-"))
    keep = {
        "mirror": {*served, *newest.values()},
        "go": {target.key for target in programs},
        "debian": set(packages.values()),
        "kernel": {kernel.key()},
    }
    for kind, keys in keep.items():
        for key in cache.prune(kind, keys):
            progress.say(f"prune: removed {kind}/{key}")
    # An interrupted copy of images is useful only while its unfinished mirror exists.
    for folder in (root / "upstream").glob("*"):
        if not (mirrors / f"{folder.name}.partial").exists():
            shutil.rmtree(folder)


def _used(folder: Path) -> float:
    return folder.stat().st_mtime
