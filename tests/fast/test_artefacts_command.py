"""The programs needed to create a mirror."""

from __future__ import annotations

import pytest

from common.errors import UserError
from lab.artefacts import command


def test_missing_programs_are_named_by_their_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "find", lambda name: None if name in ("gcc", "zstd") else f"/usr/bin/{name}")
    with pytest.raises(UserError, match=r"apt install zstd gcc libc6-dev"):
        command.check(building=True)
    with pytest.raises(UserError, match=r"apt install zstd$"):
        command.check(building=False)
