"""Restoring sysctls and swap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, record, run, stdout_of

KERNEL = "lib/reset/kernel.sh"


def test_forwarding_is_restored_before_the_settings_it_changes(tmp_path: Path) -> None:
    """When forwarding is turned off, the kernel accepts redirects again (inet_forward_change)."""
    recorded = [
        "net.ipv4.conf.all.accept_redirects 0",
        "net/ipv4/conf/eth0.100/forwarding 0",
        "net.ipv4.ip_forward 0",
        "kernel.panic 0",
    ]
    record(tmp_path, sysctls="".join(f"{line}\n" for line in recorded))
    assert stdout_of(KERNEL, "create() { recorded_sysctls; }\n", tmp_path).splitlines() == [
        "net/ipv4/ip_forward 0",
        "net/ipv4/conf/all/accept_redirects 0",
        "net/ipv4/conf/eth0.100/forwarding 0",
        "kernel/panic 0",
    ]


@pytest.mark.parametrize(
    ("configuration", "forwards", "swappiness"),
    [
        ("", "0", "60"),
        ("# a VPN\n-net.ipv4.ip_forward = 1\nvm.swappiness=33\n", "1", "60"),
        ("net/ipv4/ip_forward=1\nnet.ipv4.ip_forward=0\n", "0", "60"),
        ("vm/swappiness = 0\n", "0", "0"),
    ],
)
def test_sysctls_set_by_the_hosts_files_stay(
    tmp_path: Path, configuration: str, forwards: str, swappiness: str
) -> None:
    record(tmp_path, sysctls="net/ipv4/conf/eth0/forwarding 0\nnet.ipv4.ip_forward 0\nvm.swappiness 60\n")
    forward = put(tmp_path, "proc/sys/net/ipv4/ip_forward", "1\n")
    eth0 = put(tmp_path, "proc/sys/net/ipv4/conf/eth0/forwarding", "1\n")
    swap = put(tmp_path, "proc/sys/vm/swappiness", "0\n")
    put(tmp_path, "etc/sysctl.d/10-own.conf", configuration)
    done = run(KERNEL, "create() { restore_sysctls; }\n", tmp_path)
    values = [file.read_text().strip() for file in (forward, eth0, swap)]
    assert values == [forwards, forwards, swappiness]
    message = "net/ipv4/ip_forward stays 1: a configuration file of the host sets it"
    assert (message in done.stderr) == (forwards == "1")


SWAP = """
swapon() {
  echo "swapon $*"
  [[ -e ${*: -1} ]] && echo "${*: -1} file 1 0 -2" >>"$ROOT/proc/swaps"
}
systemctl() {
  echo "systemctl $*"
  [[ $* == 'start dev-zram0.swap' ]] || return 0
  : >"$ROOT/zram0"
  echo "$ROOT/zram0 partition 1 0 100" >>"$ROOT/proc/swaps"
}
timeout() { shift; "$@"; }
systemd-escape() { local path=${*: -1}; echo "dev-${path##*/}.swap"; }
create() { restore_swap; }
"""


def restored_swap(root: Path, *recorded: str) -> tuple[str, list[str]]:
    """The messages and calls of restore_swap, and the swap that is on afterwards."""
    swaps = put(root, "proc/swaps", "Filename Type Size Used Priority\n")
    record(root, swaps="".join(f"{root}/{line}\n" for line in recorded))
    put(root, "swapfile")
    done = run(KERNEL, SWAP, root)
    on = [line.split()[0] for line in swaps.read_text().splitlines()[1:]]
    return done.stdout + done.stderr, [Path(path).name for path in on]


def test_missing_swap_is_reported_and_skipped(tmp_path: Path) -> None:
    output, on = restored_swap(tmp_path, "swapfile file -2", "sdb2 partition -3")
    assert on == ["swapfile"]
    assert f"can't turn on swap on {tmp_path}/sdb2, which was on before: skipped" in output


def test_zram_swap_is_started_by_its_unit(tmp_path: Path) -> None:
    output, on = restored_swap(tmp_path, "swapfile file -2", "zram0 partition 100")
    assert on == ["swapfile", "zram0"]
    assert "systemctl start dev-zram0.swap" in output
