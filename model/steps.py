"""All remote steps: their scripts, values and timeouts, and the text that is sent to a host.

A step is a script in `scripts/steps/` with the step's name. `components/remote.py` sends the text from
`script_text`, and `results` takes a step's results out of what the host returned. `values_of` and `step_of`
parse such texts and commands for the report on a change.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model import kubeconfig
from model.settings import Settings

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

KILL_AFTER_SECONDS = 20
"""How long a step has to report the failure after SIGTERM before it is killed."""

# Deleting a node also runs kubectl before and after the drain, on an API server that may be busy.
_AROUND_DRAIN_SECONDS = 300
# Two requests, each retried for two minutes if there is no connection (scripts/lib/kubectl.sh), and a margin.
_DEREGISTER_SECONDS = 300
_PRINT_SECONDS = 60
_CHECK_SECONDS = 300  # seconds on an idle host, two minutes on a busy emulated one
_RENEWAL_SECONDS = 1800  # an earlier step may hold the host's lock for half of that


@dataclass(frozen=True)
class Step:
    """One remote step.

    Attributes:
        name: Its name in messages, in commands, and in resource names (after the host's name).
        limit: Timeout of `create` and `update` in seconds, from the settings.
        values: Names of its shell variables, besides OWNER and REPAIR.
        delete_limit: Timeout of `delete` in seconds; None if deleting the resource runs nothing.
        changes: Whether it changes the host or the cluster. If an update of such a step fails, host and state
            differ.
        repairs: Whether the host's `repair` setting runs it again.
        secret: Whether its values or output are secret: never logged, and encrypted in the state.
        script: Its file in `scripts/steps/`, without the suffix; the step's name if empty.
        unframed: Takes the results out of the output of a step whose text never changes. None for all other
            steps: their text prints a line before and after the results.
        previous_name: Its name in earlier versions of the program, which states may still contain.
    """

    name: str
    limit: Callable[[Settings], int]
    values: frozenset[str] = frozenset()
    delete_limit: Callable[[Settings], int] | None = None
    changes: bool = False
    repairs: bool = False
    secret: bool = False
    script: str = ""
    unframed: Callable[[str], str] | None = None
    previous_name: str = ""

    @property
    def owned(self) -> bool:
        """Whether it refuses a host that belongs to another stack: if it changes or deletes anything."""
        return self.changes or self.delete_limit is not None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _prepare(settings: Settings) -> int:
    return settings.step_timeouts.prepare


def _rollout(settings: Settings) -> int:
    return settings.step_timeouts.rollout


def _reset(settings: Settings) -> int:
    return settings.step_timeouts.reset


def _verify(settings: Settings) -> int:
    return settings.step_timeouts.verification + settings.verification.wait_seconds


def _token(text: str) -> str:
    """The join token that a step printed, perhaps with text of the login shell around it."""
    tokens = re.findall(r"^[a-z0-9]{6}\.[a-z0-9]{16}$", text, re.MULTILINE)
    if len(tokens) != 1:
        raise ValueError(f"it returned {len(tokens)} join tokens instead of one")
    return str(tokens[0])


_FIREWALL_VALUES = _names(
    "FIREWALL ROLE ADDRESS POD_SUBNET POD_NETWORK HOST_SOURCES API_SOURCES NODE_PORT_SOURCES"
)

CLAIM = Step(
    "claim",
    lambda settings: settings.step_timeouts.inspect,
    _names(
        "ROLE ADDRESS NODE_PORT MODE SCHEDULER VERSION MANAGE IGNORED_CHECKS POD_NETWORK NETWORKS "
        "RESOLV_CONF REMOVE_LEFTOVERS FIRST_BOOT_SECONDS"
    ),
    delete_limit=_reset,
    changes=True,
    repairs=True,
)
KERNEL = Step(
    "kernel", _prepare, _names("MODE SCHEDULER NETWORK_MODULES POD_NETWORK"), changes=True, repairs=True
)
FIREWALL = Step(
    "firewall",
    _prepare,
    _FIREWALL_VALUES,
    changes=True,
    repairs=True,
)
PACKAGES = Step(
    "packages",
    _prepare,
    _names("VERSION REVISION REPOSITORY_DEB REPOSITORY_RPM KEY KEY_URL MANAGE"),
    changes=True,
    repairs=True,
)
RUNTIME = Step(
    "runtime",
    _prepare,
    _names("SANDBOX_IMAGE MIRRORS IMAGES POD_NETWORK"),
    changes=True,
    repairs=True,
)
INIT = Step(
    "init",
    lambda settings: settings.step_timeouts.init,
    _names(
        "CONFIG PATCHES CERT_SANS CERTIFICATE_DAYS RENEW RENEWAL KUBELET PROXY DISABLE_EVICTION POD_NETWORK"
    ),
    delete_limit=_reset,
    changes=True,
    repairs=True,
)
JOIN = Step(
    "join",
    lambda settings: settings.step_timeouts.join,
    _names("CONFIG NODE_ADDRESS KUBELET PROXY POD_NETWORK"),
    delete_limit=_reset,
    changes=True,
    repairs=True,
    secret=True,
)
PROXY = Step(
    "proxy",
    _rollout,
    _names("PROXY MODE SCHEDULER SERVICE_ADDRESS NODE_ENDPOINT READY_SECONDS"),
    changes=True,
    repairs=True,
)
NODE = Step(
    "node",
    _rollout,
    _names("NODE LABELS TAINTS READY_SECONDS DRAIN_SECONDS"),
    # Longer than the drain, which makes the node schedulable again if it times out.
    delete_limit=lambda settings: settings.step_timeouts.drain + _AROUND_DRAIN_SECONDS,
    changes=True,
    previous_name="member",
)
DEREGISTER = Step(
    "deregister",
    lambda _: _DEREGISTER_SECONDS,
    _names("NODE"),
    delete_limit=lambda _: _DEREGISTER_SECONDS,
    previous_name="registration",
)
# The next three source no other script, so that their text never changes: the provider, and with it every
# object, is built from their output and must stay known in previews when other scripts change. The first two
# print the same file. A repair or the value RENEW, which only renewals set, runs `kubeconfig` again, because
# the administrator's certificate may be new. `admin` doesn't run again, so the cluster's CA stays known.
KUBECONFIG = Step(
    "kubeconfig",
    lambda _: _PRINT_SECONDS,
    repairs=True,
    secret=True,
    script="admin",
    unframed=kubeconfig.printed,
)
ADMIN = Step("admin", lambda _: _PRINT_SECONDS, secret=True, unframed=kubeconfig.printed)
TOKEN = Step("token", lambda _: _PRINT_SECONDS, secret=True, unframed=_token)
EXPECTED_SERVICES = Step(
    "expected_services",
    _verify,
    _names("SERVICES NODE_NAMES WAIT_SECONDS SUBJECT"),
    previous_name="look",
)
VERIFICATION = Step(
    "verification",
    _verify,
    _names(
        "EXPECTED CLUSTER_ENDPOINT NODE_ENDPOINT ENDPOINTS NODE_PROBLEM MODE SCHEDULER REQUESTS WAIT_SECONDS "
        "POD_NETWORK"
    ),
    previous_name="proof",
)
# No resource runs these two; `tools/check.py` and `tools/show.py` do.
CHECK = Step(
    "check",
    lambda _: _CHECK_SECONDS,
    _names("STACK VERSION MANAGE MODE SCHEDULER SERVICE_ADDRESS") | _FIREWALL_VALUES,
)
TRAFFIC = Step("traffic", lambda _: _PRINT_SECONDS)
# A systemd timer on the control plane runs this one (scripts/lib/renewal_timer.sh, which has the same limit).
RENEWAL = Step("renewal", lambda _: _RENEWAL_SECONDS, _names("CERTIFICATE_DAYS"))

PREPARATION = (CLAIM, KERNEL, FIREWALL, PACKAGES, RUNTIME)
"""The steps that prepare a host, in their order."""

CALL = "STEP=$2 HOST=$3\n"
"""The line in a step's text between its values and the call that starts it."""

STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        CLAIM,
        KERNEL,
        FIREWALL,
        PACKAGES,
        RUNTIME,
        INIT,
        PROXY,
        ADMIN,
        KUBECONFIG,
        TOKEN,
        JOIN,
        DEREGISTER,
        NODE,
        EXPECTED_SERVICES,
        VERIFICATION,
        CHECK,
        TRAFFIC,
        RENEWAL,
    )
}
"""All steps by name."""

