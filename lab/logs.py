"""Collect the logs of a lab's hosts and servers, for instance after a failed test."""

from __future__ import annotations

import shutil
from pathlib import Path

from common.errors import UserError
from common.files import write_atomic
from lab import ssh
from lab.machine import Vm
from lab.record import Record
from lab.status import lab_status
from lab.vms import create_vms, for_each

# File name -> the command line whose output it gets.
_COMMANDS: dict[str, str] = {
    "journal.txt": "journalctl --no-pager --boot -o short-precise",
    "units.txt": "systemctl --no-pager --failed; systemctl --no-pager list-units --type=service",
    "network.txt": "ip -d address; ip route; ip rule; ip neigh; cat /etc/resolv.conf",
    "ipvs.txt": "ipvsadm -Ln; ipvsadm -Ln --stats; ipset list",
    "nftables.txt": "nft list ruleset",
    "containers.txt": "crictl ps -a; crictl pods; ctr -n k8s.io images list",
    "memory.txt": "free -m; ps aux --sort=-rss | head -40; df -h; uptime; cat /proc/pressure/*",
    "pods.txt": "find /var/log/pods -name '*.log' -print -exec tail -n 200 {} ';'",
}


def collect(lab_folder: Path, record: Record, target: Path) -> None:
    """Write every host's logs and tables, and the servers' logs, to a folder.

    A host that doesn't respond gets a note instead; the other hosts are still collected.

    Args:
        lab_folder: The lab's folder.
        record: The lab's record.
        target: Created if it doesn't exist.
    """
    target.mkdir(parents=True, exist_ok=True)

    def collect_host(vm: Vm) -> None:
        folder = target / vm.host.name
        folder.mkdir(exist_ok=True)
        for name in {"console.log", vm.log_file}:
            if (vm.folder / name).exists():
                shutil.copyfile(vm.folder / name, folder / name)
        for name, line in _COMMANDS.items():
            try:
                done = ssh.run(lab_folder, vm.ssh_port, ["sh", "-c", line], timeout=240)
            except UserError as error:
                (folder / "not-collected.txt").write_text(f"from {name} on: {error}\n")
                return
            (folder / name).write_text(done.stdout + done.stderr)

    for_each(create_vms(lab_folder, record), collect_host)
    for log in [*(lab_folder / "services").glob("*.log"), *(lab_folder / "network").glob("*.log")]:
        shutil.copyfile(log, target / log.name)
    try:
        write_atomic(target / "status.json", lab_status(lab_folder, record).to_json())
    except UserError as error:
        (target / "not-collected.txt").write_text(f"status.json: {error}\n")
