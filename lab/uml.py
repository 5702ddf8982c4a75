"""User Mode Linux's command line for one host; `lab.uml_machine` starts it.

User Mode Linux is a kernel that runs as an ordinary process, without virtualization: it intercepts the
guest's system calls and page faults with seccomp or ptrace. `lab.artefacts.kernel` builds it;
docs/decisions/0023-user-mode-linux.md has the reasons and the settings.
"""

from __future__ import annotations

from lab.hardware import Machine, guest_name
from lab.options import Family

KERNEL = "linux"
INITRD = "initrd-uml"
DISK = "disk.cow"
SEED = "seed.tar"
NAT_SOCKET = "nat.sock"
LAN_SOCKET = "lan.sock"
RUN_FOLDER = "uml"  # where the kernel keeps its own pid file

# For all guests, including the trial boot. seccomp is about twice as fast as ptrace, which `auto` falls
# back to if a filter can't be installed.
CONSOLE = ("con0=null,fd:1", "con=null", "ssl=null", "console=tty0", "seccomp=auto")

_ARGUMENTS = (
    "root=/dev/ubda1", "rw", "net.ifnames=0", "loglevel=4", "systemd.show_status=true",
    "systemd.log_color=0", "nowatchdog", "audit=0",
)  # fmt: skip

_FAMILY_ARGUMENTS: dict[Family, tuple[str, ...]] = {"deb": (), "rpm": ("security=selinux",)}


def command(machine: Machine, base: str) -> list[str]:
    """The command line, to be run in the host's folder.

    Args:
        machine: The host.
        base: The raw base disk, relative to the host's folder.
    """
    return [
        str(machine.kernel),
        # Identifies the process for `common.processes`. The guest sees it in /proc/cmdline.
        guest_name(machine.lab, machine.host.name),
        f"mem={machine.host.memory}M",
        f"ncpus={machine.host.cpus}",
        f"initrd={machine.initrd}",
        "uml_dir=.",
        f"umid={RUN_FOLDER}",
        f"ubd0={DISK},{base}",
        f"ubd1r={SEED}",
        f"vec0:transport=bess,dst={NAT_SOCKET},mac={machine.mac(0)}",
        f"vec1:transport=bess,dst={LAN_SOCKET},mac={machine.mac(1)}",
        *CONSOLE,
        *_ARGUMENTS,
        *_FAMILY_ARGUMENTS[machine.family],
    ]
