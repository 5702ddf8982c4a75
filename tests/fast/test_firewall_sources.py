"""Whom the hosts' firewalls let in, and which addresses serve NodePorts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model import firewall, kubeadm
from model.settings import Settings
from model.settings_file import load
from model.settings_problems import SettingsError
from model.steps import CHECK, FIREWALL, values_of
from tests.fast.recorded_run import commands, run
from tests.fast.sample_settings import raw_settings, settings_with, with_addresses

SOURCES = ("HOST_SOURCES", "API_SOURCES", "NODE_PORT_SOURCES")


def values(settings: Settings, number: int = 0) -> dict[str, str]:
    return firewall.values(settings, settings.hosts[number])


def problems(tmp_path: Path, **sections: Any) -> dict[str, str]:
    """The problems of the sample settings with these sections, by path."""
    try:
        load(raw_settings(tmp_path, **sections), tmp_path)
    except SettingsError as error:
        return {problem.path: problem.text for problem in error.problems}
    return {}


def test_step_and_drift_check_take_the_same_values() -> None:
    assert values(settings_with()).keys() == FIREWALL.values
    assert FIREWALL.values <= CHECK.values


def test_api_and_node_ports_are_open_by_default() -> None:
    found = values(settings_with())
    assert [found[name] for name in SOURCES] == ["192.168.166.101/32\n192.168.166.102/31", "any", "any"]
    # Otherwise a change of the API's sources would run a step on every worker.
    assert values(settings_with(), 1)["API_SOURCES"] == ""


def test_neighbouring_hosts_share_a_source(tmp_path: Path) -> None:
    raw = with_addresses(raw_settings(tmp_path), "10.0.0.5", "10.0.0.4", "10.0.1.9")
    assert firewall.host_sources(load(raw, tmp_path)) == ["10.0.0.4/31", "10.0.1.9/32"]
    raw["firewallSources"] = {"hosts": ["10.0.1.0/24"]}
    assert firewall.host_sources(load(raw, tmp_path)) == ["10.0.0.4/31", "10.0.1.0/24"]


def test_configured_sources_replace_everybody() -> None:
    sources = {"api": ["10.9.0.0/24", "10.9.0.7/32"], "nodePorts": []}
    found = values(settings_with(firewallSources=sources))
    assert [found[name] for name in SOURCES[1:]] == ["10.9.0.0/24", ""]


@pytest.mark.parametrize("setting", ["leave", "disable"])
def test_firewall_that_isnt_opened_has_no_sources(setting: str) -> None:
    found = values(settings_with(firewall=setting))
    assert [found[name] for name in SOURCES] == [""] * 3


@pytest.mark.parametrize(
    ("setting", "updated"), [("open", {"master-preparation", "node1-preparation"}), ("leave", set())]
)
def test_new_host_changes_only_the_others_firewalls(tmp_path: Path, setting: str, updated: set[str]) -> None:
    raw = raw_settings(tmp_path, firewall=setting)
    after = run(load(raw, tmp_path))
    raw["hosts"].pop()
    before = run(load(raw, tmp_path))
    own = {f"{host}-{step}" for host in ("master", "node1") for step in ("claim", "preparation")}
    own |= {"master-init", "node1-join"}
    changed = {name for name in own if before.inputs[name]["stdin"] != after.inputs[name]["stdin"]}
    assert changed == updated
    for name in changed:
        old, new = (values_of(recorded.inputs[name]["stdin"]) for recorded in (before, after))
        assert old and new
        assert {key for key in old if old[key] != new[key]} == {"HOST_SOURCES"}
        assert before.inputs[name].get("triggers") == after.inputs[name].get("triggers")


def test_node_port_is_checked_before_the_service_changes(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path)
    before = run(load(raw, tmp_path))
    raw["nginx"] = {"nodePort": 30090}
    recorded = run(load(raw, tmp_path))
    prepared = {name for name in commands(recorded) if name.endswith("-preparation")}
    assert len(prepared) == 3
    for name in prepared:
        assert recorded.inputs[name]["stdin"] != before.inputs[name]["stdin"]
    assert prepared <= recorded.before("Service/default/nginx-nodeport")


@pytest.mark.parametrize("setting", ["leave", "disable"])
def test_sources_without_effect_are_refused(tmp_path: Path, setting: str) -> None:
    found = problems(tmp_path, firewall=setting, firewallSources={"api": ["10.0.0.0/8"], "nodePorts": []})
    assert found.keys() == {"firewallSources.api", "firewallSources.nodePorts"}
    assert all(f"no effect with `firewall: {setting}`" in text for text in found.values())


@pytest.mark.parametrize(
    ("mode", "sources", "refused"),
    [
        ("ipvs", ["10.0.0.0/8"], False),
        ("ipvs", [], False),
        ("nftables", ["10.0.0.0/8"], True),
        ("iptables", [], True),
        ("nftables", ["0.0.0.0/0"], False),
    ],
)
def test_node_ports_are_restricted_only_in_ipvs_mode(
    tmp_path: Path, mode: str, sources: list[str], refused: bool
) -> None:
    found = problems(tmp_path, proxy={"mode": mode}, firewallSources={"nodePorts": sources})
    assert found.keys() == ({"firewallSources.nodePorts"} if refused else set())


@pytest.mark.parametrize(
    ("regex", "more", "refused"),
    [
        ("^eth1$", {}, True),
        ("^eth1$", {"firewallSources": {"hosts": ["10.1.0.0/24"]}}, False),
        ("^eth1$", {"firewall": "leave"}, False),
        (r"^192\.168\.", {}, False),
        (r"^192\.168\.166\.101$", {}, True),
    ],
)
def test_flannels_other_addresses_must_be_sources(
    tmp_path: Path, regex: str, more: dict[str, Any], refused: bool
) -> None:
    found = problems(tmp_path, network={"flannel": {"interfaceRegex": regex}}, **more)
    assert found.keys() == ({"firewallSources.hosts"} if refused else set())
    without_vxlan = {"backend": "host-gw", "interfaceRegex": regex}
    assert problems(tmp_path, network={"flannel": without_vxlan}, **more) == {}


@pytest.mark.parametrize(
    ("addresses", "path", "words"),
    [
        (["primary"], "", ""),
        (["0.0.0.0/0"], "", ""),
        (["192.168.166.0/24", "10.0.2.0/24"], "", ""),
        (["primary", "10.0.2.0/24"], "", "`primary` next to other items"),
        (["first"], "[0]", "no prefix length"),
        (["10.0.2.0/24"], "", "doesn't contain hosts[0].address 192.168.166.101"),
        (["10.0.0.0/8", "192.168.166.0/24"], "", "overlaps network.serviceSubnet 10.96.0.0/12"),
    ],
)
def test_node_port_addresses_contain_every_host(
    tmp_path: Path, addresses: list[str], path: str, words: str
) -> None:
    found = problems(tmp_path, proxy={"nodePortAddresses": addresses})
    assert found.keys() == ({f"proxy.nodePortAddresses{path}"} if words else set())
    assert all(words in text for text in found.values())


@pytest.mark.parametrize("mode", ["ipvs", "nftables", "iptables"])
def test_node_port_addresses_are_kube_proxys(mode: str) -> None:
    settings = settings_with(proxy={"mode": mode, "nodePortAddresses": ["primary"]})
    assert "nodePortAddresses:\n- primary\n" in kubeadm.proxy_config(settings)
