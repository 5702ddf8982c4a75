"""Choose what runs the hosts: KVM, else User Mode Linux, else emulation.

An accessible /dev/kvm doesn't always work, and some systems block what User Mode Linux needs. So each one
is tested by booting the lab's kernel with its initramfs, which does some work and powers off (`lab.trial`
in guest-init.sh). Any failure counts: a guest that hangs, a failed assertion in QEMU, a "KVM internal
error" after which QEMU keeps running. The result is cached until something that can affect it changes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import paths
from common.errors import UserError
from common.files import digest_of, write_atomic
from common.paths import lab_command
from common.progress import Progress
from lab import requirements, uml
from lab.hardware import Accelerator
from lab.qemu import BINARY, MACHINE, accelerator_arguments

PASSED = "lab: trial passed"
TRIAL_SECONDS = 20.0  # a working accelerator takes about one second
VARIABLE = "KUBEADM_IPVS_ACCELERATOR"
_ALL: tuple[Accelerator, ...] = typing.get_args(Accelerator)
_QEMU = "qemu"


@dataclass(frozen=True)
class Decision:
    """The chosen accelerator and the reason, for display."""

    accelerator: Accelerator
    reason: str


def kvm_trial(kernel: Path, initrd: Path, seconds: float = TRIAL_SECONDS, binary: str = BINARY) -> str | None:
    """Boot the kernel once in QEMU with KVM.

    Args:
        kernel: The lab's kernel.
        initrd: The lab's initramfs.
        seconds: How long the guest may take before it counts as hanging and is killed.
        binary: QEMU, replaced in tests.

    Returns:
        What went wrong; None if the trial passed.
    """
    command = [
        requirements.find(binary) or binary,
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", MACHINE, *accelerator_arguments("kvm"), "-m", "256M", "-smp", "2",
        "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 lab.trial panic=-1 loglevel=3", "-serial", "stdio",
    ]  # fmt: skip
    return _trial(command, "QEMU", seconds)


def uml_trial(base: Path, seconds: float = TRIAL_SECONDS) -> str | None:
    """Boot the User Mode Linux kernel once.

    Args:
        base: The lab's `base` folder, with the kernel and its initramfs.
        seconds: How long the guest may take before it counts as hanging and is killed.

    Returns:
        What went wrong; None if the trial passed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = (f"initrd={base / uml.INITRD}", f"uml_dir={scratch}", "mem=128M", "lab.trial")
        return _trial([str(base / uml.KERNEL), *options, *uml.CONSOLE], "User Mode Linux", seconds)


def _trial(command: Sequence[str], program: str, seconds: float) -> str | None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        line = _error_line(expired.stdout or b"")
        return f"the guest hung for {seconds:.0f}s" + (f" ({line})" if line else "")
    except OSError as error:
        return str(error)
    text = done.stdout.decode(errors="replace")
    if done.returncode == 0 and PASSED in text:
        return None
    return _error_line(done.stdout) or f"{program} exited with status {done.returncode}"


