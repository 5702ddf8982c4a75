"""A small client for the QEMU Machine Protocol (QMP): pause guests, save and load snapshots."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from common.errors import UserError


class Qmp:
    """A connection to one guest's QEMU, for use in a `with` statement."""

    def __init__(self, folder: Path, timeout: float = 30.0) -> None:
        """Connect.

        Args:
            folder: The host's folder, which holds `qmp.sock`.
            timeout: Seconds to wait for a single response.

        Raises:
            UserError: QEMU isn't running or doesn't respond.
        """
        self._name = folder.name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        # A socket path is limited to 107 characters, so go through the folder's file descriptor.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{descriptor}/qmp.sock")
            self._stream = self._socket.makefile("r", encoding="utf-8")
            self._stream.readline()  # the greeting
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise UserError(f"QEMU for {self._name} doesn't respond: {error}") from None
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Close both: the connection stays open until its last file is closed, and QEMU accepts only one.
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its result.

        Raises:
            UserError: QEMU rejects the command or has exited.
        """
        request = {
            "execute": command,
            "arguments": {key.replace("_", "-"): arguments[key] for key in arguments},
        }
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while line := self._stream.readline():
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise UserError(
                        f"QEMU for {self._name} rejected {command}: {answer['error'].get('desc')}"
                    )
        except OSError as error:
            raise UserError(f"QEMU for {self._name} doesn't respond to {command}: {error}") from None
        raise UserError(f"QEMU for {self._name} exited during {command}")

    def job(self, command: str, job_id: str, seconds: float, **arguments: Any) -> None:
        """Run a command that starts a job, and wait for the job to finish.

        If a killed run left a job with this ID behind, wait for that job and dismiss it first: QEMU keeps
        finished jobs until they are dismissed.

        Args:
            command: The QMP command.
            job_id: The job's ID.
            seconds: How long to wait.
            **arguments: The command's arguments, with underscores for hyphens.

        Raises:
            UserError: The job fails or takes too long.
        """
        deadline = time.monotonic() + seconds
        if self._concluded(job_id, command, deadline) is not None:
            self.execute("job-dismiss", id=job_id)
        self.execute(command, job_id=job_id, **arguments)
        job = self._concluded(job_id, command, deadline)
        if job is None:
            raise UserError(f"QEMU for {self._name} lost the job that {command} started")
        self.execute("job-dismiss", id=job_id)
        if "error" in job:
            raise UserError(f"{command} failed for {self._name}: {job['error']}")

    def _concluded(self, job_id: str, command: str, deadline: float) -> dict[str, Any] | None:
        """Wait for a job to finish and return it; None if no job has that ID."""
        while True:
            jobs: list[dict[str, Any]] = self.execute("query-jobs")
            job = next((job for job in jobs if job["id"] == job_id), None)
            if job is None or job["status"] == "concluded":
                return job
            if time.monotonic() > deadline:
                raise UserError(f"{command} timed out for {self._name}")
            time.sleep(0.1)

    def snapshots(self, node: str) -> list[str]:
        """The tags of the snapshots in a disk."""
        for entry in self.execute("query-named-block-nodes", flat=True):
            if entry.get("node-name") == node:
                return [snapshot["name"] for snapshot in entry["image"].get("snapshots", [])]
        return []
