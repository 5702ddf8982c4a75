"""The scripts on hosts: their delivery, how a host reports them, and the texts that run them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.delivery import delivery
from model.steps import SCRIPTS_ON_HOSTS, body, results
from tests.fast.delivered import OWNER, Program, deliver, probe, run_step
from tests.fast.shell import bash, home_of, put

ONE = "create() { echo one; }\ndelete() { echo deleted; }\n"
TWO = "create() { echo two; }\n"
MINE = ("", OWNER, "dev")  # none yet, the current form, and that of earlier versions
OTHERS = ("dev 77ab", "prod 4fd1", "\0")

Make = Callable[..., Program]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The host's root folder."""
    folder = tmp_path / "host"
    folder.mkdir()
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a version of the program: two scripts, or the given ones."""
    made: list[Program] = []

    def make(**scripts: str) -> Program:
        folder = tmp_path / f"program{len(made)}"
        made.append(Program(folder, monkeypatch, scripts or {"one": ONE, "two": TWO}))
        return made[-1]

    return make


def in_run(root: Path) -> Path:
    """The folder of scripts for hosts that aren't claimed."""
    return root / "run/kubeadm-ipvs"


def claimed(root: Path, owner: str = OWNER) -> Path:
    """Claim the host for an owner, or leave the owner out if it is empty."""
    home = home_of(root)
    if owner:
        (home / "owner").write_text(f"{owner}\n")
    return home


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_archive_has_every_script_of_every_step(root: Path) -> None:
    bash(delivery().text(OWNER), "deliver", root=root, has_home=False)
    scripts = in_run(root) / "scripts"
    expected = {f"{script.name}.sh" for script in SCRIPTS_ON_HOSTS} | {"run.sh", "SHA256SUMS"}
    assert set(names(scripts)) == expected
    for script in SCRIPTS_ON_HOSTS:
        assert (scripts / f"{script.name}.sh").read_text() == body(f"steps/{script.name}.sh")
    assert probe(root) == delivery().digest


def test_host_that_isnt_claimed_gets_scripts_in_run(root: Path, program: Make) -> None:
    version = program()
    deliver(version, root)
    assert names(in_run(root)) == ["scripts", f"scripts.{version.delivery.digest}"]
    assert not (root / "var/lib/kubeadm-ipvs").exists()
    assert {path.stat().st_mode & 0o077 for path in in_run(root).rglob("*") if not path.is_symlink()} == {0}


@pytest.mark.parametrize("owner", MINE)
def test_claimed_host_keeps_scripts_for_good(root: Path, program: Make, owner: str) -> None:
    first = program()
    deliver(first, root)
    home = claimed(root, owner)
    deliver(first, root)
    assert set(names(home)) - {"owner"} == {"scripts", f"scripts.{first.delivery.digest}"}
    assert not in_run(root).exists()


@pytest.mark.parametrize("owner", OTHERS)
def test_host_of_another_stack_keeps_its_scripts(root: Path, program: Make, owner: str) -> None:
    home = claimed(root)
    deliver(program(), root)
    before = names(home)
    (home / "owner").write_text(owner)
    mine = program(one="create() { echo mine; }\n")
    deliver(mine, root)
    assert names(home) == before
    assert probe(root) == mine.delivery.digest
    done = run_step(root, mine.text({"OWNER": OWNER}), 1)
    refused = "ownership can't be determined" if owner == "\0" else f"belongs to the stack {owner}"
    assert f"node1: one: FAILED: {'the host ' if owner != chr(0) else ''}{refused}" in done.stderr


def test_new_version_replaces_the_old_one(root: Path, program: Make) -> None:
    home = claimed(root)
    deliver(program(), root)
    # As an interrupted delivery leaves it.
    put(home, "scripts.0123456789abcdef.new/one.sh", "half")
    new = program(one="create() { echo new; }\n")
    deliver(new, root)
    assert names(home) == ["owner", "scripts", f"scripts.{new.delivery.digest}"]
    assert results(run_step(root, new.text()).stdout) == "new"


def remove_one(scripts: Path) -> None:
    (scripts / "one.sh").unlink()


def damage_one(scripts: Path) -> None:
    (scripts / "one.sh").write_text("create() { echo other; }\n")


