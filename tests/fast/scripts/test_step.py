"""The code that all steps share."""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from model.steps import SCRIPTS
from tests.fast.shell import bash, home_of, put, record, run, stdout_of, with_code

STEP = "lib/step.sh"


def test_failing_command_reports_cause_and_next_move(tmp_path: Path) -> None:
    done = run(STEP, "create() { helper; }\nhelper() { false; }\n", tmp_path, 1)
    assert "node1: step: FAILED: `false` exited with status 1" in done.stderr
    assert "node1: step: next: " in done.stderr


def test_sigpipe_fails_only_in_pipelines(tmp_path: Path) -> None:
    done = run(STEP, "create() { grep -q 1 < <(seq 200000; seq 200000); }\n", tmp_path)
    assert done.stderr == ""
    lost = run(STEP, "create() { x=$(seq 200000 | true); }\n", tmp_path, 1)
    assert "exited with status 141" in lost.stderr


def test_terminated_step_reports_it(tmp_path: Path) -> None:
    done = run(STEP, "create() { kill -TERM $$; pause 20; }\n", tmp_path, 1)
    assert "stopped by its time limit or by a signal" in done.stderr


def test_lock_excludes_a_second_run(tmp_path: Path) -> None:
    text = with_code(STEP, "create() { :; }\nflock() { command flock -w 0.2 9; }\n", LOCK_SECONDS="1")
    with put(tmp_path, "run/kubeadm-ipvs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = bash(text, root=tmp_path, check=False)
    assert "an earlier step is still running on this host; waiting for it to end" in done.stderr
    assert "FAILED: another step is still running on this host" in done.stderr
    assert bash(text, root=tmp_path).returncode == 0


@pytest.mark.parametrize("present", [True, False])
def test_only_root_can_open_the_lock(tmp_path: Path, present: bool) -> None:
    """Whoever can read a file can lock it, and keep every step waiting."""
    lock = tmp_path / "run/kubeadm-ipvs.lock"
    if present:
        put(tmp_path, "run/kubeadm-ipvs.lock").chmod(0o644)
    run(STEP, "create() { :; }\n", tmp_path)
    assert lock.stat().st_mode & 0o777 == 0o600


OWNER, OWNER_OF_OLDER_VERSION = "dev 4fd1", "dev"


@pytest.mark.parametrize(
    ("owner", "refusal"),
    [
        (None, ""),
        (OWNER, ""),
        (OWNER_OF_OLDER_VERSION, ""),
        ("dev 77ab", "a stack of the same name in another state"),
        ("prod 4fd1", "the host belongs to the stack prod"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "update"])
def test_host_of_another_stack_is_refused(tmp_path: Path, owner: str | None, refusal: str, verb: str) -> None:
    if owner:
        (home_of(tmp_path) / "owner").write_text(f"{owner}\n")
    code = "create() { echo done; }\n"
    done = run(STEP, code, tmp_path, 1 if refusal else 0, verb=verb, OWNER=OWNER)
    assert refusal in done.stderr
    assert done.stdout == ("" if refusal else "done\n")


@pytest.mark.parametrize(("owner", "deleted"), [(OWNER, True), ("dev 77ab", False), ("prod 4fd1", False)])
def test_delete_skips_a_host_of_another_stack(tmp_path: Path, owner: str, deleted: bool) -> None:
    (home_of(tmp_path) / "owner").write_text(f"{owner}\n")
    done = run(STEP, "delete() { echo done; }\n", tmp_path, verb="delete", OWNER=OWNER)
    assert done.stdout == ("done\n" if deleted else "")
    assert ("nothing was changed" in done.stderr) is not deleted


@pytest.mark.parametrize("owner", ["", "\n", "\0\0\0", " 4fd1\n", "dev 4fd1\nprod\n", "dev 4f d1\n"])
@pytest.mark.parametrize("verb", ["create", "delete"])
def test_unknown_owner_is_refused(tmp_path: Path, owner: str, verb: str) -> None:
    """An earlier version left the file empty on a full disk; destroy then skipped the host and succeeded."""
    file = home_of(tmp_path) / "owner"
    file.write_text(owner)
    code = "create() { echo done; }\ndelete() { echo done; }\n"
    done = run(STEP, code, tmp_path, 1, verb=verb, OWNER=OWNER)
    assert done.stdout == ""
    assert f"ownership can't be determined: {file} is empty or damaged" in done.stderr
    repair = f"echo '{OWNER}' >{file}"
    assert f"if node1 belongs to the stack dev, run `{repair}` on it" in done.stderr
    subprocess.run(["bash", "-c", repair], check=True)
    assert run(STEP, code, tmp_path, verb=verb, OWNER=OWNER).stdout == "done\n"


def test_put_file_reports_changes(tmp_path: Path) -> None:
    target = tmp_path / "etc" / "thing"
    code = f"create() {{ put_file {target} 0600 <<<hello; echo $changed; }}\n"
    assert stdout_of(STEP, code, tmp_path) == "true\n"
    assert stdout_of(STEP, code, tmp_path) == "false\n"
    assert target.stat().st_mode & 0o777 == 0o600
    target.chmod(0o644)
    assert stdout_of(STEP, code, tmp_path) == "true\n"
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


def test_put_file_cleans_up_after_a_killed_run(tmp_path: Path) -> None:
    target = tmp_path / "etc" / "thing"
    code = f"create() {{ put_file {target} 0600 <<<hello; }}\n"
    killed = bash(with_code(STEP, "sync() { kill -KILL $$; }\n" + code), root=tmp_path, check=False)
    assert killed.returncode
    assert [path.name for path in target.parent.iterdir()] != ["thing"]
    run(STEP, code, tmp_path)
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


@pytest.mark.parametrize("tool", ["mkdir", "rm", "chmod", "cat", "sync", "mv"])
@pytest.mark.parametrize("context", ["{}", "if {}; then :; fi", "{} || :", "! {}"])
def test_failed_write_ends_the_step_everywhere(tmp_path: Path, tool: str, context: str) -> None:
    """bash ignores `set -e` in conditions, which is how a full disk once emptied files."""
    target = put(tmp_path, "etc/thing", "old\n")
    call = context.format("write_thing")
    code = f"""
write_thing() {{ put_file {target} 0644 <<<new; }}
create() {{
  {tool}() {{ echo "{tool}: error writing '/some/where': No space left on device" >&2; return 1; }}
  {call}
  echo done
}}
"""
    done = run(STEP, code, tmp_path, 1)
    assert f"FAILED: can't write {target}: No space left on device\n" in done.stderr
    assert f"`df -h {target.parent}` and `df -i {target.parent}` on node1" in done.stderr
    assert done.stdout == ""
    assert target.read_text() == "old\n"


def test_put_file_is_never_in_a_pipeline_or_ignored() -> None:
    for script in SCRIPTS.rglob("*.sh"):
        text = script.read_text().replace("\\\n", " ")
        assert not re.search(r"(?<!\|)\|\s*put_file|put_file.*\|\|", text), script


def test_checksum_list_keeps_other_files_and_drops_damage(tmp_path: Path) -> None:
    kept, target = f"{'0' * 64}  /etc/other\n", put(tmp_path, "etc/thing", "old\n")
    checksums = home_of(tmp_path) / "files"
    checksums.write_text(f"{kept}{'1' * 64}  {target}\n{'2' * 30}")
    run(STEP, f"create() {{ put_file {target} 0644 <<<new; }}\n", tmp_path)
    digest = hashlib.sha256(b"new\n").hexdigest()
    assert checksums.read_text() == f"{kept}{digest}  {target}\n"
    run(STEP, f"create() {{ remove_file {target}; }}\n", tmp_path)
    assert checksums.read_text() == kept
    assert not target.exists()


def test_note_that_was_cut_off_is_replaced(tmp_path: Path) -> None:
    """An earlier version appended: a full disk could cut a line off, and the next run continued it."""
    folder = record(tmp_path, rules="first\nsec")
    code = "create() { noted rules; note rules second; }\n"
    assert stdout_of(STEP, code, tmp_path) == "first\n"
    assert (folder / "rules").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("name", ["packages", "units", "links", "sysctls", "files.tar"])
@pytest.mark.parametrize("empty", [True, False])
def test_damaged_record_is_refused(tmp_path: Path, name: str, empty: bool) -> None:
    file = record(tmp_path) / name
    if empty:
        file.write_text("")
    else:
        file.unlink()
    done = run(STEP, "create() { need_record; }\n", tmp_path, 1)
    assert f"is damaged: {name} is missing or empty" in done.stderr
    assert "next: restore that folder from a backup, or reinstall the host" in done.stderr


@pytest.mark.parametrize(
    ("full", "message"), [("0 100 50", "is full"), ("9 100 0", "is full"), ("9 0 0", ""), ("9 - -", "")]
)
def test_failure_reports_a_full_file_system(tmp_path: Path, full: str, message: str) -> None:
    code = (
        f"df() {{ echo ' Avail Inodes IFree'; echo '{full}'; }}\ncreate() {{ fail 'apt failed' 'look'; }}\n"
    )
    done = run(STEP, code, tmp_path, 1)
    assert ("is full" in done.stderr) == bool(message)


def test_notes_are_kept_once_and_in_order(tmp_path: Path) -> None:
    folder = record(tmp_path)
    code = "create() { note rules first; note rules second; note rules first; }\n"
    run(STEP, code, tmp_path)
    run(STEP, code, tmp_path)
    assert (folder / "rules").read_text() == "first\nsecond\n"


def test_redact_hides_tokens_and_keys(tmp_path: Path) -> None:
    token, key, digest = "abcdef.0123456789abcdef", "0" * 64, "sha256:" + "a" * 64
    output = stdout_of(
        STEP, f"create() {{ echo 'use {token} and {key} not {digest}x' | redact; }}\n", tmp_path
    )
    assert token not in output
    assert key not in output


def test_redact_hides_proxy_passwords(tmp_path: Path) -> None:
    code = """create() { echo 'by "http://me:hush@proxy:3128" or https://registry.k8s.io/a@b' | redact; }\n"""
    expected = 'by "http://[password]@proxy:3128" or https://registry.k8s.io/a@b\n'
    assert stdout_of(STEP, code, tmp_path) == expected


@pytest.mark.parametrize(
    ("script", "proxies"), [("steps/packages.sh", "http://p http://q"), ("steps/runtime.sh", " ")]
)
def test_only_packages_keeps_the_logins_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, proxies: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://p")
    monkeypatch.setenv("HTTP_PROXY", "http://q")
    code = 'create() { echo "${https_proxy:-} ${HTTP_PROXY:-}"; }\n'
    assert stdout_of(script, code, tmp_path) == f"{proxies}\n"


def test_wait_ends_with_its_condition_or_limit(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    met = f"create() {{ (pause 1; touch {flag}) & wait_for 30 x test -e {flag} && echo met; }}\n"
    assert stdout_of(STEP, met, tmp_path) == "met\n"
    unmet = "create() { wait_for 1 x false || echo unmet; }\n"
    assert stdout_of(STEP, unmet, tmp_path) == "unmet\n"


@pytest.mark.parametrize(
    ("seconds", "pauses"),
    [(0, "0.5 0.7 1.0 1.5 2.2"), (4, "6.0" + 4 * " 6.0"), (60, "15.0" + 4 * " 15.0")],
)
def test_wait_pauses_longer_for_slow_commands(tmp_path: Path, seconds: int, pauses: str) -> None:
    code = (
        f"slow_command() {{ SECONDS=$((SECONDS + {seconds})); ((++times > 5)); }}\n"
        "pause() { pauses+=($1); }\n"
        "create() { unset SECONDS; SECONDS=0; local times=0 pauses=()\n"
        "wait_for 3000 x slow_command; echo ${pauses[*]}; }\n"
    )
    assert stdout_of(STEP, code, tmp_path) == f"{pauses}\n"


def test_long_wait_reports_what_is_missing(tmp_path: Path) -> None:
    code = (
        "ready() { SECONDS=$((SECONDS + 21)); detail='1 of 2 pods updated'; ((SECONDS > 50)); }\n"
        "create() { local detail; pause() { :; }; wait_for 300 'the rollout' ready; }\n"
    )
    assert "still waiting for the rollout: 1 of 2 pods updated" in run(STEP, code, tmp_path).stderr


@pytest.mark.parametrize(("module", "status"), [("ip_vs_rr", 0), ("nothing", 1)])
def test_built_in_module_counts_as_loaded(tmp_path: Path, module: str, status: int) -> None:
    code = "modinfo() { [[ $3 != ip_vs_rr ]] || echo '(builtin)'; }\ncreate() { module_loaded $MODULE; }\n"
    run(STEP, code, tmp_path, status, MODULE=module)
