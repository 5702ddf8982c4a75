"""Choosing how a lab's hosts run: with KVM, else under User Mode Linux, else emulated."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab import accelerator, uml
from lab.hardware import Accelerator
from tests.fast.saved_lab import QUIET

PASSES = f"echo '{accelerator.PASSED}'"


class Trial:
    """A lab's folder, with scripts for QEMU and the kernel.

    Attributes:
        kernel: What the User Mode Linux kernel does, as shell code; `missing` if it can't be built.
        kernels: How many times the kernel was provided.
    """

    def __init__(self, folder: Path) -> None:
        self.base = folder / "blue/base"
        self.base.mkdir(parents=True)
        self.device = folder / "kvm"
        self.binary = folder / "qemu"
        self.calls = folder / "calls"
        for path in (self.base / "vmlinuz", self.base / "initrd", self.device):
            path.write_text(path.name)
        self.kernel = "exit 1"
        self.kernels = 0
        self.qemu("exit 1")

    def qemu(self, script: str) -> None:
        self._write(self.binary, script)

    def _write(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\necho call >>{self.calls}\n{script}\n")
        path.chmod(0o755)

    def provide(self, base: Path, progress: Progress) -> None:
        """Replaces `uml_files.provide`."""
        self.kernels += 1
        if self.kernel == "missing":
            raise UserError("flex isn't installed\nand more", "apt install flex")
        self._write(base / uml.KERNEL, self.kernel)

    def choose(self, disks: Accelerator | None = None) -> accelerator.Decision:
        return accelerator.choose(self.base, QUIET, disks=disks, device=self.device, binary=str(self.binary))

    @property
    def count(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(accelerator.VARIABLE, raising=False)
    made = Trial(tmp_path)
    monkeypatch.setattr("lab.uml_files.provide", made.provide)
    return made


def test_kvm_is_chosen_if_a_guest_boots(trial: Trial) -> None:
    trial.qemu(PASSES)
    assert trial.choose().accelerator == "kvm"
    assert trial.kernels == 0, "no kernel is needed"


def test_user_mode_linux_is_chosen_if_kvm_fails(trial: Trial) -> None:
    trial.qemu("echo 'qemu-system-x86_64: error: failed to set MSR 0x10a' >&2; exit 134")
    trial.kernel = PASSES
    decision = trial.choose()
    assert decision.accelerator == "uml"
    assert "failed to set MSR 0x10a" in decision.reason
    assert "a trial boot of User Mode Linux succeeded" in decision.reason


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("echo 'Checking that ptrace can change system call numbers...failed'; exit 1", "ptrace can change"),
        ("missing", "User Mode Linux can't be built: flex isn't installed"),
        (f"{PASSES}; exit 1", "a trial boot of User Mode Linux failed"),
    ],
)
def test_hosts_are_emulated_if_both_fail(trial: Trial, kernel: str, reason: str) -> None:
    trial.qemu("echo 'KVM internal error'; exit 1")
    trial.kernel = kernel
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert "KVM internal error" in decision.reason
    assert reason in decision.reason
    assert "\n" not in decision.reason


def test_passing_guest_in_failing_qemu_does_not_count(trial: Trial) -> None:
    trial.qemu(f"{PASSES}; exit 1")
    assert trial.choose().accelerator == "tcg"


def test_guest_that_hangs_is_killed(trial: Trial) -> None:
    trial.qemu("echo 'KVM internal error. Suberror: 1'; exec sleep 60")
    started = time.monotonic()
    vmlinuz, initrd = trial.base / "vmlinuz", trial.base / "initrd"
    problem = accelerator.kvm_trial(vmlinuz, initrd, seconds=0.5, binary=str(trial.binary))
    assert time.monotonic() - started < 10
    assert problem is not None
    assert "hung" in problem
    assert "KVM internal error" in problem


@pytest.mark.parametrize("kernel", ["exit 1", PASSES])
def test_decision_is_cached_until_kernel_changes(trial: Trial, kernel: str) -> None:
    trial.kernel = kernel
    assert trial.choose() == trial.choose()
    assert trial.count == 2, "one trial each"
    (trial.base / "vmlinuz").write_text("another kernel")
    trial.choose()
    assert trial.count == 4


def test_cached_choice_without_kernel_falls_back_to_emulation(trial: Trial) -> None:
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml"
    trial.kernel = "missing"
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert "flex isn't installed" in decision.reason


def test_failed_kernel_build_is_retried(trial: Trial) -> None:
    trial.kernel = "missing"
    assert trial.choose().accelerator == "tcg"
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml"


def test_damaged_cache_is_ignored(trial: Trial, tmp_path: Path) -> None:
    trial.qemu(PASSES)
    trial.choose()
    (tmp_path / "cache/kubeadm-ipvs/accelerator.json").write_text("{")
    assert trial.choose().accelerator == "kvm"
    assert trial.count == 2


def test_kvm_is_not_tried_without_device(trial: Trial) -> None:
    trial.qemu(PASSES)
    trial.device.unlink()
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert f"{trial.device} doesn't exist" in decision.reason


@pytest.mark.parametrize("forced", ["kvm", "uml", "tcg"])
def test_variable_chooses_without_trial(trial: Trial, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, forced)
    decision = trial.choose()
    assert decision.accelerator == forced
    assert decision.reason == f"chosen by {accelerator.VARIABLE}"
    assert trial.count == 0


@pytest.mark.parametrize(("qemu", "expected"), [(PASSES, "kvm"), ("exit 1", "tcg")])
def test_variable_can_limit_choice_to_qemu(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, qemu: str, expected: str
) -> None:
    trial.kernel = PASSES
    trial.qemu(qemu)
    trial.choose()
    monkeypatch.setenv(accelerator.VARIABLE, "qemu")
    assert trial.choose().accelerator == expected


def test_unknown_variable_value_is_refused(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, "xen")
    with pytest.raises(UserError, match="xen is not one of kvm, uml, tcg, qemu"):
        trial.choose()


@pytest.mark.parametrize(("disks", "expected"), [("uml", "uml"), ("tcg", "tcg"), ("kvm", "tcg")])
def test_hosts_with_disks_keep_matching_accelerator(trial: Trial, disks: Accelerator, expected: str) -> None:
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml"
    assert trial.choose(disks).accelerator == expected


@pytest.mark.parametrize(("disks", "forced"), [("uml", "tcg"), ("uml", "kvm"), ("kvm", "uml")])
def test_variable_that_conflicts_with_disks_is_refused(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, disks: Accelerator, forced: str
) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, forced)
    with pytest.raises(UserError, match=f"have {disks} disks") as caught:
        trial.choose(disks)
    assert "--name blue" in caught.value.next_move
