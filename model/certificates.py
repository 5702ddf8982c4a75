"""When the cluster's certificates expire, and which run renews them.

kubeadm's certificates are valid for a year. Each run knows from the previous one's outputs when the first of
them expires, because a preview can't ask the hosts (docs/decisions/0012-drift-and-repair.md). Times are text
in kubeadm's form, `2027-11-30T10:00:00Z`, and can be compared as text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from cryptography import x509

from model.kubeconfig import Kubeconfig, KubeconfigError

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# Printed by scripts/steps/init.sh.
_PRINTED = re.compile(r"^certificates expire (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$", re.MULTILINE)


def first_expiry(printed: str, kubeconfig: str) -> str | None:
    """When the first certificate expires; None if neither text has one.

    Args:
        printed: Output of the `init` step, with the first expiry on the control plane.
        kubeconfig: The administrator's kubeconfig, which may be older than the one on the control plane.
    """
    found = [*_PRINTED.findall(printed)[-1:], client_expiry(kubeconfig)]
    return min((expiry for expiry in found if expiry), default=None)


def client_expiry(kubeconfig: str) -> str | None:
    """When a kubeconfig's client certificate expires; None if it has none that can be read."""
    try:
        pem = Kubeconfig.parse(kubeconfig).client_certificate
        certificate = x509.load_pem_x509_certificate((pem or "").encode())
    except (KubeconfigError, ValueError):
        return None
    return certificate.not_valid_after_utc.strftime(_FORMAT)


def renewal(expiry: str | None, previous: str, days: int, now: datetime) -> str:
    """The expiry up to which certificates are renewed; empty if none have to be.

    It stays the same after the renewal, so that the next run has nothing to do.

    Args:
        expiry: The first expiry, if it is known.
        previous: The result of the previous run.
        days: How many days before that certificates are renewed.
        now: The current time.
    """
    return expiry if expiry and _time(expiry) - now < timedelta(days=days) else previous


def announcement(expiry: str, now: datetime) -> str:
    """What a run that renews certificates tells its operator."""
    end = _time(expiry)
    expire = f"expired on {end:%F}" if end < now else f"expire on {end:%F}, in {(end - now).days} days"
    return (
        f"the cluster's certificates {expire}. `pulumi up` renews them and reads the kubeconfig again. "
        "The API server and the other components of the control plane restart; pods keep running"
    )


def _time(text: str) -> datetime:
    return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
