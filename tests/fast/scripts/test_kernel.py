"""The step `kernel`: turning swap off and on again, and network managers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import put, record, run


def test_swap_units_are_disabled_and_restored(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    put(tmp_path, "etc/systemd/system/data-swap.swap", "[Swap]\nWhat=/data/swap\n")
    (units / "dev-zram0.swap").symlink_to("/dev/null")
    put(tmp_path, "proc/swaps", "Filename Type Size Used Priority\n")
    folder = record(tmp_path)
    calls = tmp_path / "calls"
    tools = f"""
systemctl() {{
  case $1 in
    list-units) printf '%s loaded active active x\n' data-swap.swap dev-zram0.swap dev-sda2.swap ;;
    cat) [[ $2 == zramswap.service ]] ;;
    *) echo "$*" >>{calls} ;;
  esac
}}
timeout() {{ shift; "$@"; }}
"""
    for _ in range(2):
        run("steps/kernel.sh", tools + "create() { stop_swap; }\n", tmp_path)
    held = sorted(path.parent.name for path in units.glob("*.d/kubeadm-ipvs.conf"))
    assert held == ["data-swap.swap.d", "zramswap.service.d"]
    assert "mask --quiet dev-sda2.swap" in calls.read_text().splitlines()
    assert (units / "data-swap.swap").exists()

    (folder / "swaps").touch()
    run("lib/reset/kernel.sh", tools + "create() { restore_swap; }\n", tmp_path)
    assert sorted(path.name for path in units.iterdir()) == ["data-swap.swap", "dev-zram0.swap"]
    assert calls.read_text().splitlines()[-1] == "restart zramswap.service"


# systemctl and the calls that make the managers read their configuration.
MANAGERS = """
unit_active() { [[ " $ACTIVE " == *" $1 "* ]]; }
busctl() { echo "busctl ${*: -3}" >>"$ROOT/calls"; }
networkctl() { echo "networkctl $*" >>"$ROOT/calls"; }
"""
NETWORKMANAGER = "etc/NetworkManager/conf.d/zz-kubeadm-ipvs.conf"
NETWORKD = "etc/systemd/network/00-kubeadm-ipvs.network"


def manage(root: Path, active: str, function: str = "keep_network_managers_away") -> list[str]:
    """Run a function with these managers active, and return the calls that it makes."""
    calls = put(root, "calls")
    run("steps/kernel.sh", f"{MANAGERS}create() {{ {function}; }}\n", root, ACTIVE=active)
    return calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("active", "files", "calls"),
    [
        ("", set(), []),
        ("NetworkManager", {NETWORKMANAGER}, ["busctl Reload u 1"]),
        ("systemd-networkd", {NETWORKD}, ["networkctl reload"]),
        (
            "NetworkManager systemd-networkd",
            {NETWORKMANAGER, NETWORKD},
            ["busctl Reload u 1", "networkctl reload"],
        ),
    ],
)
def test_active_network_managers_leave_the_clusters_links_alone(
    tmp_path: Path, active: str, files: set[str], calls: list[str]
) -> None:
    record(tmp_path)
    put(tmp_path, "etc/systemd/network/20-lan.network")
    put(tmp_path, "etc/NetworkManager/NetworkManager.conf")
    before = set((tmp_path / "etc").rglob("*"))
    assert manage(tmp_path, active) == calls
    assert manage(tmp_path, active) == []
    assert {path for path in (NETWORKMANAGER, NETWORKD) if (tmp_path / path).exists()} == files
    assert manage(tmp_path, active, "restore_network_managers") == calls
    assert manage(tmp_path, active, "restore_network_managers") == []
    assert set((tmp_path / "etc").rglob("*")) == before


def test_network_managers_files_name_only_the_clusters_links(tmp_path: Path) -> None:
    record(tmp_path)
    manage(tmp_path, "NetworkManager systemd-networkd")
    links = ["flannel.1", "flannel-v6.1", "cni0", "kube-ipvs0", "veth????????"]
    text = (tmp_path / NETWORKMANAGER).read_text()
    # Without the plus sign, the user's own list would be replaced.
    assert text.splitlines()[1:] == [
        "[keyfile]",
        f"unmanaged-devices+={''.join(f'interface-name:{link};' for link in links)}",
    ]
    assert (tmp_path / NETWORKD).read_text().splitlines()[1:] == [
        "[Match]",
        f"Name={' '.join(links)}",
        "",
        "[Link]",
        "Unmanaged=yes",
    ]


def test_interrupted_reload_of_a_network_manager_is_repeated(tmp_path: Path) -> None:
    record(tmp_path)
    killed = MANAGERS.replace('echo "networkctl', 'false; echo "networkctl')
    code = f"{killed}create() {{ keep_network_managers_away; }}\n"
    run("steps/kernel.sh", code, tmp_path, 1, ACTIVE="systemd-networkd")
    assert manage(tmp_path, "systemd-networkd") == ["networkctl reload"]
