"""The pod network: its manifest, its settings, and the names that scripts use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.pod_network import FLANNEL, flannel_interface
from model.settings_file import load
from model.steps import SCRIPTS
from tests.fast.sample_settings import raw_settings, with_addresses
from tests.fast.shell import stdout_of

Raw = dict[str, Any]


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return raw_settings(tmp_path)


def test_flannel_uses_each_hosts_own_address(raw: Raw, tmp_path: Path) -> None:
    raw = with_addresses(raw, "10.1.1.5", "10.2.3.4", "10.2.3.5")
    assert flannel_interface(load(raw, tmp_path)) == "--iface=$(HOST_IP)"


def test_flannels_interface_may_be_set(raw: Raw, tmp_path: Path) -> None:
    raw |= {"firewall": "leave", "network": {"flannel": {"interfaceRegex": "^eth1$"}}}
    assert flannel_interface(load(raw, tmp_path)) == "--iface-regex=^eth1$"


def test_shell_reads_every_kind(tmp_path: Path) -> None:
    kinds = dict.fromkeys(line.partition(" ")[0] for line in FLANNEL.lines.splitlines())
    code = "create() { for kind in " + " ".join(kinds) + "; do pod_network $kind | xargs; done; }"
    assert stdout_of("lib/pod_network.sh", code, tmp_path).splitlines() == [
        " ".join(line.partition(" ")[2] for line in FLANNEL.lines.splitlines() if line.startswith(f"{kind} "))
        for kind in kinds
    ]


def test_names_match_the_manifest() -> None:
    manifest = (SCRIPTS.parent / "manifests" / FLANNEL.manifest).read_text()
    [config] = re.findall(r"cni-conf\.json: \|\n((?: {4,}.*\n)+)", manifest)
    assert json.loads(config)["name"] == FLANNEL.cni_network
    assert f"/etc/cni/net.d/{FLANNEL.cni_config}" in manifest


# Adding a second pod network must not require changes to scripts.
def test_scripts_name_no_pod_network() -> None:
    names = re.compile(r"flannel|cbr0|cni0|8472", re.IGNORECASE)
    found = [
        f"{script.relative_to(SCRIPTS)}: {line.strip()}"
        for script in sorted(SCRIPTS.rglob("*.sh"))
        for line in script.read_text().splitlines()
        if names.search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []
