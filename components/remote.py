"""The one place that speaks SSH: every `remote.Command` of the program is made here.

A step's whole script travels on standard input, not in the command text, because the
provider repeats the command text in every error and in the process list of the host.
What is sent is: `scripts/lib.sh`, the step's own files, its values as quoted shell
variables, and the call that starts it. The command text only names limit, verb, step and
host, so an error reads `running "timeout … bash -s -- create kernel node1"` followed by
what the step printed.

Facts this rests on (pulumi-command 1.2.1): only `triggers` replaces; any other changed input
runs `update`; `delete` runs with the connection and the standard input of the last create
or update; a failed create leaves nothing in the state; a failed update leaves the former inputs
there, hence `_asked`; a remote command can't be cancelled, hence `timeout` on the host.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
from pulumi_command import remote

from components import reach
from model.settings import Host, Settings

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# Each step's files, in the order in which they are sent. Three have no `lib.sh`: others are built
# from their output, which must not become unknown when lib.sh changes.
STEPS: Mapping[str, tuple[str, ...]] = {
    "claim": ("lib.sh", "firewalld.sh", "reset.sh", "claim.sh"),
    "kernel": ("lib.sh", "kernel.sh"),
    "firewall": ("lib.sh", "firewalld.sh", "firewall.sh"),
    "packages": ("lib.sh", "packages.sh"),
    "runtime": ("lib.sh", "runtime.sh"),
    "init": ("lib.sh", "reset.sh", "request.sh", "node.sh", "init.sh"),
    "proxy": ("lib.sh", "reset.sh", "request.sh", "proxy.sh"),
    "admin": ("admin.sh",),
    "kubeconfig": ("admin.sh",),
    "token": ("token.sh",),
    "join": ("lib.sh", "reset.sh", "request.sh", "node.sh", "join.sh"),
    "registration": ("lib.sh", "kube.sh", "registration.sh"),
    "member": ("lib.sh", "kube.sh", "member.sh"),
    "look": ("lib.sh", "look.sh"),
    "proof": ("lib.sh", "request.sh", "proof.sh"),
    # Not a resource's: `tools/check.py` and `tools/show.py` run them.
    "check": ("lib.sh", "firewalld.sh", "request.sh", "check.sh"),
    "traffic": ("lib.sh", "request.sh", "proof.sh", "traffic.sh"),
}

# What a host's setting `repair` runs again: the steps that make a host what it is.
REPAIRING = frozenset({"kernel", "firewall", "packages", "runtime", "init", "join", "kubeconfig", "proxy"})

# Steps that change what they find: where one of their updates fails, host and state differ.
CHANGING = frozenset({"claim", "member"}) | REPAIRING - {"kubeconfig"}

# Steps that look whose the host is before they change or delete anything.
OWNED = CHANGING | {"registration"}

# After SIGTERM a step has this long to say where it stood before it is killed.
KILL_AFTER_SECONDS = 20


def compose(files: Sequence[str], values: Mapping[str, str]) -> str:
    """The text that bash reads on the host: files, values, and the call that starts it.

    Args:
        files: Names in `scripts/`, in order.
        values: Shell variables by name; any text, quoted here.

    Raises:
        ValueError: A name that isn't a shell variable's.
    """
    for name in values:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ValueError(f"not a shell variable's name: {name}")
    bodies = [(SCRIPTS / name).read_text(encoding="utf-8") for name in files]
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))
    # bash reads this text as it runs it: a step that read its own standard input would eat the rest.
    call = 'STEP=$2 HOST=$3\nrun_step "$1" </dev/null\nexit\n'
    return "\n".join([*bodies, assignments + call])


def command_text(verb: str, step: str, host: str, limit_seconds: int, user: str) -> str:
    """What sshd is asked to run: short, constant, free of secrets."""
    sudo = "" if user == "root" else "sudo -n "
    return f"{sudo}timeout --kill-after={KILL_AFTER_SECONDS} {limit_seconds} bash -s -- {verb} {step} {host}"


class Runner:
    """Runs steps on one host, for whichever component needs one there; there is one for each host.

    Args:
        settings: The environment.
        host: The machine.
        owner: `STACK ID`, the same for as long as the state lives; written on the host by its claim. A step
            leaves a host alone that is another's.
    """

    def __init__(self, settings: Settings, host: Host, owner: pulumi.Input[str]) -> None:
        self._host = host
        self._owner = owner
        self._user = settings.ssh_user(host)
        self._connection = _connection(settings, host)
        self._reach = reach.hooks(settings, host)

    def step(
        self,
        step: str,
        parent: pulumi.Resource,
        *,
        limit_seconds: int,
        values: Mapping[str, pulumi.Input[str]] | None = None,
        secret: bool = False,
        triggers: Sequence[Any] = (),
        repair: str | None = None,
        deletes: bool = False,
        delete_limit_seconds: int | None = None,
        opts: pulumi.ResourceOptions | None = None,
        name: str | None = None,
    ) -> remote.Command:
        """Makes one step's command.

        Args:
            step: One of `STEPS`: in messages, and (with the host's) in the resource's name.
            parent: The component that the command is a child of.
            limit_seconds: Killed and reported after this long.
            values: Shell variables for the step.
            secret: Values or output are secret: nothing is logged, input and output are
                encrypted in the state.
            triggers: Values whose change replaces the resource (delete first, then create).
            repair: As the host's own setting, for a step that shows what a repair has mended.
            deletes: The step has a `delete` of its own.
            delete_limit_seconds: As `limit_seconds`, for `delete`.
            opts: Dependencies and the like; parent and delete_before_replace are set here, and
                that the host is reached before (components/reach.py).
            name: The resource's name, where it isn't `HOST-STEP`.
        """
        text: pulumi.Input[str] = compose(STEPS[step], {})
        repair = self._host.repair if step in REPAIRING else repair
        if repair is not None:
            values = {**(values or {}), "REPAIR": repair}
        if step in OWNED:
            values = {**(values or {}), "OWNER": self._owner}
        if values:
            text = pulumi.Output.all(**dict(values)).apply(lambda resolved: compose(STEPS[step], resolved))

        name = name or f"{self._host.name}-{step}"

        def command(verb: str, limit: int) -> str:
            return command_text(verb, step, self._host.name, limit, self._user)

        update: pulumi.Input[str] = command("update", limit_seconds)
        if step in CHANGING:
            asked = _asked(name, text, parent, opts)
            update = pulumi.Output.concat(update, " ", asked.id.apply(lambda known: known[:8]))

        own = pulumi.ResourceOptions(
            parent=parent,
            # The default order, create and then delete, would reset the cluster just made.
            delete_before_replace=True,
            additional_secret_outputs=["stdin", "stdout", "stderr"] if secret else None,
            hooks=self._reach,
        )
        return remote.Command(
            name,
            remote.CommandArgs(
                connection=self._connection,
                create=command("create", limit_seconds),
                update=update,
                delete=command("delete", delete_limit_seconds or limit_seconds) if deletes else None,
                stdin=pulumi.Output.secret(text) if secret else text,
                triggers=list(triggers) or None,
                # sshd refuses variables it doesn't know, which is an error or a warning each time.
                add_previous_output_in_env=False,
                logging=remote.Logging.NONE if secret else remote.Logging.STDERR,
            ),
            opts=pulumi.ResourceOptions.merge(own, opts),
        )


def _asked(
    name: str,
    text: pulumi.Input[str],
    parent: pulumi.Resource,
    opts: pulumi.ResourceOptions | None,
) -> pulumi.Stash:
    """What a step was last asked to do: another text is another resource, with another id.

    It is in the state before the step begins, and stays there if that fails. A person who then takes the
    change back asks for something new again, so the step runs, though its own inputs in the state
    are those of before (docs/decisions/0020).
    """
    digest = pulumi.Output.unsecret(pulumi.Output.from_input(text)).apply(
        lambda known: hashlib.sha256(known.encode()).hexdigest()[:16]
    )
    return pulumi.Stash(
        f"{name}-asked",
        input=digest,
        opts=pulumi.ResourceOptions(
            parent=parent,
            replace_on_changes=["input"],
            # A step whose turn never comes isn't asked.
            depends_on=opts.depends_on if opts else None,
        ),
    )


def plain_output(command: remote.Command) -> pulumi.Output[str]:
    """A step's standard output, for steps whose output holds no secret.

    The provider marks all outputs secret as soon as one input is, and the connection's key is.
    """
    return pulumi.Output.unsecret(command.stdout)


def _connection(settings: Settings, host: Host) -> remote.ConnectionArgs:
    """How the host is reached, with its key pinned and the dialling bounded."""
    key_file = settings.ssh.private_key_file
    address, port = settings.ssh_endpoint(host)
    return remote.ConnectionArgs(
        host=address,
        port=float(port),
        user=settings.ssh_user(host),
        host_key=settings.host_key(host),
        private_key=pulumi.Output.secret(Path(key_file).read_text(encoding="utf-8")) if key_file else None,
        per_dial_timeout=settings.ssh.dial_timeout_seconds,
        dial_error_limit=settings.ssh.dial_attempts,
    )
