"""Reads the manifests in `manifests/`: YAML files with parameters.

A parameter is written `${name}` in a value. It is filled in after the YAML is parsed, so its value can't
change the structure of a document. A value that consists only of `${name}` takes the parameter's type
(`replicas: ${replicas}` becomes a number), unless it is quoted (`value: "${port}"` is text). A missing
parameter and an unused one are errors, because both point to a typo.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Parameter = str | int | bool

_PARAMETER = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")

# Kinds that others need come first. Within a kind, the order is that of the file.
_ORDER = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "Service",
)

_CLUSTER_SCOPED = frozenset(
    {
        "Namespace",
        "CustomResourceDefinition",
        "PriorityClass",
        "ClusterRole",
        "ClusterRoleBinding",
        "RuntimeClass",
        "StorageClass",
    }
)


class _Quoted(str):
    """A quoted or block (`|`) scalar, which is always text."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    pass


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    return _Quoted(text) if node.style else text


_Loader.add_constructor("tag:yaml.org,2002:str", _scalar)


class ManifestError(ValueError):
    """A manifest that can't be used. The message names the file and the problem."""


@dataclass(frozen=True)
class Document:
    """One Kubernetes object.

    Attributes:
        name: `Kind/namespace/name`, or `Kind/name` for objects without a namespace. Stable and unique in a
            cluster.
        type: Pulumi's type token: `kubernetes:apps/v1:Deployment`.
        body: The object itself.
    """

    name: str
    type: str
    body: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The object's kind: `Deployment`."""
        return str(self.body["kind"])

    @property
    def api_version(self) -> str:
        """The object's API version: `apps/v1`."""
        return str(self.body["apiVersion"])

    @property
    def namespace(self) -> str | None:
        """`metadata.namespace`, or None for cluster-scoped objects."""
        namespace = self.body["metadata"].get("namespace")
        return None if namespace is None else str(namespace)


def load(path: Path, parameters: Mapping[str, Parameter] | None = None) -> tuple[Document, ...]:
    """Read a manifest file, fill in its parameters, and return its documents in the order to apply them.

    Raises:
        ManifestError: The manifest can't be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"{path}: can't be read: {error.strerror}") from error
    return parse(text, parameters or {}, origin=str(path))


def parse(text: str, parameters: Mapping[str, Parameter], origin: str) -> tuple[Document, ...]:
    """Like `load`, but from text. `origin` names the text in error messages."""
    try:
        bodies = [body for body in yaml.load_all(text, Loader=_Loader) if body is not None]
    except yaml.YAMLError as error:
        raise ManifestError(f"{origin}: not valid YAML: {error}") from error

    stray = sorted({word for word in re.findall(r"\$\{[^}\s]*\}?", text) if not _PARAMETER.fullmatch(word)})
    if stray:
        raise ManifestError(f"{origin}: not a valid parameter: {', '.join(stray)}")

    used: set[str] = set()
    missing: set[str] = set()
    filled = [_fill(body, parameters, used, missing) for body in bodies]
    problems = [f"parameter ${{{name}}} has no value" for name in sorted(missing)]
    problems += [f"parameter {name} isn't used" for name in sorted(set(parameters) - used)]
    if problems:
        raise ManifestError(f"{origin}: {'; '.join(problems)}")

    documents = [_document(body, f"{origin}, document {number}") for number, body in enumerate(filled, 1)]
    names = [document.name for document in documents]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{origin}: defined more than once: {', '.join(twice)}")
    return tuple(sorted(documents, key=_rank))


def _rank(document: Document) -> int:
    return _ORDER.index(document.kind) if document.kind in _ORDER else len(_ORDER)


def _fill(value: Any, parameters: Mapping[str, Parameter], used: set[str], missing: set[str]) -> Any:
    if isinstance(value, dict):
        return {str(key): _fill(item, parameters, used, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, parameters, used, missing) for item in value]
    if not isinstance(value, str):
        return value
    names = set(_PARAMETER.findall(value))
    used |= names
    missing |= names - set(parameters)
    if names - set(parameters):
        return value
    whole = _PARAMETER.fullmatch(value)
    if whole and not isinstance(value, _Quoted):
        return parameters[whole[1]]
    return _PARAMETER.sub(lambda match: _text(parameters[match[1]]), str(value))


def _text(value: Parameter) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _document(body: Any, place: str) -> Document:
    if not isinstance(body, dict):
        raise ManifestError(f"{place}: not an object")
    for key in ("apiVersion", "kind"):
        if not isinstance(body.get(key), str) or not body[key]:
            raise ManifestError(f"{place}: no {key}")
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ManifestError(f"{place}: no metadata.name")
    kind, name, namespace = body["kind"], metadata["name"], metadata.get("namespace")
    if kind in _CLUSTER_SCOPED:
        if namespace is not None:
            raise ManifestError(f"{place}: a {kind} can't have a namespace")
        path = f"{kind}/{name}"
    else:
        # Required, so that no object ends up in the default namespace of a kubeconfig.
        if not isinstance(namespace, str):
            raise ManifestError(f"{place}: {kind} {name} has no metadata.namespace")
        path = f"{kind}/{namespace}/{name}"
    version = body["apiVersion"]
    group_version = version if "/" in version else f"core/{version}"
    return Document(name=path, type=f"kubernetes:{group_version}:{kind}", body=body)
