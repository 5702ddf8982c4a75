"""The part of making the image that needs root, or a user namespace in which we are root.

Started by `lab.image` as `python -m lab.image_root PLAN`, where PLAN is a JSON file (see
`Plan`). It unpacks the base system, puts the lab's files over it, lets containerd import
the images to preload, and writes the disk, the kernel and the initramfs. It uses the
standard library only, and runs in a mount and process namespace of its own, so that
whatever it mounts or starts goes with it.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

MIB = 1 << 20
SECTOR = 512
ROOT_START = MIB  # bytes; where the root partition begins
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

# What initramfs needs to mount the root disk; what they depend on is found by modprobe.
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")

# Not needed by a lab's host, and each costs an emulated one a part of a second or more.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "console-getty.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-networkd-wait-online.service",
    "systemd-network-generator.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-pstore.service",
    "systemd-firstboot.service",
    "systemd-binfmt.service",
    "systemd-boot-random-seed.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-machine-id-commit.service",
    "systemd-random-seed.service",
    "systemd-tpm2-setup.service",
    "systemd-tpm2-setup-early.service",
    "systemd-pcrphase.service",
    "systemd-udev-load-credentials.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "ldconfig.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
)

# systemd runs each at boot; what they look for isn't in a lab's host.
_GENERATORS = (
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-tpm2-generator",
)


@dataclass(frozen=True)
class Plan:
    """What to make, as `lab.image` writes it: all paths absolute."""

    base: str  # tar archive of the base system
    guest: tuple[str, ...]  # folders whose files are put over it, one after the other
    init: str  # the initramfs' init
    preload: tuple[str, ...]  # archives of container images
    work: str  # empty folder to work in
    out: str  # folder that gets disk.raw, vmlinuz, initrd and packages.txt
    disk_bytes: int  # size of the root file system
    swap_bytes: int
    owner: tuple[int, int]  # uid and gid, as seen here, to whom the results are given


@dataclass(frozen=True)
class System:
    """What differs between the families of hosts."""

    enabled: tuple[str, ...]  # services of a plain host
    dress: Callable[[Path], None]  # done in the root while the kernel's file systems are mounted there
    finish: Callable[[Path], None]  # the last change, when they no longer are


def run(argv: list[str], *, text: str | None = None) -> str:
    """Run a program and return its standard output.

    :raises UserError: it isn't there or fails; the message ends with what it printed last.
    """
    environment = dict(os.environ, LC_ALL="C.UTF-8", PATH=f"{os.environ.get('PATH', '')}:{_SBIN}")
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise UserError(f"the program {argv[0]} isn't there") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UserError(f"{' '.join(argv[:6])} failed with status {done.returncode}:\n{last}")
    return done.stdout


def copy_guest_files(guest: Path, root: Path) -> None:
    """Put the tree of the lab's files over the root, owned by root, mode 644."""
    for source in sorted(guest.rglob("*")):
        target = root / source.relative_to(guest)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        # A symbolic link in the way (resolv.conf may be one) must not be followed out of the root.
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)


def settle(root: Path, enabled: tuple[str, ...]) -> None:
    """Make the system a plain one without identity: services chosen, keys and caches gone."""
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # A login by SSH is no session of logind's, which would start a manager for its user; logind
    # isn't started at boot, and is there for `systemctl reboot`, which asks for it.
    run(["chroot", str(root), "pam-auth-update", "--package", "--remove", "systemd"])
    (root / "etc/systemd/system/multi-user.target.wants").mkdir(exist_ok=True)
    (root / "etc/systemd/system/multi-user.target.wants/systemd-logind.service").symlink_to("/dev/null")
    generators = root / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for name in _GENERATORS:
        (generators / name).symlink_to("/dev/null")
    run(["chroot", str(root), "systemctl", "enable", *enabled])
    run(["chroot", str(root), "systemctl", "set-default", "multi-user.target"])
    for path in (
        *root.glob("etc/ssh/ssh_host_*"),
        *root.glob("var/lib/apt/lists/*Packages*"),
        *root.glob("var/lib/apt/lists/*InRelease"),
        *root.glob("var/cache/apt/*.bin"),
        *root.glob("boot/initrd.img-*"),
        *root.glob("initrd.img*"),
        root / "etc/hostname",
        root / "var/lib/dbus/machine-id",
        root / "etc/apt/sources.list",
    ):
        path.unlink(missing_ok=True)
    for path in root.glob("etc/apt/sources.list.d/*"):
        path.unlink()
    shutil.rmtree(root / "var/log/journal", ignore_errors=True)
    # Empty means: not seeded yet (see guest-init.sh).
    (root / "etc/machine-id").write_text("")
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    run(["chroot", str(root), "passwd", "--lock", "root"])
    # Newer than /usr: nothing has to be updated at the first boot (ConditionNeedsUpdate).
    for folder in ("etc", "var"):
        (root / folder / ".updated").touch()


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """The kernel's file systems inside the root, for programs that are run there."""
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    run(["mount", "--rbind", "/sys", str(root / "sys")])
    run(["mount", "--rbind", "/dev", str(root / "dev")])
    run(["mount", "-t", "tmpfs", "tmpfs", str(root / "run")])
    try:
        yield
    finally:
        for name in ("run", "dev", "sys", "proc"):
            # At once with all that is mounted below: in a user namespace the parts can't be parted.
            run(["umount", "--lazy", str(root / name)])