def empty_all(scripts: Path) -> None:
    for file in scripts.iterdir():
        file.write_text("")


def remove_all(scripts: Path) -> None:
    for file in scripts.iterdir():
        file.unlink()
    scripts.resolve().rmdir()


DAMAGES = [remove_one, damage_one, empty_all, remove_all]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_claimed", [True, False])
def test_damaged_scripts_are_reported_and_replaced(
    root: Path, program: Make, damage: Callable[[Path], None], is_claimed: bool
) -> None:
    version = program()
    assert probe(root) == "none"
    folder = claimed(root) if is_claimed else in_run(root)
    deliver(version, root)
    assert probe(root) == version.delivery.digest
    damage(folder / "scripts")
    assert probe(root) == "none"
    deliver(version, root)
    assert probe(root) == version.delivery.digest
    assert results(run_step(root, version.text()).stdout) == "one\ntwo"


def test_host_reports_the_scripts_that_a_step_would_run(root: Path, program: Make) -> None:
    """Those in /run, as a step that was interrupted while it claimed the host leaves them."""
    old = program()
    deliver(old, root)
    subprocess.run(["cp", "-a", in_run(root), root / "saved"], check=True)
    claimed(root)
    deliver(program(one="create() { echo new; }\n"), root)
    (root / "saved").rename(in_run(root))
    assert probe(root) == old.delivery.digest


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_script_fails_before_anything_runs(
    root: Path, program: Make, damage: Callable[[Path], None]
) -> None:
    version = program()
    deliver(version, root)
    damage(in_run(root) / "scripts")
    done = run_step(root, version.text(), 127 if damage is empty_all else 1)
    assert "one" not in done.stdout.split()
    with pytest.raises(ValueError, match="the step didn't run"):
        results(done.stdout)
    if damage is remove_all:
        scripts = root / "var/lib/kubeadm-ipvs/scripts"
        assert f"node1: step: FAILED: no scripts in {scripts}; next: set `repair` to a new" in done.stderr
    elif damage is not empty_all:
        assert "one.sh is missing, damaged or of another version of the program\n" in done.stderr
        assert "node1: one: next: set `repair` of node1 to a new text and run `pulumi up`" in done.stderr


def test_text_of_another_version_fails_before_anything_runs(root: Path, program: Make) -> None:
    deliver(program(), root)
    newer = program(one="create() { echo new; }\n")
    done = run_step(root, newer.text(), 1)
    assert "one.sh is missing, damaged or of another version of the program\n" in done.stderr
    assert done.stdout == "\n--- kubeadm-ipvs: begin ---\n"


def test_scripts_run_in_order_with_their_names(root: Path, program: Make) -> None:
    version = program(
        one="create() { say hello; set -- changed; verb=lost; echo one; }\n",
        two="create() { say hello; echo two; }\n",
        three="create() { printf three; }\n",
    )
    deliver(version, root)
    done = run_step(root, version.text())
    # The report on a failed run, and the timeline, find the script in each line.
    assert done.stderr == "node1: one: hello\nnode1: two: hello\n"
    assert results(done.stdout) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("create() { echo two; exit 7; }\n", 7),
        ("create() { echo two; false; }\n", 1),
        ("create() { echo two; fail 'no disk' 'buy one'; }\n", 1),
        ("create() { echo two; kill -KILL $BASHPID; }\n", 137),
    ],
)
def test_failing_script_stops_the_rest(root: Path, program: Make, code: str, status: int) -> None:
    version = program(one=ONE, two=code, three="create() { echo three; }\n")
    deliver(version, root)
    done = run_step(root, version.text(), status)
    assert done.stdout == "\n--- kubeadm-ipvs: begin ---\none\ntwo\n"
    assert ("node1: two: FAILED: " in done.stderr) == (status == 1)


def test_update_reaches_every_script(root: Path, program: Make) -> None:
    version = program(one=f"{ONE}update() {{ echo updated; }}\n", two=TWO)
    deliver(version, root)
    assert results(run_step(root, version.text(), verb="update").stdout) == "updated\ntwo"


