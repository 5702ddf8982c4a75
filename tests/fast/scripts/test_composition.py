"""Composing a step's script from its files and values."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from model.steps import (
    SCRIPTS,
    STEPS,
    Step,
    as_root,
    body,
    command_text,
    has_results,
    host_of,
    results,
    script_text,
)
from tests.fast.shell import bash

# By step, the values that its script doesn't use. A new value only makes the step run again.
UNUSED = {"expected_services": {"SUBJECT"}}


def scripts() -> list[Path]:
    return sorted(SCRIPTS.rglob("*.sh"))


def sourced() -> set[str]:
    """The scripts that others source."""
    return {
        name
        for script in scripts()
        for name in re.findall(r"^source (\S+)$", script.read_text(), re.MULTILINE)
    }


def test_every_script_is_part_of_a_step() -> None:
    steps = {SCRIPTS / f"steps/{step.script or step.name}.sh" for step in STEPS.values()}
    assert steps | {SCRIPTS / name for name in sourced()} == set(scripts())


def test_no_step_sources_another() -> None:
    assert not [name for name in sourced() if name.startswith("steps/")]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_is_valid_bash(step: Step) -> None:
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
    unused = {name for name in step.values if not re.search(rf"\${{?{name}\b", text)}
    assert unused == UNUSED.get(step.name, set())


def composed(folder: Path, code: str, **values: str) -> str:
    """The text of a step with this code, as it is sent to a host."""
    for name in ("lib", "steps"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "lib/step.sh").write_text(body("lib/step.sh"))
    (folder / "steps/own.sh").write_text(f"source lib/step.sh\nis_root() {{ true; }}\n{code}")
    return script_text(Step("own", lambda _: 0), values, scripts=folder)


def test_values_arrive_unchanged(tmp_path: Path) -> None:
    nasty = f"a'b\"c $(touch {tmp_path}/ran) `x` \\ \n  two\tthree"
    text = composed(tmp_path, "create() { printf '%s' \"$NASTY\"; }\n", NASTY=nasty)
    assert results(Step("own", lambda _: 0), bash(text, root=tmp_path).stdout) == nasty
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("printed", ["", "one", "one\ntwo\n", "--- kubeadm-ipvs: begin ---\nx"])
def test_results_are_found_between_other_text(tmp_path: Path, printed: str) -> None:
    step = Step("own", lambda _: 0)
    text = composed(tmp_path, "create() { printf '%s' \"$PRINTED\"; }\n", PRINTED=printed)
    output = bash(text, root=tmp_path).stdout
    for around in (output, f"Welcome: node1\n{output}Bye\n", output.removesuffix("\n")):
        assert results(step, around) == printed.removesuffix("\n")


def test_step_that_didnt_reach_its_end_has_no_results(tmp_path: Path) -> None:
    step = Step("own", lambda _: 0)
    text = composed(tmp_path, "create() { echo early; exit 0; }\n")
    for output, reported in (
        ("", "it returned nothing"),
        ("Welcome\n", "without the lines that frame"),
        (text, "without the lines that frame"),  # from a host that returns its input
        (bash(text, root=tmp_path).stdout, "without the lines that frame"),
    ):
        with pytest.raises(ValueError, match=reported) as caught:
            results(step, output)
        assert "early" not in str(caught.value)


def test_only_texts_of_earlier_versions_have_no_frame() -> None:
    for step in STEPS.values():
        assert has_results(step, script_text(step, {}))
        assert has_results(step, "run_step create\nexit\n") == (step.unframed is not None)


def test_token_is_found_between_other_text() -> None:
    token = "abcdef.0123456789abcdef"
    for output in (token, f"{token}\n", f"Welcome: to node1\n{token}\nBye"):
        assert results(STEPS["token"], output) == token
    for output in ("", "Welcome", f"{token}\n{token}", f"token {token}"):
        with pytest.raises(ValueError, match="join tokens instead of one"):
            results(STEPS["token"], output)


def test_command_is_rewritten_for_another_user() -> None:
    command = command_text("update", STEPS["kernel"], "node1", 600, "root") + " 4fd10a2b"
    assert as_root(command, "ops") == f"sudo -n {command}"
    assert as_root(as_root(command, "ops"), "admin") == as_root(command, "ops")
    assert as_root(as_root(command, "ops"), "root") == command
    assert (host_of(command), host_of("true")) == ("node1", None)


def test_value_name_must_be_a_shell_variable() -> None:
    with pytest.raises(ValueError, match="rm -rf"):
        script_text(STEPS["token"], {"rm -rf": "x"})


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_truncated_text_runs_nothing(share: float, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    text = composed(tmp_path, f"create() {{ touch {witness}; }}\n", WITNESS="x" * 100)
    before_call = text[: text.index('run_step "$1"')]
    bash(before_call[: int(len(before_call) * share)], root=tmp_path, check=False)
    assert not witness.exists()
    bash(text, root=tmp_path)
    assert witness.exists()


def test_command_is_short_and_time_limited() -> None:
    text = command_text("create", STEPS["kernel"], "node1", 600, "root")
    assert text == "timeout --kill-after=20 600 bash -s -- create kernel node1"
    assert command_text("create", STEPS["kernel"], "node1", 600, "ops").startswith("sudo -n timeout ")


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_no_script_sleeps_or_pipes_into_early_readers(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"^\s*sleep\b", text, re.MULTILINE)
    # grep -q closes the pipe at its first match, and pipefail reports the writer's SIGPIPE.
    early = re.compile(r"(?<!\|)\|\s*grep\s+(-\S*[qm]|--quiet|--max-count)")
    assert [line for line in text.splitlines() if early.search(line)] == []
