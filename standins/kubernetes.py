"""Stand-in for Pulumi's `kubernetes` provider: uses server-side apply and waits until objects are ready.

Behaviour and state match pulumi-kubernetes since 4.29 (`provider/pkg`) as far as this program relies on them,
so a stack can switch between the two. `tests/engine/test_conformance_kubernetes.py` runs the same scenarios
against both. Known differences:

- Conditions are polled instead of watched.
- A Service is ready as soon as its pods are; Pulumi's plugin waits another ten seconds.
- Unsupported options, kinds and annotations are rejected.
"""

from __future__ import annotations

import asyncio
import copy
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from model.http_proxy import UnsupportedProxyError
from model.kubeconfig import KubeconfigError
from standins import values
from standins.kube_api import Api, ApiError, Kind, NoSuchKind, Object, Unreachable, load
from standins.kube_ready import UNSUPPORTED, unready
from standins.server import WARNING, Changes, Failure, InitFailed, Plugin, Urn, run
from standins.values import Secret, Unknown, has_unknown, reveal, whole

_CREATE_MANAGER = "pulumi-kubernetes"
_CREATE_MANAGERS = (
    _CREATE_MANAGER,
    "pulumi-kubernetes.exe",
    "pulumi-resource-kubernetes",
    "before-first-apply",
)
_STATE_ONLY = ("__inputs", "__initialApiVersion", "__fieldManager")
_READ_ONLY = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "uid",
)

_AUTONAMED = "pulumi.com/autonamed"
_SKIP_AWAIT = "pulumi.com/skipAwait"
_TIMEOUT = "pulumi.com/timeoutSeconds"
_PATCH_FORCE = "pulumi.com/patchForce"
_FIELD_MANAGER = "pulumi.com/patchFieldManager"
_PROPAGATION = "pulumi.com/deletionPropagationPolicy"
_UNSUPPORTED_ANNOTATIONS = ("pulumi.com/waitFor", "pulumi.com/replaceUnready")

_DEFAULT_WAIT_SECONDS = 600.0
_FIRST_POLL, _LONGEST_POLL = 0.25, 2.0  # seconds
_CREATE_RETRIES = 5

# For these kinds, `skipAwait` also skips waiting for the deletion.
_SKIP_DELETION_TOO = frozenset(
    {
        "apps/v1/DaemonSet",
        "apps/v1/Deployment",
        "apps/v1/StatefulSet",
        "batch/v1/Job",
        "v1/Namespace",
        "v1/Pod",
        "v1/ReplicationController",
    }
)
_IDENTITY = ("metadata.name", "metadata.namespace")
_REPLACING = {
    "apps/v1/Deployment": ("spec.selector",),
    "apps/v1/DaemonSet": ("spec.selector",),
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": ("roleRef",),
    "rbac.authorization.k8s.io/v1/RoleBinding": ("roleRef",),
    "v1/Service": ("spec.clusterIP",),
    "policy/v1beta1/PodDisruptionBudget": ("spec",),
    "storage.k8s.io/v1/StorageClass": ("parameters", "provisioner"),
}


@dataclass(frozen=True)
class _Options:
    """The provider's own settings."""

    namespace: str | None = None
    delete_unreachable: bool = False
    server_side_apply: bool = True
    upsert: bool = False
    patch_force: bool = False
    mutable_config_maps: bool = False
    mutable_secrets: bool = False

    @staticmethod
    def of(config: Mapping[str, Any]) -> _Options:
        def flag(name: str, variable: str, default: str = "false") -> bool:
            # The SDK sends either a boolean or its JSON in a string.
            given = config.get(name)
            if given in (None, ""):
                given = os.environ.get(variable, default)
            return given is True or given == "true"

        return _Options(
            namespace=config.get("namespace") or None,
            delete_unreachable=flag("deleteUnreachable", "PULUMI_K8S_DELETE_UNREACHABLE"),
            server_side_apply=flag("enableServerSideApply", "PULUMI_K8S_ENABLE_SERVER_SIDE_APPLY", "true"),
            upsert=flag("upsertExistingObjects", "PULUMI_K8S_UPSERT_EXISTING_OBJECTS"),
            patch_force=flag("enablePatchForce", "PULUMI_K8S_ENABLE_PATCH_FORCE"),
            mutable_config_maps=flag("enableConfigMapMutable", "PULUMI_K8S_ENABLE_CONFIGMAP_MUTABLE"),
            mutable_secrets=flag("enableSecretMutable", "PULUMI_K8S_ENABLE_SECRET_MUTABLE"),
        )


