"""What a change of the settings means for a cluster that lives: refused, or told in words, at preview.

The cluster's component keeps what can't change in place as its inputs, so the engine knows the
former values. Its hook runs before any other resource is registered, in a preview too: what it
refuses has touched nothing, whichever way the run was started. The words are those of the report in pull
requests (model/change_impact.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi

from model.change_impact import VERSION, identity_changes, new_cluster
from model.settings import Effect, Settings, effect_of, fields, value_at

_NAME = "the control plane's name"


class RefusedChangeError(Exception):
    """A change that this program doesn't make; the text says why, and what to do."""


def identity(settings: Settings) -> dict[str, str]:
    """What can't change in a living cluster, by the setting's path. A change of any makes a new one.

    - The settings that say so of themselves (`Effect.NEW_CLUSTER`). Pod and service subnets: addresses
      are in every node, pod and certificate. DNS domain: in every pod's resolv.conf and in the API
      server's certificate.
    - The first control plane's name and address: etcd's member and every kubeconfig name them.
    """
    first = settings.control_plane
    return {
        **{
            path: value_at(settings, path)
            for path, field in fields().items()
            if effect_of(field) is Effect.NEW_CLUSTER
        },
        _NAME: first.name,
        "the control plane's address": first.address,
    }


def kept(settings: Settings) -> dict[str, str]:
    """The inputs of the cluster's component: its identity, and its version."""
    return {VERSION: settings.cluster.kubernetes_version, **identity(settings)}


def watched(settings: Settings) -> pulumi.ResourceHookBinding:
    """The hook for the component whose inputs are `kept(settings)` and whose outputs have a `caHash`."""

    def judge(change: pulumi.ResourceHookArgs) -> None:
        # A cluster that was never finished has no authority: nothing of it can be lost.
        if (change.old_outputs or {}).get("caHash") is None:
            return
        warning = judged(change.old_inputs or {}, change.new_inputs or {}, settings)
        if warning:
            pulumi.log.warn(warning)

    hook = pulumi.ResourceHook("changes", judge, pulumi.ResourceHookOptions(on_dry_run=True))
    return pulumi.ResourceHookBinding(before_update=[hook])


def judged(old: Mapping[str, Any], new: Mapping[str, Any], settings: Settings) -> str:
    """What to tell a person of this change; empty where there is nothing to tell.

    Raises:
        RefusedChangeError: Another version of Kubernetes; the control plane's host becomes a worker.
    """
    if old.get(VERSION) != new.get(VERSION):
        raise RefusedChangeError(
            f"cluster.kubernetesVersion is {new.get(VERSION)}, and the cluster runs {old.get(VERSION)}: this "
            f"program doesn't upgrade a living cluster yet. Nothing was touched. Write {old.get(VERSION)} "
            "again, or make a new cluster in another stack"
        )
    former = old.get(_NAME)
    if former in [host.name for host in settings.workers]:
        raise RefusedChangeError(
            f"{former} is the cluster's control plane, and hosts says that it is a worker: what a host is "
            f"can't change while it is one. Nothing was touched. Take {former} out of hosts in one change "
            "(with another control plane: a new cluster), and add it in the next"
        )
    changed = identity_changes(old, new)
    return new_cluster(changed, [host.name for host in settings.hosts]) if changed else ""
