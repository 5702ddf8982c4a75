"""The step `kernel`: turning swap off and on again."""

from __future__ import annotations

from pathlib import Path

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
