"""The part of building the image that needs root, possibly in a user namespace.

`lab.image` starts it as `python -m lab.image_root PLAN`, where PLAN is a JSON file (see `Plan`). It unpacks
the base system, copies the lab's files over it, has containerd import the images to preload, and writes the
disk, the kernel and the initramfs. It uses only the standard library. It runs in its own mount and PID
namespaces, so its mounts and processes disappear with it.
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

# Modules that the initramfs needs to mount the root disk; modprobe adds their dependencies.
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")

# A lab host doesn't need these, and each delays an emulated boot, some by more than a second.
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

# systemd runs each generator at boot; none of these applies to a lab host.
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
    """The build's inputs and outputs, written by `lab.image`; all paths are absolute."""

    base: str  # tar archive of the base system
    guest: tuple[str, ...]  # folders whose files are copied over it, in this order
    init: str  # the initramfs's init
    preload: tuple[str, ...]  # archives of container images
    work: str  # an empty folder to work in
    out: str  # where disk.raw, vmlinuz, initrd and packages.txt are written
    disk_bytes: int  # size of the root file system
    swap_bytes: int
    owner: tuple[int, int]  # uid and gid of the results, as seen in this namespace


@dataclass(frozen=True)
class System:
    """The differences between the families of hosts.

    Attributes:
        enabled: Services of a fresh host.
        customize: Changes the root while /proc, /sys and /dev are mounted in it.
        finish: Makes the last changes after they are unmounted.
    """

    enabled: tuple[str, ...]
    customize: Callable[[Path], None]
    finish: Callable[[Path], None]


def run(argv: list[str], *, text: str | None = None) -> str:
    """Run a program and return its standard output.

    Raises:
        UserError: It isn't installed or fails; the message includes the last lines of its output.
    """
    environment = dict(os.environ, LC_ALL="C.UTF-8", PATH=f"{os.environ.get('PATH', '')}:{_SBIN}")
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise UserError(f"{argv[0]} isn't installed") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise UserError(f"{' '.join(argv[:6])} failed with status {done.returncode}:\n{last}")
    return done.stdout


def copy_guest_files(guest: Path, root: Path) -> None:
    """Copy the lab's files over the root, owned by root with mode 644."""
    for source in sorted(guest.rglob("*")):
        target = root / source.relative_to(guest)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        # Don't follow an existing symbolic link (resolv.conf may be one) out of the root.
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)


def generalize(root: Path, enabled: tuple[str, ...]) -> None:
    """Turn the base system into a generic fresh host: select services, remove keys, caches and names."""
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # Without pam_systemd, an SSH login doesn't become a logind session, which would start a user manager.
    # logind isn't started at boot, but is available on demand for `systemctl reboot`.
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
    # An empty machine ID marks a host that isn't seeded yet (see guest-init.sh).
    (root / "etc/machine-id").write_text("")
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    run(["chroot", str(root), "passwd", "--lock", "root"])
    # Newer than /usr, so that nothing is updated at the first boot (ConditionNeedsUpdate).
    for folder in ("etc", "var"):
        (root / folder / ".updated").touch()


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """Mount /proc, /sys, /dev and /run in the root, for programs that run in it."""
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    run(["mount", "--rbind", "/sys", str(root / "sys")])
    run(["mount", "--rbind", "/dev", str(root / "dev")])
    run(["mount", "-t", "tmpfs", "tmpfs", str(root / "run")])
    try:
        yield
    finally:
        for name in ("run", "dev", "sys", "proc"):
            # Lazily, including all submounts: in a user namespace they can't be unmounted one by one.
            run(["umount", "--lazy", str(root / name)])


def preload(root: Path, archives: tuple[str, ...], seconds: float = 60.0) -> None:
    """Import and unpack image archives into containerd's namespace `k8s.io`.

    The root must be prepared with `mounted`.

    Args:
        root: The root folder.
        archives: Archives of container images.
        seconds: How long to wait for containerd to start.

    Raises:
        UserError: containerd doesn't start or rejects an archive.
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
                raise UserError(f"containerd didn't start in the image:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.05)
        inbox = root / "run/preload"
        inbox.mkdir()
        for archive in archives:
            # Archives may be large, so bind-mount them instead of copying.
            target = inbox / Path(archive).name
            target.touch()
            run(["mount", "--bind", archive, str(target)])
            inside = f"/run/preload/{target.name}"
            run(["chroot", str(root), "ctr", "--namespace", "k8s.io", "images", "import", inside])
            run(["umount", str(target)])
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def _module_text(path: Path) -> bytes:
    """The content of a kernel module, decompressed because busybox can't do it."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(path)], check=True, capture_output=True).stdout
    return path.read_bytes()


def cpio_newc(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the format of an initramfs.

    Args:
        entries: Name, mode including the file type, and content. A link's content is its target; a folder's
            is empty.
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
    """The initramfs: busybox, the root disk's modules in load order, and the lab's init."""
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
    """A master boot record with a Linux partition followed by a swap partition."""

    def entry(kind: int, start: int, size: int) -> bytes:
        return struct.pack(
            "<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start // SECTOR, size // SECTOR
        )

    table = entry(0x83, ROOT_START, root_bytes) + entry(0x82, ROOT_START + root_bytes, swap_bytes)
    return b"\0" * 446 + table + b"\0" * 32 + b"\x55\xaa"


def write_disk(root: Path, disk: Path, root_bytes: int, swap_bytes: int) -> None:
    """Write a sparse raw disk: partition table, root file system with the root's files, swap."""
    with disk.open("wb") as file:
        file.write(partition_table(root_bytes, swap_bytes))
        file.truncate(ROOT_START + root_bytes + swap_bytes)
    # Lazy initialization would make each host do this work after its first boot.
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
        file.write(swap.read(4096))  # the header; the rest of a swap area is empty
    header.unlink()


def _nothing(_: Path) -> None:
    """Do nothing."""


DEBIAN = System(
    enabled=("systemd-networkd.service", "ssh.service", "containerd.service", "firewalld.service"),
    customize=_nothing,
    finish=_nothing,
)


def make(plan: Plan, system: System) -> None:
    """Write the disk, the kernel, the initramfs and the list of packages to the plan's `out` folder.

    Raises:
        UserError: A program fails, or the base system isn't as expected.
    """
    work, out = Path(plan.work), Path(plan.out)
    root = work / "root"
    root.mkdir()
    root.chmod(0o755)
    # A user namespace can't create device nodes, and the kernel populates /dev at boot.
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=./dev/*"]
    run(["tar", "--extract", *options, "--file", plan.base, "--directory", str(root)])
    kernels = sorted(path.name for path in (root / "lib/modules").iterdir())
    if len(kernels) != 1:
        raise UserError(f"the base system must have exactly one kernel, but has {kernels}")
    with mounted(root):
        for folder in plan.guest:
            copy_guest_files(Path(folder), root)
        generalize(root, system.enabled)
        system.customize(root)
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
    """Build the image from the plan given on the command line."""
    fields = json.loads(Path(sys.argv[1]).read_text())
    fields |= {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    plan = Plan(**fields)
    try:
        make(plan, system)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
