"""QEMU's command line for one host; `lab.qemu_machine` starts it."""

from __future__ import annotations

from lab.hardware import Accelerator, Machine, forwarded, guest_name
from lab.options import Family
from lab.ports import LOOPBACK

BINARY = "qemu-system-x86_64"
DISK = "disk"  # block node of the root disk, which holds the snapshots

# Emulated string instructions work byte by byte, so code that prefers them (erms, fsrm) runs two to three
# times slower. Wide vectors are slow as well. Without svm and vmx the guest doesn't load KVM's modules.
_TCG = ("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-erms,-fsrm,-avx2,-avx,-svm,-vmx")
_KVM = ("-accel", "kvm", "-cpu", "host")

# Modules that udev would load for devices and ciphers that a lab host doesn't use. Each one slows down an
# emulated boot.
_NO_MODULES = (
    "aesni_intel,ghash_clmulni_intel,sha1_ssse3,sha256_ssse3,sha512_ssse3,crct10dif_pclmul,crc32_pclmul,"
    "button,evdev,serio_raw,qemu_fw_cfg,vmw_vsock_vmci_transport,vsock_loopback,vsock"
)

_KERNEL_ARGUMENTS = (
    "root=/dev/vda1 rw console=ttyS0 net.ifnames=0 loglevel=4 panic=0 "
    "systemd.show_status=true systemd.log_color=0 mitigations=off nowatchdog audit=0 "
    f"modprobe.blacklist={_NO_MODULES}"
)

# Without KVM, setting a timer means writing to the emulated interrupt controller under QEMU's global lock,
# which took a sixth of a control plane's time. Go's runtime constantly sleeps for microseconds. With timers
# as coarse as the tick (4 ms) it wakes up half as often, and the tick itself doesn't need a timer. Waking a
# thread on another emulated CPU takes half a millisecond; GOMAXPROCS=1 keeps each Go program on one CPU.
# This setting covers systemd's services (containerd, kubelet); `lab.stackfile` has one for the control
# plane's components. The measurements are in docs/decisions/0019-emulated-go-on-one-cpu.md.
_EMULATED_ARGUMENTS = " highres=off nohz=off systemd.setenv=GOMAXPROCS=1"

# Debian's kernel includes SELinux but uses another security module by default.
_FAMILY_ARGUMENTS: dict[Family, str] = {"deb": "", "rpm": " security=selinux"}

# No legacy devices: the guest would probe each one at boot.
MACHINE = "q35,sata=off,smbus=off,usb=off,vmport=off"


def accelerator_arguments(accelerator: Accelerator) -> tuple[str, ...]:
    """The arguments that select accelerator and CPU."""
    return _KVM if accelerator == "kvm" else _TCG


def command(machine: Machine, *, paused: bool = False) -> list[str]:
    """The command line, to be run in the host's folder.

    Args:
        machine: The host.
        paused: Start with the CPUs stopped, so that a snapshot can be loaded first.
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
        # No flushes: a lab's disk doesn't have to survive a power failure of the machine it runs on.
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
