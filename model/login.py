"""The login of a host: the user and the key that its steps connect with.

The state keeps the login that worked first, and steps go on using it, so a different key file of another
operator changes nothing (docs/decisions/0034). `python -m tools credentials` replaces it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from model.settings import Host, JumpServer, Settings


@dataclass(frozen=True)
class Login:
    """How to log in to a host and to its jump host.

    Attributes:
        user: The user on the host.
        private_key: The text of the private key; empty if the keys come from an SSH agent.
        jump: `USER@ADDRESS:PORT` of the jump host; empty without one.
    """

    user: str
    private_key: str = field(default="", repr=False)
    jump: str = ""

    @classmethod
    def of(cls, settings: Settings, host: Host) -> Self:
        """The login that the settings give for a host."""
        file = settings.ssh.private_key_file
        key = Path(file).read_text(encoding="utf-8") if file is not None else ""
        jump = settings.jump_host(host)
        return cls(settings.ssh_user(host), key, f"{jump.user}@{_server(jump)}" if jump else "")

    @classmethod
    def stored(cls, values: Mapping[str, str]) -> Self:
        """The login from `values`."""
        return cls(values["user"], values.get("privateKey", ""), values.get("jump", ""))

    @property
    def values(self) -> dict[str, str]:
        """The login as it is kept in the state."""
        optional = {"privateKey": self.private_key, "jump": self.jump}
        return {"user": self.user, **{name: value for name, value in optional.items() if value}}

    def jump_user(self, jump: JumpServer) -> str:
        """The user on a jump host. The kept one applies only to the jump host that it was kept for."""
        user, _, server = self.jump.rpartition("@")
        return user if server == _server(jump) else jump.user

    def same_as(self, other: Login) -> bool:
        """Whether the logins differ at most in their keys' white space."""
        keys = self.private_key.split(), other.private_key.split()
        return keys[0] == keys[1] and (self.user, self.jump) == (other.user, other.jump)

    def __str__(self) -> str:
        """The login without its secret: `root with the key SHA256:...`."""
        key = f"the key {fingerprint(self.private_key)}" if self.private_key else "an agent's keys"
        return f"{self.user} with {key}" + (f" through {self.jump}" if self.jump else "")


def _server(jump: JumpServer) -> str:
    return f"{jump.address}:{jump.port}"


def fingerprint(private_key: str) -> str:
    """A key's fingerprint as `ssh-keygen -l` shows it; `(unreadable)` for a text that isn't a key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    text = private_key.encode()
    load = serialization.load_ssh_private_key if b"OPENSSH" in text else serialization.load_pem_private_key
    try:
        public = load(text, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "(unreadable)"
    blob = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).split()[1]
    digest = hashlib.sha256(base64.b64decode(blob)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
