"""The policy pack as Pulumi's engine runs it: passes resources to the rules as plain values.

The engine starts it in this folder, in the environment that tools/policy.py creates.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pulumi_policy
import pulumi_policy.policy
from pulumi_policy.proxy import UnknownValueError

# The engine starts this folder as a program; the project's packages are one level up.
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from policy import engine_values, rules  # noqa: E402 - needs the path above

# pulumi_policy passes secrets on as plain text, but the rule against plain secrets has to tell them apart.
# So they are marked where its server decodes the engine's message.
_read: Callable[[dict[str, Any]], dict[str, Any]] = pulumi_policy.policy.deserialize_properties


def _marked(properties: dict[str, Any], *more: Any, **named: Any) -> dict[str, Any]:
    return _read(engine_values.marked(properties), *more, **named)


pulumi_policy.policy.deserialize_properties = _marked


def plain(value: Any) -> Any:
    """Unwrap the proxies that raise an error when an unknown value is read."""
    if isinstance(value, Mapping):
        return {name: _at(value, name) for name in value}
    if isinstance(value, (list, tuple)) or (hasattr(value, "__getitem__") and not isinstance(value, str)):
        return [_at(value, index) for index in range(len(value))]
    return value


def _at(parent: Any, key: Any) -> Any:
    try:
        return plain(parent[key])
    except UnknownValueError:
        return rules.Unknown()


def resource_of(args: Any) -> rules.Resource:
    """Convert the engine's arguments to a resource."""
    return rules.Resource(args.resource_type, args.name, plain(args.props), bool(args.opts.protect))


def policy_of(rule: rules.Rule, environment: rules.Environment) -> pulumi_policy.Policy:
    """Convert a rule to one of the engine's policies."""
    level = pulumi_policy.EnforcementLevel(rule.level(environment).value)

    def of_inputs(args: Any, report: Callable[..., None]) -> None:
        for violation in rule.violations(environment, resource_of(args)):
            report(violation)

    def of_outputs(args: Any, report: Callable[..., None]) -> None:
        for resource in args.resources:
            for violation in rule.violations(environment, resource_of(resource)):
                report(violation, resource.urn)

    if rule.outputs:
        return pulumi_policy.StackValidationPolicy(rule.name, rule.description, of_outputs, level)
    return pulumi_policy.ResourceValidationPolicy(rule.name, rule.description, of_inputs, level)


ENVIRONMENT = engine_values.environment(
    os.environ["PULUMI_STACK"],
    os.environ["PULUMI_PROJECT"],
    json.loads(os.environ.get("PULUMI_CONFIG", "{}")),
    PROJECT,
)
pulumi_policy.PolicyPack("kubeadm-ipvs", [policy_of(rule, ENVIRONMENT) for rule in rules.RULES])
