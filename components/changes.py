"""Refuses changes that are impossible on a running cluster, and warns of those that replace it.

The inputs of the cluster component are the values that can't change in place, so the engine knows the
previous ones. Its hook runs before any other resource is registered, in previews too, so a refused change
touches nothing, however the run was started.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from model.change_impact import VERSION, identity_changes, replacement
from model.settings import Effect, Settings, effect_of, fields, value_at

_NAME = "the control plane's name"


class RefusedChangeError(Exception):
    """A change that this program can't make; the message gives the reason and the next move."""


def identity(settings: Settings) -> dict[str, str]:
    """The values that can't change without replacing the cluster, by setting.

    - Settings marked `Effect.NEW_CLUSTER`: pod and service subnets, whose addresses are in every node, pod
      and certificate; the DNS domain, which is in every pod's resolv.conf and the API server's certificate.
    - The control plane's name and address, which etcd's member and every kubeconfig contain.
    """
    control_plane = settings.control_plane
    return {
        **{
            path: value_at(settings, path)
            for path, field in fields().items()
            if effect_of(field) is Effect.NEW_CLUSTER
        },
        _NAME: control_plane.name,
        "the control plane's address": control_plane.address,
    }


def cluster_inputs(settings: Settings) -> dict[str, str]:
    """The inputs of the cluster component: its identity and its version."""
    return {VERSION: settings.cluster.kubernetes_version, **identity(settings)}


def change_hook(settings: Settings) -> pulumi.ResourceHookBinding:
    """The hook for the component with the inputs `cluster_inputs(settings)` and an output `caHash`."""

    def check(change: pulumi.ResourceHookArgs) -> None:
        # Without a CA the first run never finished, so there is nothing to lose yet.
        if (change.old_outputs or {}).get("caHash") is None:
            return
        warning = check_change(change.old_inputs or {}, change.new_inputs or {}, settings)
        if warning:
            pulumi.log.warn(warning)

    hook = pulumi.ResourceHook("changes", check, pulumi.ResourceHookOptions(on_dry_run=True))
    return pulumi.ResourceHookBinding(before_update=[hook])


def check_change(old: Mapping[str, Any], new: Mapping[str, Any], settings: Settings) -> str:
    """Return the warning for a change of the cluster's inputs; empty if it needs none.

    Raises:
        RefusedChangeError: The Kubernetes version differs and `cluster.manualUpgrades` is false, or the
            control plane's host becomes a worker.
    """
    warnings = []
    if old.get(VERSION) != new.get(VERSION):
        if not settings.cluster.manual_upgrades:
            raise RefusedChangeError(
                f"cluster.kubernetesVersion is {new.get(VERSION)}, but the cluster runs {old.get(VERSION)}: "
                "this program can't upgrade a running cluster yet. Nothing was changed. Change it back to "
                f"{old.get(VERSION)}, or create a new cluster in another stack. If you have upgraded every "
                "host by hand, set cluster.manualUpgrades to true"
            )
        warnings.append(
            f"cluster.kubernetesVersion changes from {old.get(VERSION)} to {new.get(VERSION)}, which every "
            "host must already have: this program doesn't upgrade, and a host with another version refuses it"
        )
    name = old.get(_NAME)
    if name in [host.name for host in settings.workers]:
        raise RefusedChangeError(
            f"{name} is the cluster's control plane, but hosts declares it a worker: a host can't change its "
            f"role while it is in the cluster. Nothing was changed. Remove {name} from hosts in one change "
            "(with another control plane, which is a new cluster), and add it in the next"
        )
    changed = identity_changes(old, new)
    if changed:
        warnings.append(replacement(changed, [host.name for host in settings.hosts]))
    return ". ".join(warnings)
