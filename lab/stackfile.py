"""The stack file of a lab that isn't the default one: `Pulumi.dev.yaml` with that lab's ports and hosts.

The default lab's is committed and static; the others' are made, and ignored by git.
"""

from __future__ import annotations

from pathlib import Path

from lab import paths
from lab.errors import Trouble
from lab.files import write_atomic
from lab.options import Options
from lab.paths import DEFAULT_LAB
from lab.ports import LOOPBACK, Ports, fixed

_HOST = "    - {{name: {name}, role: {role}, address: {address}, ssh: {{host: {loopback}, port: {port}}}}}\n"


def text(model: str, name: str, options: Options, ports: Ports, lab_folder: Path) -> str:
    """The stack file's text.

    :param model: the text of Pulumi.dev.yaml.
    :raises Trouble: that text lacks something which has to be replaced.
    """
    lines = model.splitlines(keepends=True)
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    hosts = [
        _HOST.format(
            name=host.name,
            role=host.role,
            address=host.address,
            loopback=LOOPBACK,
            port=ports.ssh[host.index],
        )
        for host in options.hosts()
    ]
    first = next((index for index, line in enumerate(lines) if line.startswith("    - {name:")), None)
    if first is None:
        raise Trouble("Pulumi.dev.yaml has no list of hosts as the lab expects it")
    rest = [line for line in lines[first:] if not line.startswith("    - {name:")]
    result = "".join([*lines[:first], *hosts, *rest])
    usual = fixed(1)
    replacements = {
        "~/.local/state/kubeadm-ipvs/labs/default/": f"{lab_folder}/",
        f"{LOOPBACK}:{usual.api}": f"{LOOPBACK}:{ports.api}",
        f":{usual.packages}/": f":{ports.packages}/",
        f":{usual.registry}": f":{ports.registry}",
        "    name: dev\n": f"    name: {name}\n",
    }
    for old, new in replacements.items():
        if old not in result:
            raise Trouble(f"Pulumi.dev.yaml doesn't hold '{old.strip()}', which a lab's stack file replaces")
        result = result.replace(old, new)
    return f"# The lab '{name}': made by `python3 -m lab up --name {name}`, not committed.\n{result}"


def write(name: str, options: Options, ports: Ports, lab_folder: Path) -> None:
    """Write the stack file of a lab; the default lab's is left as it is.

    Pulumi keeps a salt of the stack's encryption in that file; it is kept.
    """
    if name == DEFAULT_LAB:
        return
    path = paths.stack_file(name)
    model = paths.stack_file(DEFAULT_LAB).read_text()
    salt = ""
    if path.exists():
        salt = "".join(
            line for line in path.read_text().splitlines(keepends=True) if line.startswith("encryptionsalt:")
        )
    write_atomic(path, salt + text(model, name, options, ports, lab_folder))
