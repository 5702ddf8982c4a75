"""All remote steps: their scripts, values and timeouts, and the text that is sent to a host.

A step runs one or more scripts of `scripts/steps/`, one after the other. Hosts have the scripts already
(`model/delivery.py`), so the text that `components/remote.py` sends (`step_text`) only has the step's values
and the scripts' digests. `results` takes a step's results out of what the host returned. `values_of` and
`step_of` parse such texts and commands for the report on a change.

`script_text` is a script with everything that it needs, for tools that run one outside of a run.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.settings import Settings

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

KILL_AFTER_SECONDS = 20
"""How long a step has to report the failure after SIGTERM before it is killed."""

# Deleting a node also runs kubectl before and after the drain, on an API server that may be busy.
_AROUND_DRAIN_SECONDS = 300
# Two requests, each retried for two minutes if there is no connection (scripts/lib/kubectl.sh), and a margin.
_DEREGISTER_SECONDS = 300


@dataclass(frozen=True)
class Script:
    """One file of `scripts/steps/`.

    Attributes:
        name: The file's name without its suffix, which is also its name in messages.
        values: Names of its shell variables, besides OWNER and REPAIR.
    """

    name: str
    values: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """One remote step.

    Attributes:
        name: Its name in commands, and in resource names (after the host's name).
        scripts: The scripts that creating and updating it run, in their order. Deleting it runs the first.
        limit: Timeout of `create` and `update` in seconds, from the settings; None if they run nothing.
        delete_limit: Timeout of `delete` in seconds; None if deleting the resource runs nothing.
        changes: Whether it changes the host or the cluster. If an update of such a step fails, host and state
            differ.
        repairs: Whether the host's `repair` setting runs it again.
        secret: Whether its values or results are secret, and therefore encrypted in the state.
        installs: Scripts that it leaves on the host for later use. If one of them changes, it runs again.
        previous_names: Its names in earlier versions of the program, which states may still contain.
    """

    name: str
    scripts: tuple[Script, ...]
    limit: Callable[[Settings], int] | None = None
    delete_limit: Callable[[Settings], int] | None = None
    changes: bool = False
    repairs: bool = False
    secret: bool = False
    installs: tuple[Script, ...] = ()
    previous_names: tuple[str, ...] = ()

    @property
    def owned(self) -> bool:
        """Whether it refuses a host that belongs to another stack: if it changes or deletes anything."""
        return self.changes or self.delete_limit is not None

    @property
    def values(self) -> frozenset[str]:
        """Names of the shell variables that its scripts read, besides OWNER and REPAIR."""
        return frozenset[str]().union(*(script.values for script in self.scripts))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _prepare(settings: Settings) -> int:
    # Only two of the scripts, `packages` and `runtime`, can take long, and they rarely both do.
    return settings.step_timeouts.inspect + 2 * settings.step_timeouts.prepare


def _reset(settings: Settings) -> int:
    return settings.step_timeouts.reset


def _verify(settings: Settings) -> int:
    return settings.step_timeouts.verification + settings.verification.wait_seconds


_FIREWALL_VALUES = _names(
    "FIREWALL ROLE ADDRESS POD_SUBNET POD_NETWORK HOST_SOURCES API_SOURCES NODE_PORT_SOURCES"
)
_KUBEADM_VALUES = _names("CONFIG KUBELET PROXY POD_NETWORK")

CLAIM_SCRIPT = Script(
    "claim",
    _names(
        "ROLE ADDRESS NODE_PORT MODE SCHEDULER VERSION MANAGE IGNORED_CHECKS POD_NETWORK NETWORKS "
        "RESOLV_CONF REMOVE_LEFTOVERS FIRST_BOOT_SECONDS"
    ),
)
KERNEL = Script("kernel", _names("MODE SCHEDULER NETWORK_MODULES POD_NETWORK"))
FIREWALL = Script("firewall", _FIREWALL_VALUES)
PACKAGES = Script("packages", _names("VERSION REVISION REPOSITORY_DEB REPOSITORY_RPM KEY KEY_URL MANAGE"))
RUNTIME = Script("runtime", _names("SANDBOX_IMAGE MIRRORS IMAGES POD_NETWORK"))
PROXY = Script("proxy", _names("PROXY MODE SCHEDULER SERVICE_ADDRESS NODE_ENDPOINT READY_SECONDS"))
# A systemd timer on the control plane runs this one (scripts/lib/renewal_timer.sh, which has its time limit).
RENEWAL = Script("renewal", _names("CERTIFICATE_DAYS"))
# `tools/check.py` and `tools/show.py` run these two.
CHECK = Script("check", _names("STACK VERSION MANAGE MODE SCHEDULER SERVICE_ADDRESS") | _FIREWALL_VALUES)
TRAFFIC = Script("traffic")

CHECK_SECONDS = 300
"""Timeout of CHECK: it takes seconds on an idle host, two minutes on a busy emulated one."""
TRAFFIC_SECONDS = 60
"""Timeout of TRAFFIC."""

CLAIM = Step("claim", (Script("claim", _names("POD_NETWORK")),), delete_limit=_reset)
"""Is in the state before anything is changed on a host. Its delete restores the host."""

PREPARATION = Step(
    "preparation",
    (CLAIM_SCRIPT, KERNEL, FIREWALL, PACKAGES, RUNTIME),
    _prepare,
    changes=True,
    repairs=True,
    # The last of the five steps that it consists of.
    previous_names=("runtime",),
)
INIT = Step(
    "init",
    (
        Script(
            "init",
            _KUBEADM_VALUES
            | _names("PATCHES CERT_SANS CERTIFICATE_DAYS RENEW RENEWAL_TIMER DISABLE_EVICTION"),
        ),
        PROXY,
        Script("admin"),
    ),
    lambda settings: settings.step_timeouts.init + settings.step_timeouts.rollout,
    delete_limit=_reset,
    changes=True,
    repairs=True,
    installs=(RENEWAL,),
)
JOIN = Step(
    "join",
    (Script("join", _KUBEADM_VALUES | _names("NODE_ADDRESS")), PROXY),
    lambda settings: settings.step_timeouts.join + settings.step_timeouts.rollout,
    delete_limit=_reset,
    changes=True,
    repairs=True,
    secret=True,
)
NODES = Step(
    "nodes",
    (Script("nodes", _names("NODES READY_SECONDS SUBJECT")),),
    lambda settings: settings.step_timeouts.rollout,
    changes=True,
)
NODE = Step(
    "node",
    (Script("node", _names("NODE DRAIN_SECONDS")),),
    # Longer than the drain, which makes the node schedulable again if it times out.
    delete_limit=lambda settings: settings.step_timeouts.drain + _AROUND_DRAIN_SECONDS,
    previous_names=("member",),
)
DEREGISTER = Step(
    "deregister",
    (Script("deregister", _names("NODE")),),
    delete_limit=lambda _: _DEREGISTER_SECONDS,
    previous_names=("registration",),
)
EXPECTED_SERVICES = Step(
    "expected_services",
    (Script("expected_services", _names("SERVICES NODE_NAMES WAIT_SECONDS SUBJECT")),),
    _verify,
    previous_names=("look",),
)
VERIFICATION = Step(
    "verification",
    (
        Script(
            "verification",
            _names(
                "EXPECTED CLUSTER_ENDPOINT NODE_ENDPOINT ENDPOINTS NODE_PROBLEM MODE SCHEDULER REQUESTS "
                "WAIT_SECONDS POD_NETWORK SUBJECT"
            ),
        ),
    ),
    _verify,
    previous_names=("proof",),
)

STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        CLAIM,
        PREPARATION,
        INIT,
        JOIN,
        NODES,
        NODE,
        DEREGISTER,
        EXPECTED_SERVICES,
        VERIFICATION,
    )
}
"""All steps by name."""

SCRIPTS_ON_HOSTS: tuple[Script, ...] = tuple(
    {script.name: script for step in STEPS.values() for script in (*step.scripts, *step.installs)}.values()
)
"""The scripts that hosts get, each once."""

CALL = "STEP=$2 HOST=$3\n"
"""The line in a step's text between its values and the call that starts it."""

# As in scripts/run.sh.
_FRAME = r"printf '\n--- kubeadm-ipvs: %s ---\n' "
_RESULTS = re.compile(
    r"^--- kubeadm-ipvs: begin ---\n(.*?)\n--- kubeadm-ipvs: end ---$", re.MULTILINE | re.DOTALL
)
_PREVIOUS_NAMES = {name: step for step in STEPS.values() for name in step.previous_names}
_SOURCE = re.compile(r"^source (\S+)\n", re.MULTILINE)
_VALUE = r"""[\w@%+=:,./-]*|(?:'[^']*'|"'")+"""
_ASSIGNMENT = re.compile(rf"^([A-Z][A-Z0-9_]*)=({_VALUE})\n", re.MULTILINE | re.ASCII)
_ASSIGNMENTS = re.compile(rf"^(?:[A-Z][A-Z0-9_]*=(?:{_VALUE})\n)+\Z", re.MULTILINE | re.ASCII)
_COMMAND = re.compile(r"bash -s -- [a-z]+ ([a-z_]+) (\S+)")
_SUDO = "sudo -n "
_CALL = 'run_scripts "$1"'


def body(script: str, scripts: Path | None = None) -> str:
    """A script with its `source` lines replaced by the files that they name, each file once.

    Args:
        script: Path below `scripts/`: `steps/kernel.sh`.
        scripts: Directory to use instead of the project's `scripts/`.
    """
    folder = scripts or SCRIPTS
    done: set[str] = set()

    def read(name: str) -> str:
        if name in done:
            return ""
        done.add(name)
        text = (folder / name).read_text(encoding="utf-8")
        return _SOURCE.sub(lambda line: read(line[1]), text)

    return read(script)


@functools.cache
def digest(script: Script) -> str:
    """The first 16 digits of the SHA-256 of a script with everything that it sources, as it is on hosts."""
    return hashlib.sha256(body(f"steps/{script.name}.sh").encode()).hexdigest()[:16]


def step_text(step: Step, values: Mapping[str, str]) -> str:
    """The text that bash reads on a host that has the scripts: the step's values and the scripts to run.

    Args:
        step: The step.
        values: Values of the shell variables, unquoted.

    Raises:
        ValueError: A name isn't valid for a shell variable.
    """
    # A delete runs the scripts that the host has by then.
    digests = [
        script.name if step.limit is None else f"{script.name}={digest(script)}" for script in step.scripts
    ]
    installed = "".join(f"# {script.name}={digest(script)}\n" for script in step.installs)
    # bash reads this text while it runs it. A script that reads standard input would consume the rest.
    call = f"{_CALL} {' '.join(digests)} </dev/null\nexit\n"
    return f"{assignments(values)}{CALL}{_loader()}{call}{installed}"


def script_text(script: Script, values: Mapping[str, str], scripts: Path | None = None) -> str:
    """The text with which bash runs a script on a host that may not have it.

    Args:
        script: The script.
        values: Values of the shell variables, unquoted.
        scripts: Directory to use instead of the project's `scripts/`.

    Raises:
        ValueError: A name isn't valid for a shell variable.
    """
    text = body(f"steps/{script.name}.sh", scripts)
    call = f'set -e\n{_FRAME}begin\nrun_step "$1" </dev/null\n{_FRAME}end\nexit\n'
    return f"{text}\n{assignments(values)}{CALL}{call}"


def assignments(values: Mapping[str, str]) -> str:
    """Shell assignments, one value per line or more, sorted by name.

    Raises:
        ValueError: A name isn't valid for a shell variable.
    """
    for name in values:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ValueError(f"not a valid shell variable: {name}")
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))


