"""A manifest's documents as objects of the cluster, one resource each.

They are parsed here and registered one by one, not handed whole to the provider: before there
is a cluster the provider can't be asked, and a preview would show nothing of them.
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

# What an API server that is too busy says, or what is said of one: the request may be made again. What it
# has done of it all the same is taken on (the provider's `upsert_existing_objects`).
BUSY = re.compile(
    r"request did not complete within|etcdserver: (request timed out|leader changed)|TLS handshake timeout"
    r"|Client\.Timeout|context deadline exceeded|too many requests|connection re(fused|set)|\bEOF\b"
    r"|the server is currently unable to handle the request",
    re.IGNORECASE,
)
# Measured on emulated hosts: a restarted API server needs minutes until it answers as usual again.
BUSY_SECONDS = 600.0

# An attempt that the API server gave up can leave its NodePort taken, by no Service. The API server looks for
# such ports every three minutes and frees one at the third look (Kubernetes 1.37,
# pkg/registry/core/service/portallocator/controller/repair.go).
HELD = re.compile(r"provided port is already allocated")
HELD_SECONDS = 900.0

# By default each resource in the state has a field manager of its own, with a random name. An object that a
# run which was cut off has left in the cluster would then be another's: where the API server has filled in
# a default, a conflict. With one name for all they are the program's own. And what it says of its own
# objects counts, whoever else has set it: a conflict would stop each run until somebody mends it by hand.
APPLIED = {"pulumi.com/patchFieldManager": "kubeadm-ipvs", "pulumi.com/patchForce": "true"}

# How long an object may take to be ready: flannel's and nginx's images are fetched meanwhile.
READY_WITHIN = "20m"

PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class ManifestArgs:
    """What a manifest is applied with.

    Attributes:
        file: Its name in `manifests/`.
        parameters: What `${…}` in it stands for.
        provider: The cluster's provider.
        cluster: The control plane. When the cluster goes the objects go with it: none is deleted one
            by one.
    """

    file: str
    parameters: Mapping[str, documents.Parameter]
    provider: kubernetes.Provider
    cluster: ControlPlane
    depends_on: Sequence[pulumi.Resource] = field(default_factory=tuple)


class Object(pulumi.CustomResource):
    """Any Kubernetes object, by its manifest's document."""

    metadata: pulumi.Output[Any]
    spec: pulumi.Output[Any]

    def __init__(
        self, name: str, document: documents.Document, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        metadata = document.body["metadata"]
        named = {**metadata, "annotations": {**metadata.get("annotations", {}), **APPLIED}}
        # `spec` is declared even where a document has none, so that its output resolves.
        properties: dict[str, Any] = {"spec": None, **document.body, "metadata": named}
        super().__init__(document.type, name, properties, opts)


class RetryWhenBusy:
    """The engine's question whether what failed is tried again, answered for the objects of one manifest.

    Yes for what an API server says that is too busy, and for what an attempt leaves behind that it gave
    up; both with a bound, counted from the object's first failure.
    """

    def __init__(self) -> None:
        self._began: dict[tuple[str, str], float] = {}

    async def __call__(self, failure: pulumi.ErrorHookArgs) -> bool:
        """Wait, longer each time, and answer.

        :param failure: `errors` has the newest first. The engine itself ends it at 100 of them.
        """
        newest, *earlier = failure.errors
        if BUSY.search(newest):
            bound, cause = BUSY_SECONDS, "the API server is too busy"
        elif HELD.search(newest) and any(BUSY.search(error) for error in earlier):
            bound, cause = HELD_SECONDS, "the API server hasn't freed the given up attempt's NodePort yet"
        else:
            return False
        began = self._began.setdefault((failure.urn, failure.failed_operation), time.monotonic())
        if time.monotonic() - began >= bound:
            return False
        pause = min(PAUSE_SECONDS * len(failure.errors), LONGEST_PAUSE_SECONDS)
        pulumi.log.info(f"{failure.name}: {cause}; again in {pause:.0f} s")
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
        for document in documents.load(MANIFESTS / args.file, args.parameters):
            resource = Object(
                document.name,
                document,
                pulumi.ResourceOptions(
                    parent=self,
                    provider=args.provider,
                    depends_on=[*args.depends_on, *namespaces],
                    deleted_with=args.cluster.admin_kubeconfig,
                    # With `deleted_with` alone, a replaced cluster's objects stay in the state as if they
                    # were in the new one.
                    replace_with=[args.cluster.init],
                    # Another machine's init is no replacement of this one, and makes another cluster too.
                    replacement_trigger=args.cluster.host.name,
                    # What is deleted goes by its name, and must not be what has just been made.
                    delete_before_replace=True,
                    hooks=hooks,
                    custom_timeouts=pulumi.CustomTimeouts(create=READY_WITHIN, update=READY_WITHIN),
                ),
            )
            self.objects[document.name] = resource
            if document.kind == "Namespace":
                namespaces.append(resource)
        self.register_outputs({"objects": sorted(self.objects)})
