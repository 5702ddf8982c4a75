"""The only place that creates a `remote.Command`: runs a step on a host over SSH.

A step's text is sent on standard input instead of in the command, because the command appears in every error
of the provider and in the host's process list. `model/steps.py` composes the text. The command contains only
time limit, verb, step and host, so an error reads `running "timeout … bash -s -- create join node1"`,
followed by what the step printed. `stdout` holds the step's results only (`model.steps.results`).

This relies on the following behaviour of pulumi-command 1.2.1:

- Only `triggers` replaces a command; any other changed input runs `update`.
- A create or update without a command doesn't connect.
- `delete` uses the connection and standard input of the last create or update.
- A failed create leaves nothing in the state. A failed update leaves the earlier inputs there, hence
  `_desired`.
- A remote command can't be cancelled, hence `timeout` on the host.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pulumi
from pulumi_command import remote

from components import ssh_access
from model.login import Login
from model.settings import Host, Settings
from model.steps import CLAIM, Step, command_text, has_results, results, step_text

_NOT_CONNECTED = re.compile(r"after \d+ failed attempts: (.*)", re.DOTALL)
# Not worth a retry: the command ran (its error quotes it), or the host refuses the login.
_FINAL = re.compile(r'running "|unable to authenticate|host key mismatch')


class Runner:
    """Runs steps on one host. All components that need the host share its runner.

    Attributes:
        access: Hooks that check SSH access to the host before a step, and deliver the scripts.

    Args:
        settings: The environment.
        host: The host.
        owner: `STACK ID`, constant for the life of the state. The claim step writes it on the host, and other
            steps refuse a host with a different owner.
        parent: The component that owns the host's login.
        after: No step starts before this is known.
    """

    def __init__(
        self,
        settings: Settings,
        host: Host,
        owner: pulumi.Input[str],
        parent: pulumi.Resource | None = None,
        after: pulumi.Output[None] | None = None,
    ) -> None:
        self._settings = settings
        self._host = host
        self._owner = owner
        check = ssh_access.once(settings, host)
        known_owner = pulumi.Output.from_input(owner)

        async def check_login(login: Login) -> None:
            owner = await known_owner.future()
            assert owner is not None, "hooks don't run in a preview"
            await check(login, owner)

        login = _kept_login(settings, host, check_login, parent, after)
        self._user = pulumi.Output.unsecret(login.apply(lambda known: known.user))
        self._connection = login.apply(lambda known: _connection(settings, host, known))

        async def check_access(_: pulumi.ResourceHookArgs) -> None:
            kept = await login.future()
            assert kept is not None, "hooks don't run in a preview"
            await check_login(kept)

        hook = pulumi.ResourceHook(f"{host.name}-ssh-access", check_access)

        async def check_clock(_: pulumi.ResourceHookArgs) -> None:
            ssh_access.check_clock(host)

        turned_away = pulumi.ErrorHook(f"{host.name}-turned-away", RetryWhenTurnedAway(settings))
        self.access = pulumi.ResourceHookBinding(
            before_create=[hook], before_update=[hook], on_error=[turned_away]
        )
        # Before the host is changed. On a node, other clocks must not stop a repair.
        clock = pulumi.ResourceHook(f"{host.name}-clock", check_clock)
        self._first_access = pulumi.ResourceHookBinding(
            before_create=[hook, clock], before_update=[hook], on_error=[turned_away]
        )

    def step(
        self,
        step: Step,
        parent: pulumi.Resource,
        *,
        values: Mapping[str, str],
        computed: Mapping[str, pulumi.Output[str]] | pulumi.Output[Mapping[str, str]] | None = None,
        triggers: Sequence[Any] = (),
        opts: pulumi.ResourceOptions | None = None,
        about: str | None = None,
        name: str | None = None,
    ) -> remote.Command:
        """Create the command of one step.

        Args:
            step: The step.
            parent: The component that owns the command.
            values: The step's values by name, as far as they are known from the settings.
            computed: Its other values. One output of all of them is cheaper than an output for each.
            triggers: Values whose change replaces the resource (delete, then create).
            opts: Dependencies and the like. Parent, aliases, delete_before_replace and the SSH access check
                are set here.
            about: The host that the step concerns, if it isn't the host that it runs on.
            name: The resource's name, if it isn't `HOST-STEP`.

        Raises:
            ValueError: `values` don't match the step's declared values.
        """
        own_values = {"REPAIR": self._host.repair} if step.repairs and self._host.repair is not None else {}

        def compose(found: Mapping[str, str], owner: str | None) -> str:
            given = {**values, **found}
            if given.keys() != step.values:
                raise ValueError(f"{step.name} takes {sorted(step.values)}, not {sorted(given)}")
            return step_text(step, {**given, **own_values, **({} if owner is None else {"OWNER": owner})})

        # Outputs are slow: with hundreds of hosts, most of the program's time goes into them.
        text: pulumi.Output[str] = pulumi.Output.all(
            computed or {}, self._owner if step.owned else None
        ).apply(lambda known: compose(known[0], known[1]))

        host = about or self._host.name
        name = name or f"{host}-{step.name}"

        def command(verb: str, limit: Callable[[Settings], int] | None) -> pulumi.Output[str] | None:
            if limit is None:
                return None
            seconds = limit(self._settings)
            return self._user.apply(
                lambda user: command_text(verb, step.name, self._host.name, seconds, user)
            )

        update = command("update", step.limit)
        if step.changes and update is not None:
            desired = _desired(name, text, parent, opts)
            update = pulumi.Output.all(update, desired.id).apply(lambda known: f"{known[0]} {known[1][:8]}")

        own = pulumi.ResourceOptions(
            parent=parent,
            aliases=[pulumi.Alias(name=f"{host}-{previous}") for previous in step.previous_names],
            # In the default order the delete would reset what the create has just set up.
            delete_before_replace=True,
            additional_secret_outputs=["stdin", "stdout", "stderr"] if step.secret else None,
            hooks=self._first_access if step is CLAIM else self.access,
        )
        return _StepCommand(
            name,
            lambda output, text: _results(step, host, output, text),
            remote.CommandArgs(
                connection=self._connection,
                create=command("create", step.limit),
                update=update,
                delete=command("delete", step.delete_limit),
                stdin=pulumi.Output.secret(text) if step.secret else text,
                triggers=list(triggers) or None,
                # sshd rejects unknown variables, which causes an error or a warning each time.
                add_previous_output_in_env=False,
                logging=remote.Logging.STDERR,
            ),
            pulumi.ResourceOptions.merge(own, opts),
        )


class _StepCommand(remote.Command):
    """A command whose `stdout` is the step's results, without other text of the host."""

    def __init__(
        self,
        name: str,
        results_of: Callable[[str, str], str],
        args: remote.CommandArgs,
        opts: pulumi.ResourceOptions,
    ) -> None:
        """Create the command.

        Args:
            name: The resource's name.
            results_of: Returns the results for the host's output and the text that ran.
            args: The command's arguments.
            opts: The resource's options.
        """
        super().__init__(name, args, opts=opts)
        self._results: pulumi.Output[str] = pulumi.Output.all(super().stdout, self.stdin).apply(
            lambda known: results_of(str(known[0]), str(known[1]))
        )

    @property
    def stdout(self) -> pulumi.Output[str]:
        """The step's results."""
        return self._results


