"""Self-signed certificates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def self_signed(
    name: str, *, end: dt.datetime | None = None, days: int = 1, names: Sequence[str] = ()
) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Create a private key, and its certificate in PEM format.

    Args:
        name: The certificate's common name.
        end: The end of its validity; by default its validity starts now.
        days: The length of its validity.
        names: Host names and IPv4 addresses that it is valid for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    length = dt.timedelta(days=days)
    end = end or dt.datetime.now(dt.UTC) + length
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, end - length, end)
    if names:
        found = [
            x509.IPAddress(ip_address(name)) if name[-1].isdigit() else x509.DNSName(name) for name in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    return key, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
