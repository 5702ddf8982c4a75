"""The stack's outputs as the last completed run left them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi import runtime

from model import certificates

CERTIFICATES_EXPIRE = "certificatesExpire"
"""The output with the first expiry of the cluster's certificates."""

CERTIFICATES_RENEWED = "certificatesRenewed"
"""The output with the expiry up to which certificates were renewed last."""

KUBECONFIG = "kubeconfig"
"""The output with the administrator's kubeconfig; secret."""

KUBERNETES_VERSION = "kubernetesVersion"
"""The output with the cluster's version."""

VIRTUAL_SERVERS = "virtualServers"
"""The output with each host's verified virtual servers, by the host's name."""

VERIFIED = "verified"
"""The output with the verification attempt that succeeded."""

# The default of all versions of the program that didn't have that output.
_FIRST_VERSION = "1.37.2"
_READ = "pulumi:pulumi:readStackOutputs"
# The organization that `pulumi.get_organization` reports for backends without organizations.
NO_ORGANIZATION = "organization"

# A file:// backend replaces the state file atomically, but truncates the `.attrs` file beside it first. The
# engine writes the state while the program starts, so a read may find that file empty.
_UNREADABLE = "failed to load checkpoint"
_READ_SECONDS = 10.0
_RETRY_SECONDS = 0.05


@dataclass(frozen=True)
class PreviousOutputs:
    """Outputs of the last completed run; each is None before the first.

    Attributes:
        kubernetes_version: The cluster's version.
        verified: `Cluster.verified`.
        certificates_expire: `Cluster.certificates_expire`.
        certificates_renewed: The result of `certificates.renewal`; empty if no run has renewed certificates.
        kubeconfig: The administrator's kubeconfig.
        members: The names of the cluster's hosts; empty before the first.
    """

    kubernetes_version: str | None = None
    verified: str | None = None
    certificates_expire: str | None = None
    certificates_renewed: str = ""
    kubeconfig: str | None = field(default=None, repr=False)
    members: frozenset[str] = frozenset()


def read() -> PreviousOutputs:
    """Read the stack's outputs, and wait for them: settings depend on them.

    It calls the engine function behind `StackReference`, because a `StackReference` would keep a second copy
    of all outputs in the state.
    """
    outputs = _outputs()
    if not outputs:
        return PreviousOutputs()
    expire = outputs.get(CERTIFICATES_EXPIRE)
    return PreviousOutputs(
        kubernetes_version=str(outputs.get(KUBERNETES_VERSION, _FIRST_VERSION)),
        verified=outputs.get(VERIFIED),
        # Earlier versions of the program didn't have that output.
        certificates_expire=expire or certificates.client_expiry(str(outputs.get(KUBECONFIG))),
        certificates_renewed=str(outputs.get(CERTIFICATES_RENEWED, "")),
        kubeconfig=outputs.get(KUBECONFIG),
        members=frozenset(outputs.get(VIRTUAL_SERVERS) or ()),
    )


def _outputs() -> dict[str, Any]:
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        try:
            found: dict[str, Any] = runtime.invoke(_READ, {"name": _full_name()}).value["outputs"]
            return found
        except Exception as error:  # the SDK raises no narrower class
            if _UNREADABLE not in str(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY_SECONDS)


def _full_name() -> str:
    stack, organization = pulumi.get_stack(), pulumi.get_organization()
    if organization == NO_ORGANIZATION:
        return stack
    return f"{organization}/{pulumi.get_project()}/{stack}"
