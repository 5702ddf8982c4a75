"""What Pulumi is told of a lab: its stack file, and the settings that depend on what runs the hosts.

The stack file of the default lab, `Pulumi.dev.yaml`, is committed and static; the others' are made from it,
with their ports and hosts, and ignored by git. Either extends `settings.yaml` in the lab's folder, which the
lab writes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from common import paths
from common.errors import UserError
from common.files import write_atomic
from common.paths import DEFAULT_LAB
from common.progress import Progress
from lab.hardware import Accelerator
from lab.options import Options
from lab.ports import LOOPBACK, Ports, fixed

SETTINGS = "settings.yaml"
_SETTINGS_HEAD = (
    "# Settings of a lab whose hosts run by {accelerator}. Written by `python3 -m lab up`;\n"
    "# the lab's stack file extends them, and wins.\n"
)
_SETTINGS: dict[Accelerator, str] = {
    "kvm": "config: {}\n",
    # A host has one CPU (docs/decisions/0023-user-mode-linux.md).
    "uml": """\
config:
  kubeadm-ipvs:preflight: {ignore: [NumCPU]}
""",
    "tcg": """\
config:
  kubeadm-ipvs:cluster:
    # A slow leader that loses its lease restarts, and one control plane needs no election.
    leaderElection: false
    slowHosts: true
    # A wake-up across two emulated CPUs is dear: each component runs on one of them at a time.
    extraEnvs: {GOMAXPROCS: "1"}
    timeouts:
      controlPlaneComponentHealthCheck: 15m0s
      kubeletHealthCheck: 15m0s
      kubernetesApiCall: 10m0s
      etcdApiCall: 10m0s
      tlsBootstrap: 15m0s
      discovery: 15m0s
  kubeadm-ipvs:network:
    # By default it starts two programs a second on every host, for a rule each.
    flannel: {resyncSeconds: 60}
""",
}

_SALT = "encryptionsalt:"
_AS_MADE = re.compile(r"^# As it was made: ([0-9a-f]{16})$", re.MULTILINE)
_HOST = "    - {{name: {name}, role: {role}, address: {address}, ssh: {{host: {loopback}, port: {port}}}}}\n"


def text(model: str, name: str, options: Options, ports: Ports, lab_folder: Path) -> str:
    """The stack file's text.

    :param model: the text of Pulumi.dev.yaml.
    :raises UserError: that text lacks something which has to be replaced.
    """
    # The salt is the default lab's stack's own.
    lines = [line for line in model.splitlines(keepends=True) if not line.startswith(_SALT)]
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
        raise UserError("Pulumi.dev.yaml has no list of hosts as the lab expects it")
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
            raise UserError(
                f"Pulumi.dev.yaml doesn't hold '{old.strip()}', which a lab's stack file replaces"
            )
        result = result.replace(old, new)
    head = f"# The lab '{name}': made by `python3 -m lab up --name {name}`, not committed."
    return f"{head}\n# As it was made: {_digest(result)}\n{result}"


def _digest(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _is_edited(body: str) -> bool:
    """Whether a person has changed a stack file, given without its salt, since the lab made it."""
    found = _AS_MADE.search(body)
    made = found is not None and _digest(body[found.end() + 1 :]) == found[1]
    return not made and body.strip() != ""


def write(name: str, options: Options, ports: Ports, lab_folder: Path, progress: Progress) -> None:
    """Write the stack file of a lab; the default lab's is left as it is.

    One that was edited is kept, or put aside if the lab it was made for had other hosts or ports.
    Pulumi keeps a salt of the stack's encryption in that file; it is kept.
    """
    if name == DEFAULT_LAB:
        return
    path = paths.stack_file(name)
    made = text(paths.stack_file(DEFAULT_LAB).read_text(), name, options, ports, lab_folder)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    body = "".join(line for line in lines if not line.startswith(_SALT))
    if _is_edited(body):
        if made.splitlines()[1] in body:
            progress.say(f"settings: {path.name} was edited and is kept; remove it to have it made anew")
            return
        # For other hosts or ports, or from another Pulumi.dev.yaml: it wouldn't fit this lab.
        aside = path.with_name(f"{path.name}.edited")
        write_atomic(aside, "".join(lines))
        progress.say(f"settings: {path.name} is made anew for this lab; what was edited is in {aside.name}")
    write_atomic(path, "".join(line for line in lines if line.startswith(_SALT)) + made)


def write_settings(lab_folder: Path, accelerator: Accelerator) -> None:
    """Write the settings that depend on what runs the hosts, for the stack file to extend.

    :param lab_folder: gets the file.
    """
    made = _SETTINGS_HEAD.format(accelerator=accelerator) + _SETTINGS[accelerator]
    write_atomic(lab_folder / SETTINGS, made)