# The script's `printf` differs from what it prints, so a host that only returns its input isn't believed.
_FRAME = r"printf '\n--- kubeadm-ipvs: %s ---\n' "
_RESULTS = re.compile(
    r"^--- kubeadm-ipvs: begin ---\n(.*?)\n--- kubeadm-ipvs: end ---$", re.MULTILINE | re.DOTALL
)
_PREVIOUS_NAMES = {step.previous_name: step for step in STEPS.values() if step.previous_name}
_SOURCE = re.compile(r"^source (\S+)\n", re.MULTILINE)
_VALUE = r"""[\w@%+=:,./-]*|(?:'[^']*'|"'")+"""
_ASSIGNMENT = re.compile(rf"^([A-Z][A-Z0-9_]*)=({_VALUE})\n", re.MULTILINE | re.ASCII)
_ASSIGNMENTS = re.compile(rf"^(?:[A-Z][A-Z0-9_]*=(?:{_VALUE})\n)+\Z", re.MULTILINE | re.ASCII)
_COMMAND = re.compile(r"bash -s -- [a-z]+ ([a-z_]+) (\S+)")
_SUDO = "sudo -n "


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


def script_text(step: Step, values: Mapping[str, str], scripts: Path | None = None) -> str:
    """The text that bash reads on the host: the script, its values, and the call that runs it.

    Args:
        step: The step.
        values: Values of the shell variables, unquoted.
        scripts: Directory to use instead of the project's `scripts/`.

    Raises:
        ValueError: A name isn't valid for a shell variable.
    """
    for name in values:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ValueError(f"not a valid shell variable: {name}")
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))
    # bash reads this text while it runs it. A step that reads standard input would consume the rest.
    call = 'run_step "$1" </dev/null\n'
    if step.unframed is None:
        call = f"set -e\n{_FRAME}begin\n{call}{_FRAME}end\n"
    call = f"{CALL}{call}exit\n"
    return f"{body(f'steps/{step.script or step.name}.sh', scripts)}\n{assignments}{call}"


