"""Programs for the conformance tests: the behaviour of provider plugins that this project relies on.

The same scenarios run against Pulumi's own plugins or the stand-ins, whichever `tools/provider_plugins.py`
finds first. Tests note known differences between the two.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from tests.engine.api_server import ApiServer
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

COMMAND = """
import json, os, pulumi
from pulumi_command import remote

given = json.loads(os.environ["GIVEN"])

def connection(**more):
    return remote.ConnectionArgs(
        **{"host": "127.0.0.1", "port": given["port"], "user": "root", "host_key": given["host_key"],
           "private_key": pulumi.Output.secret(given["private_key"]), "dial_error_limit": 2,
           "per_dial_timeout": 5, **more})

def command(name, opts=None, connection=connection(), **args):
    return remote.Command(name, connection=connection, add_previous_output_in_env=False,
        opts=opts, **args)

"""

KUBERNETES = """
import json, os, pulumi
import pulumi_kubernetes as k8s

given = json.loads(os.environ["GIVEN"])
namespace = given["namespace"]

def options(timeouts=None, **args):
    return pulumi.ResourceOptions(provider=provider(**args), custom_timeouts=timeouts)

def timeouts(**args):
    return pulumi.CustomTimeouts(**args)

def provider(name="cluster", **args):
    return k8s.Provider(name, **{"kubeconfig": given["kubeconfig"], "cluster_identifier": "one", **args})

def config_map(name, opts, data, **metadata):
    return k8s.core.v1.ConfigMap(
        name, metadata={"name": name, "namespace": namespace, **metadata}, data=data, opts=opts)

def deployment(name, opts, labels=None, replicas=1, image="nginx", **more):
    labels = labels or {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}
    return k8s.apps.v1.Deployment(
        name, metadata={"name": name, "namespace": namespace, **more.pop("metadata", {})},
        spec={"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod}, opts=opts)

"""


def commands(stack: Stack, host: SshServer, text: str, **values: Any) -> Stack:
    """Write a program that runs commands on a host.

    Args:
        stack: Receives the program.
        host: The host that `command(...)` connects to.
        text: The program. It may use `command(...)`, `connection(...)` and the dict `given`.
        values: More values for `given`.
    """
    given = {"port": host.port, "host_key": host.host_key, "private_key": host.private_key, **values}
    stack.extra["GIVEN"] = json.dumps(given)
    stack.program(COMMAND + textwrap.dedent(text))
    return stack


def objects(stack: Stack, cluster: ApiServer, namespace: str, text: str, **values: Any) -> Stack:
    """Write a program that creates objects in a cluster.

    Args:
        stack: Receives the program.
        cluster: The cluster that `provider(...)` connects to.
        namespace: The namespace of `config_map(...)` and `deployment(...)`.
        text: The program. It may use these functions and the dict `given`.
        values: More values for `given`.
    """
    given = {"kubeconfig": cluster.kubeconfig, "namespace": namespace, **values}
    stack.extra["GIVEN"] = json.dumps(given)
    stack.program(KUBERNETES + textwrap.dedent(text))
    return stack
