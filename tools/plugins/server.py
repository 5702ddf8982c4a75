"""What the stand-ins share: Pulumi's provider protocol over gRPC, and the engine's log.

The engine starts a plugin with its own address as the argument and reads the port that the
plugin prints. It interrupts the plugin when it is done; a plugin whose engine died ends by itself.
"""

# The protocol names its methods, and its definition (pulumi/pulumi, proto/pulumi/provider.proto)
# says what each is for.
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

from tools import versions
from tools.plugins import values

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
    """An operation failed; the engine reports the message. The resource keeps its old state."""


class HalfDone(Failure):
    """The object is there, but not as it should be: the engine records it, and retries by an update."""

    def __init__(
        self,
        reason: str,
        object_id: str,
        state: Mapping[str, values.Value],
        inputs: Mapping[str, values.Value] | None = None,
    ) -> None:
        """Keep what the state will hold.

        :param reason: what is still missing.
        :param object_id: the resource's id.
        :param state: its outputs as they are.
        :param inputs: its inputs, where they aren't those of the request.
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
        """The resource's own type token, without its parents'."""
        return self.text.split("::")[2].split("$")[-1]

    @property
    def name(self) -> str:
        """The resource's name in the program."""
        return self.text.split("::", 3)[3]


@dataclass(frozen=True)
class Changes:
    """The answer to a Diff: changed paths with their kind, as `values.difference` names them.

    A kind may end in `-replace`. `delete_first` only matters with a replacement.
    """

    paths: Mapping[str, str]
    delete_first: bool = False

    def message(self) -> provider_pb2.DiffResponse:
        """The protocol's form of it."""
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
    """A provider; subclasses answer `check`, `diff`, `create`, `read`, `update` and `delete`.

    These take and return plain values (`tools.plugins.values`) and raise `Failure`. The
    configuration's three calls have defaults that accept everything.
    """

    NAME: ClassVar[str]

    def __init__(self, engine_address: str) -> None:
        """Connect to the engine's log.

        :param engine_address: `host:port`; empty where nobody listens, as in tests.
        """
        self._engine_address = engine_address
        self._engine: engine_pb2_grpc.EngineStub | None = None
        self._announced = False
        self.cancelled = asyncio.Event()

    # -- what subclasses implement

    async def check(
        self, urn: Urn, old: dict[str, Any], new: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Inputs with their defaults, and what is wrong with them as (property, reason)."""
        raise NotImplementedError

    async def diff(
        self, urn: Urn, object_id: str, state: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
    ) -> Changes:
        """What an update would change."""
        raise NotImplementedError

    async def create(
        self, urn: Urn, new: dict[str, Any], timeout: float, preview: bool
    ) -> tuple[str, dict[str, Any]]:
        """Make it: id and state. `timeout` in seconds, 0 for the default."""
        raise NotImplementedError

    async def read(
        self, urn: Urn, object_id: str, state: dict[str, Any], inputs: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """What is there now: id (empty if it is gone), state and inputs."""
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
        """Change it in place: the new state."""
        raise NotImplementedError

    async def delete(self, urn: Urn, object_id: str, state: dict[str, Any], timeout: float) -> None:
        """Remove it."""
        raise NotImplementedError

    async def check_config(self, new: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """The provider's own inputs, and what is wrong with them."""
        return new, []

    async def diff_config(self, old: dict[str, Any], new: dict[str, Any]) -> Changes:
        """What changed in the provider's own inputs; a replacement replaces its resources too."""
        return Changes(values.difference(old, new))

    async def configure(self, config: dict[str, Any]) -> None:
        """Take the provider's own inputs; unknowns are possible in a preview."""

    # -- the engine's log

    async def log(
        self,
        message: str,
        urn: Urn | None = None,
        severity: engine_pb2.LogSeverity.ValueType = INFO,
        *,
        status: bool = False,
    ) -> None:
        """Tell the engine something.

        :param message: one line or several.
        :param urn: the resource it is about.
        :param severity: `INFO` or `WARNING`.
        :param status: only a sign of life that may be overwritten.
        """
        if self._engine is None:
            if not self._engine_address:
                return
            channel = grpc.aio.insecure_channel(self._engine_address, options=_CHANNEL_OPTIONS)
            # The generated stub's types know the synchronous channel only; it takes both.
            self._engine = engine_pb2_grpc.EngineStub(channel)
        request = engine_pb2.LogRequest(
            severity=severity, message=message, urn=urn.text if urn else "", ephemeral=status
        )
        try:
            await self._engine.Log(request)
        except grpc.aio.AioRpcError:
            # A log line that nobody takes any more (the engine is going) isn't worth an operation.
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
        # `olds` are the provider's outputs, which are its inputs of last time.
        return (await self.diff_config(values.decode(request.olds), values.decode(request.news))).message()

    async def Configure(self, request: Any, context: Any) -> provider_pb2.ConfigureResponse:
        if not self._announced:
            self._announced = True
            await self.log(
                f"The provider plugin '{self.NAME}' is this project's stand-in, not Pulumi's own: "
                "it knows what this program needs of it, and no more."
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
            # Only whole properties: this program ignores nothing finer.
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
    raise AssertionError("abort returns never")


async def _abort_operation(context: Any, failure: Failure, inputs: Any) -> NoReturn:
    if not isinstance(failure, HalfDone):
        await _abort(context, str(failure))
    # The detail makes the engine keep the object, and the reasons why it isn't as it should be.
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
    # The engine's way to end a plugin when all operations are done: it waits 5 s before it kills.
    # A person's Ctrl-C doesn't come here, since plugins have a process group of their own.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, watch.cancel)
    await asyncio.wait([watch])
    await server.stop(grace=None)


def run(plugin_class: type[Plugin]) -> None:
    """Be the plugin: serve until the engine ends, or ends this process."""
    addresses = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    asyncio.run(_serve(plugin_class, addresses[0] if addresses else ""))
