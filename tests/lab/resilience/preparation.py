"""A host's preparation, and its giving back, killed at each of their lines: cases that need no cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.lab.cluster import Cluster, differences, put_own_things
from tests.lab.kills import PREPARATION, killed_at_each_line, prepare, run_to_its_end
from tests.lab.resilience.plain import PlainLab, prepared


@pytest.fixture(scope="module")
def plain(plain_lab: PlainLab) -> Iterator[Cluster]:
    """Plain hosts. Each case leaves them as they were."""

    def own(cluster: Cluster) -> None:
        put_own_things(cluster, in_force=())

    with plain_lab("plain", "deb", own) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sent(plain: Cluster) -> dict[str, str]:
    """What a worker is sent until it is prepared."""
    return prepared(plain, plain.hosts[-1])


def without_record(state: dict[str, set[str]]) -> dict[str, set[str]]:
    """A state without the record's text, which tells when it was made; its worth shows at the end."""
    return {
        host: {line for line in lines if not re.match(r"hash\|.*/var/lib/kubeadm-ipvs/record/", line)}
        for host, lines in state.items()
    }


def test_a_workers_preparation_is_killed_at_each_of_its_lines(
    plain: Cluster, sent: dict[str, str], figure: Callable[[str], None]
) -> None:
    """A worker's preparation is killed at each of its lines; the same end as without, and given back"""
    host = plain.hosts[-1]
    before = {host: plain.before[host]}
    prepare(plain, host, sent)
    undisturbed = without_record(plain.state_of([host]))
    run_to_its_end(plain, host, "delete", "claim", sent[f"{host}-claim"])
    assert differences(before, plain.state_of([host])) == ""

    for step in PREPARATION:
        killed_at_each_line(plain, host, "create", step, sent[f"{host}-{step}"], figure)
    assert differences(undisturbed, without_record(plain.state_of([host]))) == ""
    run_to_its_end(plain, host, "delete", "claim", sent[f"{host}-claim"])
    assert differences(before, plain.state_of([host])) == ""


def test_a_hosts_giving_back_is_killed_at_each_of_its_lines(
    plain: Cluster, sent: dict[str, str], figure: Callable[[str], None]
) -> None:
    """A prepared worker's giving back is killed at each of its lines, and ends with the host as it was"""
    host = plain.hosts[-1]
    prepare(plain, host, sent)
    killed_at_each_line(plain, host, "delete", "claim", sent[f"{host}-claim"], figure)
    assert differences({host: plain.before[host]}, plain.state_of([host])) == ""
