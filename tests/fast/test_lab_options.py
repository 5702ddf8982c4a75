"""A lab's shape and ports: what a person may choose, and what follows."""

from __future__ import annotations

import io
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from common import paths
from common.errors import UserError
from common.progress import Progress
from lab import ports, stackfile
from lab.options import Family, Options

STACK = Path(__file__).resolve().parents[2] / "Pulumi.dev.yaml"


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        yield server.getsockname()[1]


def test_the_default_lab_is_one_control_plane_and_two_workers_with_documented_addresses() -> None:
    hosts = Options().hosts()
    assert [(h.name, h.role, h.address) for h in hosts] == [
        ("master", "control-plane", "192.168.166.101"),
        ("node1", "worker", "192.168.166.102"),
        ("node2", "worker", "192.168.166.103"),
    ]
    assert [h.cpus for h in hosts] == [2, 1, 1]


def test_chosen_memory_and_cpus_hold_for_every_host() -> None:
    hosts = Options(memory=1024, cpus=4).hosts()
    assert {(h.memory, h.cpus) for h in hosts} == {(1024, 4)}


def test_every_bad_option_is_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Options(count=0, memory=1, cpus=0, release="sid", family=cast("Family", "apk"))
    for name in ("count", "memory", "cpus", "release", "family"):
        assert f"{name}:" in str(caught.value)


def test_the_dnf_family_is_made_of_one_release_alone() -> None:
    assert Options(family="rpm").release == "trixie"
    with pytest.raises(UserError, match="family: rpm is made from trixie alone, not from bookworm"):
        Options(family="rpm", release="bookworm")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "-a", "a-", "a" * 33])
def test_a_name_that_could_leave_the_labs_folder_or_break_a_path_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        Options(name=name)


def test_the_committed_stack_file_names_the_default_labs_ports_and_hosts() -> None:
    text = STACK.read_text()
    fixed = ports.fixed(3)
    for host in Options().hosts():
        assert (
            f"{{name: {host.name}, role: {host.role}, address: {host.address}, "
            f"ssh: {{host: 127.0.0.1, port: {fixed.ssh[host.index]}}}}}" in text
        )
    assert f"apiServer: 127.0.0.1:{fixed.api}" in text
    assert f"http://10.0.2.2:{fixed.packages}/" in text
    assert f"http://10.0.2.2:{fixed.registry}" in text


def test_another_labs_stack_file_has_its_own_hosts_ports_and_folder_and_nothing_of_the_default_lab(
    tmp_path: Path,
) -> None:
    other = ports.free(2, ())
    text = stackfile.text(STACK.read_text(), "blue", Options(name="blue", count=2), other, tmp_path / "blue")
    assert text.count("{name: ") == 2
    assert f"port: {other.ssh[1]}}}" in text
    assert f"{tmp_path}/blue/id_ed25519" in text
    usual = ports.fixed(3)
    for port in usual.tcp():
        assert not re.search(rf"\b{port}\b", text), port
    assert "labs/default" not in text


@pytest.fixture
def stack_of_blue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lab 'blue' of a checkout puts its stack file."""
    (tmp_path / "Pulumi.dev.yaml").write_text(STACK.read_text())
    monkeypatch.setattr(paths, "project_dir", lambda: tmp_path)
    return tmp_path / "Pulumi.lab-blue.yaml"


def write_stack_of_blue(folder: Path, used: ports.Ports) -> str:
    """What is said while the stack file is written."""
    said = io.StringIO()
    stackfile.write("blue", Options(name="blue"), used, folder, Progress(said))
    return said.getvalue()


def test_a_stack_file_keeps_the_salt_that_pulumi_put_there(stack_of_blue: Path, tmp_path: Path) -> None:
    stack_of_blue.write_text("encryptionsalt: v1:abc\n")
    write_stack_of_blue(tmp_path, ports.free(3, ()))
    assert "encryptionsalt: v1:abc\n" in stack_of_blue.read_text()
    assert "master" in stack_of_blue.read_text()


def test_an_untouched_stack_file_follows_the_labs_ports(stack_of_blue: Path, tmp_path: Path) -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    write_stack_of_blue(tmp_path, first)
    stack_of_blue.write_text("encryptionsalt: v1:abc\n" + stack_of_blue.read_text())
    assert write_stack_of_blue(tmp_path, second) == ""
    assert f"127.0.0.1:{second.api}" in stack_of_blue.read_text()


def test_another_labs_stack_file_has_no_salt_of_the_default_labs(stack_of_blue: Path, tmp_path: Path) -> None:
    model = tmp_path / "Pulumi.dev.yaml"
    model.write_text(model.read_text() + "encryptionsalt: v1:of-dev\n")
    write_stack_of_blue(tmp_path, ports.free(3, ()))
    assert "of-dev" not in stack_of_blue.read_text()
    assert write_stack_of_blue(tmp_path, ports.free(3, ())) == "", "it isn't taken for an edited one"


def test_an_edited_stack_file_is_kept_and_the_lab_says_so(stack_of_blue: Path, tmp_path: Path) -> None:
    used = ports.free(3, ())
    write_stack_of_blue(tmp_path, used)
    edited = stack_of_blue.read_text().replace("    name: blue\n", "    name: azure\n")
    stack_of_blue.write_text(edited)
    said = write_stack_of_blue(tmp_path, used)
    assert "Pulumi.lab-blue.yaml was edited and is kept; remove it to have it made anew" in said
    assert stack_of_blue.read_text() == edited


def test_a_stack_file_that_was_edited_for_other_ports_is_put_aside(
    stack_of_blue: Path, tmp_path: Path
) -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    write_stack_of_blue(tmp_path, first)
    edited = stack_of_blue.read_text().replace("    name: blue\n", "    name: azure\n")
    stack_of_blue.write_text(edited)
    assert "what was edited is in Pulumi.lab-blue.yaml.edited" in write_stack_of_blue(tmp_path, second)
    assert f"127.0.0.1:{second.api}" in stack_of_blue.read_text()
    assert (tmp_path / "Pulumi.lab-blue.yaml.edited").read_text() == edited


def test_free_ports_are_all_different_and_none_of_another_lab() -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    numbers = [*first.tcp(), first.lan, *second.tcp(), second.lan]
    assert len(numbers) == len(set(numbers)) == 20


def test_a_taken_port_is_refused_and_its_owner_named(taken: int) -> None:
    with pytest.raises(UserError) as caught:
        ports.check_free({taken: "the API server"})
    message = str(caught.value)
    assert str(taken) in message
    assert "the API server" in message
    assert f"process {os.getpid()} (" in message


def test_the_owner_of_a_port_whose_process_cannot_be_seen_is_named_by_its_user(tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = (
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
    )
    (net / "tcp").write_text(head + row)
    assert ports.owner(8080, tmp_path) == "a process of user root"
    assert ports.owner(8081, tmp_path) == "nobody that can be seen"


def test_free_ports_are_let_through(taken: int) -> None:
    free = ports.free(1, ())
    assert taken not in free.tcp()
    ports.check_free(free.tcp())
