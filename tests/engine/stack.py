"""Runs the real engine and the present plugins on small programs, each with state of its own.

The programs run as the Automation API runs inline programs, in a process that is forked from one
that has imported the SDK already: a new interpreter with the list of its packages for each run
would take longer than the run. Not in the test's own process: what a program that failed leaves
behind, half-run coroutines and threads among it, disturbed tests that came after. A test of the
language host itself asks for it (`Stack.language_host`).
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

LIMIT_SECONDS = 300  # for one engine run: generous, since the machine may be busy

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["__main__", "pulumi.automation", "pulumi_command", "pulumi_kubernetes"])


def _serve(source: str, environment: Mapping[str, str], said: Connection) -> None:
    """Be the language host of one program until killed; says its port first."""
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
    said.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


@dataclass(frozen=True)
class Step:
    """What the engine did, or would do, to one resource."""

    op: str  # create, update, same, delete, replace, create-replacement, delete-replaced, read, refresh
    name: str
    type: str
    state: dict[str, Any]  # as the engine shows it after the step: `inputs`, `outputs`, `id`
    changed: tuple[str, ...]  # the property paths that differ

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


@dataclass(frozen=True)
class Run:
    """One run of `pulumi`."""

    status: int
    text: str  # everything it printed, both streams
    messages: tuple[str, ...]  # diagnostics at info and above; not the signs of life
    signs: tuple[str, ...]  # the signs of life that a terminal overwrites
    steps: tuple[Step, ...]  # without those of the stack and of providers

    @property
    def ops(self) -> list[str]:
        """`op name` for all that wasn't the same."""
        return [str(step) for step in self.steps if step.op not in ("same", "refresh")]

    def step(self, name: str) -> Step:
        """The last step of a resource."""
        return [step for step in self.steps if step.name == name][-1]


@dataclass
class Stack:
    """A project folder with one stack in a file backend of its own."""

    folder: Path
    environment: dict[str, str]
    extra: dict[str, str] = field(default_factory=dict)  # variables that the next runs get in addition
    language_host: bool = False  # run programs by the language host, as a person's run does
    name: str = "test"

    def program(self, text: str) -> Stack:
        """Write the program."""
        (self.folder / "__main__.py").write_text(text)
        return self

    def up(self, *arguments: str, fails: bool = False) -> Run:
        """`pulumi up`; the test fails unless it succeeds, or fails, as expected."""
        return self._expected(self._run("up", "--yes", "--skip-preview", "--json", *arguments), fails)

    def destroy(self, *arguments: str, fails: bool = False) -> Run:
        """`pulumi destroy`, without running the program."""
        return self._expected(self._run("destroy", "--yes", "--skip-preview", "--json", *arguments), fails)

    def refresh(self, fails: bool = False) -> Run:
        """`pulumi refresh`."""
        return self._expected(self._run("refresh", "--yes", "--skip-preview", "--json"), fails)

    def preview(self, *arguments: str, fails: bool = False) -> Run:
        """`pulumi preview`."""
        return self._expected(self._run("preview", "--json", *arguments), fails)

    def preview_as_written(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`pulumi preview` with the language host, as a person or a step runs it: what it prints as it is."""
        return self._call("preview", *arguments)

    def state(self) -> list[dict[str, Any]]:
        """The resources in the state, as stored: secrets are ciphertext."""
        exported = json.loads(self._call("stack", "export").stdout)
        return [
            entry for entry in exported["deployment"].get("resources", []) if not _internal(entry["type"])
        ]

    def forget(self, urn: str, *arguments: str) -> None:
        """Take a resource out of the state; what it has made stays where it is."""
        done = self._call("state", "delete", urn, *arguments, "--yes")
        assert done.returncode == 0, done.stderr

    def raw_state(self) -> str:
        """The whole backend's content, as it lies on the disk."""
        files = sorted((self.folder.parent / "backend").rglob("*.json*"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def output(self, name: str) -> Any:
        """A stack output, revealed."""
        return json.loads(self._call("stack", "output", name, "--json", "--show-secrets").stdout)

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pulumi", *arguments, "--stack", self.name, "--non-interactive"],
            cwd=self.folder,
            env={**self.environment, **self.extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )

    def _run(self, *arguments: str) -> Run:
        if self.language_host or arguments[0] not in ("up", "preview"):
            done = self._call(*arguments)
        else:
            with self._inline() as address:
                done = self._call(*arguments, f"--client={address}", "--exec-kind=auto.inline")
        messages, signs, steps = _events(done.stdout) if "preview" not in arguments else _plan(done.stdout)
        return Run(done.returncode, done.stdout + done.stderr, tuple(messages), tuple(signs), tuple(steps))

    @contextmanager
    def _inline(self) -> Iterator[str]:
        hears, says = _processes.Pipe(duplex=False)
        source = (self.folder / "__main__.py").read_text()
        process = _processes.Process(
            target=_serve, args=(source, {**os.environ, **self.extra}, says), daemon=True
        )
        process.start()
        says.close()
        try:
            # Ends by EOFError where the process can't start: its traceback is above.
            yield f"127.0.0.1:{hears.recv()}"
        finally:
            # The engine has ended, so nothing of the program is still wanted.
            process.kill()
            process.join()
            hears.close()

    @staticmethod
    def _expected(run: Run, fails: bool) -> Run:
        assert (run.status != 0) == fails, "\n".join(run.messages) or run.text
        return run


def make_stack(folder: Path, environment: dict[str, str]) -> Stack:
    """A new project with an empty stack."""
    project = folder / "project"
    project.mkdir(parents=True)
    (project / "Pulumi.yaml").write_text("name: conformance\nruntime: python\n")
    return make_stack_of(project, environment)


def make_stack_of(project: Path, environment: dict[str, str], name: str = "test") -> Stack:
    """An empty stack of a project that is there; its backend lies beside the project's folder."""
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
    """A committed stack in `folder/project`, empty; what its settings name in a home is in `folder/home`."""
    project, home = folder / "project", folder / "home"
    stacks.copy_checkout(project)
    forget_state(project, name)
    home.mkdir()
    stacks.make_home(home, name)
    # Where plugins may be is the person's own all the same.
    plugins = os.environ.get("PULUMI_HOME", str(Path.home() / ".pulumi"))
    stack = make_stack_of(project, {**environment, "PULUMI_HOME": plugins, "HOME": str(home)}, name)
    stack.language_host = True
    return stack


def forget_state(project: Path, name: str) -> None:
    """Take Pulumi's own lines out of a stack's file: they are of another state than the next command's."""
    file = project / f"Pulumi.{name}.yaml"
    own = ("encryptionsalt:", "encryptedkey:", "secretsprovider:")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(own)))


def _internal(kind: str) -> bool:
    return kind.startswith(("pulumi:pulumi:", "pulumi:providers:"))


def _step(op: str, urn: str, kind: str, state: dict[str, Any] | None, changed: dict[str, Any] | None) -> Step:
    return Step(op, urn.split("::")[-1], kind, state or {}, tuple(sorted(changed or {})))


def _events(text: str) -> tuple[list[str], list[str], list[Step]]:
    messages: list[str] = []
    signs: list[str] = []
    steps: list[Step] = []
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        said = event.get("diagnosticEvent")
        if said and said.get("severity") != "debug":
            (signs if said.get("ephemeral") else messages).append(
                said.get("prefix", "") + said["message"].rstrip()
            )
        # The pre-event says that a step begins: a failed one has nothing else.
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
    return messages, signs, steps


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