def preload(root: Path, archives: tuple[str, ...], seconds: float = 60.0) -> None:
    """Import the archives into containerd's namespace of Kubernetes, unpacked and ready to start.

    The kernel's file systems must be mounted in the root.

    :param seconds: how long containerd may take to answer.
    :raises UserError: containerd doesn't start, or refuses an archive.
    """
    if not archives:
        return
    log_path = root / "run/containerd.log"
    with log_path.open("w") as log:
        daemon = subprocess.Popen(
            ["chroot", str(root), "/usr/bin/containerd", "--log-level", "warn"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + seconds
        socket = root / "run/containerd/containerd.sock"
        while not socket.exists():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"containerd doesn't start in the image:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.05)
        inbox = root / "run/preload"
        inbox.mkdir()
        for archive in archives:
            # Bound into the root, not copied: archives may be large.
            spot = inbox / Path(archive).name
            spot.touch()
            run(["mount", "--bind", archive, str(spot)])
            inside = f"/run/preload/{spot.name}"
            run(["chroot", str(root), "ctr", "--namespace", "k8s.io", "images", "import", inside])
            run(["umount", str(spot)])
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def _module_text(path: Path) -> bytes:
    """A kernel module's bytes, unpacked: busybox doesn't unpack them."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(path)], check=True, capture_output=True).stdout
    return path.read_bytes()


def cpio_newc(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An archive as the kernel reads an initramfs.

    :param entries: name, mode with file type, content (a link's target, nothing for a folder).
    """
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        out += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + encoded
        out += b"\0" * (-len(out) % 4)
        out += content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def initramfs(root: Path, kernel: str, init: Path) -> bytes:
    """busybox, the root disk's modules in the order they load, and the lab's init."""
    shown = run(["chroot", str(root), "modprobe", "--show-depends", "--all", "-S", kernel, *_BOOT_MODULES])
    modules = list(dict.fromkeys(re.findall(r"^insmod (\S+)", shown, re.MULTILINE)))
    folder, file = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [(name, folder, b"") for name in ("bin", "dev", "proc", "sys", "root", "modules")]
    entries.append(("bin/busybox", file, (root / "usr/bin/busybox").read_bytes()))
    entries.append(("init", file, init.read_bytes()))
    names = []
    for module in modules:
        path = root / module.lstrip("/")
        name = path.name.split(".ko")[0] + ".ko"
        names.append(name)
        entries.append((f"modules/{name}", file, _module_text(path)))
    entries.append(("modules/order", file, "".join(f"{name}\n" for name in names).encode()))
    return cpio_newc(entries)


def partition_table(root_bytes: int, swap_bytes: int) -> bytes:
    """A master boot record with two partitions: Linux, then Linux swap."""

    def entry(kind: int, start: int, size: int) -> bytes:
        return struct.pack(
            "<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start // SECTOR, size // SECTOR
        )

    table = entry(0x83, ROOT_START, root_bytes) + entry(0x82, ROOT_START + root_bytes, swap_bytes)
    return b"\0" * 446 + table + b"\0" * 32 + b"\x55\xaa"


def write_disk(root: Path, disk: Path, root_bytes: int, swap_bytes: int) -> None:
    """A sparse raw disk: partition table, root file system with the root's files, swap."""
    with disk.open("wb") as file:
        file.write(partition_table(root_bytes, swap_bytes))
        file.truncate(ROOT_START + root_bytes + swap_bytes)
    # Without lazy initialisation, which would be work for each host after its first boot.
    options = f"offset={ROOT_START},lazy_itable_init=0,lazy_journal_init=0"
    blocks = f"{root_bytes // 1024}k"
    argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", "-E", options]
    run([*argv, "-d", str(root), str(disk), blocks])
    header = disk.with_suffix(".swap")
    with header.open("wb") as file:
        file.truncate(swap_bytes)
    header.chmod(0o600)
    run(["mkswap", "--label", "swap", str(header)])
    with header.open("rb") as swap, disk.open("r+b") as file:
        file.seek(ROOT_START + root_bytes)
        file.write(swap.read(4096))  # the header is one page; the rest of a swap area is empty
    header.unlink()


def _nothing(_: Path) -> None:
    """Where a family needs no more."""


DEBIAN = System(
    enabled=("systemd-networkd.service", "ssh.service", "containerd.service", "firewalld.service"),
    dress=_nothing,
    finish=_nothing,
)


def make(plan: Plan, system: System) -> None:
    """Make everything that the plan names; the results are complete when it returns.

    :raises UserError: a program fails, or the base system isn't as expected.
    """
    work, out = Path(plan.work), Path(plan.out)
    root = work / "root"
    root.mkdir()
    root.chmod(0o755)
    # Device nodes can't be made in a user namespace, and the kernel fills /dev at boot.
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=./dev/*"]
    run(["tar", "--extract", *options, "--file", plan.base, "--directory", str(root)])
    kernels = sorted(path.name for path in (root / "lib/modules").iterdir())
    if len(kernels) != 1:
        raise UserError(f"the base system should hold one kernel, and holds {kernels}")
    with mounted(root):
        for folder in plan.guest:
            copy_guest_files(Path(folder), root)
        settle(root, system.enabled)
        system.dress(root)
        preload(root, plan.preload)
        (out / "initrd").write_bytes(initramfs(root, kernels[0], Path(plan.init)))
        packages = run(["chroot", str(root), "dpkg-query", "-W", "-f", "${Package} ${Version}\n"])
    system.finish(root)
    (out / "packages.txt").write_text(packages)
    shutil.copyfile(root / f"boot/vmlinuz-{kernels[0]}", out / "vmlinuz")
    write_disk(root, out / "disk.raw", plan.disk_bytes, plan.swap_bytes)
    for path in out.iterdir():
        os.chown(path, *plan.owner)


def main(system: System = DEBIAN) -> int:
    """Read the plan named on the command line and make the image."""
    fields = json.loads(Path(sys.argv[1]).read_text())
    fields |= {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    plan = Plan(**fields)
    try:
        make(plan, system)
    except UserError as trouble:
        print(trouble, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
