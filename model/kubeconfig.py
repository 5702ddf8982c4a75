"""Reads kubeconfigs: the cluster and the user that one selects."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model import go_yaml

# The sections of a kubeconfig (k8s.io/client-go/tools/clientcmd/api/v1).
_SECTIONS = {
    "apiVersion",
    "clusters",
    "contexts",
    "current-context",
    "extensions",
    "kind",
    "preferences",
    "users",
}


class KubeconfigError(ValueError):
    """A kubeconfig that can't be used. The message never contains credentials."""


@dataclass(frozen=True)
class Kubeconfig:
    """What a kubeconfig's context selects. Certificates and keys are PEM text.

    Attributes:
        server: URL of the API server.
        ca: Certificates of the cluster's certificate authority.
        token: Bearer token of the user.
        client_certificate: Certificate of the user.
        client_key: Private key of that certificate.
        namespace: Namespace of the context; `default` if it names none.
        tls_server_name: Name to expect in the API server's certificate, if not the URL's host.
        insecure: Whether the API server's certificate is not verified.
    """

    server: str
    ca: str | None = None
    token: str | None = field(default=None, repr=False)
    client_certificate: str | None = None
    client_key: str | None = field(default=None, repr=False)
    namespace: str = "default"
    tls_server_name: str | None = None
    insecure: bool = False

    @classmethod
    def parse(cls, text: str, context: str | None = None, cluster: str | None = None) -> Kubeconfig:
        """Parse a kubeconfig. Files that it names are read.

        Args:
            text: The kubeconfig.
            context: Context to use instead of the current one.
            cluster: Cluster to use instead of the context's.

        Raises:
            KubeconfigError: It isn't a kubeconfig, selects no cluster, has no server, has certificates or
                keys that can't be read, or logs in by a method other than a token or a client certificate.
        """
        document = _document(text)
        selected, place = _select(document, context, cluster)
        user = _named(document, "users", selected.get("user"), "user") or {}
        server = place.get("server")
        if not isinstance(server, str) or not server:
            raise KubeconfigError("the kubeconfig's cluster has no server")
        for method in ("exec", "auth-provider", "username"):
            if user.get(method):
                raise KubeconfigError(f"the kubeconfig's user logs in with {method}, which isn't supported")
        token = user.get("token")
        if not token and user.get("tokenFile"):
            token = _read("tokenFile", user["tokenFile"]).strip()
        return cls(
            server=server,
            ca=_pem(place, "certificate-authority"),
            token=str(token) if token else None,
            client_certificate=_pem(user, "client-certificate"),
            client_key=_pem(user, "client-key"),
            namespace=str(selected.get("namespace") or "default"),
            tls_server_name=place.get("tls-server-name"),
            insecure=bool(place.get("insecure-skip-tls-verify")),
        )


def printed(output: str) -> str:
    """The kubeconfig that a host printed, without text that a login shell printed before it.

    YAML accepts a greeting such as `Welcome to: node1` as a section of its own.

    Raises:
        KubeconfigError: The output isn't a kubeconfig.
    """
    start = re.search(r"^apiVersion: ", output, re.MULTILINE)
    for text in (output, output[start.start() :] if start else output):
        try:
            document = _document(text)
        except KubeconfigError:
            continue
        if document.get("clusters") and document.keys() <= _SECTIONS:
            return text
    raise KubeconfigError(
        "it returned nothing instead of a kubeconfig"
        if not output.strip()
        else "it returned text that isn't a kubeconfig"
    )


def with_server(text: str, server: str) -> str:
    """The same kubeconfig with another server for the current context's cluster.

    Raises:
        KubeconfigError: It isn't a kubeconfig, or its current context selects no cluster.
    """
    document = _document(text)
    _, place = _select(document)
    place["server"] = server
    return go_yaml.dump(document)


def _document(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        # The error quotes the text, including keys, and a traceback would show it as the cause.
        raise KubeconfigError("the kubeconfig isn't valid YAML") from None
    if not isinstance(document, dict) or document.get("kind", "Config") != "Config":
        raise KubeconfigError("the text isn't a kubeconfig (kind: Config)")
    return document


def _select(
    document: dict[str, Any], context: str | None = None, cluster: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The selected context and its cluster, as parts of `document`."""
    name = context or document.get("current-context")
    selected = _named(document, "contexts", name, "context")
    if selected is None:
        raise KubeconfigError(f"the kubeconfig has no context {name!r}")
    place = _named(document, "clusters", cluster or selected.get("cluster"), "cluster")
    if place is None:
        raise KubeconfigError(f"the kubeconfig's context {name!r} selects no cluster")
    return selected, place


def _named(document: dict[str, Any], section: str, name: str | None, part: str) -> dict[str, Any] | None:
    entries = document.get(section)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(part)
            return found if isinstance(found, dict) else {}
    return None


def _pem(section: dict[str, Any], name: str) -> str | None:
    data = section.get(f"{name}-data")
    if data:
        try:
            return base64.b64decode("".join(str(data).split()), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise KubeconfigError(f"the kubeconfig's {name}-data isn't base64 of PEM text") from None
    return _read(name, section[name]) if section.get(name) else None


def _read(name: str, file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"the kubeconfig's {name} {file} can't be read: {error}") from None
