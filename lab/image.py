"""The hosts' image: made once from Debian's packages, found again by its content.

`<cache>/image/<key>/` holds `disk.raw`, `vmlinuz`, `initrd` and `packages.txt`, and a
`manifest.json` with their checksums; the key is made from everything that goes in. The
base system without the lab's files and without container images is kept beside it, so
that a change of those takes seconds.
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
# A host of the rpm family has no container runtime before the program comes.
_RPM_PACKAGES = (
    *(name for name in PACKAGES if name not in ("containerd", "runc")),
    "dnf", "rpm", "selinux-policy-default", "selinux-utils", "policycoreutils",
)  # fmt: skip
_PACKAGES: dict[Family, tuple[str, ...]] = {"deb": PACKAGES, "rpm": _RPM_PACKAGES}

# Files that no test looks at; they would double the time that a disk takes to be written.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
)

# sudo drops the environment. By name: a proxy's password has no place in a command line.
_KEEP_PROXIES = ("--preserve-env=http_proxy,https_proxy,no_proxy",)

DISK_BYTES = 8 << 30
SWAP_BYTES = 512 << 20
_LAB = Path(__file__).resolve().parent
_RESULTS = ("disk.raw", "vmlinuz", "initrd", "packages.txt")


@dataclass(frozen=True)
class Image:
    """A finished image: files that are never changed, only linked to."""

    key: str
    folder: Path

    @property
    def disk(self) -> Path:
        """The sparse raw disk that hosts' disks are laid over."""
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
    """The words before a command that make it run as root in namespaces of its own.

    As root, that is `unshare`; for others a user namespace, where the system allows it, else
    sudo, which is said.

    :param labels: SELinux's will be written, which a user namespace doesn't allow.
    :raises UserError: none of them works.
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
            "the image can't be made: SELinux's labels are written by root alone, and there is no sudo",
            "run as root, or take --family deb",
        )
    if sudo is None:
        raise UserError(
            "the image can't be made: user namespaces aren't allowed, and there is no sudo",
            "allow user namespaces (package uidmap, entries in /etc/subuid and /etc/subgid), or run as root",
        )
    reason = (
        "root alone writes SELinux's labels" if labels else "this system allows no user namespaces to you"
    )
    progress.say(f"image: {reason}, so sudo is used to make the image")
    return [sudo, *unshare]


def _base_key(release: str, family: Family) -> str:
    return digest_of("base 1", release, debian_mirror(), *_PACKAGES[family], *_DPKG_OPTIONS)[:16]


# By family: folders whose files are put over the base system, and the programs that make the image.
_GUEST: dict[Family, tuple[Path, ...]] = {
    "deb": (_LAB / "guest",),
    "rpm": (_LAB / "guest", _LAB / "guest-rpm"),
}
_MAKERS: dict[Family, tuple[str, ...]] = {
    "deb": ("image_root.py",),
    "rpm": ("image_root.py", "image_rpm.py", "rpmspec.py"),
}


def image_key(release: str, preload: tuple[Path, ...], family: Family) -> str:
    """The key of the image that these inputs make.

    :param preload: archives of container images; their contents count.
    """
    return digest_of(
        _base_key(release, family),
        *(tree_digest(folder) for folder in _GUEST[family]),
        (_LAB / "guest-init.sh").read_bytes(),
        *((_LAB / name).read_bytes() for name in _MAKERS[family]),
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
    # It ends when this process ends, however that happens: nothing may go on writing what the
    # next run begins anew.
    tied = [requirements.program("setpriv"), "--pdeathsig", "KILL", *argv]
    done = subprocess.run(
        tied, cwd=paths.project_dir(), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise UserError(
            f"{what} failed (status {done.returncode}):\n{last}", "run the command again; it goes on here"
        )


def ensure_base(release: str, family: Family, progress: Progress) -> Path:
    """The base system as a tar archive; made with mmdebstrap if it isn't there yet.

    :raises UserError: Debian's packages can't be fetched or installed.
    """
    target = _cache() / f"base-{release}-{_base_key(release, family)}.tar"
    with locked(_cache() / ".base.lock", progress, "image"):
        if target.exists():
            return target
        draft = target.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        options = [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
        privilege = as_root(progress)
        # In our own user namespace mmdebstrap would find no room for one more; it makes its own instead.
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
        draft.replace(target)  # its folder is ours, whoever wrote the file
        return target


def _verified(folder: Path, progress: Progress) -> bool:
    """Whether a finished image is still what was written; a damaged one is put away."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return False
    expected: dict[str, str] = json.loads(manifest.read_text())
    for name in _RESULTS:
        path = folder / name
        if not path.exists() or sparse_digest(path) != expected.get(name):
            progress.say(f"image: {name} in the cache is damaged; making the image again")
            shutil.rmtree(folder)
            return False
    return True


def _remove_builds(progress: Progress) -> None:
    """Remove what interrupted builds have left. The caller holds the lock, so that none is under way."""
    for work in _cache().glob("work-*"):
        plan = work / "plan.json"
        # Made by sudo or by root, and not in a user namespace: the files are root's own.
        outside = plan.exists() and json.loads(plan.read_text())["owner"] != [0, 0]
        privilege = [requirements.program("sudo")] if outside and os.geteuid() != 0 else as_root(progress)
        _run([*privilege, "rm", "-rf", str(work)], "removing an interrupted build")


def prune(used: set[str], progress: Progress, *, everything: bool) -> None:
    """Remove images and base systems of the past, and what interrupted builds have left.

    :param used: the keys of the images that labs have; with the newest, which the next one takes, they stay.
    :param everything: all of them; labs hold their images themselves.
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
    """The image for a release with these container images; made if it isn't there, verified if it is.

    May be interrupted at any point: a finished image appears under its name at once.

    :raises UserError: it can't be made.
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
            # In a user namespace we are its root.
            owner=(os.getuid(), os.getgid()) if outside else (0, 0),
        )
        (work / "plan.json").write_text(json.dumps(asdict(plan)))
        images = f", with {len(preload)} archives of container images" if preload else ""
        with progress.step(f"image: making disk, kernel and initramfs{images}"):
            command = [
                sys.executable,
                "-m",
                f"lab.{'image_root' if family == 'deb' else 'image_rpm'}",
                str(work / "plan.json"),
            ]
            _run([*privilege, *command], "making the image")
            out = work / "out"
            sums = {name: sparse_digest(out / name) for name in _RESULTS}
            for name in _RESULTS:
                (out / name).chmod(0o444)
            write_atomic(out / "manifest.json", json.dumps(sums, indent=1))
            out.replace(folder)
            _run([*privilege, "rm", "-rf", str(work)], "removing the build's folder")
        return Image(key, folder)
