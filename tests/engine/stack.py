"""Runs the real engine and plugins on small programs, each with its own state.

Programs run like inline programs of the Automation API, in a process forked from one that has already
imported the SDK: starting an interpreter and listing its packages takes longer than the run itself. They
don't run in the test's process, because coroutines and threads left behind by a failed program disturbed
later tests. Tests that need the language host set `Stack.language_host`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests import stacks

LIMIT_SECONDS = 300  # for one engine run; generous, because the computer may be busy

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["__main__", "pulumi.automation", "pulumi_command", "pulumi_kubernetes"])


def _serve(source: str, environment: Mapping[str, str], sender: Connection) -> None:
    """Serve as one program's language host until killed, after sending the port."""
    import grpc
    from pulumi.automation._server import LanguageServer
    from pulumi.runtime.proto import language_pb2_grpc

    os.environ.clear()
    os.environ.update(environment)
    code = compile(source, "__main__.py", "exec")

    def program() -> None:
        exec(code, {"__name__": "__main__"})

    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(LanguageServer(program), server)
    sender.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


@dataclass(frozen=True)
class Step:
    """An operation on one resource, done or planned."""

    op: str  # create, update, same, delete, replace, create-replacement, delete-replaced, read, refresh
    name: str
    type: str
    state: dict[str, Any]  # after the step: `inputs`, `outputs`, `id`
    changed: tuple[str, ...]  # the property paths that differ

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


@dataclass(frozen=True)
class Run:
    """One run of `pulumi`."""

    status: int
    text: str  # all output, both streams
    messages: tuple[str, ...]  # diagnostics from info up, without progress
    progress: tuple[str, ...]  # progress lines, which a terminal overwrites
    steps: tuple[Step, ...]  # without those of the stack and providers

    @property
    def ops(self) -> list[str]:
        """`op name` of each changed resource."""
        return [str(step) for step in self.steps if step.op not in ("same", "refresh")]

    def step(self, name: str) -> Step:
        """A resource's last step."""
        return [step for step in self.steps if step.name == name][-1]


