"""The base of both stand-ins: Pulumi's provider protocol over gRPC, and the engine's log.

The engine starts a plugin with the engine's address as the argument, reads the port that the plugin prints,
and sends SIGINT at the end. A plugin exits on its own if its engine dies.
"""

# The protocol's definition (pulumi/pulumi, proto/pulumi/provider.proto) names and documents its methods.
# ruff: noqa: D102, N802

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import (
    engine_pb2,
    engine_pb2_grpc,
    plugin_pb2,
    provider_pb2,
    provider_pb2_grpc,
    status_pb2,
)

from common import versions
from standins import values

_MESSAGE_LIMIT = 400 * 1024 * 1024  # bytes; the engine's own limit
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
]
_PARENT_CHECK_SECONDS = 2.0

INFO = engine_pb2.INFO
WARNING = engine_pb2.WARNING

_KIND = {
    "add": provider_pb2.PropertyDiff.ADD,
    "delete": provider_pb2.PropertyDiff.DELETE,
    "update": provider_pb2.PropertyDiff.UPDATE,
    "add-replace": provider_pb2.PropertyDiff.ADD_REPLACE,
    "delete-replace": provider_pb2.PropertyDiff.DELETE_REPLACE,
    "update-replace": provider_pb2.PropertyDiff.UPDATE_REPLACE,
}


class Failure(Exception):
    """An operation failed: the engine reports the message and keeps the resource's old state."""


class InitFailed(Failure):
    """The object exists but isn't ready: the engine records it and retries with an update."""

    def __init__(
        self,
        reason: str,
        object_id: str,
        state: Mapping[str, values.Value],
        inputs: Mapping[str, values.Value] | None = None,
    ) -> None:
        """Keep the details that the engine records.

        Args:
            reason: What is still missing.
            object_id: The resource's ID.
            state: Its current outputs.
            inputs: Its inputs, if they differ from those of the request.
        """
        super().__init__(reason)
        self.object_id = object_id
        self.state = dict(state)
        self.inputs = None if inputs is None else dict(inputs)


@dataclass(frozen=True)
class Urn:
    """The two parts of a URN that a provider needs."""

    text: str

    @property
    def type(self) -> str:
        """The resource's own type token, without those of its parents."""
        return self.text.split("::")[2].split("$")[-1]

    @property
    def name(self) -> str:
        """The resource's name in the program."""
        return self.text.split("::", 3)[3]


@dataclass(frozen=True)
class Changes:
    """The result of a diff.

    Attributes:
        paths: Each changed path and its kind, as in `values.difference`. A kind may end in `-replace`.
        delete_first: Delete the old resource before creating its replacement.
    """

    paths: Mapping[str, str]
    delete_first: bool = False

    def message(self) -> provider_pb2.DiffResponse:
        """Convert to the protocol's message."""
        tops = sorted({_top(where) for where in self.paths})
        replacing = sorted(where for where, kind in self.paths.items() if kind.endswith("-replace"))
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME
            if self.paths
            else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=tops,
            replaces=replacing,
            deleteBeforeReplace=self.delete_first and bool(replacing),
            detailedDiff={
                where: provider_pb2.PropertyDiff(kind=_KIND[kind], inputDiff=False)
                for where, kind in self.paths.items()
            },
            hasDetailedDiff=True,
        )


