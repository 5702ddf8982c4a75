"""What a change means for a living cluster; that the engine asks in time is for the engine tests."""

from __future__ import annotations

from typing import Any

import pytest

from components.changes import RefusedChangeError, judged, kept
from tests.fast.test_kubeadm import settings_with

NOW = kept(settings_with())
ROLES = ("worker", "control-plane", "worker")


def test_another_version_is_refused_with_the_one_to_go_back_to() -> None:
    newer = settings_with(cluster={"kubernetesVersion": "1.38.0"})
    with pytest.raises(RefusedChangeError) as caught:
        judged(NOW, kept(newer), newer)
    for words in ("1.38.0", "1.37.2", "Nothing was touched", "doesn't upgrade"):
        assert words in str(caught.value)


def test_a_control_plane_that_is_to_be_a_worker_is_refused() -> None:
    swapped = settings_with()
    hosts = [host.model_copy(update={"role": role}) for host, role in zip(swapped.hosts, ROLES, strict=True)]
    swapped = swapped.model_copy(update={"hosts": tuple(hosts)})
    with pytest.raises(RefusedChangeError) as caught:
        judged(NOW, kept(swapped), swapped)
    for words in ("master is the cluster's control plane", "Nothing was touched", "in one change"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("network.podSubnet", {"network": {"podSubnet": "10.200.0.0/16"}}),
        ("network.serviceSubnet", {"network": {"serviceSubnet": "10.112.0.0/12"}}),
        ("network.dnsDomain", {"network": {"dnsDomain": "k8s.example"}}),
    ],
)
def test_a_new_cluster_is_announced_with_its_reason_and_what_is_lost(
    name: str, change: dict[str, Any]
) -> None:
    other = settings_with(**change)
    said = judged(NOW, kept(other), other)
    assert f"{name} {NOW[name]} -> {kept(other)[name]}" in said
    for words in ("makes a new cluster", "every object and all data", "master, node1, node2"):
        assert words in said


def test_other_changes_are_not_spoken_of() -> None:
    same = settings_with(proxy={"mode": "nftables"}, cluster={"certSANs": ["k8s.example"]}, count=2)
    assert judged(NOW, kept(same), same) == ""