@dataclass
class Stack:
    """A project folder with one stack in its own file backend."""

    folder: Path
    environment: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)  # more variables for the next runs
    language_host: bool = False  # run programs in the language host, as for a user
    name: str = "test"
    limit_seconds: float = LIMIT_SECONDS  # for one engine run

    def program(self, text: str) -> Stack:
        """Write the program."""
        (self.folder / "__main__.py").write_text(text)
        return self

    def up(self, *arguments: str, fails: bool = False) -> Run:
        """Run `pulumi up`, and assert that it succeeds, or that it fails."""
        return self._expected(self._run("up", "--yes", "--skip-preview", "--json", *arguments), fails)

    def destroy(self, *arguments: str, fails: bool = False) -> Run:
        """Run `pulumi destroy`, which doesn't run the program."""
        return self._expected(self._run("destroy", "--yes", "--skip-preview", "--json", *arguments), fails)

    def refresh(self, fails: bool = False) -> Run:
        """Run `pulumi refresh`."""
        return self._expected(self._run("refresh", "--yes", "--skip-preview", "--json"), fails)

    def preview(self, *arguments: str, fails: bool = False) -> Run:
        """Run `pulumi preview`."""
        return self._expected(self._run("preview", "--json", *arguments), fails)

    def plain_preview(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `pulumi preview` as a user would, with the language host and readable output."""
        return self.call("preview", *arguments)

    def state(self) -> list[dict[str, Any]]:
        """The resources as stored in the state, with encrypted secrets."""
        exported = json.loads(self.call("stack", "export").stdout)
        return [
            entry for entry in exported["deployment"].get("resources", []) if not _internal(entry["type"])
        ]

    def forget(self, urn: str, *arguments: str) -> None:
        """Remove a resource from the state, but not what it created."""
        done = self.call("state", "delete", urn, *arguments, "--yes")
        assert done.returncode == 0, done.stderr

    def raw_state(self) -> str:
        """The backend's content as stored on disk."""
        files = sorted((self.folder.parent / "backend").rglob("*.json*"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def output(self, name: str) -> Any:
        """A stack output in plain text."""
        return json.loads(self.call("stack", "output", name, "--json", "--show-secrets").stdout)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run any Pulumi command on the stack."""
        try:
            return subprocess.run(
                ["pulumi", *arguments, "--stack", self.name, "--non-interactive"],
                cwd=self.folder,
                env={**self.environment, **self.extra},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.limit_seconds,
            )
        except subprocess.TimeoutExpired as expired:
            lines = (expired.stdout or b"").decode(errors="replace").splitlines()
            last = "\n".join(line[:500] for line in lines[-10:])
            raise AssertionError(f"pulumi didn't end in time; its last lines:\n{last}") from None

    def _run(self, *arguments: str) -> Run:
        if self.language_host or arguments[0] not in ("up", "preview"):
            done = self.call(*arguments)
        else:
            with self._inline() as address:
                done = self.call(*arguments, f"--client={address}", "--exec-kind=auto.inline")
        messages, progress, steps = _events(done.stdout) if "preview" not in arguments else _plan(done.stdout)
        return Run(done.returncode, done.stdout + done.stderr, tuple(messages), tuple(progress), tuple(steps))

    @contextmanager
    def _inline(self) -> Iterator[str]:
        receiver, sender = _processes.Pipe(duplex=False)
        source = (self.folder / "__main__.py").read_text()
        process = _processes.Process(
            target=_serve, args=(source, {**os.environ, **self.extra}, sender), daemon=True
        )
        process.start()
        sender.close()
        try:
            # Raises EOFError if the process can't start; its traceback is above.
            yield f"127.0.0.1:{receiver.recv()}"
        finally:
            # The engine has exited, so the program isn't needed any more.
            process.kill()
            process.join()
            receiver.close()

    @staticmethod
    def _expected(run: Run, fails: bool) -> Run:
        assert (run.status != 0) == fails, "\n".join(run.messages) or run.text
        return run


def make_stack(folder: Path, environment: dict[str, str]) -> Stack:
    """Create a project with an empty stack."""
    project = folder / "project"
    project.mkdir(parents=True)
    (project / "Pulumi.yaml").write_text("name: conformance\nruntime: python\n")
    return make_stack_of(project, environment)


def make_stack_of(project: Path, environment: dict[str, str], name: str = "test") -> Stack:
    """Create an empty stack for an existing project, with the backend next to the project's folder."""
    backend = project.parent / "backend"
    backend.mkdir()
    variables = {
        **environment,
        "PULUMI_BACKEND_URL": backend.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "conformance",
    }
    variables.pop("PULUMI_CONFIG_PASSPHRASE_FILE", None)
    stack = Stack(project, variables, name=name)
    made = subprocess.run(
        ["pulumi", "stack", "init", name, "--non-interactive"],
        cwd=project,
        env=variables,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert made.returncode == 0, made.stderr
    return stack


def make_committed_stack(folder: Path, environment: dict[str, str], name: str) -> Stack:
    """Create an empty stack from a committed stack file, in a copy of the checkout.

    The copy is `folder/project`. The files that its settings name in the home directory are in `folder/home`.
    """
    project, home = folder / "project", folder / "home"
    stacks.copy_checkout(project)
    forget_state(project, name)
    home.mkdir()
    stacks.make_home(home, name)
    # The plugin cache is still the user's.
    plugins = os.environ.get("PULUMI_HOME", str(Path.home() / ".pulumi"))
    stack = make_stack_of(project, {**environment, "PULUMI_HOME": plugins, "HOME": str(home)}, name)
    stack.language_host = True
    return stack


def forget_state(project: Path, name: str) -> None:
    """Remove the lines that Pulumi wrote to a stack file; they belong to a different backend."""
    file = project / f"Pulumi.{name}.yaml"
    own = ("encryptionsalt:", "encryptedkey:", "secretsprovider:")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(own)))


def replace_in(file: Path, old: str, new: str) -> None:
    """Replace a text that must be in the file."""
    text = file.read_text()
    assert old in text, f"{file} doesn't contain {old!r}"
    file.write_text(text.replace(old, new))


def _internal(kind: str) -> bool:
    return kind.startswith(("pulumi:pulumi:", "pulumi:providers:"))


def _step(op: str, urn: str, kind: str, state: dict[str, Any] | None, changed: dict[str, Any] | None) -> Step:
    return Step(op, urn.split("::")[-1], kind, state or {}, tuple(sorted(changed or {})))


def _events(text: str) -> tuple[list[str], list[str], list[Step]]:
    messages: list[str] = []
    progress: list[str] = []
    steps: list[Step] = []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        diagnostic = event.get("diagnosticEvent")
        if diagnostic and diagnostic.get("severity") != "debug":
            (progress if diagnostic.get("ephemeral") else messages).append(
                diagnostic.get("prefix", "") + diagnostic["message"].rstrip()
            )
        # A failed step has only the pre-event, which marks its beginning.
        found = event.get("resourcePreEvent") or event.get("resOutputsEvent")
        if found and not _internal(found["metadata"]["type"]):
            about = found["metadata"]
            step = _step(
                about["op"],
                about["urn"],
                about["type"],
                about.get("new") or about.get("old"),
                about.get("detailedDiff"),
            )
            if "resOutputsEvent" in event:
                steps = [other for other in steps if (other.op, other.name) != (step.op, step.name)] + [step]
            else:
                steps.append(step)
    return messages, progress, steps


def _plan(text: str) -> tuple[list[str], list[str], list[Step]]:
    start = text.find("{\n")
    if start < 0:
        return [], [], []
    plan = json.loads(text[start:])
    messages = [
        entry.get("prefix", "") + entry["message"].rstrip() for entry in plan.get("diagnostics") or []
    ]
    steps = []
    for entry in plan.get("steps") or []:
        state = entry.get("newState") or entry.get("oldState") or {}
        if state and not _internal(state["type"]):
            steps.append(_step(entry["op"], entry["urn"], state["type"], state, entry.get("detailedDiff")))
    return messages, [], steps
