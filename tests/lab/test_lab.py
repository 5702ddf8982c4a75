"""The lab itself, which must behave the same with KVM, under User Mode Linux, and emulated.

The tests use the accelerator that the lab chooses. Set KUBEADM_IPVS_ACCELERATOR to test a different one;
`make reference` tests QEMU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import processes
from common.errors import UserError
from common.paths import project_dir
from common.progress import Progress
from lab import network
from lab.lab import Lab

LAB, OTHER = "hosts", "other"
HOSTS = ("master", "node1")
WAIT_SECONDS = 1200.0  # for an emulated host to boot on a busy computer


@pytest.fixture(scope="module")
def lab(failure_logs: dict[str, Callable[[Path], object]], progress: Progress) -> Iterator[Lab]:
    """Two plain hosts."""
    made = Lab.load(LAB, progress)
    made.down()
    failure_logs["lab"] = made.collect_logs
    try:
        made.up(count=len(HOSTS))
        yield made
    finally:
        failure_logs.pop("lab", None)
        made.down()


def run(lab: Lab, host: str, line: str, timeout: float = 600.0) -> str:
    done = lab.ssh(host, ["bash", "-c", line], timeout=timeout)
    assert done.returncode == 0, f"{host}: {line}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def boot_id(lab: Lab, host: str) -> str:
    # A login that begins while the host goes down may hang until ssh gives up, after 5 minutes.
    return run(lab, host, "cat /proc/sys/kernel/random/boot_id", timeout=60)


def command(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lab", "--name", lab.name, *words]
    return subprocess.run(argv, cwd=project_dir(), capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.25)


def test_status_has_accelerator_and_reason(lab: Lab) -> None:
    done = command(lab, "status", "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["ready"] is True
    assert status["accelerator"] in ("kvm", "uml", "tcg")
    assert status["accelerator_reason"]
    assert [host["state"] for host in status["hosts"]] == ["ready"] * len(HOSTS)
    assert [host["address"] for host in status["hosts"]] == ["192.168.166.101", "192.168.166.102"]
    assert all(host["resident"] > 20 for host in status["hosts"]), status["hosts"]
    table = command(lab, "status").stdout
    assert re.search(rf"^runs with +{status['accelerator']} \(", table, re.MULTILINE)


def test_hosts_look_like_fresh_servers(lab: Lab) -> None:
    for number, host in enumerate(HOSTS):
        assert run(lab, host, "hostname") == host
        addresses = run(lab, host, "ip -4 -brief address show up")
        assert re.search(r"^eth0 .*10\.0\.2\.15/24", addresses, re.MULTILINE)
        assert re.search(rf"^eth1 .*192\.168\.166\.{101 + number}/24", addresses, re.MULTILINE)
        assert "via 10.0.2.2 dev eth0" in run(lab, host, "ip route show default")
        assert run(lab, host, "sed 1d /proc/swaps") != "", "swap must be on"
        assert run(lab, host, "systemctl is-active containerd firewalld") == "active\nactive"
        assert "ip_vs" not in run(lab, host, "cat /proc/modules")
        assert run(lab, host, "stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
        assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(
            run(lab, host, "cat /sys/fs/cgroup/cgroup.controllers").split()
        )
        assert re.search(r"cpu MHz|BogoMIPS", run(lab, host, "cat /proc/cpuinfo"))
        assert abs(float(run(lab, host, "date +%s.%N")) - time.time()) < 5


def test_hosts_reach_each_other_and_services(lab: Lab) -> None:
    for host, other in (HOSTS, reversed(HOSTS)):
        address = {"master": "192.168.166.101", "node1": "192.168.166.102"}[other]
        run(lab, host, f"ping -c 1 -W 20 {address}")
        assert run(lab, host, f"exec 3<>/dev/tcp/{address}/22; head -c 4 <&3") == "SSH-"
    for service in lab.status().services:
        _, _, port = service.url.rpartition(":")
        request = "GET / HTTP/1.0\\r\\n\\r\\n"
        answer = run(
            lab, HOSTS[1], f"exec 3<>/dev/tcp/10.0.2.2/{port}; printf '{request}' >&3; head -c 9 <&3"
        )
        assert answer.startswith("HTTP/1."), service


def test_kernel_modules_are_unloaded_by_reboot(lab: Lab) -> None:
    modules = "ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh nf_conntrack br_netfilter overlay vxlan"
    run(lab, HOSTS[1], f"modprobe -a {modules}")
    assert "ip_vs_rr" in run(lab, HOSTS[1], "cat /proc/modules")
    before = boot_id(lab, HOSTS[1])
    run(lab, HOSTS[1], "echo kept >/kept; sync")
    assert command(lab, "reboot", HOSTS[1]).returncode == 0
    assert boot_id(lab, HOSTS[1]) != before
    assert run(lab, HOSTS[1], "cat /kept; rm /kept") == "kept"
    assert "ip_vs" not in run(lab, HOSTS[1], "cat /proc/modules")


def test_host_can_reboot_itself(lab: Lab) -> None:
    before = boot_id(lab, HOSTS[1])
    lab.ssh(HOSTS[1], ["sh", "-c", "systemctl reboot </dev/null >/dev/null 2>&1 &"])

    def another_boot() -> bool:
        # QEMU 10 may crash instead when it emulates several CPUs (docs/lab.md); `up` restarts the host.
        if next(h for h in lab.status().hosts if h.name == HOSTS[1]).state == "stopped":
            lab.up()
        try:
            return boot_id(lab, HOSTS[1]) != before
        except (UserError, AssertionError):
            return False

    wait_for(another_boot, "the host hasn't rebooted")
    run(lab, HOSTS[1], "ping -c 1 -W 20 192.168.166.101")


def test_power_off_keeps_synced_files(lab: Lab) -> None:
    host = HOSTS[1]
    pid = next(h.pid for h in lab.status().hosts if h.name == host)
    assert pid is not None
    run(lab, host, "echo written >/written; sync; echo buffered >/buffered")
    assert command(lab, "power-off", host).returncode == 0
    assert not processes.alive(pid)
    done = command(lab, "status")
    assert done.returncode == 1
    assert re.search(rf"^{host} .* stopped ", done.stdout, re.MULTILINE)
    lab.up()
    assert run(lab, host, "cat /written") == "written"
    assert run(lab, host, "cat /buffered 2>/dev/null || :") in ("", "buffered")
    run(lab, host, "rm -f /written /buffered; ping -c 1 -W 20 192.168.166.101")


def test_up_starts_host_that_was_shut_down(lab: Lab) -> None:
    host = HOSTS[1]
    lab.ssh(host, ["sh", "-c", "systemctl poweroff </dev/null >/dev/null 2>&1 &"])
    wait_for(lambda: lab.status().hosts[1].state == "stopped", "the host hasn't powered off")
    assert lab.up().ready


def test_restore_resets_disks_of_all_hosts(lab: Lab, progress: Progress) -> None:
    for host in HOSTS:
        run(lab, host, "echo old >/state")
    started = time.monotonic()
    lab.snapshot("old")
    progress.say(f"snapshot of {len(HOSTS)} hosts: {time.monotonic() - started:.1f} s")
    for host in HOSTS:
        run(lab, host, "echo new >/state; sync")
    lab.power_off(HOSTS[1])
    started = time.monotonic()
    lab.restore("old")
    progress.say(f"restore of {len(HOSTS)} hosts: {time.monotonic() - started:.1f} s")
    for host in HOSTS:
        assert run(lab, host, "cat /state; rm /state") == "old"
        assert abs(float(run(lab, host, "date +%s.%N")) - time.time()) < 5
    assert "old" in lab.status().snapshots
    with pytest.raises(UserError, match="no snapshot 'never'"):
        lab.restore("never")


def test_logs_can_be_printed_and_collected(lab: Lab, tmp_path: Path) -> None:
    assert "Linux version" in command(lab, "logs", HOSTS[0], "--console").stdout or "systemd" in lab.console(
        HOSTS[0]
    )
    assert command(lab, "collect-logs", str(tmp_path)).returncode == 0
    for host in HOSTS:
        assert not (tmp_path / host / "not-collected.txt").exists()
        assert "systemd" in (tmp_path / host / "journal.txt").read_text()
        assert (tmp_path / host / "console.log").stat().st_size > 0
    assert json.loads((tmp_path / "status.json").read_text())["name"] == lab.name


def test_labs_are_independent(lab: Lab, progress: Progress) -> None:
    other = Lab.load(OTHER, progress)
    other.down()
    try:
        status = other.up(count=1)
        own = lab.status()
        assert not {h.ssh_port for h in status.hosts} & {h.ssh_port for h in own.hosts}
        # Both labs have a host with this address, each on its own LAN.
        assert run(other, "master", "cat /etc/machine-id") != run(lab, "master", "cat /etc/machine-id")
        run(lab, HOSTS[1], "ping -c 1 -W 20 192.168.166.101")
        pids = [host.pid for host in status.hosts]
        pids.append(network.pid(other.folder))
    finally:
        other.down()
    assert not any(pid and processes.alive(pid) for pid in pids)
    assert lab.status().ready


def test_up_is_idempotent_and_fast(lab: Lab) -> None:
    before = [host.pid for host in lab.status().hosts]
    started = time.monotonic()
    assert lab.up().ready
    assert time.monotonic() - started < 30
    assert [host.pid for host in lab.status().hosts] == before
