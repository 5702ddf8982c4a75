"""The documents of a manifest as Kubernetes objects, one resource each.

They are parsed here instead of by the provider: before the cluster exists the provider can't be called, and a
preview wouldn't show the objects.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from components.control_plane import ControlPlane
from model import documents

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"

# Errors of a busy API server. The request may be repeated; if the server carried it out after all, the
# provider adopts the object (`upsert_existing_objects`).
BUSY = re.compile(
    r"request did not complete within|etcdserver: (request timed out|leader changed)|TLS handshake timeout"
    r"|Client\.Timeout|context deadline exceeded|too many requests|connection re(fused|set)|\bEOF\b"
    r"|the server is currently unable to handle the request",
    re.IGNORECASE,
)
# Measured on emulated hosts: a restarted API server needs minutes to recover.
BUSY_SECONDS = 600.0

# A request that the API server abandoned can leave its NodePort allocated without a Service. The API server
# checks for such ports every three minutes and frees one at the third check (Kubernetes 1.37,
# pkg/registry/core/service/portallocator/controller/repair.go).
HELD = re.compile(r"provided port is already allocated")
HELD_SECONDS = 900.0

# By default each resource gets its own field manager with a random name. After an interrupted run, fields of
# an object that isn't in the state yet would belong to a different manager, which is a conflict wherever the
# API server filled in a default. One fixed name avoids that. Forcing also resolves conflicts with fields that
# somebody else has set, which would otherwise fail every run until they are fixed by hand.
APPLIED = {"pulumi.com/patchFieldManager": "kubeadm-ipvs", "pulumi.com/patchForce": "true"}

# How long an object may take to become ready, including the pull of flannel's and nginx's images, and how
# much longer for each node: a DaemonSet's rollout reaches a tenth of them at a time.
READY_SECONDS, READY_SECONDS_PER_NODE = 1200, 6

PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class ManifestArgs:
    """Arguments of a manifest.

    Attributes:
        file: The file's name in `manifests/`.
        parameters: The values of its `${…}` placeholders.
        provider: The cluster's provider.
        cluster: The control plane. When the cluster is deleted, its objects aren't deleted one by one.
        depends_on: Resources that must exist first.
        nodes: How many nodes the cluster has, which scales the time limit.
        wait_for_daemon_sets: Whether to wait for the pods of DaemonSets; those on a dead host never become
            ready.
    """

    file: str
    parameters: Mapping[str, documents.Parameter]
    provider: kubernetes.Provider
    cluster: ControlPlane
    depends_on: Sequence[pulumi.Resource] = field(default_factory=tuple)
    nodes: int = 0
    wait_for_daemon_sets: bool = True


class Object(pulumi.CustomResource):
    """Any Kubernetes object, from a manifest's document."""

    metadata: pulumi.Output[Any]
    spec: pulumi.Output[Any]

    def __init__(
        self,
        name: str,
        document: documents.Document,
        opts: pulumi.ResourceOptions | None = None,
        *,
        wait: bool = True,
    ) -> None:
        metadata = document.body["metadata"]
        own = APPLIED if wait else {**APPLIED, "pulumi.com/skipAwait": "true"}
        named = {**metadata, "annotations": {**metadata.get("annotations", {}), **own}}
        # `spec` is declared even if the document has none, so that its output resolves.
        properties: dict[str, Any] = {"spec": None, **document.body, "metadata": named}
        super().__init__(document.type, name, properties, opts)


class RetryWhenBusy:
    """Decides whether the engine retries a failed operation on one manifest's objects.

    It retries errors of a busy API server and a NodePort that an abandoned request still holds, for a limited
    time after the object's first failure.
    """

    def __init__(self) -> None:
        self._began: dict[tuple[str, str], float] = {}

    async def __call__(self, failure: pulumi.ErrorHookArgs) -> bool:
        """Pause, longer each time, and return whether to retry.

        Args:
            failure: The failed operation; `errors` has the newest first. The engine stops at 100 errors.
        """
        newest, *earlier = failure.errors
        if BUSY.search(newest):
            bound, cause = BUSY_SECONDS, "the API server is too busy"
        elif HELD.search(newest) and any(BUSY.search(error) for error in earlier):
            bound, cause = HELD_SECONDS, "the NodePort of an abandoned request isn't free yet"
        else:
            return False
        began = self._began.setdefault((failure.urn, failure.failed_operation), time.monotonic())
        if time.monotonic() - began >= bound:
            return False
        pause = min(PAUSE_SECONDS * len(failure.errors), LONGEST_PAUSE_SECONDS)
        pulumi.log.info(f"{failure.name}: {cause}; retrying in {pause:.0f} s")
        await asyncio.sleep(pause)
        return True


class Manifest(pulumi.ComponentResource):
    """The objects of one manifest.

    Attributes:
        objects: By `Kind/namespace/name`.
    """

    def __init__(self, name: str, args: ManifestArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("kubeadm-ipvs:index:Manifest", name, None, opts)
        self.objects: dict[str, Object] = {}
        namespaces: list[pulumi.Resource] = []
        hooks = pulumi.ResourceHookBinding(on_error=[pulumi.ErrorHook(f"{name}-busy", RetryWhenBusy())])
        limit = f"{READY_SECONDS + READY_SECONDS_PER_NODE * args.nodes}s"
        for document in documents.load(MANIFESTS / args.file, args.parameters):
            resource = Object(
                document.name,
                document,
                pulumi.ResourceOptions(
                    parent=self,
                    provider=args.provider,
                    depends_on=[*args.depends_on, *namespaces],
                    deleted_with=args.cluster.identity,
                    # With `deleted_with` alone, the objects of a replaced cluster would stay in the state as
                    # if they were in the new one.
                    replace_with=[args.cluster.init],
                    # A control plane with a different name has a new init resource, so nothing is replaced,
                    # but the cluster is new all the same.
                    replacement_trigger=args.cluster.host.name,
                    # Objects are deleted by name, which must not hit the object just created.
                    delete_before_replace=True,
                    hooks=hooks,
                    custom_timeouts=pulumi.CustomTimeouts(create=limit, update=limit),
                ),
                wait=args.wait_for_daemon_sets or document.kind != "DaemonSet",
            )
            self.objects[document.name] = resource
            if document.kind == "Namespace":
                namespaces.append(resource)
        self.register_outputs({"objects": sorted(self.objects)})
