"""Settings for a test's SSH server."""

from __future__ import annotations

from pathlib import Path

from model.settings import Host, HostSsh, Settings, Ssh
from tests.engine.ssh_server import SshServer


def settings_for(server: SshServer, tmp_path: Path, *, user: str = "root", wait: int = 1) -> Settings:
    """Settings with the server as the only host; its login key is written to `tmp_path`."""
    key = tmp_path / "login"
    key.write_text(server.private_key)
    ssh = HostSsh(host="127.0.0.1", port=server.port, host_key=server.host_key)
    host = Host(name="node1", role="control-plane", address="10.0.0.11", ssh=ssh)
    return Settings(
        hosts=(host,),
        ssh=Ssh(user=user, private_key_file=str(key), dial_timeout_seconds=2, wait_seconds=wait),
    )