def command_text(verb: str, step: Step, host: str, limit_seconds: int, user: str) -> str:
    """The command that sshd runs: short, constant and without secrets."""
    limit = f"timeout --kill-after={KILL_AFTER_SECONDS} {limit_seconds}"
    return as_root(f"{limit} bash -s -- {verb} {step.name} {host}", user)


def as_root(command: str, user: str) -> str:
    """A command in the form in which a user runs it as root; it may be in another user's form."""
    return ("" if user == "root" else _SUDO) + command.removeprefix(_SUDO)


def host_of(command: str) -> str | None:
    """The host on which a step's command runs; None if it isn't a step's."""
    found = _COMMAND.search(command)
    return None if found is None else found[2]


def has_results(step: Step, text: str) -> bool:
    """Whether `results` applies to the output of a text. Earlier versions of the program had no frame."""
    return step.unframed is not None or _FRAME in text


def results(step: Step, output: str) -> str:
    """A step's results: the part of a host's output that the step itself printed.

    A login shell may print text of its own, or end with status 0 without running the step.

    Raises:
        ValueError: The step didn't run, or not to its end. The message contains nothing of the output.
    """
    if step.unframed is not None:
        return step.unframed(output)
    found = _RESULTS.search(output)
    if found is None:
        printed = "nothing" if not output.strip() else "output without the lines that frame a step's results"
        raise ValueError(f"it returned {printed}, so the step didn't run")
    return found[1].removesuffix("\n")


def values_of(text: str) -> dict[str, str] | None:
    """The values in a text from `script_text`; None if the text is hidden because it is secret."""
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
    """The step that a command runs, even if an earlier version of the program wrote the command."""
    found = _COMMAND.search(command)
    return None if found is None else STEPS.get(found[1]) or _PREVIOUS_NAMES.get(found[1])
