"""Starting and stopping a stand-in as the engine does: read its port, then interrupt it."""

from __future__ import annotations

import signal
import subprocess
import sys

import grpc
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import provider_pb2_grpc

from common.paths import project_dir

ENGINE_KILLS_AFTER_SECONDS = 5  # Kill in sdk/go/common/resource/plugin/plugin.go, 3.259


@pytest.mark.parametrize("name", ["command", "kubernetes"])
def test_interrupted_stand_in_exits_before_being_killed(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", f"standins.{name}"],
        cwd=project_dir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        with grpc.insecure_channel(f"127.0.0.1:{int(plugin.stdout.readline())}") as channel:
            provider_pb2_grpc.ResourceProviderStub(channel).Cancel(empty_pb2.Empty(), timeout=30)
            plugin.send_signal(signal.SIGINT)
            try:
                plugin.wait(timeout=ENGINE_KILLS_AFTER_SECONDS)
            finally:
                plugin.kill()
        assert (plugin.returncode, plugin.stderr.read()) == (0, "")