@functools.cache
def _loader() -> str:
    """`scripts/loader.sh` without its comments, because the state has it once for each step."""
    lines = (SCRIPTS / "loader.sh").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#") and line.strip())


def command_text(verb: str, name: str, host: str, limit_seconds: int, user: str) -> str:
    """The command that sshd runs for a step or script: short, constant and without secrets."""
    limit = f"timeout --kill-after={KILL_AFTER_SECONDS} {limit_seconds}"
    return as_root(f"{limit} bash -s -- {verb} {name} {host}", user)


def as_root(command: str, user: str) -> str:
    """A command in the form in which a user runs it as root; it may be in another user's form."""
    return ("" if user == "root" else _SUDO) + command.removeprefix(_SUDO)


def host_of(command: str) -> str | None:
    """The host on which a step's command runs; None if it isn't a step's."""
    found = _COMMAND.search(command)
    return None if found is None else found[2]


def has_results(text: str) -> bool:
    """Whether `results` applies to the output of a text. Earlier versions of the program had no frame."""
    return _CALL in text or _FRAME in text


def results(output: str) -> str:
    """The results of a step or script: the part of a host's output that it printed itself.

    A login shell may print text of its own, or end with status 0 without running the step.

    Raises:
        ValueError: The step didn't run, or not to its end. The message contains nothing of the output.
    """
    found = _RESULTS.search(output)
    if found is None:
        printed = "nothing" if not output.strip() else "output without the lines that frame a step's results"
        raise ValueError(f"it returned {printed}, so the step didn't run")
    return found[1].removesuffix("\n")


def values_of(text: str) -> dict[str, str] | None:
    """The values in a text from `step_text`; None if the text is hidden because it is secret."""
    before, call, _ = text.rpartition(CALL)
    if not call:
        return None
    block = _ASSIGNMENTS.search(before)
    if block is None:
        return {}
    return {
        name: re.sub(r"""'([^']*)'|"(')\"""", lambda part: part[1] or part[2] or "", value)
        for name, value in _ASSIGNMENT.findall(block[0])
    }


def step_of(command: str) -> Step | None:
    """The step that a command runs; None if it isn't one of `STEPS`, or one under its earlier name."""
    found = _COMMAND.search(command)
    return None if found is None else STEPS.get(found[1]) or _PREVIOUS_NAMES.get(found[1])
