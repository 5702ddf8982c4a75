"""Host keys out of an OpenSSH known_hosts file (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"). Pure."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import struct

# The types of keys that can be pinned, the best first. The command provider asks the server for the pinned
# key's type by name (pulumi-command 1.2.1, connection.go), and `ssh-rsa` is the name of RSA with SHA-1, which
# servers of today don't speak.
PREFERENCE = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


def find(text: str, host: str, port: int) -> str | None:
    """The key of `host` at `port`, as `ssh-ed25519 AAAA…`; None where the file has none to trust.

    Understands plain, `[host]:port`, wildcard, negated and hashed (`|1|salt|hash`) entries. A key
    marked `@revoked` is never returned, and `@cert-authority` entries are no host keys.
    """
    name = host.lower() if port == 22 else f"[{host.lower()}]:{port}"
    keys: set[str] = set()
    revoked: set[str] = set()
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else None
        if len(fields) < 3 or not _matches(fields[0], name):
            continue
        key = f"{fields[1]} {fields[2]}"
        if marker == "@revoked":
            revoked.add(key)
        elif marker is None and valid(key):
            keys.add(key)
    usable = [key for key in keys - revoked if key.split()[0] in PREFERENCE]
    return min(usable, key=lambda key: (PREFERENCE.index(key.split()[0]), key), default=None)


def valid(key: str) -> bool:
    """Whether `key` is `type base64`, with the type that the base64 part itself names."""
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
        # fnmatch would read `[host]:port` as a set of characters.
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