def _error_line(output: bytes) -> str:
    """The most informative line: an error from KVM or QEMU, a kernel panic, or else the last line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    for mark in ("KVM internal error", "emulation failure", "Kernel panic", "lab: ", "qemu-system"):
        for line in lines:
            if mark in line:
                return line[:160]
    return lines[-1][:160] if lines else ""


def _provide_uml(base: Path, progress: Progress) -> None:
    # Imported here because most runs don't build anything.
    from lab import uml_files

    uml_files.provide(base, progress)


def _cache_key(kernel: Path, device: Path) -> str:
    """A key that changes with anything that can affect the result."""
    from lab import uml_files

    try:
        info = device.stat()
        about = f"{info.st_rdev} {info.st_mode} {info.st_uid} {info.st_gid}"
    except OSError:
        about = "none"
    version = requirements.qemu_version()
    return digest_of(
        kernel.read_bytes(),
        uml_files.key(),
        version[1] if version else "none",
        about,
        platform.release(),
        str(os.geteuid()),
    )[:32]


def choose(
    base: Path,
    progress: Progress,
    *,
    disks: Accelerator | None = None,
    device: Path = Path("/dev/kvm"),
    binary: str = BINARY,
) -> Decision:
    """Choose an accelerator, from the cache or by trial boots, and provide the files it needs.

    KUBEADM_IPVS_ACCELERATOR=kvm, uml or tcg chooses without a trial. `qemu` means KVM or emulation, by trial.

    Args:
        base: The lab's `base` folder, with kernel and initramfs. User Mode Linux's files are added if needed.
        progress: Reports trials and builds.
        disks: The accelerator that the hosts' existing disks belong to, if there are any. QEMU can't read
            User Mode Linux's disks, and vice versa.
        device: The KVM device, replaced in tests.
        binary: QEMU, replaced in tests.

    Raises:
        UserError: The variable has an unknown value, or one that doesn't fit the existing disks.
    """
    forced = os.environ.get(VARIABLE)
    if forced and forced not in (*_ALL, _QEMU):
        raise UserError(
            f"{VARIABLE}={forced} is not one of {', '.join((*_ALL, _QEMU))}", "set one of these, or unset it"
        )
    if forced and disks and (forced == "uml") != (disks == "uml"):
        raise UserError(
            f"{VARIABLE}={forced} doesn't fit the lab's hosts, which have {disks} disks",
            f"unset it, or create the lab again: {lab_command('down', base.parent.name)}, then up",
        )
    for accelerator in _ALL:
        if forced == accelerator:
            if accelerator == "uml":
                _provide_uml(base, progress)
            return Decision(accelerator, f"chosen by {VARIABLE}")
    if disks == "uml":
        return Decision("uml", "the hosts' disks are in User Mode Linux's format")
    only_qemu = bool(disks) or forced == _QEMU
    cache = paths.cache_dir() / "accelerator.json"
    key = _cache_key(base / "vmlinuz", device)
    cached = _cached(cache, key)
    if cached and not (cached.accelerator == "uml" and only_qemu):
        if cached.accelerator == "uml":
            no_uml = _uml_problem(base, progress)
            if no_uml:
                return Decision("tcg", no_uml)
        return cached
    no_kvm = _kvm_problem(base, progress, device, binary)
    if no_kvm and only_qemu:
        return Decision("tcg", no_kvm)
    if no_kvm:
        progress.say(f"accelerator: KVM is not available ({no_kvm}); trying User Mode Linux")
        no_uml = _uml_problem(base, progress)
        if no_uml:
            # Not cached: next time the download may work, or the missing package may be installed.
            return Decision("tcg", f"{no_kvm}; {no_uml}")
        problem = uml_trial(base)
        decision = (
            Decision("tcg", f"{no_kvm}; a trial boot of User Mode Linux failed: {problem}")
            if problem
            else Decision("uml", f"{no_kvm}; a trial boot of User Mode Linux succeeded")
        )
    else:
        decision = Decision("kvm", "a trial boot succeeded")
    write_atomic(cache, json.dumps({"key": key, "decision": asdict(decision)}, indent=1))
    return decision


def _cached(path: Path, key: str) -> Decision | None:
    try:
        entry = json.loads(path.read_text())
        if entry["key"] == key:
            return Decision(entry["decision"]["accelerator"], entry["decision"]["reason"])
    except (OSError, ValueError, KeyError):
        pass  # missing, damaged, or written by another version
    return None


def _uml_problem(base: Path, progress: Progress) -> str | None:
    """Put User Mode Linux's files into the lab's folder; return why that failed, or None."""
    try:
        _provide_uml(base, progress)
    except UserError as error:
        progress.say(str(error))
        return f"User Mode Linux can't be built: {error.what.splitlines()[0]}"
    return None


def _kvm_problem(base: Path, progress: Progress, device: Path, binary: str) -> str | None:
    """Why KVM can't be used; None if it can."""
    if not device.exists():
        return f"{device} doesn't exist"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"you have no access to {device} (join the kvm group)"
    with progress.step("accelerator: booting a trial guest with KVM"):
        problem = kvm_trial(base / "vmlinuz", base / "initrd", binary=binary)
    return f"a trial boot with KVM failed: {problem}" if problem else None
