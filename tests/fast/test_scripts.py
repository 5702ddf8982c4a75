from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from model.steps import SCRIPTS, STEPS, Step, body, command_text, script_text
from tests.fast.shell import bash, code, with_lib


def scripts() -> list[Path]:
    return sorted(SCRIPTS.glob("*/*.sh"))


def test_every_script_is_part_of_a_step() -> None:
    steps = [SCRIPTS / f"steps/{step.script or step.name}.sh" for step in STEPS.values()]
    sourced = {
        SCRIPTS / name
        for script in scripts()
        for name in re.findall(r"^source (\S+)$", script.read_text(), re.MULTILINE)
    }
    assert {*steps, *sourced} == set(scripts())


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_is_valid_bash_as_it_is_sent(step: Step) -> None:
    text = script_text(step, {"NAME": "it's $(quoted) `here`\nand there"})
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_sends_each_file_once(step: Step) -> None:
    text = script_text(step, {})
    assert not re.search(r"^\s*source\b", text, re.MULTILINE)
    assert text.count("\nrun_step() {") == 1


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_uses_the_values_it_takes(step: Step) -> None:
    text = body(f"steps/{step.script or step.name}.sh")
    assert [name for name in step.values if not re.search(rf"\${{?{name}\b", text)] == []


def composed(tmp_path: Path, body: str, **values: str) -> str:
    """A step of the test's own as it is sent, without the check for root."""
    for folder in ("lib", "steps"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "lib/step.sh").write_text(code("lib/step.sh").replace("((EUID == 0))", "true"))
    (tmp_path / "steps/own.sh").write_text(f"source lib/step.sh\n{body}")
    return script_text(Step("own", lambda _: 0), values, scripts=tmp_path)


def test_values_arrive_as_they_are_whatever_they_hold(tmp_path: Path) -> None:
    nasty = f"a'b\"c $(touch {tmp_path}/ran) `x` \\ \n  two\tthree"
    text = composed(tmp_path, "create() { printf '%s' \"$NASTY\"; }\n", NASTY=nasty)
    assert bash(text, home=tmp_path).stdout == nasty
    assert not (tmp_path / "ran").exists()


