"""What hosts differ in from what was set up, out of what `scripts/check.sh` prints. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from model.settings import Settings

CERTIFICATE_DAYS = 30


@dataclass(frozen=True)
class Difference:
    """One thing on a host that is not as it was set up."""

    what: str
    wanted: str
    found: str


def values(settings: Settings, stack: str) -> dict[str, str]:
    """The values of the step `check`, the same on every host."""
    return {
        "STACK": stack,
        "VERSION": settings.cluster.kubernetes_version,
        "MANAGE": "true" if settings.packages.manage else "false",
        "FIREWALL": settings.firewall,
        "MODE": settings.proxy.mode,
        "SCHEDULER": settings.proxy.scheduler,
        "SERVICE_ADDRESS": settings.service_address,
    }


def differences(printed: str, now: datetime) -> tuple[Difference, ...]:
    """The differences in what the step printed, with the certificates that end soon.

    Raises:
        ValueError: A line isn't one of the step's.
    """
    found = []
    for line in printed.splitlines():
        parts = line.split("\t")
        if len(parts) != 3:
            raise ValueError(f"not a line of check.sh: {line[:80]}")
        if parts[0] == "certificate":
            try:
                certificate = x509.load_der_x509_certificate(base64.b64decode(parts[2]))
            except (ValueError, x509.InvalidVersion):
                # An empty file, a damaged one, a kubeconfig without a certificate of its own.
                found.append(Difference(parts[1], "a certificate", "none that can be read"))
                continue
            days = (certificate.not_valid_after_utc - now).days
            if days < CERTIFICATE_DAYS:
                end = certificate.not_valid_after_utc.astimezone(UTC)
                found.append(
                    Difference(
                        parts[1],
                        f"valid for {CERTIFICATE_DAYS} days",
                        f"ended on {end:%F}" if days < 0 else f"ends on {end:%F}, in {days} days",
                    )
                )
        else:
            found.append(Difference(*parts))
    return tuple(found)


def table(hosts: Mapping[str, Sequence[Difference]], unreachable: Mapping[str, str]) -> str:
    """For a person: a row for each difference, and a line for each host that has none or didn't answer."""
    rows = [("HOST", "WHAT", "SET UP AS", "FOUND")]
    rows += [
        (host, difference.what, difference.wanted, difference.found)
        for host, found in hosts.items()
        for difference in found
    ]
    lines = []
    if len(rows) > 1:
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    lines += [f"{host}: as it was set up" for host, found in hosts.items() if not found]
    lines += [f"{host}: not looked at: {why}" for host, why in unreachable.items()]
    return "\n".join(lines) + "\n"