def _kept_login(
    settings: Settings,
    host: Host,
    check: Callable[[Login], Awaitable[None]],
    parent: pulumi.Resource | None,
    after: pulumi.Output[None] | None,
) -> pulumi.Output[Login]:
    """The login that worked first. It is secret.

    Steps go on using it until `python -m tools credentials` replaces it in the state, so that other
    credentials in the settings don't change, and thereby run, every step (docs/decisions/0034).
    """
    given = Login.of(settings, host)

    async def check_given(_: pulumi.ResourceHookArgs) -> None:
        await check(given)

    # Without the check, a login that never works would be kept.
    hook = pulumi.ResourceHook(f"{host.name}-first-login", check_given)
    stash = pulumi.Stash(
        f"{host.name}-login",
        # Every step needs the login, so all of them wait.
        input=pulumi.Output.secret(pulumi.Output.all(given.values, after).apply(lambda known: known[0])),
        opts=pulumi.ResourceOptions(
            parent=parent, ignore_changes=["input"], hooks=pulumi.ResourceHookBinding(before_create=[hook])
        ),
    )

    def kept(values: Mapping[str, str]) -> Login:
        login = Login.stored(values)
        # Not in a preview, which is the same for all operators.
        if not (pulumi.runtime.is_dry_run() or login.same_as(given)):
            _report(ssh_access.replacement_hint(login, given))
        return login

    return stash.input.apply(kept)


