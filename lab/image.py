"""The hosts' disk image, built from Debian's packages and cached.

`<cache>/image/<key>/` holds `disk.raw`, `vmlinuz`, `initrd` and `packages.txt`, with their checksums in
`manifest.json`. The key is a digest of all inputs. The base system, without the lab's files and container
images, is cached separately, so that a rebuild after a change to those takes seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common import paths
from common.errors import UserError
from common.files import digest_of, finished, locked, sparse_digest, tree_digest, write_atomic
from common.progress import Progress
from lab import requirements
from lab.image_root import Plan
from lab.options import FAMILIES, RELEASES, Family, debian_mirror

PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "openssh-server", "containerd", "runc", "firewalld",
    "kmod", "iproute2", "iputils-ping", "procps", "netbase", "busybox-static", "linux-image-cloud-amd64",
)  # fmt: skip
# A host of the rpm family starts without a container runtime.
_RPM_PACKAGES = (
    *(name for name in PACKAGES if name not in ("containerd", "runc")),
    "dnf", "rpm", "selinux-policy-default", "selinux-utils", "policycoreutils",
)  # fmt: skip
_PACKAGES: dict[Family, tuple[str, ...]] = {"deb": PACKAGES, "rpm": _RPM_PACKAGES}

# Files that no test needs and that would double the time to write a disk.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
)

# sudo drops the environment. Naming the variables keeps proxy passwords out of the command line.
_KEEP_PROXIES = ("--preserve-env=http_proxy,https_proxy,no_proxy",)

DISK_BYTES = 8 << 30
SWAP_BYTES = 512 << 20
_LAB = Path(__file__).resolve().parent
_RESULTS = ("disk.raw", "vmlinuz", "initrd", "packages.txt")


@dataclass(frozen=True)
class Image:
    """A complete image. Its files are never changed, only linked to."""

    key: str
    folder: Path

    @property
    def disk(self) -> Path:
        """The sparse raw disk that the hosts' disks are overlays of."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        """The kernel, for direct boot."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The lab's initramfs."""
        return self.folder / "initrd"


def as_root(progress: Progress, *, labels: bool = False) -> list[str]:
    """A command prefix that runs a command as root in its own namespaces.

    For root that is `unshare`. Other users get a user namespace if the system allows one, else sudo, which
    is reported.

    Args:
        progress: Reports the use of sudo.
        labels: The command writes SELinux labels, which a user namespace doesn't allow.

    Raises:
        UserError: None of these works.
    """
    unshare = [requirements.program("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid() == 0:
        return unshare
    rootless = [*unshare, "--map-root-user", "--map-auto"]
    allowed = subprocess.run([*rootless, "true"], capture_output=True, check=False).returncode == 0
    if allowed and not labels:
        return rootless
    sudo = requirements.find("sudo")
    if labels and sudo is None:
        raise UserError(
            "can't build the image: only root can write SELinux labels, and sudo isn't installed",
            "run as root, or use --family deb",
        )
    if sudo is None:
        raise UserError(
            "can't build the image: user namespaces aren't allowed, and sudo isn't installed",
            "allow user namespaces (package uidmap, entries in /etc/subuid and /etc/subgid), or run as root",
        )
    reason = "only root can write SELinux labels" if labels else "user namespaces aren't allowed"
    progress.say(f"image: building it with sudo, because {reason}")
    return [sudo, *unshare]


def _base_key(release: str, family: Family) -> str:
    return digest_of("base 1", release, debian_mirror(), *_PACKAGES[family], *_DPKG_OPTIONS)[:16]


# Folders whose files are copied over the base system.
_GUEST: dict[Family, tuple[Path, ...]] = {
    "deb": (_LAB / "guest",),
    "rpm": (_LAB / "guest", _LAB / "guest-rpm"),
}
# The modules that build the image; their content is part of its key.
_BUILDERS: dict[Family, tuple[str, ...]] = {
    "deb": ("image_root.py",),
    "rpm": ("image_root.py", "image_rpm.py", "rpmspec.py"),
}


def image_key(release: str, preload: tuple[Path, ...], family: Family) -> str:
    """The cache key of the image that is built from these inputs.

    Args:
        release: Debian's code name.
        preload: Archives of container images; their content is part of the key.
        family: The hosts' family.
    """
    return digest_of(
        _base_key(release, family),
        *(tree_digest(folder) for folder in _GUEST[family]),
        (_LAB / "guest-init.sh").read_bytes(),
        *((_LAB / name).read_bytes() for name in _BUILDERS[family]),
        f"{DISK_BYTES} {SWAP_BYTES}",
        *(part for path in preload for part in (path.name, sparse_digest(path))),
    )[:16]


def _cache() -> Path:
    folder = paths.cache_dir() / "image"
    folder.mkdir(exist_ok=True)
    return folder


def _run(argv: list[str], what: str) -> None:
    environment = dict(
        os.environ, PATH=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    )
    # Killed when this process exits for any reason, so that it can't write into the next run's build.
    tied = [requirements.program("setpriv"), "--pdeathsig", "KILL", *argv]
    done = subprocess.run(
        tied, cwd=paths.project_dir(), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise UserError(
            f"{what} failed (status {done.returncode}):\n{last}", "run the command again; it resumes here"
        )


def ensure_base(release: str, family: Family, progress: Progress) -> Path:
    """The base system as a tar archive, built with mmdebstrap unless it is cached.

    Raises:
        UserError: Debian's packages can't be downloaded or installed.
    """
    target = _cache() / f"base-{release}-{_base_key(release, family)}.tar"
    with locked(_cache() / ".base.lock", progress, "image"):
        if target.exists():
            return target
        draft = target.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        options = [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
        privilege = as_root(progress)
        # mmdebstrap creates its own user namespace, which it can't do inside ours.
        rootless = os.geteuid() != 0 and "sudo" not in privilege[0]
        command = [
            requirements.program("mmdebstrap"),
            f"--mode={'unshare' if rootless else 'root'}",
            "--variant=minbase", "--format=tar", "--quiet",
            f"--include={','.join(_PACKAGES[family])}",
            "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg",
            *options, release, str(draft), debian_mirror(),
        ]  # fmt: skip
        if not rootless and os.geteuid() != 0:
            command = [privilege[0], *_KEEP_PROXIES, *command]
        with progress.step(f"image: installing Debian {release}'s packages from {debian_mirror()}", every=20):
            _run(command, "installing the image's packages")
        draft.replace(target)  # works even if root wrote the file, because the folder is ours
        return target


def _verified(folder: Path, progress: Progress) -> bool:
    """Whether an image is complete and matches its checksums; a damaged one is removed."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return False
    expected: dict[str, str] = json.loads(manifest.read_text())
    for name in _RESULTS:
        path = folder / name
        if not path.exists() or sparse_digest(path) != expected.get(name):
            progress.say(f"image: {name} in the cache is damaged; rebuilding the image")
            shutil.rmtree(folder)
            return False
    return True


