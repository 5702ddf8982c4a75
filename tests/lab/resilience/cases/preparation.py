"""Preparing and restoring a host, killed at every line, without a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from model.steps import PREPARATION
from tests.lab.cluster import Cluster, differences, install_user_workload
from tests.lab.kills import deliver, kill_at_every_line, only, prepare_host, run_step
from tests.lab.resilience.plain import PlainLab, preparation_texts
from tests.lab.resilience.results import Record


@pytest.fixture(scope="module")
def plain(plain_lab: PlainLab) -> Iterator[Cluster]:
    """Plain hosts. Each case restores them."""

    def install(cluster: Cluster) -> None:
        install_user_workload(cluster, in_force=())

    with plain_lab("plain", "deb", install) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def texts(plain: Cluster) -> dict[str, str]:
    """The texts of the steps that prepare a worker."""
    return preparation_texts(plain, plain.hosts[-1])


def without_record(state: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out the record files' hashes, because the files contain times.

    Restoring the host tests the record's content.
    """
    return {
        host: {line for line in lines if not re.match(r"hash\|.*/var/lib/kubeadm-ipvs/record/", line)}
        for host, lines in state.items()
    }


def test_preparation_survives_kills(plain: Cluster, texts: dict[str, str], record: Record) -> None:
    """A worker's preparation is killed at every line: the result is the same as without kills, and the host
    is restored"""
    host = plain.hosts[-1]
    before = {host: plain.before[host]}
    prepare_host(plain, host, texts)
    undisturbed = without_record(plain.state_of([host]))
    run_step(plain, host, "delete", "claim", texts[f"{host}-claim"])
    assert differences(before, plain.state_of([host])) == ""

    deliver(plain, host)
    # One script after the other: after a kill, all scripts before it would run again.
    for script in PREPARATION.scripts:
        text = only(texts[f"{host}-preparation"], script)
        kill_at_every_line(plain, host, "create", script.name, text, record)
    assert differences(undisturbed, without_record(plain.state_of([host]))) == ""
    run_step(plain, host, "delete", "claim", texts[f"{host}-claim"])
    assert differences(before, plain.state_of([host])) == ""


def test_restoring_a_host_survives_kills(plain: Cluster, texts: dict[str, str], record: Record) -> None:
    """Restoring a prepared worker is killed at every line, and still completes"""
    host = plain.hosts[-1]
    prepare_host(plain, host, texts)
    kill_at_every_line(plain, host, "delete", "claim", texts[f"{host}-claim"], record)
    assert differences({host: plain.before[host]}, plain.state_of([host])) == ""
