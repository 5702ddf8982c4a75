"""The list of the mirror's images."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from lab.artefacts import images
from tests.fast.fake_programs import program


def test_release_with_unknown_tags_is_refused() -> None:
    with pytest.raises(UserError, match="kubeadm config images list"):
        images.references("1.12.0")


def test_image_that_only_kubeadm_knows_is_refused(tmp_path: Path) -> None:
    kubeadm = program(tmp_path / "kubeadm", "echo registry.k8s.io/pause:9.9")
    with pytest.raises(UserError, match=r"registry\.k8s\.io/pause:9\.9"):
        images.check_tags(kubeadm, "1.37.2")
