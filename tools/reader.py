"""Runs read-only scripts on a host outside a Pulumi run and returns their output."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from common.errors import UserError
from components import ssh_access
from model.login import Login
from model.settings import Host, Settings
from model.steps import Script, command_text, results, script_text

if TYPE_CHECKING:
    import asyncssh

_LOST_SECONDS = 30  # after the script's own time limit, the connection is considered dead


class Reader:
    """Reads one host. Logs in for the first script, stays logged in, and reconnects if necessary."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.host = host
        self._settings = settings
        self._login = Login.of(settings, host)
        self._connection: asyncssh.SSHClientConnection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()

    async def run(self, script: Script, values: Mapping[str, str], limit_seconds: int) -> str:
        """Run a script and return its results.

        Args:
            script: A script that changes nothing.
            values: The script's values.
            limit_seconds: Its time limit.

        Raises:
            UserError: The host can't be reached, doesn't answer in time, or the script failed.
        """
        import asyncssh

        command = command_text("create", script.name, self.host.name, limit_seconds, self._login.user)
        connection = await self._connected()
        try:
            async with asyncio.timeout(limit_seconds + _LOST_SECONDS):
                done = await connection.run(command, input=script_text(script, values), check=False)
            if done.exit_status is None:
                raise ConnectionError
        except (OSError, asyncssh.Error) as error:
            connection.abort()
            self._connection = None
            why = "no answer" if isinstance(error, TimeoutError) else str(error)
            raise UserError(f"the connection was lost{why and f': {why}'}") from None
        if done.exit_status != 0:
            lines = str(done.stderr or "").strip().splitlines()
            # Start at the script's own error message: the cause, followed by the next move.
            failed = next((number for number, line in enumerate(lines) if ": FAILED: " in line), -1)
            raise UserError("\n".join(lines[failed:]) or f"the script ended with status {done.exit_status}")
        try:
            return results(str(done.stdout))
        except ValueError as error:
            raise UserError(f"the host reported success, but {error}") from None

    async def _connected(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            try:
                connection = await ssh_access.connect(self._settings, self.host, self._login)
                try:
                    await ssh_access.check_commands(connection, self.host, self._login)
                except BaseException:
                    connection.abort()
                    raise
                self._connection = connection
            except ssh_access.NotAnsweringError as error:
                server = "the SSH server accepts no login" if error.greeted else "no SSH server answers"
                raise UserError(f"{server} at {error.endpoint}: {error}") from None
            except ssh_access.UnreachableError as error:
                raise UserError(str(error)) from None
        return self._connection
