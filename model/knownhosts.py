"""Finds host keys in OpenSSH known_hosts files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

asyncssh has a parser too, but it rejects a whole file for one malformed line, falls back from `[host]:port`
to entries without a port, and takes 0.4 s to import in every preview.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import shlex
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Key types that can be pinned, in order of preference. The command provider requests the pinned key's type by
# name (pulumi-command 1.2.1, connection.go). `ssh-rsa` would request RSA with SHA-1, which current servers no
# longer offer.
PREFERENCE = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


ADD_KEY = (
    "write the host's public key (its /etc/ssh/ssh_host_ed25519_key.pub), or add it to a known_hosts file"
)
"""What to do about a missing key, for messages."""


class NoKeyError(Exception):
    """No key can be pinned. The message continues after "is missing, and" and ends with the fix."""


@dataclass(frozen=True)
class _Entry:
    """A line that matches a host: its number, its marker such as `@revoked`, and its key."""

    line: int
    marker: str
    key: str

    @property
    def type(self) -> str:
        return self.key.split()[0]


def decode(data: bytes) -> str:
    """The text of a known_hosts file, also if PowerShell wrote all or part of it.

    `>` in Windows PowerShell writes UTF-16 with a byte order mark, and `>>` appends UTF-16 to a file in
    another encoding. Only comments can have characters outside ASCII, so removing marks and zero bytes is
    enough.
    """
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0"):
        data = data.replace(mark, b"")
    return data.decode(errors="replace")


def find(text: str, host: str, port: int, file: str = "known_hosts") -> str:
    """The preferred key of a host: `ssh-ed25519 AAAA...`.

    Supports plain, `[host]:port`, wildcard, negated and hashed (`|1|salt|hash`) entries. Keys marked
    `@revoked` and `@cert-authority` entries are never returned.

    Args:
        text: Content of the known_hosts file.
        host: Name or address of the host.
        port: Port of the SSH server.
        file: Path of the file, for messages.

    Raises:
        NoKeyError: The file has no usable key for the host, or several of the same type. The provider can pin
            only one key, and nothing in the file shows which one is current.
    """
    entries = list(_entries(text, host, port))
    revoked = {entry.key for entry in entries if entry.marker == "@revoked"}
    usable: dict[str, list[_Entry]] = {}
    notes = []
    for entry in entries:
        place = f"{file}:{entry.line}"
        if entry.marker == "@cert-authority":
            notes.append(f"{place} names a certificate authority, and host certificates aren't supported")
        elif entry.marker == "@revoked":
            notes.append(f"{place} revokes the {entry.type} key")
        elif entry.key in revoked:
            continue
        elif not valid(entry.key):
            notes.append(f"{place} is damaged")
        elif entry.type not in PREFERENCE:
            notes.append(f"{place} is a key of type {entry.type}, which can't be pinned")
        elif entry.key not in (known.key for known in usable.get(entry.type, ())):
            usable.setdefault(entry.type, []).append(entry)
    preferred = next((usable[type_] for type_ in PREFERENCE if type_ in usable), [])
    if not preferred:
        if port != 22:
            notes += [f"{file}:{entry.line} is for port 22" for entry in _entries(text, host, 22)]
        found = f" ({', '.join(notes)})" if notes else ""
        raise NoKeyError(f"{file} has no ed25519 or ECDSA key for {host} port {port}{found}; {ADD_KEY}")
    if len(preferred) > 1:
        places = ", ".join(f"{file}:{entry.line} ({fingerprint(entry.key)})" for entry in preferred)
        remove = f"ssh-keygen -f {shlex.quote(file)} -R {shlex.quote(_name(host, port))}"
        raise NoKeyError(
            f"{file} has {len(preferred)} different {preferred[0].type} keys for {host} port {port}, and "
            f"only one can be pinned: {places}; delete the lines with its old keys, or remove all of its "
            f"keys with `{remove}` and add the current one"
        )
    return preferred[0].key


def revoked_in(text: str, host: str, port: int, key: str) -> int | None:
    """The number of the line that revokes a host's key; None if none does."""
    return next((e.line for e in _entries(text, host, port) if e.marker == "@revoked" and e.key == key), None)


def fingerprint(key: str) -> str:
    """A key's fingerprint as OpenSSH prints it: `SHA256:...`."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _entries(text: str, host: str, port: int) -> Iterator[_Entry]:
    # Not splitlines(): editors and ssh-keygen count only these.
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if marker not in ("", "@revoked", "@cert-authority"):
            continue
        if len(fields) >= 2 and _matches(fields[0], _name(host, port)):
            yield _Entry(number, marker, " ".join(fields[1:3]))


def _name(host: str, port: int) -> str:
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def valid(key: str) -> bool:
    """Whether a key has the form `type base64`, and its base64 part names the same type."""
    fields = key.split()
    if len(fields) < 2:
        return False
    try:
        blob = base64.b64decode(fields[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(blob) < 4:
        return False
    (length,) = struct.unpack(">I", blob[:4])
    return len(blob) > 4 + length and blob[4 : 4 + length] == fields[0].encode()


def _matches(patterns: str, name: str) -> bool:
    if patterns.startswith("|"):
        return _hashed(patterns, name)
    matched = False
    for pattern in patterns.lower().split(","):
        negated = pattern.startswith("!")
        # fnmatch would treat the brackets of `[host]:port` as a character set.
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if negated:
                return False
            matched = True
    return matched


def _hashed(entry: str, name: str) -> bool:
    parts = entry.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
