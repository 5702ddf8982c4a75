"""Engine events as an event log contains them."""

from __future__ import annotations

from typing import Any

SERVICE = "kubernetes:core/v1:Service"


def urn(name: str, kind: str = SERVICE, parent: str = "") -> str:
    """A resource's URN."""
    return f"urn:pulumi:dev::kubeadm-ipvs::{parent}{kind}::{name}"


def event(kind: str, name: str, op: str, at: float, **more: Any) -> dict[str, Any]:
    """An event about an operation on a Service, `at` seconds since 1970."""
    state = {"custom": True, "parent": ""}
    metadata = {"op": op, "urn": urn(name), "type": SERVICE, "new": state, "old": state}
    return {"timestamp": at, kind: {"metadata": metadata, **more}}