def test_a_value_must_be_a_shell_variable() -> None:
    with pytest.raises(ValueError, match="rm -rf"):
        script_text(STEPS["token"], {"rm -rf": "x"})


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_text_that_is_cut_off_on_its_way_runs_nothing(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = tmp_path / "ran"
    text = composed(tmp_path, f"create() {{ touch {witness}; }}\n", WITNESS="x" * 100)
    body = text[: text.index('run_step "$1"')]
    bash(body[: int(len(body) * share)], home=tmp_path, check=False)
    assert not witness.exists()
    bash(text, home=tmp_path)
    assert witness.exists()


def test_a_failing_command_names_host_step_command_and_next_move(tmp_path: Path) -> None:
    done = bash(with_lib("create() { helper; }\nhelper() { false; }\n"), home=tmp_path, check=False)
    assert done.returncode == 1
    assert "node1: step: FAILED: `false` ended with status 1" in done.stderr
    assert "node1: step: next: " in done.stderr


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    # The writer's SIGPIPE was told as the step's end, and the step went on.
    done = bash(with_lib("create() { grep -q 1 < <(seq 200000; seq 200000); }\n"), home=tmp_path)
    assert done.stderr == ""
    lost = bash(with_lib("create() { x=$(seq 200000 | true); }\n"), home=tmp_path, check=False)
    assert lost.returncode == 1
    assert "ended with status 141" in lost.stderr


def test_a_step_that_is_stopped_says_so(tmp_path: Path) -> None:
    text = with_lib("create() { kill -TERM $$; pause 20; }\n")
    done = bash(text, home=tmp_path, check=False)
    assert done.returncode == 1
    assert "stopped after its time limit or by a signal" in done.stderr


def test_two_runs_at_once_on_a_host_exclude_each_other(tmp_path: Path) -> None:
    text = with_lib("create() { :; }\n").replace("flock -w 20", "flock -w 0.2")
    text = text.replace("LOCK_SECONDS=900", "LOCK_SECONDS=1")
    with (tmp_path / "lock").open("w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        done = bash(text, home=tmp_path, check=False)
    assert "an earlier run is still at work here; waiting for its end" in done.stderr
    assert "FAILED: another run of this program is still at work here" in done.stderr
    assert bash(text, home=tmp_path).returncode == 0


def test_put_file_tells_whether_it_changed_anything(tmp_path: Path) -> None:
    target = tmp_path / "etc" / "thing"
    body = f"create() {{ if echo hello | put_file {target} 0600; then echo changed; else echo same; fi; }}\n"
    assert bash(with_lib(body), home=tmp_path).stdout == "changed\n"
    assert bash(with_lib(body), home=tmp_path).stdout == "same\n"
    assert target.stat().st_mode & 0o777 == 0o600
    target.chmod(0o644)
    assert bash(with_lib(body), home=tmp_path).stdout == "changed\n"
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


def test_a_file_whose_writing_was_killed_leaves_nothing_beside_it_by_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "etc" / "thing"
    body = f"create() {{ echo hello | put_file {target} 0600; }}\n"
    killed = bash(with_lib("sync() { kill -KILL $BASHPID; }\n" + body), home=tmp_path, check=False)
    assert killed.returncode
    assert [path.name for path in target.parent.iterdir()] != ["thing"]
    bash(with_lib(body), home=tmp_path)
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


def test_a_note_is_kept_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    body = "create() { note rules first; note rules second; note rules first; }\n"
    bash(with_lib(body), home=tmp_path)
    bash(with_lib(body), home=tmp_path)
    assert (tmp_path / "record" / "rules").read_text() == "first\nsecond\n"


def test_tokens_and_keys_are_blotted_out_of_what_kubeadm_prints(tmp_path: Path) -> None:
    token, key, digest = "abcdef.0123456789abcdef", "0" * 64, "sha256:" + "a" * 64
    body = f"create() {{ echo 'use {token} and {key} not {digest}x' | redact; }}\n"
    said = bash(with_lib(body), home=tmp_path).stdout
    assert token not in said
    assert key not in said


def test_a_proxys_password_is_blotted_out_of_what_kubeadm_prints(tmp_path: Path) -> None:
    body = """create() { echo 'by "http://me:hush@proxy:3128" or https://registry.k8s.io/a@b' | redact; }\n"""
    said = bash(with_lib(body), home=tmp_path).stdout
    assert said == 'by "http://[password]@proxy:3128" or https://registry.k8s.io/a@b\n'


@pytest.mark.parametrize(("step", "seen"), [("packages", "http://p http://q"), ("runtime", " ")])
def test_a_logins_proxy_is_for_the_packages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, seen: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://p")
    monkeypatch.setenv("HTTP_PROXY", "http://q")
    script = code(f"steps/{step}.sh")
    text = with_lib(script + 'create() { echo "${https_proxy:-} ${HTTP_PROXY:-}"; }\n')
    assert bash(text, "create", step, "node1", home=tmp_path).stdout == f"{seen}\n"


def test_a_wait_ends_with_its_condition_or_its_bound(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    met = f"create() {{ (pause 1; touch {flag}) & wait_for 30 x test -e {flag} && echo met; }}\n"
    assert bash(with_lib(met), home=tmp_path).stdout == "met\n"
    unmet = "create() { wait_for 1 x false || echo unmet; }\n"
    assert bash(with_lib(unmet), home=tmp_path).stdout == "unmet\n"


@pytest.mark.parametrize(
    ("took", "rests"), [(0, "0.5 0.7 1.0 1.5 2.2"), (4, "6.0" + 4 * " 6.0"), (60, "15.0" + 4 * " 15.0")]
)
def test_what_is_waited_for_is_asked_less_often_the_longer_an_answer_takes(
    tmp_path: Path, took: int, rests: str
) -> None:
    body = (
        f"asking() {{ SECONDS=$((SECONDS + {took})); ((++times > 5)); }}\n"
        "pause() { rests+=($1); }\n"
        "create() { unset SECONDS; SECONDS=0; local times=0 rests=()\n"
        "wait_for 3000 x asking; echo ${rests[*]}; }\n"
    )
    assert bash(with_lib(body), home=tmp_path).stdout == f"{rests}\n"


def test_a_long_wait_says_what_is_lacking(tmp_path: Path) -> None:
    body = (
        "asked() { SECONDS=$((SECONDS + 21)); lacking='1 of 2 pods new'; ((SECONDS > 50)); }\n"
        "create() { local lacking; pause() { :; }; wait_for 300 'the rollout' asked; }\n"
    )
    said = bash(with_lib(body), home=tmp_path)
    assert "still waiting for the rollout: 1 of 2 pods new" in said.stdout + said.stderr


def spread(tmp_path: Path, chosen: str, *, lag: int) -> subprocess.CompletedProcess[str]:
    """Runs the proof's count of ten requests against a kernel of the test's own.

    Of its three real servers the third is gone and has weight 0.

    :param chosen: shell arithmetic, which of the two others gets request `n`.
    :param lag: how many looks later the kernel's statistics show a request.
    """
    sent, looks = tmp_path / "sent", tmp_path / "looks"
    sent.write_text("")
    looks.write_text("")
    fakes = f"""
create() {{ spreads 10.96.0.20:80; }}
request() {{ n=$(wc -l <{sent}); echo $(({chosen})) >>{sent}; }}
ipvsadm() {{
  if [[ $* != *--stats* ]]; then
    printf '  -> %s:80  Masq %s 0 0\\n' 10.244.1.0 1 10.244.1.1 1 10.244.2.9 0
    return
  fi
  cp {sent} {looks}.$(wc -l <{looks}); echo >>{looks}
  local now=$(($(wc -l <{looks}) - 1 - {lag}))
  echo 'Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes'
  echo 'TCP  10.96.0.20:80                      99       99       99       99       99'
  local server
  for server in 0 1; do
    echo "  -> 10.244.1.$server:80  $(cat {looks}.$((now < 0 ? 0 : now)) | grep -c "$server" || :) 9 9 9 9"
  done
  echo "  -> 10.244.2.9:80  7 9 9 9 9"
}}
pause() {{ :; }}
"""
    proof = code("steps/verification.sh").replace("COUNTED_SECONDS=20", "COUNTED_SECONDS=1")
    return bash(with_lib(proof + fakes, REQUESTS="10", SCHEDULER="rr"), home=tmp_path, check=False)


@pytest.mark.parametrize("lag", [0, 3])
def test_requests_are_counted_by_a_kernel_that_adds_up_late(tmp_path: Path, lag: int) -> None:
    done = spread(tmp_path, "n % 2", lag=lag)
    assert done.stdout == "10.96.0.20:80 10.244.1.0:80 5\n10.96.0.20:80 10.244.1.1:80 5\n", done.stderr


def test_requests_that_one_real_server_gets_are_no_round_robin(tmp_path: Path) -> None:
    done = spread(tmp_path, "n % 5 == 0", lag=1)
    assert done.returncode == 1
    assert "FAILED: 10 requests to 10.96.0.20:80 were not spread as rr promises" in done.stderr
    assert "10.244.1.0:80 8 10.244.1.1:80 2" in done.stderr


def test_the_command_text_is_short_and_bounded_in_time() -> None:
    text = command_text("create", STEPS["kernel"], "node1", 600, "root")
    assert text == "timeout --kill-after=20 600 bash -s -- create kernel node1"
    assert command_text("create", STEPS["kernel"], "node1", 600, "ops").startswith("sudo -n timeout ")


def test_no_script_waits_by_the_clock() -> None:
    for path in scripts():
        assert not re.search(r"^\s*sleep\b", path.read_text(), re.MULTILINE), path.name


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_no_script_judges_a_pipe_by_a_reader_that_leaves_early(script: Path) -> None:
    # Under pipefail the writer's SIGPIPE is the pipe's status: an address that is there was not found.
    early = re.compile(r"(?<!\|)\|\s*grep\s+(-\S*[qm]|--quiet|--max-count)")
    assert [line for line in script.read_text().splitlines() if early.search(line)] == []
