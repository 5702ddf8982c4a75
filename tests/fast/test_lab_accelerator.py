"""What runs a lab's hosts: KVM, else User Mode Linux, else emulation; and why."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from lab import accelerator, uml
from lab.hardware import Accelerator

QUIET = Progress(quiet=True)
PASSES = f"echo '{accelerator.PASSED}'"


class Trial:
    """A lab's folder for a decision, and a QEMU and a kernel that do what a test says."""

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
        """In the place of `uml_files.provide`."""
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


def test_kvm_is_taken_where_a_guest_boots_and_switches_itself_off(trial: Trial) -> None:
    trial.qemu(PASSES)
    assert trial.choose().accelerator == "kvm"
    assert trial.kernels == 0, "no kernel is built where none is needed"


def test_user_mode_linux_is_taken_where_kvm_fails_and_both_reasons_are_told(trial: Trial) -> None:
    trial.qemu("echo 'qemu-system-x86_64: error: failed to set MSR 0x10a' >&2; exit 134")
    trial.kernel = PASSES
    decision = trial.choose()
    assert decision.accelerator == "uml"
    assert "failed to set MSR 0x10a" in decision.reason
    assert "a trial boot of User Mode Linux worked" in decision.reason


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("echo 'Checking that ptrace can change system call numbers...failed'; exit 1", "ptrace can change"),
        ("missing", "User Mode Linux can't be built: flex isn't installed"),
        (f"{PASSES}; exit 1", "a trial boot of User Mode Linux failed"),
    ],
)
def test_hosts_are_emulated_where_neither_works_and_both_reasons_are_told(
    trial: Trial, kernel: str, reason: str
) -> None:
    trial.qemu("echo 'KVM internal error'; exit 1")
    trial.kernel = kernel
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert "KVM internal error" in decision.reason
    assert reason in decision.reason
    assert "\n" not in decision.reason


def test_guest_that_passes_but_whose_qemu_fails_does_not_count(trial: Trial) -> None:
    trial.qemu(f"{PASSES}; exit 1")
    assert trial.choose().accelerator == "tcg"


def test_guest_that_hangs_after_an_internal_error_is_ended(trial: Trial) -> None:
    trial.qemu("echo 'KVM internal error. Suberror: 1'; exec sleep 60")
    begun = time.monotonic()
    vmlinuz, initrd = trial.base / "vmlinuz", trial.base / "initrd"
    problem = accelerator.kvm_trial(vmlinuz, initrd, seconds=0.5, binary=str(trial.binary))
    assert time.monotonic() - begun < 10
    assert problem is not None
    assert "hung" in problem
    assert "KVM internal error" in problem


@pytest.mark.parametrize("kernel", ["exit 1", PASSES])
def test_decision_is_remembered_until_the_kernel_changes(trial: Trial, kernel: str) -> None:
    trial.kernel = kernel
    assert trial.choose() == trial.choose()
    assert trial.count == 2, "one trial of each"
    (trial.base / "vmlinuz").write_text("another kernel")
    trial.choose()
    assert trial.count == 4


def test_remembered_user_mode_linux_that_cannot_be_had_any_more_is_no_failure(trial: Trial) -> None:
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml"
    trial.kernel = "missing"
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert "flex isn't installed" in decision.reason


def test_kernel_that_could_not_be_built_is_tried_again_the_next_time(trial: Trial) -> None:
    trial.kernel = "missing"
    assert trial.choose().accelerator == "tcg"
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml"


def test_damaged_memory_of_the_decision_is_made_again(trial: Trial, tmp_path: Path) -> None:
    trial.qemu(PASSES)
    trial.choose()
    (tmp_path / "cache/kubeadm-ipvs/accelerator.json").write_text("{")
    assert trial.choose().accelerator == "kvm"
    assert trial.count == 2


def test_without_a_device_kvm_is_not_tried(trial: Trial) -> None:
    trial.qemu(PASSES)
    trial.device.unlink()
    decision = trial.choose()
    assert decision.accelerator == "tcg"
    assert f"there is no {trial.device}" in decision.reason


@pytest.mark.parametrize("forced", ["kvm", "uml", "tcg"])
def test_variable_decides_without_a_trial(trial: Trial, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, forced)
    assert trial.choose() == accelerator.Decision(
        trial.choose().accelerator, f"{accelerator.VARIABLE} says so"
    )
    assert trial.choose().accelerator == forced
    assert trial.count == 0


@pytest.mark.parametrize(("qemu", "works"), [(PASSES, "kvm"), ("exit 1", "tcg")])
def test_variable_may_leave_qemu_the_choice(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, qemu: str, works: str
) -> None:
    trial.kernel = PASSES
    trial.qemu(qemu)
    trial.choose()
    monkeypatch.setenv(accelerator.VARIABLE, "qemu")
    assert trial.choose().accelerator == works


def test_variable_that_names_nothing_known_is_refused(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, "xen")
    with pytest.raises(UserError, match="xen is none of kvm, uml, tcg, qemu"):
        trial.choose()


@pytest.mark.parametrize(("disks", "works"), [("uml", "uml"), ("tcg", "tcg"), ("kvm", "tcg")])
def test_hosts_that_have_disks_stay_with_what_can_read_them(
    trial: Trial, disks: Accelerator, works: str
) -> None:
    trial.kernel = PASSES
    assert trial.choose().accelerator == "uml", "remembered, and yet"
    assert trial.choose(disks).accelerator == works


@pytest.mark.parametrize(("disks", "forced"), [("uml", "tcg"), ("uml", "kvm"), ("kvm", "uml")])
def test_variable_that_would_lose_disks_is_refused(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, disks: Accelerator, forced: str
) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, forced)
    with pytest.raises(UserError, match=f"disks of {disks}") as caught:
        trial.choose(disks)
    assert "--name blue" in caught.value.next_move
