"""How a stand-in starts and ends, as the engine does it: a port on its output, then an interrupt."""

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
def test_a_stand_in_that_is_interrupted_ends_before_it_would_be_killed(name: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", f"tools.plugins.{name}"],
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
