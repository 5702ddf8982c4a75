"""The images that hosts pull ahead of time."""

from __future__ import annotations

from pathlib import Path

from components.host import node_images
from model.settings_file import load
from tests.fast.sample_settings import raw_settings


def test_only_hosts_that_run_nginx_need_its_image(tmp_path: Path) -> None:
    raw = raw_settings(tmp_path)
    settings = load(raw, tmp_path)
    assert settings.nginx.image not in node_images(settings, settings.control_plane)
    assert settings.nginx.image in node_images(settings, settings.workers[0])
    alone = load(raw | {"hosts": raw["hosts"][:1]}, tmp_path)
    assert alone.nginx.image in node_images(alone, alone.control_plane)
