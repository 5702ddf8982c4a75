"""The policy pack as Pulumi's engine runs it: the rules, with what the engine says made plain for them.

Started in this folder, in the pack's own environment (tools/policy.py makes it).
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

# The engine starts this file by its folder: what it shares with the program is beside that.
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from policy import engine_values, rules  # noqa: E402 - the path comes first

# pulumi_policy shows a policy the content of secrets and doesn't tell which those are. The rule against plain
# secrets asks just that: so they are marked where its server reads the engine's message.
_read: Callable[[dict[str, Any]], dict[str, Any]] = pulumi_policy.policy.deserialize_properties


def _marked(properties: dict[str, Any], *more: Any, **named: Any) -> dict[str, Any]:
    return _read(engine_values.marked(properties), *more, **named)


pulumi_policy.policy.deserialize_properties = _marked


def plain(value: Any) -> Any:
    """The value without the proxies that fail where something isn't known yet."""
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
    """What the engine says of a resource."""
    return rules.Resource(args.resource_type, args.name, plain(args.props), bool(args.opts.protect))


def policy_of(rule: rules.Rule, environment: rules.Environment) -> pulumi_policy.Policy:
    """The rule as one of the engine's policies."""
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