def _top(where: str) -> str:
    for index, letter in enumerate(where):
        if letter in ".[" and index:
            return where[:index]
    return where


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    """A provider. Subclasses implement `check`, `diff`, `create`, `read`, `update` and `delete`.

    These take and return plain values (`standins.values`) and raise `Failure`. By default the three
    configuration methods accept everything.
    """

    NAME: ClassVar[str]

    def __init__(self, engine_address: str) -> None:
        """Create the plugin; it connects to the engine with its first log message.

        Args:
            engine_address: `HOST:PORT`, or empty to discard log messages, as in tests.
        """
        self._engine_address = engine_address
        self._engine: engine_pb2_grpc.EngineStub | None = None
        self._announced = False
        self.cancelled = asyncio.Event()

    # -- what subclasses implement

    async def check(
        self, urn: Urn, old: dict[str, Any], new: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Fill in defaults; return the inputs and their problems as (property, reason)."""
        raise NotImplementedError

    async def diff(
        self, urn: Urn, object_id: str, state: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
    ) -> Changes:
        """Determine what an update would change."""
        raise NotImplementedError

    async def create(
        self, urn: Urn, new: dict[str, Any], timeout: float, preview: bool
    ) -> tuple[str, dict[str, Any]]:
        """Create the resource; return its ID and state. `timeout` is in seconds; 0 means the default."""
        raise NotImplementedError

    async def read(
        self, urn: Urn, object_id: str, state: dict[str, Any], inputs: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the current ID (empty if the resource is gone), state and inputs."""
        raise NotImplementedError

    async def update(
        self,
        urn: Urn,
        object_id: str,
        state: dict[str, Any],
        new: dict[str, Any],
        timeout: float,
        preview: bool,
    ) -> dict[str, Any]:
        """Update the resource in place and return its new state."""
        raise NotImplementedError

    async def delete(self, urn: Urn, object_id: str, state: dict[str, Any], timeout: float) -> None:
        """Delete the resource."""
        raise NotImplementedError

    async def check_config(self, new: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Check the provider's own inputs; return them and their problems."""
        return new, []

    async def diff_config(self, old: dict[str, Any], new: dict[str, Any]) -> Changes:
        """Compare the provider's own inputs. Replacing the provider replaces its resources too."""
        return Changes(values.difference(old, new))

    async def configure(self, config: dict[str, Any]) -> None:
        """Apply the provider's own inputs, which may include unknowns in a preview."""

    # -- the engine's log

    async def log(
        self,
        message: str,
        urn: Urn | None = None,
        severity: engine_pb2.LogSeverity.ValueType = INFO,
        *,
        status: bool = False,
    ) -> None:
        """Send a message to the engine.

        Args:
            message: One or more lines.
            urn: The resource that the message is about.
            severity: `INFO` or `WARNING`.
            status: Progress only: the next message may overwrite it.
        """
        if self._engine is None:
            if not self._engine_address:
                return
            channel = grpc.aio.insecure_channel(self._engine_address, options=_CHANNEL_OPTIONS)
            # The generated type hints allow only the synchronous channel, but the stub accepts both.
            self._engine = engine_pb2_grpc.EngineStub(channel)
        request = engine_pb2.LogRequest(
            severity=severity, message=message, urn=urn.text if urn else "", ephemeral=status
        )
        try:
            await self._engine.Log(request)
        except grpc.aio.AioRpcError:
            # The engine is shutting down: a lost log line must not fail the operation.
            return

    # -- the protocol

    async def GetPluginInfo(self, request: Any, context: Any) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=versions.PLUGINS[self.NAME])

    async def Handshake(self, request: Any, context: Any) -> provider_pb2.ProviderHandshakeResponse:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    async def Attach(self, request: Any, context: Any) -> empty_pb2.Empty:
        self._engine_address, self._engine = request.address, None
        return empty_pb2.Empty()

    async def Cancel(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.cancelled.set()
        return empty_pb2.Empty()

    async def GetSchema(self, request: Any, context: Any) -> provider_pb2.GetSchemaResponse:
        return provider_pb2.GetSchemaResponse(
            schema=f'{{"name": "{self.NAME}", "version": "{versions.PLUGINS[self.NAME]}"}}'
        )

    async def CheckConfig(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        inputs, failures = await self.check_config(values.decode(request.news))
        return _checked(inputs, failures)

    async def DiffConfig(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        # `olds` holds the provider's outputs, which equal its previous inputs.
        return (await self.diff_config(values.decode(request.olds), values.decode(request.news))).message()

    async def Configure(self, request: Any, context: Any) -> provider_pb2.ConfigureResponse:
        if not self._announced:
            self._announced = True
            await self.log(
                f"The provider plugin '{self.NAME}' is this project's stand-in, not Pulumi's own: "
                "it supports only what this program needs."
            )
        try:
            await self.configure(values.decode(request.args))
        except Failure as failure:
            await _abort(context, str(failure))
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    async def Check(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        try:
            inputs, failures = await self.check(
                Urn(request.urn), values.decode(request.olds), values.decode(request.news)
            )
        except Failure as failure:
            await _abort(context, str(failure))
        return _checked(inputs, failures)

    async def Diff(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        old, new = values.decode(request.old_inputs), values.decode(request.news)
        for ignored in request.ignoreChanges:
            # Whole properties only: this program doesn't ignore parts of one.
            if ignored in old:
                new[ignored] = old[ignored]
        try:
            changes = await self.diff(Urn(request.urn), request.id, values.decode(request.olds), old, new)
        except Failure as failure:
            await _abort(context, str(failure))
        return changes.message()

    async def Create(self, request: Any, context: Any) -> provider_pb2.CreateResponse:
        try:
            object_id, state = await self.create(
                Urn(request.urn), values.decode(request.properties), request.timeout, request.preview
            )
        except Failure as failure:
            await _abort_operation(context, failure, request.properties)
        return provider_pb2.CreateResponse(id=object_id, properties=values.encode(state))

    async def Read(self, request: Any, context: Any) -> provider_pb2.ReadResponse:
        try:
            object_id, state, inputs = await self.read(
                Urn(request.urn), request.id, values.decode(request.properties), values.decode(request.inputs)
            )
        except Failure as failure:
            await _abort_operation(context, failure, request.inputs)
        return provider_pb2.ReadResponse(
            id=object_id, properties=values.encode(state), inputs=values.encode(inputs)
        )

    async def Update(self, request: Any, context: Any) -> provider_pb2.UpdateResponse:
        try:
            state = await self.update(
                Urn(request.urn),
                request.id,
                values.decode(request.olds),
                values.decode(request.news),
                request.timeout,
                request.preview,
            )
        except Failure as failure:
            await _abort_operation(context, failure, request.news)
        return provider_pb2.UpdateResponse(properties=values.encode(state))

    async def Delete(self, request: Any, context: Any) -> empty_pb2.Empty:
        try:
            await self.delete(
                Urn(request.urn), request.id, values.decode(request.properties), request.timeout
            )
        except Failure as failure:
            await _abort_operation(context, failure, request.old_inputs)
        return empty_pb2.Empty()


def _checked(inputs: dict[str, Any], failures: list[tuple[str, str]]) -> provider_pb2.CheckResponse:
    return provider_pb2.CheckResponse(
        inputs=values.encode(inputs),
        failures=[provider_pb2.CheckFailure(property=where, reason=why) for where, why in failures],
    )


async def _abort(context: Any, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNKNOWN, message)
    raise AssertionError("abort never returns")


async def _abort_operation(context: Any, failure: Failure, inputs: Any) -> NoReturn:
    if not isinstance(failure, InitFailed):
        await _abort(context, str(failure))
    # This detail makes the engine record the object and the reasons why it isn't ready.
    detail = provider_pb2.ErrorResourceInitFailed(
        id=failure.object_id,
        properties=values.encode(failure.state),
        inputs=inputs if failure.inputs is None else values.encode(failure.inputs),
        reasons=[str(failure)],
    )
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(failure))
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await _abort(context, str(failure))


async def _until_orphaned() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)


async def _serve(plugin_class: type[Plugin], engine_address: str) -> None:
    server = grpc.aio.server(options=_CHANNEL_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(plugin_class(engine_address), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    watch = asyncio.create_task(_until_orphaned())
    # The engine sends SIGINT when all operations are done and kills the plugin 5 s later. A user's Ctrl-C
    # doesn't arrive here, because plugins run in a process group of their own.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, watch.cancel)
    await asyncio.wait([watch])
    await server.stop(grace=None)


def run(plugin_class: type[Plugin]) -> None:
    """Serve as the plugin until the engine exits or stops this process."""
    addresses = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    asyncio.run(_serve(plugin_class, addresses[0] if addresses else ""))
