"""What runs the hosts: KVM, else User Mode Linux, else emulation; decided by booting a real kernel.

/dev/kvm may open and yet not work, and a system may forbid what User Mode Linux needs. The trial boots the
lab's own kernel and initramfs, which does some work and switches the machine off (`lab.trial` in
guest-init.sh). A guest that hangs, an assertion in QEMU, a "KVM internal error" after which QEMU stays: all
of them are "no". The result is kept in the cache, for these kernels, this QEMU and this /dev/kvm.
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
TRIAL_SECONDS = 20.0  # it takes one where the accelerator works
VARIABLE = "KUBEADM_IPVS_ACCELERATOR"
_ALL: tuple[Accelerator, ...] = typing.get_args(Accelerator)
_QEMU = "qemu"


@dataclass(frozen=True)
class Decision:
    """Which accelerator, and why, in words for people."""

    accelerator: Accelerator
    reason: str


def kvm_trial(kernel: Path, initrd: Path, seconds: float = TRIAL_SECONDS, binary: str = BINARY) -> str | None:
    """Boot the kernel once by QEMU with KVM; None if all went well, else what went wrong.

    :param seconds: a guest that isn't done by then counts as hanging; it is ended.
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
    """Boot the User Mode Linux kernel once; None if all went well, else what went wrong.

    :param base: the lab's folder with the kernel and its initramfs.
    :param seconds: likewise.
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
        said = _interesting(expired.stdout or b"")
        return f"the guest hung for {seconds:.0f}s" + (f" ({said})" if said else "")
    except OSError as error:
        return str(error)
    text = done.stdout.decode(errors="replace")
    if done.returncode == 0 and PASSED in text:
        return None
    return _interesting(done.stdout) or f"{program} ended with status {done.returncode}"


def _interesting(output: bytes) -> str:
    """The line that tells most: an error of KVM or QEMU, a kernel panic, else the last one."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    for mark in ("KVM internal error", "emulation failure", "Kernel panic", "lab: ", "qemu-system"):
        for line in lines:
            if mark in line:
                return line[:160]
    return lines[-1][:160] if lines else ""


def _provide_uml(base: Path, progress: Progress) -> None:
    # Here and not above: the builders are needed only where something is made.
    from lab import uml_files

    uml_files.provide(base, progress)


def _situation(kernel: Path, device: Path) -> str:
    """What the result depends on, as a key."""
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
    """Decide, by trials where none are remembered for this situation; provide what the decision needs.

    KUBEADM_IPVS_ACCELERATOR=kvm, uml or tcg decides without a trial; qemu means KVM or emulation, by a trial.

    :param base: the lab's folder with kernel and initramfs; gets those of User Mode Linux where it is taken.
    :param disks: what the lab's hosts have run by, if they have disks already: QEMU can't read User Mode
        Linux's, nor the other way round.
    :raises UserError: that variable holds something else, or asks for what the lab's disks don't allow.
    """
    forced = os.environ.get(VARIABLE)
    if forced and forced not in (*_ALL, _QEMU):
        raise UserError(f"{VARIABLE}={forced} is none of {', '.join((*_ALL, _QEMU))}")
    if forced and disks and (forced == "uml") != (disks == "uml"):
        raise UserError(
            f"{VARIABLE}={forced}, and the lab's hosts have disks of {disks}",
            f"unset it, or make the lab again: {lab_command('down', base.parent.name)}, then up",
        )
    for accelerator in _ALL:
        if forced == accelerator:
            if accelerator == "uml":
                _provide_uml(base, progress)
            return Decision(accelerator, f"{VARIABLE} says so")
    if disks == "uml":
        return Decision("uml", "the hosts' disks are User Mode Linux's")
    only_qemu = bool(disks) or forced == _QEMU
    remembered = paths.cache_dir() / "accelerator.json"
    situation = _situation(base / "vmlinuz", device)
    kept = _remembered(remembered, situation)
    if kept and not (kept.accelerator == "uml" and only_qemu):
        if kept.accelerator == "uml":
            no_uml = _uml_problem(base, progress)
            if no_uml:
                return Decision("tcg", no_uml)
        return kept
    no_kvm = _kvm_problem(base, progress, device, binary)
    if no_kvm and only_qemu:
        return Decision("tcg", no_kvm)
    if no_kvm:
        progress.say(f"accelerator: no KVM ({no_kvm}); trying User Mode Linux")
        no_uml = _uml_problem(base, progress)
        if no_uml:
            # Not remembered: the mirror may answer the next time, or somebody installs what is missing.
            return Decision("tcg", f"{no_kvm}; {no_uml}")
        problem = uml_trial(base)
        decision = (
            Decision("tcg", f"{no_kvm}; a trial boot of User Mode Linux failed: {problem}")
            if problem
            else Decision("uml", f"{no_kvm}; a trial boot of User Mode Linux worked")
        )
    else:
        decision = Decision("kvm", "a trial boot worked")
    write_atomic(remembered, json.dumps({"situation": situation, "decision": asdict(decision)}, indent=1))
    return decision


def _remembered(path: Path, situation: str) -> Decision | None:
    try:
        kept = json.loads(path.read_text())
        if kept["situation"] == situation:
            return Decision(kept["decision"]["accelerator"], kept["decision"]["reason"])
    except (OSError, ValueError, KeyError):
        pass  # none yet, or one written by another version: try again
    return None


def _uml_problem(base: Path, progress: Progress) -> str | None:
    """Why User Mode Linux's files can't be had; None if they are in the lab's folder now."""
    try:
        _provide_uml(base, progress)
    except UserError as trouble:
        progress.say(str(trouble))
        return f"User Mode Linux can't be built: {trouble.what.splitlines()[0]}"
    return None


def _kvm_problem(base: Path, progress: Progress, device: Path, binary: str) -> str | None:
    """Why KVM can't be used; None if it can."""
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} is there, but not open to you (join the group kvm)"
    with progress.step("accelerator: trying KVM by booting a kernel"):
        problem = kvm_trial(base / "vmlinuz", base / "initrd", binary=binary)
    return f"KVM opens, but a trial boot failed: {problem}" if problem else None
