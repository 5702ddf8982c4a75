"""`python -m tools credentials --stack NAME`: put the settings' login into the stack's state.

Steps log in with what the state holds, whatever `ssh.user` and `ssh.privateKeyFile` are now
(docs/decisions/0034). After either has changed, this command replaces the login in every step of the state.
It contacts no host, so it also works if the previous key is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from common import cli, tables
from common.errors import UserError
from model.login import Login
from model.settings import Host, HostSsh, Settings
from model.steps import as_root, host_of
from report.plan import COMMAND, STASH
from tools.check import pulumi, settings_of

# How an export with --show-secrets marks a secret (sdk/go/common/resource/sig and apitype.SecretV1).
_SIGNATURE, _SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"
_END = "-login"
_VERBS = ("create", "update", "delete")


@dataclass(frozen=True)
class Change:
    """A resource whose login is replaced.

    Attributes:
        host: The host that it logs in to.
        before: The login in the state.
        after: The login in the settings.
    """

    host: str
    before: Login
    after: Login


def replace(state: dict[str, Any], settings: Settings) -> list[Change]:
    """Replace the logins in an exported state, in place.

    Args:
        state: A state exported with `--show-secrets`.
        settings: The stack's settings. Hosts that are no longer in them get the login for all hosts.

    Returns:
        The resources that had another login.

    Raises:
        UserError: The state isn't in the expected form.
    """
    changes: list[Change] = []
    try:
        for resource in state["deployment"].get("resources") or []:
            if resource["type"] == COMMAND:
                changes += _in_command(resource, settings)
            elif resource["type"] == STASH and resource["urn"].endswith(_END):
                changes += _in_stash(resource, settings)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("the state isn't in the expected form; nothing was changed") from None
    return changes


def _login_for(name: str, settings: Settings) -> tuple[Host, Login]:
    host = next((host for host in settings.hosts if host.name == name), None)
    if host is None:
        host = settings.hosts[0].model_copy(update={"name": name, "ssh": HostSsh()})
    return host, Login.of(settings, host)


def _in_command(resource: dict[str, Any], settings: Settings) -> list[Change]:
    name = host_of(next((resource["inputs"][v] for v in _VERBS if v in resource["inputs"]), ""))
    if name is None:
        return []
    host, after = _login_for(name, settings)
    jump = settings.jump_host(host)

    def with_login(connection: Any) -> Any:
        changed = _with(connection, after.user, after.private_key)
        if "proxy" not in connection:
            return changed
        proxy = _plain(connection["proxy"])
        same = jump is not None and (jump.address, jump.port) == (proxy["host"], proxy["port"])
        user = jump.user if jump is not None and same else proxy["user"]
        proxied = _edited(connection["proxy"], lambda proxy: _with(proxy, user, after.private_key))
        return {**changed, "proxy": proxied}

    before = _login_in(_plain(resource["inputs"]["connection"]))
    found: list[Change] = []
    # A preview compares the inputs; a delete uses the outputs.
    for part in (resource["inputs"], resource["outputs"]):
        new = {verb: as_root(part[verb], after.user) for verb in _VERBS if verb in part}
        new["connection"] = _edited(part["connection"], with_login)
        if _plain(new) != _plain({name: part[name] for name in new}):
            part |= new
            found = [Change(name, before, after)]
    return found


def _in_stash(resource: dict[str, Any], settings: Settings) -> list[Change]:
    name = resource["urn"].rpartition("::")[2].removesuffix(_END)
    _, after = _login_for(name, settings)
    before = Login.stored(_plain(resource["inputs"]["input"]))
    if before == after:
        return []
    stored = _secret(after.values)
    resource["inputs"]["input"] = stored
    resource["outputs"] = {"input": stored, "output": stored}
    return [Change(name, before, after)]


def _login_in(connection: Mapping[str, Any]) -> Login:
    proxy = connection.get("proxy")
    jump = f"{proxy['user']}@{proxy['host']}:{proxy['port']:.0f}" if proxy else ""
    return Login(connection["user"], connection.get("privateKey") or "", jump)


def _with(connection: Mapping[str, Any], user: str, key: str) -> dict[str, Any]:
    """A connection, or the one to a jump host, with another login."""
    others = {name: value for name, value in connection.items() if name != "privateKey"}
    return {**others, "user": user, **({"privateKey": _secret(key)} if key else {})}


def _is_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(_SIGNATURE) == _SECRET


def _secret(value: Any) -> dict[str, str]:
    """A value marked as a secret; Pulumi encrypts it when the state is imported."""
    return {_SIGNATURE: _SECRET, "plaintext": json.dumps(value)}


def _edited(value: Any, edit: Callable[[Any], Any]) -> Any:
    """A value after an edit; a secret stays a secret."""
    return _secret(edit(json.loads(value["plaintext"]))) if _is_secret(value) else edit(value)


def _plain(value: Any) -> Any:
    """A value without its marks of secrets."""
    if _is_secret(value):
        return _plain(json.loads(value["plaintext"]))
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def table(changes: list[Change]) -> str:
    """A row for each host: its login in the state and in the settings, and the number of resources."""
    rows: dict[tuple[str, str, str], int] = {}
    for change in changes:
        row = (change.host, str(change.before), str(change.after))
        rows[row] = rows.get(row, 0) + 1
    return tables.table(
        ("HOST", "IN THE STATE", "IN THE SETTINGS", "STEPS"), [(*row, str(n)) for row, n in rows.items()]
    )


def run(stack: str, settings: Settings, *, write: bool) -> str:
    """Replace the logins in a stack's state, or only find out what would be replaced.

    Returns:
        What was replaced, as text.

    Raises:
        UserError: The state can't be read or written.
    """
    exported = pulumi("stack", "export", "--stack", stack, "--show-secrets", "--non-interactive")
    if exported.returncode != 0:
        raise UserError(f"the state of the stack {stack} can't be read: {exported.stderr.strip()}")
    state = json.loads(exported.stdout)
    changes = replace(state, settings)
    if not changes:
        return "every step in the state has the settings' login\n"
    if not write:
        return f"{table(changes)}\n\nnothing was changed; add --write to replace the logins in the state\n"
    imported = pulumi("stack", "import", "--stack", stack, "--non-interactive", given=json.dumps(state))
    if imported.returncode != 0:
        raise UserError(f"the state of the stack {stack} can't be written: {imported.stderr.strip()}")
    return f"{table(changes)}\n\nreplaced in the state; no host was contacted\n"


@click.command()
@cli.stack_option
@click.option("--write", is_flag=True, help="Change the state instead of only showing what would change.")
def command(stack: str, *, write: bool) -> None:
    """Put the login from the settings into the state."""
    print(run(stack, settings_of(stack), write=write), end="")
