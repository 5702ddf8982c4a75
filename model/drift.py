"""Differences between a host's state and its setup, parsed from the output of `scripts/steps/check.sh`."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from model import firewall
from model.settings import Host, Settings


@dataclass(frozen=True)
class Difference:
    """One difference on a host: its subject, the expected state and the state found."""

    what: str
    wanted: str
    found: str


def values(settings: Settings, host: Host, owner: str) -> dict[str, str]:
    """The values of the `check` step.

    Args:
        settings: The cluster's settings.
        host: The host to check.
        owner: The hosts' owner in the stack's state: `STACK ID`, with the name that the stack had when it was
            first updated. A renamed stack keeps it.
    """
    return {
        "STACK": owner,
        "VERSION": settings.cluster.kubernetes_version,
        "MANAGE": "true" if settings.packages.manage else "false",
        "MODE": settings.proxy.mode,
        "SCHEDULER": settings.proxy.scheduler,
        "SERVICE_ADDRESS": settings.service_address,
        **firewall.values(settings, host),
    }


def differences(printed: str, now: datetime, certificate_days: int) -> tuple[Difference, ...]:
    """The differences in the step's output, including certificates that expire soon.

    Args:
        printed: The step's output.
        now: The current time.
        certificate_days: How many days a certificate must still be valid.

    Raises:
        ValueError: A line has an unexpected form.
    """
    found = []
    for line in printed.splitlines():
        parts = line.split("\t")
        if len(parts) != 3:
            raise ValueError(f"unexpected output of check.sh: {line[:80]}")
        if parts[0] == "certificate":
            try:
                certificate = x509.load_der_x509_certificate(base64.b64decode(parts[2]))
            except (ValueError, x509.InvalidVersion):
                # The file is empty or damaged, or it is a kubeconfig without an embedded certificate.
                found.append(Difference(parts[1], "a certificate", "unreadable"))
                continue
            days = (certificate.not_valid_after_utc - now).days
            if days < certificate_days:
                end = certificate.not_valid_after_utc.astimezone(UTC)
                found.append(
                    Difference(
                        parts[1],
                        f"valid for {certificate_days} days",
                        f"expired on {end:%F}" if days < 0 else f"expires on {end:%F}, in {days} days",
                    )
                )
        else:
            found.append(Difference(*parts))
    return tuple(found)
