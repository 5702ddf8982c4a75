"""Runs a Pulumi program against a monitor that records every resource with its options."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from pulumi.runtime import mocks, settings, stack

from report.plan import STASH

STACK = "test"
OWNER = f"{STACK} 4fd10a2b"  # as chosen by an earlier run
TOKEN_KEY = "5eed" * 16  # the same
KEPT = {"owner": OWNER, "join-tokens": TOKEN_KEY}
# Marks a secret in messages to the engine (sdk/go/common/resource/sig).
SIGNATURE, SECRET = "4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270"


def _secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def _unwrapped(value: Any) -> Any:
    if _secret(value):
        return _unwrapped(value["value"])
    if isinstance(value, dict):
        return {key: _unwrapped(part) for key, part in value.items()}
    return [_unwrapped(part) for part in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if _secret(value):
        return "[secret]"
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


class _Mocks(mocks.Mocks):
    def __init__(self, outputs: Callable[[str], dict[str, Any]]) -> None:
        self._outputs = outputs

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        kept = {"output": KEPT.get(args.name, args.inputs.get("input"))} if args.typ == STASH else {}
        return f"{args.name}-id", {**args.inputs, **kept, **self._outputs(args.name)}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        assert args.token == "pulumi:pulumi:readStackOutputs", f"unexpected call of a function: {args.token}"
        return {"outputs": {}}, []  # like the engine for a new stack


class Recorder(mocks.MockMonitor):
    """Keeps every registration as the engine would receive it, because `MockResourceArgs` has no options."""

    def __init__(self, outputs: Callable[[str], dict[str, Any]]) -> None:
        super().__init__(_Mocks(outputs))
        self.requests: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        # Inputs as in the state, where secrets are encrypted.
        self.plain: dict[str, Any] = {}
        self.urns: dict[str, str] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 # the protocol's name
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call] # the SDK has no types here
        if request.custom or request.type.startswith("kubeadm-ipvs:"):
            key = request.name if request.custom else f"{request.type.rpartition(':')[2]} {request.name}"
            assert key not in self.requests, f"two resources have the name {key}"
            self.requests[key] = request
            sent = MessageToDict(request.object)
            self.inputs[key] = _unwrapped(sent)
            self.plain[key] = _plain(sent)
            self.urns[response.urn] = key
        return response

    def names(self, urns: Any) -> set[str]:
        """The names of recorded resources by their URNs."""
        return {self.urns[urn] for urn in urns if urn in self.urns}

    def before(self, name: str) -> set[str]:
        """All resources that a resource waits for, even indirectly, except records of desired changes."""
        found: set[str] = set()
        todo = [name]
        while todo:
            request = self.requests[todo.pop()]
            new = self.names(request.dependencies) - found
            found |= new
            todo += new
        return {other for other in found if self.requests[other].type != STASH}


def run(
    program: Callable[[], Awaitable[None] | None],
    outputs: Callable[[str], dict[str, Any]],
    preview: bool = False,
) -> Recorder:
    """Run `program` as Pulumi would, and return the resources that it registered."""
    recorder = Recorder(outputs)

    async def whole() -> None:
        settings.reset_options()
        values = _Mocks(outputs)
        mocks.set_mocks(values, project="kubeadm-ipvs", stack=STACK, preview=preview, monitor=recorder)
        settings.SETTINGS.rpc_manager.clear()
        settings.SETTINGS.outputs.clear()
        await stack.run_pulumi_func(program)

    # asyncio.run closes the loop and ends its threads, which would add up over hundreds of runs.
    asyncio.run(whole())
    return recorder
