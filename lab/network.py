"""The network of a lab under User Mode Linux: the background process `lab-network`.

The process (lab/artefacts/go/lab-network) does for the lab what QEMU does otherwise: it listens on the
forwarded ports of 127.0.0.1, gives each host the addresses of QEMU's user network, and switches the LAN.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from common import processes
from common.errors import UserError
from common.files import write_atomic
from common.progress import Progress
from lab import uml
from lab.hardware import forwarded
from lab.machine import Vm, tail

PROGRAM = "lab-network"
_START_SECONDS = 20.0
_RESOLV_CONF = Path("/etc/resolv.conf")


def resolver(path: Path = _RESOLV_CONF) -> str:
    """The first IPv4 resolver in resolv.conf; empty if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    for words in (line.split() for line in lines):
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                return str(ipaddress.IPv4Address(words[1]))
            except ValueError:
                continue
    return ""


def settings(lab_folder: Path, vms: Sequence[Vm]) -> str:
    """The process's configuration as JSON; paths are relative to the lab's folder."""
    hosts = [
        {
            "name": vm.host.name,
            "mac": vm.machine.mac(0),
            "nat": f"{vm.host.name}/{uml.NAT_SOCKET}",
            "lan": f"{vm.host.name}/{uml.LAN_SOCKET}",
            "forwards": {forwarded(outside): inside for outside, inside in vm.machine.forwards.items()},
        }
        for vm in vms
    ]
    pid_file = _pid_file(lab_folder).relative_to(lab_folder)
    return json.dumps({"pid_file": str(pid_file), "resolver": resolver(), "hosts": hosts}, indent=1) + "\n"


def _config(lab_folder: Path) -> Path:
    return lab_folder / "network/config.json"


def _pid_file(lab_folder: Path) -> Path:
    return lab_folder / "network/pid"


def pid(lab_folder: Path) -> int | None:
    """The process's pid; None if it isn't running."""
    return processes.running(_pid_file(lab_folder), str(_config(lab_folder)))


def start(lab_folder: Path, program: Path, vms: Sequence[Vm], progress: Progress) -> None:
    """Start the process unless it is running.

    Hosts that are still running have lost their connections to the previous process, so they are powered
    off; the caller starts them again.

    Args:
        lab_folder: The lab's folder.
        program: The lab-network binary.
        vms: All hosts of the lab.
        progress: Reports powered-off hosts.

    Raises:
        UserError: It doesn't start; the message includes its output.
    """
    if pid(lab_folder) is not None:
        return
    for vm in vms:
        if vm.pid is not None:
            progress.say(f"{vm.host.name}: lab-network had stopped, so the host is restarted")
            vm.stop()
    folder = lab_folder / "network"
    folder.mkdir(exist_ok=True)
    _pid_file(lab_folder).unlink(missing_ok=True)
    write_atomic(_config(lab_folder), settings(lab_folder, vms))
    log = folder / "network.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, _config(lab_folder)],
            cwd=lab_folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in the terminal doesn't stop it
        )
    deadline = time.monotonic() + _START_SECONDS
    while pid(lab_folder) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise UserError(f"lab-network didn't start:\n{tail(log, 10)}", f"see {log}")
        time.sleep(0.02)


def stop(lab_folder: Path) -> None:
    """Stop the process if it is running."""
    processes.end(_pid_file(lab_folder), str(_config(lab_folder)))