class KubernetesPlugin(Plugin):
    """The `kubernetes` provider."""

    NAME: ClassVar[str] = "kubernetes"

    def __init__(self, engine_address: str) -> None:
        """Start without a configuration."""
        super().__init__(engine_address)
        self._options = _Options()
        self._api: Api | None = None
        self._unreachable = "the provider isn't configured"

    # -- the provider itself

    async def diff_config(self, old: dict[str, Any], new: dict[str, Any]) -> Changes:
        """Replace the provider if `clusterIdentifier` or, without one, the kubeconfig's cluster changed."""
        old, new = reveal(old), reveal(new)
        changed = {
            key: "update"
            for key in sorted(set(old) | set(new))
            if (old.get(key), new.get(key)) != (None, None) and old.get(key) != new.get(key)
        }
        if not changed:
            return Changes({})
        identifier = (old.get("clusterIdentifier"), new.get("clusterIdentifier"))
        if None not in identifier:
            if "clusterIdentifier" not in changed:
                return Changes(changed)
            return Changes({**changed, "clusterIdentifier": "update-replace"})
        keys = [key for key in ("kubeconfig", "context", "cluster") if key in changed]
        if any(isinstance(new.get(key), Unknown) for key in keys) or _cluster(old) != _cluster(new):
            changed.update(dict.fromkeys(keys, "update-replace"))
        return Changes(changed)

    async def configure(self, config: dict[str, Any]) -> None:
        """Connect to the cluster. If it is unreachable, only the operations that need it fail."""
        config = reveal(config)
        self._options = _Options.of(config)
        if not self._options.server_side_apply:
            raise Failure("the stand-in for the plugin 'kubernetes' supports only server-side apply")
        for unknown in ("renderYamlToDirectory", "strictMode", "skipUpdateUnreachable"):
            if config.get(unknown) not in (None, "", False, "false"):
                raise Failure(
                    f"the stand-in for the plugin 'kubernetes' doesn't support the option '{unknown}'"
                )
        try:
            kubeconfig = config.get("kubeconfig") or os.environ.get("KUBECONFIG") or "~/.kube/config"
            api = Api(load(kubeconfig, config.get("context") or None, config.get("cluster") or None))
            await asyncio.to_thread(api.request, "GET", "/version", attempts=2)
        except (KubeconfigError, OSError) as error:
            self._unreachable = f"failed to parse kubeconfig data in `kubernetes:config:kubeconfig`: {error}"
            return
        except (Unreachable, ApiError, UnsupportedProxyError) as error:
            self._unreachable = f"unable to load schema information from the API server: {error}"
            return
        self._api = api

    # -- resources

    async def check(
        self, urn: Urn, old: dict[str, Any], new: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Fill in the kind, a name and a namespace."""
        api_version, kind = _kind_of(urn)
        inputs = _without_nulls(new)
        inputs.setdefault("apiVersion", api_version)
        inputs.setdefault("kind", kind)
        metadata = inputs.setdefault("metadata", {})
        failures: list[tuple[str, str]] = []
        if isinstance(metadata, dict):
            for field in _READ_ONLY:
                metadata.pop(field, None)
            if metadata.get("generateName"):
                failures.append(("metadata.generateName", "not supported with server-side apply"))
            if metadata.get("name") is None:
                previous = reveal(old).get("metadata") or {}
                if (previous.get("annotations") or {}).get(_AUTONAMED) == "true":
                    metadata["name"] = previous["name"]
                else:
                    metadata["name"] = f"{urn.name}-{random.randbytes(4).hex()}"
                annotations = metadata.setdefault("annotations", {})
                if isinstance(annotations, dict):
                    annotations[_AUTONAMED] = "true"
            if metadata.get("namespace") is None:
                if self._api is None:
                    # Only the server knows whether the kind is namespaced. Keep the previous namespace.
                    previous = (reveal(old).get("metadata") or {}).get("namespace")
                    if previous is not None:
                        metadata["namespace"] = previous
                elif await self._namespaced(self._api, api_version, kind):
                    metadata["namespace"] = self._options.namespace or self._api.namespace
        plain = reveal(inputs)
        waits = plain.get("spec") and _annotation(plain, _SKIP_AWAIT) != "true"
        if waits and f"{api_version}/{kind}" in UNSUPPORTED:
            failures.append(
                (
                    f'metadata.annotations["{_SKIP_AWAIT}"]',
                    f"the stand-in can't wait for a {kind}; set this to true",
                )
            )
        failures += [
            (f'metadata.annotations["{annotation}"]', "the stand-in doesn't support this annotation")
            for annotation in _UNSUPPORTED_ANNOTATIONS
            if _annotation(plain, annotation) is not None
        ]
        return _mark_secrets(inputs, {}), failures

    async def diff(
        self, urn: Urn, object_id: str, state: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
    ) -> Changes:
        """Compare the new inputs with those of the last apply or refresh."""
        before = _plain(state.get("__inputs") or old)
        after = _plain(new)
        replacing = (*_IDENTITY, *self._replacing(after))
        paths = {
            where: f"{kind}-replace" if any(_within(where, part) for part in replacing) else kind
            for where, kind in values.difference(before, after).items()
        }
        live, wanted = _plain(state).get("metadata") or {}, after.get("metadata") or {}
        same = (live.get("name"), live.get("namespace")) == (wanted.get("name"), wanted.get("namespace"))
        return Changes(paths, delete_first=same and _annotation(after, _AUTONAMED) != "true")

    async def create(
        self, urn: Urn, new: dict[str, Any], timeout: float, preview: bool
    ) -> tuple[str, dict[str, Any]]:
        """Create the object and wait for it. With `upsertExistingObjects`, an existing object is updated."""
        if preview and (self._api is None or has_unknown(new)):
            return "", new
        api = self._connected()
        wanted = _plain(new)
        manager = _annotation(wanted, _FIELD_MANAGER) or f"pulumi-kubernetes-{random.randbytes(4).hex()}"
        try:
            kind, live = await self._create_object(api, urn, wanted, manager, preview)
        except NoSuchKind as error:
            if preview:
                return "", new
            raise Failure(
                f'creation of resource "{urn.text}" failed because the Kubernetes API server reported that '
                "the apiVersion for this resource does not exist. Verify that any required CRDs have been "
                f"created: {error}"
            ) from error
        except ApiError as error:
            if preview and (error.code == 403 or error.reason == "AlreadyExists" or error.namespace_missing):
                return "", new
            raise Failure(
                f'resource "{urn.text}" was not successfully created by the Kubernetes API server: '
                f"{_explain(error, manager)}"
            ) from error
        if preview:
            live.pop("status", None)
            return "", _state(new, live, manager)
        object_id = _id(live)
        live, missing = await self._await_ready(api, urn, kind, wanted, live, timeout)
        if missing:
            raise InitFailed(
                f'resource "{urn.text}" was successfully created, but the Kubernetes API server reported '
                f"that it failed to fully initialize or become live: {missing}",
                object_id,
                _state(new, live, manager),
            )
        return object_id, _state(new, live, manager)

    async def read(
        self, urn: Urn, object_id: str, state: dict[str, Any], inputs: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Read the live object, and the current values of the fields that the program set."""
        if self._api is None:
            await self.log(f"configured Kubernetes cluster is unreachable: {self._unreachable}", urn, WARNING)
            if self._options.delete_unreachable:
                return "", {}, {}
            raise Failure(
                "failed to read resource state due to unreachable cluster. If the cluster was deleted, you "
                "can remove this resource from Pulumi state by rerunning the operation with the "
                'PULUMI_K8S_DELETE_UNREACHABLE environment variable set to "true"'
            )
        api = self._api
        previous = _plain(inputs)
        api_version, kind_name = _kind_of(urn)
        namespace, _, name = object_id.rpartition("/")
        try:
            kind = await asyncio.to_thread(api.kind, previous.get("apiVersion") or api_version, kind_name)
            live = await asyncio.to_thread(api.request, "GET", kind.path(namespace, name))
        except NoSuchKind:
            return "", {}, {}
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.code == 404:
                return "", {}, {}
            raise Failure(str(error)) from error
        found = _pruned(live, previous) if previous else _declared(live)
        manager = reveal(state.get("__fieldManager")) or f"pulumi-kubernetes-{random.randbytes(4).hex()}"
        marked = _mark_secrets(found, inputs)
        after = _state(marked, live, manager)
        if previous and _annotation(previous, _SKIP_AWAIT) != "true":
            missing = await asyncio.to_thread(unready, api, live)
            if missing:
                raise InitFailed(
                    f"Resource '{name}' was created but failed to initialize: {missing}",
                    object_id,
                    after,
                    marked,
                )
        return object_id, after, marked

    async def update(
        self,
        urn: Urn,
        object_id: str,
        state: dict[str, Any],
        new: dict[str, Any],
        timeout: float,
        preview: bool,
    ) -> dict[str, Any]:
        """Apply the object and wait for it."""
        if preview and (self._api is None or has_unknown(new)):
            return new
        api = self._connected()
        wanted = _plain(new)
        manager = (
            _annotation(wanted, _FIELD_MANAGER)
            or reveal(state.get("__fieldManager"))
            or f"pulumi-kubernetes-{random.randbytes(4).hex()}"
        )
        namespace, _, name = object_id.rpartition("/")
        live: Object = {}
        try:
            kind = await asyncio.to_thread(api.kind, wanted["apiVersion"], wanted["kind"])
            path = kind.path(namespace, name)
            live = await asyncio.to_thread(api.request, "GET", path)
            force = self._force(wanted, live, preview)
            if not preview:
                live = await asyncio.to_thread(_take_over_fields, api, path, live, manager)
            query = {
                "fieldManager": manager,
                "force": str(force).lower(),
                **({"dryRun": "All"} if preview else {}),
            }
            live = await asyncio.to_thread(
                api.request, "PATCH", path, wanted, query=query, content_type="application/apply-patch+yaml"
            )
        except NoSuchKind as error:
            if preview:
                return new
            raise Failure(
                f'update of resource "{urn.text}" failed because the Kubernetes API server reported that '
                "the apiVersion for this resource does not exist. Verify that any required CRDs have been "
                f"created: {error}"
            ) from error
        except Unreachable as error:
            raise Failure(f'update of resource "{urn.text}" failed: {error}') from error
        except ApiError as error:
            if preview and error.code == 403:
                return new
            reason = _explain(error, manager)
            if preview or not live:
                raise Failure(f'update of resource "{urn.text}" failed: {reason}') from error
            raise InitFailed(
                f'the Kubernetes API server reported that "{object_id}" failed to fully initialize or '
                f"become live: {reason}",
                object_id,
                _state(new, live, manager),
            ) from error
        if preview:
            return _state(new, live, manager)
        live, missing = await self._await_ready(api, urn, kind, wanted, live, timeout)
        if missing:
            raise InitFailed(
                f'the Kubernetes API server reported that "{object_id}" failed to fully initialize or '
                f"become live: {missing}",
                object_id,
                _state(new, live, manager),
            )
        return _state(new, live, manager)

    async def delete(self, urn: Urn, object_id: str, state: dict[str, Any], timeout: float) -> None:
        """Delete the object with its dependents and wait until it is gone."""
        if self._api is None:
            await self.log(f"configured Kubernetes cluster is unreachable: {self._unreachable}", urn, WARNING)
            if self._options.delete_unreachable:
                await self.log(
                    "configured Kubernetes cluster is unreachable and the `deleteUnreachable` option is "
                    "enabled. Deleting the unreachable resource from Pulumi state",
                    urn,
                )
                return
            raise Failure(
                "configured Kubernetes cluster is unreachable. If the cluster was deleted, you can remove "
                "this resource from Pulumi state by rerunning the operation with the "
                'PULUMI_K8S_DELETE_UNREACHABLE environment variable set to "true"'
            )
        api = self._api
        live = _plain(state)
        inputs = _plain(state.get("__inputs") or {})
        namespace, _, name = object_id.rpartition("/")
        policy = {"orphan": "Orphan", "background": "Background"}.get(
            (_annotation(inputs, _PROPAGATION) or "").lower(), "Foreground"
        )
        try:
            kind = await asyncio.to_thread(api.kind, live["apiVersion"], live["kind"])
            path = kind.path(namespace, name)
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
            await asyncio.to_thread(api.request, "DELETE", path, options)
        except NoSuchKind:
            return
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.code == 404:
                return
            raise Failure(str(error)) from error

        skips = f"{live['apiVersion']}/{live['kind']}" in _SKIP_DELETION_TOO
        if skips and _annotation(inputs, _SKIP_AWAIT) == "true":
            return
        uid = (live.get("metadata") or {}).get("uid")
        last = live

        def remaining() -> str | None:
            nonlocal last
            try:
                last = api.request("GET", path)
            except ApiError as error:
                if error.code == 404:
                    return None
                raise
            found = last["metadata"]
            if uid and found.get("uid") != uid:
                return None  # a new object of the same name
            finalizers = ", ".join(found.get("finalizers") or [])
            return f"waiting for finalizers: {finalizers}" if finalizers else "it still exists"

        missing = await self._poll(urn, remaining, _seconds(timeout, inputs))
        if missing:
            raise InitFailed(
                f"'{name}' timed out waiting to be deleted: {missing}",
                object_id,
                _state(
                    state.get("__inputs") or {}, last, reveal(state.get("__fieldManager")) or _CREATE_MANAGER
                ),
            )

    # -- internals

    def _connected(self) -> Api:
        if self._api is None:
            raise Failure(f"configured Kubernetes cluster is unreachable: {self._unreachable}")
        return self._api

    async def _namespaced(self, api: Api, api_version: str, kind: str) -> bool:
        try:
            return (await asyncio.to_thread(api.kind, api_version, kind)).namespaced
        except NoSuchKind:
            return True  # a custom resource before its definition exists; Pulumi's plugin assumes the same
        except (ApiError, Unreachable) as error:
            raise Failure(str(error)) from error

    def _replacing(self, wanted: Object) -> tuple[str, ...]:
        if wanted.get("apiVersion") == "v1" and wanted.get("kind") == "Secret":
            return (
                ()
                if self._options.mutable_secrets and not wanted.get("immutable")
                else ("type", "stringData", "data")
            )
        if wanted.get("apiVersion") == "v1" and wanted.get("kind") == "ConfigMap":
            return (
                ()
                if self._options.mutable_config_maps and not wanted.get("immutable")
                else ("binaryData", "data")
            )
        return _REPLACING.get(f"{wanted.get('apiVersion')}/{wanted.get('kind')}", ())

    def _force(self, wanted: Object, live: Object | None, preview: bool) -> bool:
        if self._options.patch_force or _annotation(wanted, _PATCH_FORCE) == "true":
            return True
        managed = (live or {}).get("metadata", {}).get("managedFields") or []
        if preview:
            # A preview doesn't correct the field managers, as a real update does.
            return live is None or any(
                entry.get("operation") == "Update" and entry.get("manager") in _CREATE_MANAGERS
                for entry in managed
            )
        return live is not None and not managed

    async def _create_object(
        self, api: Api, urn: Urn, wanted: Object, manager: str, preview: bool
    ) -> tuple[Kind, Object]:
        query = {"dryRun": "All"} if preview else {}
        pause = 1.0
        for attempt in range(_CREATE_RETRIES + 1):
            try:
                kind = await asyncio.to_thread(api.kind, wanted["apiVersion"], wanted["kind"], fresh=True)
                metadata = wanted["metadata"]
                if self._options.upsert:
                    force = str(self._force(wanted, None, preview)).lower()
                    path = kind.path(metadata.get("namespace"), metadata["name"])
                    return kind, await asyncio.to_thread(
                        api.request,
                        "PATCH",
                        path,
                        wanted,
                        query={**query, "fieldManager": manager, "force": force},
                        content_type="application/apply-patch+yaml",
                    )
                path = kind.path(metadata.get("namespace"))
                return kind, await asyncio.to_thread(
                    api.request, "POST", path, wanted, query={**query, "fieldManager": _CREATE_MANAGER}
                )
            except (NoSuchKind, ApiError) as error:
                # The namespace or custom resource definition may not have been created yet.
                retry = isinstance(error, NoSuchKind) or error.code == 404
                if preview or not retry or attempt == _CREATE_RETRIES:
                    raise
                await self.log(f"Retry #{attempt}; creation failed: {error}", urn, status=True)
            except Unreachable as error:
                raise Failure(
                    f'resource "{urn.text}" was not successfully created by the Kubernetes API server: '
                    f"{error}"
                ) from error
            await self._pause(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _await_ready(
        self, api: Api, urn: Urn, kind: Kind, wanted: Object, live: Object, timeout: float
    ) -> tuple[Object, str | None]:
        """Wait until the object is ready; return it, with a reason if it isn't ready in time."""
        if _annotation(wanted, _SKIP_AWAIT) == "true":
            return live, None
        metadata = live["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        last = live

        def missing_now() -> str | None:
            nonlocal last
            missing = unready(api, last)
            if missing is not None:
                last = api.request("GET", path)
                missing = unready(api, last)
            return missing

        missing = await self._poll(urn, missing_now, _seconds(timeout, wanted))
        return last, f"'{metadata['name']}' timed out waiting to be Ready: {missing}" if missing else None

    async def _poll(self, urn: Urn, probe: Callable[[], str | None], seconds: float) -> str | None:
        """Poll until the probe returns None; after the timeout, return its last result."""
        deadline = time.monotonic() + seconds
        pause, logged = _FIRST_POLL, ""
        while True:
            try:
                missing = await asyncio.to_thread(probe)
            except (ApiError, Unreachable) as error:
                # The server may be restarting.
                missing = str(error)
            if missing is None:
                return None
            if missing != logged:
                logged = missing
                await self.log(missing, urn, status=True)
            if time.monotonic() >= deadline:
                return missing
            await self._pause(min(pause, max(deadline - time.monotonic(), 0.0)))
            if self.cancelled.is_set():
                return f"Resource operation was cancelled: {missing}"
            pause = min(pause * 1.5, _LONGEST_POLL)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.cancelled.wait(), seconds)
        except TimeoutError:
            return


def _cluster(config: Mapping[str, Any]) -> Any:
    kubeconfig = config.get("kubeconfig")
    if not isinstance(kubeconfig, str) or not kubeconfig:
        return None
    try:
        selected = load(kubeconfig, config.get("context"), config.get("cluster"))
    except KubeconfigError:
        return kubeconfig
    return selected.server, selected.ca, selected.tls_server_name, selected.insecure


def _kind_of(urn: Urn) -> tuple[str, str]:
    """Split a type token such as `kubernetes:apps/v1:Deployment` into API version and kind."""
    _, group_version, kind = urn.type.split(":")
    if kind.endswith(("Patch", "List")) or group_version.split("/")[0] in ("yaml", "helm.sh", "kustomize"):
        raise Failure(f"the stand-in for the plugin 'kubernetes' doesn't support {urn.type}")
    return group_version.removeprefix("core/"), kind


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _plain(value: Mapping[str, Any]) -> Object:
    """Convert property values to an API object: reveal secrets, drop nulls and state fields, restore ints."""
    plain: Object = whole(_without_nulls(reveal(dict(value))))
    return {key: item for key, item in plain.items() if key not in _STATE_ONLY}


def _annotation(wanted: Mapping[str, Any], name: str) -> str | None:
    metadata = wanted.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    found = annotations.get(name) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else None


def _seconds(timeout: float, wanted: Mapping[str, Any]) -> float:
    if timeout:
        return timeout
    given = _annotation(wanted, _TIMEOUT)
    return float(given) if given and given.isdigit() else _DEFAULT_WAIT_SECONDS


def _within(where: str, part: str) -> bool:
    # Adding or removing a parent also changes the part.
    return where == part or where.startswith((f"{part}.", f"{part}[")) or part.startswith(f"{where}.")


def _id(live: Object) -> str:
    metadata = live["metadata"]
    return (
        f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])
    )


