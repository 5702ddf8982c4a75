"""A fake QEMU that answers the QMP commands the lab uses."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any

from lab import qemu


class FakeQemu:
    """Listens on qmp.sock in a host's folder.

    Attributes:
        status: The guest's status, as `query-status` returns it.
        jobs: The remaining states of each job; every `query-jobs` moves a job to its next state.
        rejected: Commands that return an error.
        received: The commands so far, in order.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.status = "running"
        self.jobs: dict[str, deque[str]] = {}
        self.rejected: set[str] = set()
        self.received: list[str] = []
        self._server = socket.socket(socket.AF_UNIX)
        # The full path may be too long for a socket.
        before = Path.cwd()
        os.chdir(folder)
        self._server.bind("qmp.sock")
        os.chdir(before)
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                stream.write('{"QMP": {}}\n')
                stream.flush()
                for line in stream:
                    request = json.loads(line)
                    stream.write(json.dumps(self._answer(request["execute"], request["arguments"])) + "\n")
                    stream.flush()

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command not in ("qmp_capabilities", "query-jobs"):
            self.received.append(command)
        if command in self.rejected:
            return {"error": {"desc": "rejected"}}
        match command:
            case "query-status":
                return {"return": {"status": self.status}}
            case "stop" | "cont":
                self.status = "paused" if command == "stop" else "running"
            case "query-named-block-nodes":
                image = {"snapshots": [{"name": "plain"}]}
                return {"return": [{"node-name": qemu.DISK, "image": image}]}
            case "query-jobs":
                listed = [{"id": name, "status": states[0]} for name, states in self.jobs.items()]
                for states in self.jobs.values():
                    if len(states) > 1:
                        states.popleft()
                return {"return": listed}
            case "job-dismiss":
                del self.jobs[arguments["id"]]
            case "snapshot-save" | "snapshot-load" | "snapshot-delete":
                if arguments["job-id"] in self.jobs:
                    return {"error": {"desc": f"Job ID '{arguments['job-id']}' already in use"}}
                self.jobs[arguments["job-id"]] = deque(["running", "concluded"])
        return {"return": {}}
