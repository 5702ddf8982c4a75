"""The hosts of a simulated fleet, as the settings list them."""

from __future__ import annotations

from common.paths import project_dir
from model.settings import Settings
from model.settings_file import load
from tests.fast.sample_settings import HOST_KEY

SETTINGS = {
    # The default pod subnet has room for 256 nodes only.
    "network": {"podSubnet": "10.128.0.0/12"},
    # Otherwise the firewall of every host would have to let in a host that is added.
    "firewallSources": {"hosts": ["172.16.0.0/12"]},
}
"""Settings that a large cluster has."""

CONTROL_PLANE = "master"


def addresses(count: int) -> dict[str, str]:
    """The addresses of `count` hosts by name. The first one is the control plane."""
    names = [CONTROL_PLANE, *(f"node{number}" for number in range(1, count))]
    return {name: f"172.16.{number // 250}.{number % 250 + 1}" for number, name in enumerate(names)}


def settings(count: int) -> Settings:
    """Settings of a cluster with `count` hosts, which don't exist. An SSH agent would have the login key."""
    hosts = [
        {
            "name": name,
            "role": "control-plane" if name == CONTROL_PLANE else "worker",
            "address": address,
            "ssh": {"hostKey": HOST_KEY},
        }
        for name, address in addresses(count).items()
    ]
    return load({"hosts": hosts, **SETTINGS}, project_dir())
