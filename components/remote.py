"""The only place that creates a `remote.Command`: runs a step on a host over SSH.

The whole script of a step is sent on standard input instead of in the command, because the command appears in
every error of the provider and in the host's process list. `model/steps.py` composes the text. The command
contains only time limit, verb, step and host, so an error reads `running "timeout … bash -s -- create kernel
node1"`, followed by what the step printed.

This relies on the following behaviour of pulumi-command 1.2.1:

- Only `triggers` replaces a command; any other changed input runs `update`.
- `delete` uses the connection and standard input of the last create or update.
- A failed create leaves nothing in the state. A failed update leaves the earlier inputs there, hence
  `_desired`.
- A remote command can't be cancelled, hence `timeout` on the host.
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
    """Runs steps on one host. All components that need the host share its runner.

    Args:
        settings: The environment.
        host: The host.
        owner: `STACK ID`, constant for the life of the state. The claim step writes it on the host, and other
            steps refuse a host with a different owner.
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
        """Create the command of one step.

        Args:
            step: The step.
            parent: The component that owns the command.
            values: All of the step's values by name.
            triggers: Values whose change replaces the resource (delete, then create).
            repair: The host's `repair` setting, for a step that must run again after a repair but repairs
                nothing.
            deletes: False if deleting this host's resource runs nothing.
            opts: Dependencies and the like. Parent, aliases, delete_before_replace and the SSH access check
                are set here.
            about: The host that the step concerns, if it isn't the host that it runs on.
            name: The resource's name, if it isn't `HOST-STEP`.

        Raises:
            ValueError: `values` don't match the step's declared values.
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
        previous = f"{host}-{step.previous_name}" if step.previous_name else None
        name = name or f"{host}-{step.name}"
        limit = step.limit(self._settings)

        def command(verb: str, seconds: int) -> str:
            return command_text(verb, step, self._host.name, seconds, self._user)

        update: pulumi.Input[str] = command("update", limit)
        if step.changes:
            desired = _desired(name, previous, text, parent, opts)
            update = pulumi.Output.concat(update, " ", desired.id.apply(lambda known: known[:8]))

        own = pulumi.ResourceOptions(
            parent=parent,
            aliases=[pulumi.Alias(name=previous)] if previous else None,
            # In the default order the delete would reset what the create has just set up.
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
                # sshd rejects unknown variables, which causes an error or a warning each time.
                add_previous_output_in_env=False,
                logging=remote.Logging.NONE if step.secret else remote.Logging.STDERR,
            ),
            opts=pulumi.ResourceOptions.merge(own, opts),
        )


def _desired(
    name: str,
    previous: str | None,
    text: pulumi.Input[str],
    parent: pulumi.Resource,
    opts: pulumi.ResourceOptions | None,
) -> pulumi.Stash:
    """A digest of the text that a step should have run. A different text replaces it, so its ID changes.

    It is stored before the step starts and stays if the step fails. Reverting a failed change is then a
    change too, and the step runs although the inputs in its own state are still the earlier ones
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
            aliases=[pulumi.Alias(name=f"{previous or name}-asked")],
            replace_on_changes=["input"],
            # A step that never starts must not count as requested.
            depends_on=opts.depends_on if opts else None,
        ),
    )


def plain_output(command: remote.Command) -> pulumi.Output[str]:
    """The standard output of a step whose output isn't secret.

    The provider marks all outputs secret if any input is, and the connection's key is.
    """
    return pulumi.Output.unsecret(command.stdout)


def _connection(settings: Settings, host: Host) -> remote.ConnectionArgs:
    """The SSH connection to a host, with a pinned host key and limited connection attempts."""
    key_file = settings.ssh.private_key_file
    private_key = pulumi.Output.secret(Path(key_file).read_text(encoding="utf-8")) if key_file else None
    address, port = settings.ssh_endpoint(host)
    jump = settings.jump_host(host)
    proxy = None
    if jump is not None:
        proxy = remote.ProxyConnectionArgs(
            host=jump.address,
            port=float(jump.port),
            user=jump.user,
            host_key=jump.host_key,
            private_key=private_key,
            per_dial_timeout=settings.ssh.dial_timeout_seconds,
            dial_error_limit=settings.ssh.dial_attempts,
        )
    return remote.ConnectionArgs(
        host=address,
        port=float(port),
        user=settings.ssh_user(host),
        host_key=settings.host_key(host),
        private_key=private_key,
        per_dial_timeout=settings.ssh.dial_timeout_seconds,
        dial_error_limit=settings.ssh.dial_attempts,
        proxy=proxy,
    )