@functools.cache
def _report(text: str) -> None:
    """Print a message once, not for each host."""
    pulumi.log.info(text)


class RetryWhenTurnedAway:
    """Decides whether the engine runs a host's step again after it couldn't connect.

    Access to the host was checked before, so a rate limit is the likely reason (ufw limit, fail2ban, sshd's
    MaxStartups). The provider tries every few seconds, which prolongs such a block; only a pause ends it.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.ssh.wait_seconds
        self._began: dict[str, float] = {}

    async def __call__(self, failure: pulumi.ErrorHookArgs) -> bool:
        """Pause and return whether to retry; a deletion isn't retried, because its host may be dead."""
        found = _NOT_CONNECTED.search(failure.errors[0])
        if failure.failed_operation == "delete" or found is None or _FINAL.search(failure.errors[0]):
            return False
        began = self._began.setdefault(failure.urn, time.monotonic())
        if time.monotonic() - began >= self._limit:
            return False
        pause = ssh_access.LIMITED_PAUSE_SECONDS
        reason = " ".join(found[1].split())
        pulumi.log.info(
            f"{failure.name}: the host no longer accepts connections ({reason}); a rate limit? "
            f"Retrying in {pause:.0f} s"
        )
        await asyncio.sleep(pause)
        return True


def _results(step: Step, host: str, output: str, text: str) -> str:
    """A step's results.

    Raises:
        pulumi.RunError: The step didn't run, although the host reported success.
    """
    if step.limit is None:
        return ""  # it has never run
    if not has_results(text):
        return output  # of an earlier version of the program, in a run that doesn't update it (`--target`)
    try:
        return results(output)
    except ValueError as error:
        raise pulumi.RunError(
            f"{host}: {step.name}: the host reported success, but {error}. Make the login run commands "
            "and print nothing else (login shell, ~/.bashrc, ForceCommand in sshd_config); then set "
            f"`repair` on {host} to a new text and run `pulumi up`"
        ) from None


def _desired(
    name: str,
    text: pulumi.Output[str],
    parent: pulumi.Resource,
    opts: pulumi.ResourceOptions | None,
) -> pulumi.Stash:
    """A digest of the text that a step should have run. A different text replaces it, so its ID changes.

    It is stored before the step starts and stays if the step fails. Reverting a failed change is then a
    change too, and the step runs although the inputs in its own state are still the earlier ones
    (docs/decisions/0020).
    """
    digest = pulumi.Output.unsecret(text).apply(lambda known: hashlib.sha256(known.encode()).hexdigest()[:16])
    return pulumi.Stash(
        f"{name}-desired",
        input=digest,
        opts=pulumi.ResourceOptions(
            parent=parent,
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


def _connection(settings: Settings, host: Host, login: Login) -> remote.ConnectionArgs:
    """The SSH connection to a host, with a pinned host key and limited connection attempts."""
    private_key = login.private_key or None
    address, port = settings.ssh_endpoint(host)
    jump = settings.jump_host(host)
    proxy = None
    if jump is not None:
        proxy = remote.ProxyConnectionArgs(
            host=jump.address,
            port=float(jump.port),
            user=login.jump_user(jump),
            host_key=jump.host_key,
            private_key=private_key,
            per_dial_timeout=settings.ssh.dial_timeout_seconds,
            dial_error_limit=settings.ssh.dial_attempts,
        )
    return remote.ConnectionArgs(
        host=address,
        port=float(port),
        user=login.user,
        host_key=settings.host_key(host),
        private_key=private_key,
        per_dial_timeout=settings.ssh.dial_timeout_seconds,
        dial_error_limit=settings.ssh.dial_attempts,
        proxy=proxy,
    )
