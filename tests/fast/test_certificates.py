"""The program's part in the renewal of certificates: when, and what a run changes."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from model import certificates
from model.settings_file import load
from tests.fast.certificates import self_signed
from tests.fast.recorded_run import commands, kubeconfig, run
from tests.fast.sample_settings import raw_settings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def text(days: float) -> str:
    return f"{NOW + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"


def with_client(days: float) -> str:
    """A kubeconfig whose client certificate expires in so many days."""
    _, pem = self_signed("kubernetes-admin", end=NOW + timedelta(days=days))
    document = yaml.safe_load(kubeconfig())
    document["users"][0]["user"]["client-certificate-data"] = base64.b64encode(pem).decode()
    return yaml.safe_dump(document)


@pytest.mark.parametrize(
    ("printed", "client", "expected"),
    [
        (f"certificates expire {text(20)}\n", with_client(30), text(20)),
        # The timer has renewed the control plane's certificates, but not the stack's kubeconfig.
        (f"certificates expire {text(300)}\n", with_client(10), text(10)),
        (f"Welcome!\ncertificates expire {text(20)}\n", kubeconfig(), text(20)),
        # In the state of an earlier version of the program.
        ("", with_client(10), text(10)),
        ("", kubeconfig(), None),
        ("certificates expire soon", "no kubeconfig", None),
    ],
)
def test_first_of_all_certificates_counts(printed: str, client: str, expected: str | None) -> None:
    assert certificates.first_expiry(printed, client) == expected


@pytest.mark.parametrize(
    ("expiry", "previous", "expected"),
    [
        (None, "", ""),
        (text(31), "", ""),
        (text(29), "", text(29)),
        (text(-1), "", text(-1)),
        # Right after the renewal: the same inputs, so nothing runs.
        (text(364), text(29), text(29)),
        # A failed renewal runs again, and so does one a year later.
        (text(29), text(29), text(29)),
        (text(29), text(-340), text(29)),
    ],
)
def test_renewal_is_due_once_per_expiry(expiry: str | None, previous: str, expected: str) -> None:
    assert certificates.renewal(expiry, previous, 30, NOW) == expected


def test_announcement_names_day_and_consequences() -> None:
    soon = certificates.announcement(text(12.5), NOW)
    assert "expire on 2026-12-08, in 12 days" in soon
    for words in ("`pulumi up` renews them", "restart", "pods keep running"):
        assert words in soon
    assert "expired on 2026-11-24" in certificates.announcement(text(-1), NOW)


def test_renewal_runs_init_only(tmp_path: Path) -> None:
    settings = load(raw_settings(tmp_path), tmp_path)
    before, after = run(settings), run(settings, renewal=text(29))
    changed = {
        name for name in commands(before) if after.inputs[name]["stdin"] != before.inputs[name]["stdin"]
    }
    # The expected services change in every run until a verification succeeds (see test_graph.py).
    assert changed - {"expected-services"} == {"master-init"}
    assert after.inputs["master-init"].get("triggers") == before.inputs["master-init"].get("triggers")


def test_expiry_is_known_after_the_run(tmp_path: Path) -> None:
    found: list[str | None] = []
    run(
        load(raw_settings(tmp_path), tmp_path),
        use=lambda cluster: cluster.certificates_expire.apply(found.append),
    )
    assert found == [None], "neither the step nor the kubeconfig has a certificate here"


def test_timer_is_installed_only_if_wanted(tmp_path: Path) -> None:
    def sent(**values: object) -> str:
        raw = raw_settings(tmp_path, cluster={"certificates": values})
        return str(run(load(raw, tmp_path)).inputs["master-init"]["stdin"])

    assert "\nRENEWAL_TIMER=''\n" in sent()
    timed = sent(renewTimer=True, renewDays=45)
    assert "\nRENEWAL_TIMER=true\n" in timed
    assert "CERTIFICATE_DAYS=45\n" in timed
