"""Changes that the hook refuses or announces. The engine tests cover when the engine calls the hook."""

from __future__ import annotations

from typing import Any

import pytest

from components.changes import RefusedChangeError, check_change, cluster_inputs
from tests.fast.sample_settings import settings_with

NOW = cluster_inputs(settings_with())
ROLES = ("worker", "control-plane", "worker")


def test_another_version_is_refused() -> None:
    newer = settings_with(cluster={"kubernetesVersion": "1.38.0"})
    with pytest.raises(RefusedChangeError) as caught:
        check_change(NOW, cluster_inputs(newer), newer)
    for words in ("1.38.0", "Change it back to 1.37.2", "Nothing was changed", "can't upgrade"):
        assert words in str(caught.value)


def test_version_of_a_manual_upgrade_is_announced() -> None:
    newer = settings_with(cluster={"kubernetesVersion": "1.38.0", "manualUpgrades": True})
    warning = check_change(NOW, cluster_inputs(newer), newer)
    assert "from 1.37.2 to 1.38.0" in warning
    assert "a host with another version refuses it" in warning


def test_demoting_the_control_plane_is_refused() -> None:
    swapped = settings_with()
    hosts = [host.model_copy(update={"role": role}) for host, role in zip(swapped.hosts, ROLES, strict=True)]
    swapped = swapped.model_copy(update={"hosts": tuple(hosts)})
    with pytest.raises(RefusedChangeError) as caught:
        check_change(NOW, cluster_inputs(swapped), swapped)
    for words in ("master is the cluster's control plane", "Nothing was changed", "in one change"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("network.podSubnet", {"network": {"podSubnet": "10.200.0.0/16"}}),
        ("network.serviceSubnet", {"network": {"serviceSubnet": "10.112.0.0/12"}}),
        ("network.dnsDomain", {"network": {"dnsDomain": "k8s.example"}}),
    ],
)
def test_cluster_replacement_is_announced(name: str, change: dict[str, Any]) -> None:
    other = settings_with(**change)
    warning = check_change(NOW, cluster_inputs(other), other)
    assert f"{name} {NOW[name]} -> {cluster_inputs(other)[name]}" in warning
    for words in ("replaces the cluster", "all its objects and data", "master, node1, node2"):
        assert words in warning


def test_other_changes_are_silent() -> None:
    same = settings_with(proxy={"mode": "nftables"}, cluster={"certSANs": ["k8s.example"]}, count=2)
    assert check_change(NOW, cluster_inputs(same), same) == ""
