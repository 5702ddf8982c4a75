"""Valid settings of a three-host cluster, for tests that need any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.settings import Settings

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8Lq2vJkzO4b6mKqXb3W8xS8yG3c9hT0vT1s0q2n4aB"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nprivate-login-key\n-----END OPENSSH PRIVATE KEY-----\n"


def raw_settings(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """Settings as a stack file contains them, for `load`. Their private key is written to `tmp_path`."""
    key = tmp_path / "id"
    key.write_text(PRIVATE_KEY)
    key.chmod(0o600)
    hosts = [{**host, "ssh": {"hostKey": HOST_KEY}} for host in _hosts(3)]
    return {"hosts": hosts, "ssh": {"privateKeyFile": str(key)}, **sections}


def settings_with(count: int = 3, **sections: Any) -> Settings:
    """Settings with `count` hosts. They aren't loaded from a file, so they have no host keys."""
    return Settings.model_validate_json(json.dumps({"hosts": _hosts(count), **sections}))


def _hosts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "role": "worker" if number else "control-plane",
            "address": f"192.168.166.{101 + number}",
        }
        for number, name in enumerate(("master", "node1", "node2")[:count])
    ]


def with_addresses(raw: dict[str, Any], *addresses: str) -> dict[str, Any]:
    """Replace the hosts' addresses."""
    for host, address in zip(raw["hosts"], addresses, strict=True):
        host["address"] = address
    return raw