def test_values_reach_every_script_unchanged(root: Path, tmp_path: Path, program: Make) -> None:
    nasty = f"a'b\"c $(touch {tmp_path}/ran) `x` \\ \n  two\tthree"
    version = program(one="create() { printf '%s|' \"$NASTY\"; }\n", two='create() { printf %s "$NASTY"; }\n')
    deliver(version, root)
    done = run_step(root, version.text({"NASTY": nasty}))
    assert results(done.stdout) == f"{nasty}|{nasty}"
    assert not (tmp_path / "ran").exists()


def test_script_that_reads_its_input_doesnt_end_the_step(root: Path, program: Make) -> None:
    version = program(one="create() { cat; }\n", two=TWO)
    deliver(version, root)
    assert results(run_step(root, version.text()).stdout) == "two"


def test_delete_runs_the_first_script_in_any_version(root: Path, program: Make) -> None:
    claimed(root)
    older = program()
    texts = older.text(), older.text(deletes=True)
    deliver(program(one="delete() { echo newer; }\n", two=TWO), root)
    for text in texts:
        assert results(run_step(root, text, verb="delete").stdout) == "newer"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_script_fails_the_delete(root: Path, program: Make, damage: Callable[[Path], None]) -> None:
    version = program()
    home = claimed(root)
    deliver(version, root)
    damage(home / "scripts")
    done = run_step(root, version.text(deletes=True), 127 if damage is empty_all else 1, verb="delete")
    assert "deleted" not in done.stdout
    if damage in (remove_one, damage_one):
        assert "one.sh is missing, damaged or of another version of the program\n" in done.stderr


@pytest.mark.parametrize("refused", [True, False])
def test_delete_of_a_restored_host_succeeds(root: Path, program: Make, refused: bool) -> None:
    """Whoever restored it has removed the scripts; a host that was refused may still have them in /run."""
    version = program()
    if refused:
        deliver(version, root)
    node = put(root, "etc/kubernetes/kubelet.conf")
    removed = put(root, "var/lib/kubeadm-ipvs.removed/record/packages")
    done = run_step(root, version.text(deletes=True), verb="delete")
    assert done.stderr == "node1: step: the host is already restored; a node that is still on it stays\n"
    assert node.exists()
    # An interrupted delete leaves it.
    assert not removed.parent.parent.exists()


def test_create_without_scripts_fails(root: Path, program: Make) -> None:
    done = run_step(root, program().text(), 1)
    assert "node1: step: FAILED: no scripts in " in done.stderr
    assert done.stdout == ""


STUBBED_CLAIM = "create() { keep_scripts; }\n"


def test_scripts_continue_where_the_claim_moved_them(root: Path, program: Make) -> None:
    version = program(claim=STUBBED_CLAIM, two=TWO)
    deliver(version, root)
    assert results(run_step(root, version.text()).stdout) == "two"
    assert not in_run(root).exists()
    home = root / "var/lib/kubeadm-ipvs"
    assert names(home) == ["scripts", f"scripts.{version.delivery.digest}"]
    assert home.stat().st_mode & 0o777 == 0o700
    assert results(run_step(root, version.text()).stdout) == "two"


@pytest.mark.parametrize("same", [True, False])
def test_claim_of_a_lost_stacks_host_keeps_its_own_scripts(root: Path, program: Make, same: bool) -> None:
    """The scripts were delivered to /run while the host still was the lost stack's."""
    code = {"claim": STUBBED_CLAIM, "two": TWO}
    home = claimed(root, "lost 77ab")
    deliver(program(**code) if same else program(), root, owner="lost 77ab")
    version = program(**code)
    deliver(version, root)
    assert in_run(root).exists()
    (home / "owner").unlink()
    run_step(root, version.text({"OWNER": OWNER}))
    assert not in_run(root).exists()
    assert probe(root) == version.delivery.digest
    deliver(version, root)
    assert names(home) == ["scripts", f"scripts.{version.delivery.digest}"]


@pytest.mark.parametrize("tool", ["rm", "mkdir", "cp", "sync", "mv"])
def test_failed_move_leaves_the_host_unclaimed(root: Path, program: Make, tool: str) -> None:
    failing = f"""
create() {{
  {tool}() {{ echo "{tool}: error writing 'x': No space left on device" >&2; return 1; }}
  keep_scripts
}}
"""
    version = program(claim=failing, two=TWO)
    deliver(version, root)
    home = root / "var/lib/kubeadm-ipvs"
    done = run_step(root, version.text(), 1)
    assert f"FAILED: can't write {home}: No space left on device" in done.stderr
    assert not home.exists()
    assert probe(root) == version.delivery.digest


