"""The step `proxy`: removing the rules of other modes."""

from __future__ import annotations

from pathlib import Path

from tests.fast.shell import stdout_of

# A node's rules in iptables mode, reduced to one of each kind.
IPTABLES = (Path(__file__).parent.parent / "data/iptables.txt").read_text()


def test_chains_and_jumps_of_iptables_mode_are_removed(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text(IPTABLES)
    code = f"""
iptables-save() {{ if [[ $2 == nat ]]; then cat {tmp_path}/rules; fi; }}
ip6tables-save() {{ :; }}
iptables-restore() {{ echo "restore $*"; cat; }}
create() {{ remove_other_modes; }}
"""
    jumps = [line for line in IPTABLES.splitlines() if line.startswith("-A KUBE-SERVICES ")]
    assert stdout_of("steps/proxy.sh", code, tmp_path, MODE="ipvs").splitlines() == [
        "restore --noflush --wait 30",
        "*nat",
        ":KUBE-EXT-TEOBKOQ2TXYEFV6A - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-SEP-XQYWTQ4XQHX2AXBK - [0:0]",
        ":KUBE-SVC-TEOBKOQ2TXYEFV6A - [0:0]",
        *(line.replace("-A ", "-D ") for line in jumps),
        "-X KUBE-EXT-TEOBKOQ2TXYEFV6A",
        "-X KUBE-NODEPORTS",
        "-X KUBE-SEP-XQYWTQ4XQHX2AXBK",
        "-X KUBE-SVC-TEOBKOQ2TXYEFV6A",
        "COMMIT",
    ]
