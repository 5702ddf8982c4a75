"""States of stacks created by earlier versions, with placeholders for values that differ from run to run.

`python -m tests.engine.exported_state FILE` creates a cluster with the program in this checkout (see
`finished.py`) and writes its state. Run it before you rename resources, and keep the file in `data/states/`:
test_existing_stacks.py previews each of them with the current program.
"""

from __future__ import annotations

import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from common.progress import Progress
from model import kubeadm
from tests.engine.api_server import ApiServer, api_server, programs
from tests.engine.finished import Environment, environment
from tools import env

FOLDER = Path(__file__).parent / "data" / "states"


def export(made: Environment, cluster: ApiServer) -> bytes:
    """The stack's state, compressed. Its secrets are placeholders or random test values."""
    text = made.stack.call("stack", "export", "--show-secrets").stdout
    state = _replaced(json.loads(text), {value: name for name, value in _values(made, cluster).items()})
    state["deployment"].pop("secrets_providers", None)
    for resource in state["deployment"]["resources"]:
        # These contain local paths.
        for name in ("sourcePosition", "stackTrace"):
            resource.pop(name, None)
    return lzma.compress(json.dumps(state, sort_keys=True).encode(), preset=9)


def restore(file: Path, made: Environment, cluster: ApiServer) -> dict[str, Any]:
    """Import a state into the stack, and apply its Kubernetes objects to the API server.

    Returns:
        The imported state.
    """
    state: dict[str, Any] = _replaced(json.loads(lzma.decompress(file.read_bytes())), _values(made, cluster))
    salt = yaml.safe_load(made.file.read_text())["encryptionsalt"]
    state["deployment"]["secrets_providers"] = {"type": "passphrase", "state": {"salt": salt}}
    imported = made.stack.folder.parent / "state.json"
    imported.write_text(json.dumps(state))
    done = made.stack.call("stack", "import", "--file", str(imported))
    assert done.returncode == 0, done.stderr
    for resource in state["deployment"]["resources"]:
        if resource["type"].startswith("kubernetes:"):
            cluster.apply(resource["inputs"], manager="kubeadm-ipvs")
    return state


def _values(made: Environment, cluster: ApiServer) -> dict[str, str | float]:
    """The placeholders' values in this environment. A value that contains another comes before it."""
    server = cluster.url
    values: dict[str, str | float] = {
        # The provider strips the end of a step's output.
        "@admin-kubeconfig@": kubeadm.kubeconfig_for(cluster.kubeconfig, server).rstrip("\n"),
        "@kubeconfig@": cluster.kubeconfig.rstrip("\n"),
        "@login-key@": (made.stack.folder / "login-key").read_text(),
        "@ca-hash@": kubeadm.ca_hash(cluster.kubeconfig),
        "@server@": server,
        "@server-address@": server.removeprefix("https://"),
    }
    for host in made.settings["hosts"]:
        values[f"@host-key-{host['name']}@"] = host["ssh"]["hostKey"]
        values[f"@port-{host['name']}@"] = host["ssh"]["port"]
    return values


def _replaced(value: Any, replacements: dict[Any, Any]) -> Any:
    """A JSON value with strings and numbers replaced everywhere, including in JSON inside strings."""
    if isinstance(value, dict):
        # A secret's plain value is enough; its ciphertext is for another stack's key.
        return {key: _replaced(item, replacements) for key, item in value.items() if key != "ciphertext"}
    if isinstance(value, list):
        return [_replaced(item, replacements) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return replacements.get(value, value)
    if not isinstance(value, str):
        return value
    if isinstance(replacements.get(value), (int, float)):
        return replacements[value]
    if value[:1] in ("{", "[", '"'):
        try:
            inner = json.loads(value)
        except ValueError:
            pass
        else:
            replaced = _replaced(inner, replacements)
            return value if replaced == inner else json.dumps(replaced, separators=(",", ":"))
    for old, new in replacements.items():
        if isinstance(old, str) and isinstance(new, str):
            value = value.replace(old, new)
    return value


def main() -> None:
    """Create a stack with this checkout's program and write its state."""
    folder = Path(tempfile.mkdtemp())
    for name in ("cluster", "environment"):
        (folder / name).mkdir()
    variables = env.environment(env.toolbox(Progress()))
    found = programs(Progress(), build=True)
    assert found is not None
    with (
        api_server(folder / "cluster", found) as cluster,
        environment(folder / "environment", variables, cluster) as made,
    ):
        made.stack.up()
        Path(sys.argv[1]).write_bytes(export(made, cluster))


if __name__ == "__main__":
    main()