def _remove_builds(progress: Progress) -> None:
    """Remove the folders of interrupted builds. The caller holds the lock, so no build is running."""
    for work in _cache().glob("work-*"):
        plan = work / "plan.json"
        # A build with sudo or by root, unlike one in a user namespace, leaves files that belong to root.
        outside = plan.exists() and json.loads(plan.read_text())["owner"] != [0, 0]
        privilege = [requirements.program("sudo")] if outside and os.geteuid() != 0 else as_root(progress)
        _run([*privilege, "rm", "-rf", str(work)], "removing an interrupted build")


def prune(used: set[str], progress: Progress, *, everything: bool) -> None:
    """Remove old images and base systems, and the folders of interrupted builds.

    Args:
        used: The keys of the labs' images, which are kept, like the newest one.
        progress: Reports waiting for a build.
        everything: Remove all of them; labs have their own links to their images.
    """
    with (
        locked(_cache() / ".image.lock", progress, "image"),
        locked(_cache() / ".base.lock", progress, "image"),
    ):
        _remove_builds(progress)
        images = finished(_cache())
        bases = {
            f"base-{release}-{_base_key(release, family)}.tar" for release in RELEASES for family in FAMILIES
        }
        for folder in images if everything else images[:-1]:
            if everything or folder.name not in used:
                shutil.rmtree(folder)
        for archive in [*_cache().glob("base-*.tar"), *_cache().glob("base-*.draft")]:
            if everything or archive.name not in bases:
                archive.unlink()


def ensure_image(release: str, preload: tuple[Path, ...], family: Family, progress: Progress) -> Image:
    """The image for a release with these container images, built unless it is cached and undamaged.

    Interrupting it is safe: a complete image is moved into place atomically.

    Raises:
        UserError: The image can't be built.
    """
    key = image_key(release, preload, family)
    folder = _cache() / key
    with locked(_cache() / ".image.lock", progress, "image"):
        if _verified(folder, progress):
            return Image(key, folder)
        base = ensure_base(release, family, progress)
        privilege = as_root(progress, labels=family == "rpm")
        _remove_builds(progress)
        work = _cache() / f"work-{key}"
        (work / "tree").mkdir(parents=True)
        (work / "out").mkdir()
        outside = os.geteuid() == 0 or "sudo" in privilege[0]
        plan = Plan(
            base=str(base),
            guest=tuple(map(str, _GUEST[family])),
            init=str(_LAB / "guest-init.sh"),
            preload=tuple(map(str, preload)),
            work=str(work / "tree"),
            out=str(work / "out"),
            disk_bytes=DISK_BYTES,
            swap_bytes=SWAP_BYTES,
            # In a user namespace, uid 0 is this user.
            owner=(os.getuid(), os.getgid()) if outside else (0, 0),
        )
        (work / "plan.json").write_text(json.dumps(asdict(plan)))
        images = f", with {len(preload)} archives of container images" if preload else ""
        with progress.step(f"image: building disk, kernel and initramfs{images}"):
            command = [
                sys.executable,
                "-m",
                f"lab.{'image_root' if family == 'deb' else 'image_rpm'}",
                str(work / "plan.json"),
            ]
            _run([*privilege, *command], "building the image")
            out = work / "out"
            sums = {name: sparse_digest(out / name) for name in _RESULTS}
            for name in _RESULTS:
                (out / name).chmod(0o444)
            write_atomic(out / "manifest.json", json.dumps(sums, indent=1))
            out.replace(folder)
            _run([*privilege, "rm", "-rf", str(work)], "removing the build's folder")
        return Image(key, folder)
