"""The stack's outputs as the last completed run left them."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import runtime

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
    stack, organization = pulumi.get_stack(), pulumi.get_organization()
    if organization != NO_ORGANIZATION:
        stack = f"{organization}/{pulumi.get_project()}/{stack}"
    read = runtime.invoke_output("pulumi:pulumi:readStackOutputs", {"name": stack})
    return pulumi.Output.unsecret(read.apply(lambda found: found["outputs"].get(name)))
