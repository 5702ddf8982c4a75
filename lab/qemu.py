"""QEMU's command line for one host. Nothing here starts anything."""

from __future__ import annotations

from lab.hardware import Accelerator, Machine, forwarded, guest_name
from lab.options import Family
from lab.ports import LOOPBACK

BINARY = "qemu-system-x86_64"
DISK = "disk"  # block node of the root disk, which snapshots save

# Without KVM. String instructions are emulated byte by byte, so that code which is told to
# prefer them (erms, fsrm) runs two to three times slower; wide vectors are slow as well.
# Without svm and vmx the guest doesn't load KVM's own modules.
_TCG = ("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-erms,-fsrm,-avx2,-avx,-svm,-vmx")
_KVM = ("-accel", "kvm", "-cpu", "host")

# Devices and ciphers that udev would load modules for and a lab's host has no use of: under
# emulation each takes its part of the boot.
_NO_MODULES = (
    "aesni_intel,ghash_clmulni_intel,sha1_ssse3,sha256_ssse3,sha512_ssse3,crct10dif_pclmul,crc32_pclmul,"
    "button,evdev,serio_raw,qemu_fw_cfg,vmw_vsock_vmci_transport,vsock_loopback,vsock"
)

_KERNEL_ARGUMENTS = (
    "root=/dev/vda1 rw console=ttyS0 net.ifnames=0 loglevel=4 panic=0 "
    "systemd.show_status=true systemd.log_color=0 mitigations=off nowatchdog audit=0 "
    f"modprobe.blacklist={_NO_MODULES}"
)

# Without KVM. Setting a timer is a write to the interrupt controller, which an emulator does under its one
# lock: a sixth of a control plane's time. Go's runtime sleeps for microseconds all the time; with timers as
# coarse as the tick (4 ms) it wakes up half as often, and the tick itself needs no setting. A wake-up across
# two emulated CPUs costs half a millisecond; a Go program that runs on one of them at a time does without.
# This is for systemd's services (containerd, kubelet); the stack file says it for the control plane's
# components. The figures are in docs/decisions/0019-emulated-go-on-one-cpu.md.
_EMULATED_ARGUMENTS = " highres=off nohz=off systemd.setenv=GOMAXPROCS=1"

# Debian's kernel has SELinux in it, and takes another module unless it is told so.
_FAMILY_ARGUMENTS: dict[Family, str] = {"deb": "", "rpm": " security=selinux"}

# No legacy devices: each is probed at boot.
MACHINE = "q35,sata=off,smbus=off,usb=off,vmport=off"


def accelerator_arguments(accelerator: Accelerator) -> tuple[str, ...]:
    """The arguments that choose accelerator and CPU."""
    return _KVM if accelerator == "kvm" else _TCG


def command(machine: Machine, *, paused: bool = False) -> list[str]:
    """The command line. QEMU is started in the host's folder, which holds the files named.

    :param paused: don't run the guest yet, for a snapshot to be loaded first.
    """
    host = machine.host
    user_net = "user,id=nat" + "".join(
        f",hostfwd=tcp:{forwarded(outside)}-:{inside}" for outside, inside in machine.forwards.items()
    )
    return [
        BINARY,
        "-name", guest_name(machine.lab, host.name),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", MACHINE,
        *accelerator_arguments(machine.accelerator),
        "-smp", str(host.cpus),
        "-m", f"{host.memory}M",
        "-kernel", str(machine.kernel),
        "-initrd", str(machine.initrd),
        "-append", _KERNEL_ARGUMENTS + (_EMULATED_ARGUMENTS if machine.accelerator == "tcg" else "")
        + _FAMILY_ARGUMENTS[machine.family],
        # Nothing is flushed: a lab's disk need not survive the developer's machine losing power.
        "-blockdev", f"driver=qcow2,node-name={DISK},discard=unmap,cache.no-flush=on,"
        "file.driver=file,file.filename=disk.qcow2,file.cache.no-flush=on",
        "-device", f"virtio-blk-pci,drive={DISK}",
        "-blockdev", "driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename=seed.tar",
        "-device", "virtio-blk-pci,drive=seed",
        "-netdev", user_net,
        "-device", f"virtio-net-pci,netdev=nat,romfile=,mac={machine.mac(0)}",
        "-netdev", f"socket,id=lan,mcast=230.0.0.1:{machine.ports.lan},localaddr={LOOPBACK}",
        "-device", f"virtio-net-pci,netdev=lan,romfile=,mac={machine.mac(1)}",
        "-device", "virtio-rng-pci",
        "-chardev", "file,id=console,path=console.log",
        "-serial", "chardev:console",
        "-qmp", "unix:qmp.sock,server=on,wait=off",
        "-pidfile", "qemu.pid",
        *(["-S"] if paused else []),
    ]  # fmt: skip
