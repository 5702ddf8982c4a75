"""KVM or TCG: decided by booting a real kernel, since /dev/kvm may open and yet not work.

The trial boots the lab's own kernel and initramfs, which does some work and switches the
machine off (`lab.trial` in guest-init.sh). A guest that hangs, an assertion in QEMU, a
"KVM internal error" after which QEMU stays: all of them are "no". The result is kept in
the cache, for this kernel, this QEMU and this /dev/kvm.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import paths, requirements
from lab.errors import Trouble
from lab.files import digest_of, write_atomic
from lab.progress import Progress
from lab.qemu import BINARY, MACHINE, Accelerator, accelerator_arguments

PASSED = "lab: trial passed"
TRIAL_SECONDS = 20.0  # it takes one where KVM works
VARIABLE = "KUBEADM_IPVS_ACCELERATOR"


@dataclass(frozen=True)
class Decision:
    """Which accelerator, and why, in words for people."""

    accelerator: Accelerator
    reason: str


def trial(
    accelerator: Accelerator, kernel: Path, initrd: Path, seconds: float = TRIAL_SECONDS, binary: str = BINARY
) -> str | None:
    """Boot the kernel once with this accelerator.

    :param seconds: a guest that isn't done by then counts as hanging; it is ended.
    :returns: None if all went well, else what went wrong.
    """
    command = [
        requirements.find(binary) or binary,
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", MACHINE, *accelerator_arguments(accelerator), "-m", "256M", "-smp", "2",
        "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 lab.trial panic=-1 loglevel=3", "-serial", "stdio",
    ]  # fmt: skip
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
    return _interesting(done.stdout) or f"QEMU ended with status {done.returncode}"


def _interesting(output: bytes) -> str:
    """The line that tells most: an error of KVM or QEMU, a kernel panic, else the last one."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    for mark in ("KVM internal error", "emulation failure", "Kernel panic", "lab: ", "qemu-system"):
        for line in lines:
            if mark in line:
                return line[:160]
    return lines[-1][:160] if lines else ""


def _situation(kernel: Path, device: Path) -> str:
    """What the result depends on, as a key."""
    try:
        info = device.stat()
        about = f"{info.st_rdev} {info.st_mode} {info.st_uid} {info.st_gid}"
    except OSError:
        about = "none"
    version = requirements.qemu_version()
    return digest_of(
        kernel.read_bytes(), version[1] if version else "none", about, platform.release(), str(os.geteuid())
    )[:32]


def choose(
    kernel: Path, initrd: Path, progress: Progress, device: Path = Path("/dev/kvm"), binary: str = BINARY
) -> Decision:
    """Decide, by a trial where none is remembered for this situation.

    KUBEADM_IPVS_ACCELERATOR=kvm or tcg decides without a trial.

    :raises Trouble: that variable holds something else.
    """
    forced = os.environ.get(VARIABLE)
    if forced == "kvm" or forced == "tcg":
        return Decision("kvm" if forced == "kvm" else "tcg", f"{VARIABLE} says so")
    if forced:
        raise Trouble(f"{VARIABLE}={forced} is neither kvm nor tcg")
    if not device.exists():
        return Decision("tcg", f"there is no {device}")
    if not os.access(device, os.R_OK | os.W_OK):
        return Decision("tcg", f"{device} is there, but not open to you (join the group kvm)")
    remembered = paths.cache_dir() / "accelerator.json"
    situation = _situation(kernel, device)
    try:
        kept = json.loads(remembered.read_text())
        if kept["situation"] == situation:
            return Decision(kept["decision"]["accelerator"], kept["decision"]["reason"])
    except (OSError, ValueError, KeyError):
        pass  # none yet, or one written by another version: try again
    with progress.step("accelerator: trying KVM by booting a kernel"):
        problem = trial("kvm", kernel, initrd, binary=binary)
    if problem is None:
        decision = Decision("kvm", "a trial boot worked")
    else:
        decision = Decision("tcg", f"KVM opens, but a trial boot failed: {problem}")
    write_atomic(remembered, json.dumps({"situation": situation, "decision": asdict(decision)}, indent=1))
    return decision