KILL = "count=0; set -T; trap '((++count < {line})) || kill -KILL $$' DEBUG\n"


def test_delivery_may_be_killed_at_any_line(root: Path, program: Make) -> None:
    home = claimed(root)
    old = program()
    new = program(one="create() { echo new; }\n")
    killed = 0
    for line in range(1, 200):
        deliver(old, root)
        done = deliver(new, root, before=KILL.format(line=line))
        # The old scripts stay until the new ones are complete.
        assert probe(root) in (old.delivery.digest, new.delivery.digest), f"killed at line {line}"
        deliver(new, root)
        assert probe(root) == new.delivery.digest
        assert names(home) == ["owner", "scripts", f"scripts.{new.delivery.digest}"]
        if done.returncode == 0:
            break
        killed += 1
    assert killed > 10


KILLED_MOVE = """
create() {
  local outer=$BASHPID count=0
  set -T
  [[ $LINE == 0 ]] || trap '((++count < LINE)) || kill -KILL $$ $outer $BASHPID' DEBUG
  keep_scripts
  trap - DEBUG
}
"""


@pytest.mark.parametrize("is_claimed", [False, True])
def test_move_may_be_killed_at_any_line(root: Path, program: Make, is_claimed: bool) -> None:
    version = program(claim=KILLED_MOVE, two=TWO)
    home = root / "var/lib/kubeadm-ipvs"
    killed = 0
    for line in range(1, 50):
        subprocess.run(["rm", "-rf", home, in_run(root)], check=True)
        deliver(version, root)
        if is_claimed:
            home_of(root)
        text = version.text({"LINE": str(line)})
        done = bash(text, "create", "step", "node1", root=root, check=False, has_home=False)
        assert probe(root) == version.delivery.digest, f"killed at line {line}"
        again = run_step(root, version.text({"LINE": "0"}))
        assert results(again.stdout) == "two"
        assert names(home) == ["scripts", f"scripts.{version.delivery.digest}"]
        assert names(home.parent) == ["kubeadm-ipvs"]
        assert not in_run(root).exists()
        if done.returncode == 0:
            break
        killed += 1
    assert killed > 5


def test_failed_delivery_keeps_the_old_scripts(root: Path, program: Make) -> None:
    old = program()
    deliver(old, root)
    new = program(one="create() { echo new; }\n")
    for tool in ("mkdir", "base64", "tar", "sync", "mv", "ln"):
        done = deliver(new, root, before=f"{tool}() {{ echo '{tool}: No space left' >&2; return 1; }}\n")
        assert done.returncode, tool
        assert f"{tool}: No space left" in done.stderr
        assert probe(root) == old.delivery.digest


@pytest.mark.parametrize("ignoring", [False, True])
def test_time_limit_ends_the_whole_step(root: Path, program: Make, ignoring: bool) -> None:
    """A script that is left running would keep the host's lock, and the connection open."""
    child = "bash -c 'trap \"\" TERM; while :; do read -rt 60 -u 8 || :; done'" if ignoring else "pause 60"
    version = program(one=f"create() {{ {child}; }}\n", two=TWO)
    deliver(version, root)
    began = time.monotonic()
    done = subprocess.run(
        ["timeout", "--kill-after=1", "2", "bash", "-s", "--", "create", "step", "node1"],
        input=version.text(),
        text=True,
        capture_output=True,
        timeout=30,
        check=False,
        env={**os.environ, "KUBEADM_IPVS_ROOT": str(root)},
    )
    assert time.monotonic() - began < 20
    assert done.returncode in (124, 137, -9)
    assert ("node1: one: FAILED: stopped by its time limit" in done.stderr) is not ignoring
    assert "two" not in done.stdout


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_text_runs_nothing(root: Path, program: Make, share: float) -> None:
    version = program()
    deliver(version, root)
    text = version.text({"PADDING": "x" * 100})
    before_call = text[: text.index("run_scripts")]
    done = bash(before_call[: int(len(before_call) * share)], root=root, check=False, has_home=False)
    assert "one" not in done.stdout
    assert results(run_step(root, text).stdout) == "one\ntwo"
