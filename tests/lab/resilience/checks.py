"""Checks that several cases share."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from common.errors import UserError
from tests.lab.cluster import Cluster, differences, secrets_in


def leftovers(cluster: Cluster, host: str) -> str:
    """How a host differs from its state before the cluster."""
    return differences({host: cluster.before[host]}, cluster.state_of([host]))


def failing_up(cluster: Cluster) -> str:
    """Run `up`, which must fail, and return its output."""
    done = cluster.pulumi("up", "--yes", "--skip-preview")
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


@contextmanager
def sampled_processes(cluster: Cluster) -> Iterator[list[str]]:
    """Sample every host's command lines during the block, one argument per line."""
    seen: list[str] = []
    ended = threading.Event()
    # Only two processes: starting one per sampled process would overload an emulated host.
    sample = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"

    def watch(host: str) -> None:
        while not ended.wait(3):
            try:
                seen.append(cluster.lab.ssh(host, ["bash", "-c", sample], timeout=60).stdout)
            except UserError:  # the test is breaking this host
                continue

    threads = [threading.Thread(target=watch, args=(host,)) for host in cluster.hosts]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def assert_no_secret_leaked(cluster: Cluster, outputs: Iterable[str]) -> None:
    """Check outputs, a JSON preview, the state, the lab's logs and the hosts' journals for secrets."""
    places = {f"output {number}": text for number, text in enumerate(outputs)}
    places["preview"] = cluster.pulumi("preview", "--json").stdout
    places["state"] = cluster.pulumi("stack", "export").stdout
    for file in cluster.lab.folder.rglob("*.log"):
        places[str(file)] = file.read_text(errors="replace")
    for host in cluster.hosts:
        places[f"{host}'s logs"] = cluster.logs(host)
    for secret in secrets_in(cluster):
        assert [place for place, text in places.items() if secret in text] == []