def _explain(error: ApiError, manager: str) -> str:
    if error.reason == "AlreadyExists":
        return (
            f"{error}\n\nThe resource already exists in the cluster. Import it, rename it, or set "
            "upsertExistingObjects on the provider to take it over."
        )
    if error.code == 409:
        return (
            "Server-Side Apply field conflict detected.\n"
            f'The resource managed by field manager "{manager}" had an apply conflict: {error}'
        )
    return str(error)


def _mark_secrets(found: Mapping[str, Any], pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Mark values as secret where `pattern` has a secret, and always a Secret's data."""
    marked = dict(found)
    if marked.get("kind") == "Secret":
        for field in ("data", "stringData"):
            if field in marked and not isinstance(marked[field], Secret):
                marked[field] = Secret(reveal(marked[field]))
    for key, shown in pattern.items():
        if key not in marked or isinstance(marked[key], Secret):
            continue
        if isinstance(marked[key], dict) and isinstance(shown, dict):
            marked[key] = _mark_secrets(marked[key], shown)
        elif values.has_secret(shown):
            marked[key] = Secret(marked[key])
    return marked


def _state(inputs: Mapping[str, Any], live: Object, manager: str) -> dict[str, Any]:
    """Build a resource's state: the live object and the inputs it was made from."""
    return {
        **_mark_secrets(live, inputs),
        "__inputs": dict(inputs),
        "__initialApiVersion": live.get("apiVersion"),
        "__fieldManager": manager,
    }


def _pruned(live: Any, shape: Any) -> Any:
    """Reduce `live` to the fields in `shape`. List items match by name, otherwise by position."""
    if isinstance(live, dict) and isinstance(shape, dict):
        return {key: _pruned(item, shape[key]) for key, item in live.items() if key in shape}
    if isinstance(live, list) and isinstance(shape, list):
        named = {item["name"]: item for item in shape if isinstance(item, dict) and "name" in item}
        pruned = []
        for index, item in enumerate(live):
            if isinstance(item, dict) and item.get("name") in named:
                pruned.append(_pruned(item, named[item["name"]]))
            elif index < len(shape):
                pruned.append(_pruned(item, shape[index]))
            elif not named:
                pruned.append(item)
        return pruned
    return live


def _declared(live: Object) -> Object:
    """Remove the fields that only the server writes."""
    declared = copy.deepcopy(live)
    declared.pop("status", None)
    for field in _READ_ONLY:
        declared["metadata"].pop(field, None)
    return declared


def _take_over_fields(api: Api, path: str, live: Object, manager: str) -> Object:
    """Transfer the fields set at creation to our apply manager, so that apply can remove them later."""
    entries: list[Object] = copy.deepcopy(live["metadata"].get("managedFields") or [])
    transferred = [
        entry
        for entry in entries
        if entry.get("operation") == "Update"
        and entry.get("manager") in _CREATE_MANAGERS
        and not entry.get("subresource")
    ]
    if not transferred:
        return live
    ours = next(
        (
            entry
            for entry in entries
            if entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ),
        None,
    )
    if ours is None:
        ours = transferred.pop(0)
        ours.update(manager=manager, operation="Apply")
    for entry in transferred:
        _merge(ours.setdefault("fieldsV1", {}), entry.get("fieldsV1") or {})
        entries.remove(entry)
    patch = [
        {"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]},
    ]
    return api.request("PATCH", path, patch, content_type="application/json-patch+json")


def _merge(into: Object, other: Mapping[str, Any]) -> None:
    for key, item in other.items():
        if isinstance(into.get(key), dict) and isinstance(item, dict):
            _merge(into[key], item)
        else:
            into.setdefault(key, item)


if __name__ == "__main__":
    run(KubernetesPlugin)
