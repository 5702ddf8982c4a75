"""What the last run of this stack has left, as far as a program can know it."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import runtime

# What stands for an organization where the backend knows of none; a plain name is the project's own there.
NO_ORGANIZATION = "organization"


def output(name: str) -> pulumi.Output[Any]:
    """One of the stack's outputs, as the last run that came to its end has written it.

    None before the first such run. Read by the engine's own function behind `StackReference`: a resource of
    that kind would keep a second copy of all outputs in the state.

    Args:
        name: Of an output that is no secret: all are handed over as one, and secret as soon as one is.
    """
    stack, organization = pulumi.get_stack(), pulumi.get_organization()
    if organization != NO_ORGANIZATION:
        stack = f"{organization}/{pulumi.get_project()}/{stack}"
    read = runtime.invoke_output("pulumi:pulumi:readStackOutputs", {"name": stack})
    return pulumi.Output.unsecret(read.apply(lambda found: found["outputs"].get(name)))
