"""A run that finds expiring certificates announces and renews them, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.engine import finished
from tests.engine.api_server import ApiServer
from tests.fast.recorded_run import framed
from tools import env


def test_expiring_certificates_are_renewed_once(
    tmp_path: Path, toolbox: env.Toolbox, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, answer = [20], finished.answer

    def expiry() -> str:
        return f"{datetime.now(UTC) + timedelta(days=days[0]):%Y-%m-%d}T00:00:00Z"

    def answer_with_expiry(command: str, cluster: ApiServer) -> str:
        if " init " not in command:
            return answer(command, cluster)
        return framed(f"certificates expire {expiry()}\n{cluster.kubeconfig}")

    monkeypatch.setattr(finished, "answer", answer_with_expiry)
    with finished.environment(tmp_path, env.environment(toolbox), cluster) as environment:
        stack, calls = environment.stack, environment.calls
        stack.up()
        assert stack.output("certificatesExpire") == expiry()
        assert f"the cluster's certificates expire on {expiry()[:10]}" in stack.plain_preview().stdout
        calls.clear()
        days[0] = 365
        stack.up()
        assert calls == ["master: update init master"]
        calls.clear()
        stack.up("--expect-no-changes")
        assert calls == []
        assert "certificates expire" not in stack.plain_preview().stdout
