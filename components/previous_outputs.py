"""The stack's outputs as the last completed run left them."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import runtime

KUBERNETES_VERSION = "kubernetesVersion"
"""The output with the cluster's version."""

# The default of all versions of the program that didn't have that output.
_FIRST_VERSION = "1.37.2"
_READ = "pulumi:pulumi:readStackOutputs"
# The organization that `pulumi.get_organization` reports for backends without organizations.
NO_ORGANIZATION = "organization"


def output(name: str) -> pulumi.Output[Any]:
    """One of the stack's outputs after the last completed run; None before the first.

    It calls the engine function behind `StackReference`, because a `StackReference` would keep a second copy
    of all outputs in the state.

    Args:
        name: An output that isn't secret. The engine returns all outputs at once, and marks all of them
            secret if any is.
    """
    read = runtime.invoke_output(_READ, {"name": _full_name()})
    return pulumi.Output.unsecret(read.apply(lambda found: found["outputs"].get(name)))


def kubernetes_version() -> str | None:
    """The cluster's version after the last completed run; None before the first.

    Unlike `output`, it waits for the engine's response, because the version must be known before the first
    resource is registered.
    """
    outputs = runtime.invoke(_READ, {"name": _full_name()}).value["outputs"]
    return str(outputs.get(KUBERNETES_VERSION, _FIRST_VERSION)) if outputs else None


def _full_name() -> str:
    stack, organization = pulumi.get_stack(), pulumi.get_organization()
    if organization == NO_ORGANIZATION:
        return stack
    return f"{organization}/{pulumi.get_project()}/{stack}"
