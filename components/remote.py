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
there, hence `_desired`; a remote command can't be cancelled, hence `timeout` on the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
from pulumi_command import remote

from components import ssh_access
from model.settings import Host, Settings
from model.steps import Step, command_text, script_text


class Runner:
    """Runs steps on one host, for whichever component needs one there; there is one for each host.

    Args:
        settings: The environment.
        host: The machine.
        owner: `STACK ID`, the same for as long as the state lives; written on the host by its claim. A step
            leaves a host alone that is another's.
    """

    def __init__(self, settings: Settings, host: Host, owner: pulumi.Input[str]) -> None:
        self._settings = settings
        self._host = host
        self._owner = owner
        self._user = settings.ssh_user(host)
        self._connection = _connection(settings, host)
        self._access = ssh_access.hooks(settings, host)

    def step(
        self,
        step: Step,
        parent: pulumi.Resource,
        *,
        values: Mapping[str, pulumi.Input[str]] | None = None,
        triggers: Sequence[Any] = (),
        repair: str | None = None,
        deletes: bool = True,
        opts: pulumi.ResourceOptions | None = None,
        about: str | None = None,
        name: str | None = None,
    ) -> remote.Command:
        """Makes one step's command.

        Args:
            step: The step.
            parent: The component that the command is a child of.
            values: The step's values by name, all of them.
            triggers: Values whose change replaces the resource (delete first, then create).
            repair: The host's `repair` setting, for a step that runs after a repair without repairing.
            deletes: False where this host's resource runs nothing when it is deleted.
            opts: Dependencies and the like; parent, aliases and delete_before_replace are set here, and
                that the host is reached before (components/ssh_access.py).
            about: The host that the step is about, where that isn't the host that it runs on.
            name: The resource's name, where it isn't `HOST-STEP`.

        Raises:
            ValueError: `values` aren't the step's.
        """
        given: dict[str, pulumi.Input[str]] = dict(values or {})
        if given.keys() != step.values:
            raise ValueError(f"{step.name} takes {sorted(step.values)}, not {sorted(given)}")
        if step.repairs:
            repair = self._host.repair
        if repair is not None:
            given["REPAIR"] = repair
        if step.owned:
            given["OWNER"] = self._owner
        text: pulumi.Input[str] = script_text(step, {})
        if given:
            text = pulumi.Output.all(**given).apply(lambda resolved: script_text(step, resolved))

        host = about or self._host.name
        former = f"{host}-{step.formerly}" if step.formerly else None
        name = name or f"{host}-{step.name}"
        limit = step.limit(self._settings)

        def command(verb: str, seconds: int) -> str:
            return command_text(verb, step, self._host.name, seconds, self._user)

        update: pulumi.Input[str] = command("update", limit)
        if step.changes:
            desired = _desired(name, former, text, parent, opts)
            update = pulumi.Output.concat(update, " ", desired.id.apply(lambda known: known[:8]))

        own = pulumi.ResourceOptions(
            parent=parent,
            aliases=[pulumi.Alias(name=former)] if former else None,
            # The default order, create and then delete, would reset the cluster just made.
            delete_before_replace=True,
            additional_secret_outputs=["stdin", "stdout", "stderr"] if step.secret else None,
            hooks=self._access,
        )
        delete_limit = step.delete_limit(self._settings) if step.delete_limit and deletes else None
        return remote.Command(
            name,
            remote.CommandArgs(
                connection=self._connection,
                create=command("create", limit),
                update=update,
                delete=command("delete", delete_limit) if delete_limit is not None else None,
                stdin=pulumi.Output.secret(text) if step.secret else text,
                triggers=list(triggers) or None,
                # sshd refuses variables it doesn't know, which is an error or a warning each time.
                add_previous_output_in_env=False,
                logging=remote.Logging.NONE if step.secret else remote.Logging.STDERR,
            ),
            opts=pulumi.ResourceOptions.merge(own, opts),
        )


def _desired(
    name: str,
    former: str | None,
    text: pulumi.Input[str],
    parent: pulumi.Resource,
    opts: pulumi.ResourceOptions | None,
) -> pulumi.Stash:
    """A digest of the text that a step was last asked to run. Another text replaces it, so its ID changes.

    It is in the state before the step begins, and stays there if the step fails. Taking the change back is
    then a change again, so the step runs, although its own inputs in the state are the earlier ones
    (docs/decisions/0020).
    """
    digest = pulumi.Output.unsecret(pulumi.Output.from_input(text)).apply(
        lambda known: hashlib.sha256(known.encode()).hexdigest()[:16]
    )
    return pulumi.Stash(
        f"{name}-desired",
        input=digest,
        opts=pulumi.ResourceOptions(
            parent=parent,
            aliases=[pulumi.Alias(name=f"{former or name}-asked")],
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
