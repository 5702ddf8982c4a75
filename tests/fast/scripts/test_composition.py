"""Composing what hosts get: scripts, texts and commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from model.steps import (
    CHECK,
    RENEWAL,
    SCRIPTS,
    SCRIPTS_ON_HOSTS,
    STEPS,
    TRAFFIC,
    Script,
    Step,
    as_root,
    body,
    command_text,
    digest,
    has_results,
    host_of,
    results,
    script_text,
    step_of,
    step_text,
    values_of,
)
from tests.fast.shell import bash

# By script, the values that it doesn't use. A new value only makes the step run again.
UNUSED = {"expected_services": {"SUBJECT"}, "nodes": {"SUBJECT"}, "verification": {"SUBJECT"}}
# Files that aren't part of a script: the delivery, and what runs the scripts.
ON_THEIR_OWN = ("deliver.sh", "loader.sh", "probe.sh", "run.sh")
# A script of a step and those that only tools run.
ALL = {
    f"{step}-{script.name}": script
    for step, found in {
        **{name: (*step.scripts, *step.installs) for name, step in STEPS.items()},
        "tools": (CHECK, TRAFFIC),
    }.items()
    for script in found
}


def scripts() -> list[Path]:
    return sorted(SCRIPTS.rglob("*.sh"))


def sourced() -> set[str]:
    """The scripts that others source."""
    return {
        name
        for script in scripts()
        for name in re.findall(r"^source (\S+)$", script.read_text(), re.MULTILINE)
    }


def test_every_script_is_used() -> None:
    used = {f"steps/{script.name}.sh" for script in ALL.values()} | sourced() | set(ON_THEIR_OWN)
    assert {SCRIPTS / name for name in used} == set(scripts())


def test_no_script_sources_one_of_a_step() -> None:
    assert not [name for name in sourced() if name.startswith("steps/")]


@pytest.mark.parametrize("script", ALL.values(), ids=ALL)
def test_script_is_valid_bash(script: Script) -> None:
    text = script_text(script, {"NAME": "it's $(quoted) `here`\nand there"})
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", ALL.values(), ids=ALL)
def test_script_has_each_file_once(script: Script) -> None:
    text = script_text(script, {})
    assert not re.search(r"^\s*source\b", text, re.MULTILINE)
    assert text.count("\nrun_step() {") == 1


@pytest.mark.parametrize("script", ALL.values(), ids=ALL)
def test_script_uses_the_values_it_takes(script: Script) -> None:
    text = body(f"steps/{script.name}.sh")
    unused = {name for name in script.values if not re.search(rf"\${{?{name}\b", text)}
    assert unused == UNUSED.get(script.name, set())


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_steps_text_is_short_valid_bash(step: Step) -> None:
    """The state has it for every step of every host."""
    text = step_text(step, {"NAME": "it's $(quoted) `here`\nand there"})
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert len(text) < 1500
    assert not [line for line in text.splitlines() if line.startswith("#") and "=" not in line]


def test_steps_text_changes_with_its_scripts_only() -> None:
    def named(step: Step) -> set[str]:
        return set(re.findall(r"(\w+)=[0-9a-f]{16}\b", step_text(step, {"OWNER": "dev"})))

    assert named(STEPS["preparation"]) == {"claim", "kernel", "firewall", "packages", "runtime"}
    assert named(STEPS["join"]) == {"join", "proxy"}
    # A timer on the host runs the last one.
    assert named(STEPS["init"]) == {"init", "proxy", "admin", RENEWAL.name}
    for step in STEPS.values():
        for script in step.scripts:
            assert (f"{script.name}={digest(script)}" in step_text(step, {})) == (step.limit is not None)


def test_deletions_alone_never_change_with_a_script() -> None:
    """Their steps would be updated on every host, although nothing would run."""
    deletions = {step.name for step in STEPS.values() if step.limit is None}
    assert deletions == {"claim", "node", "deregister"}
    for name in deletions:
        assert step_text(STEPS[name], {}).endswith(f'\nrun_scripts "$1" {name} </dev/null\nexit\n')


def test_hosts_get_each_script_of_a_step_once() -> None:
    names = [script.name for script in SCRIPTS_ON_HOSTS]
    assert len(names) == len(set(names))
    assert set(names) == {script.name for script in ALL.values()} - {CHECK.name, TRAFFIC.name}


OWN = Script("own")


def composed(folder: Path, code: str, **values: str) -> str:
    """The text of a script with this code, as tools send it to a host."""
    for name in ("lib", "steps"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "lib/step.sh").write_text(body("lib/step.sh"))
    (folder / "steps/own.sh").write_text(f"source lib/step.sh\nis_root() {{ true; }}\n{code}")
    return script_text(OWN, values, scripts=folder)


def test_values_arrive_unchanged(tmp_path: Path) -> None:
    nasty = f"a'b\"c $(touch {tmp_path}/ran) `x` \\ \n  two\tthree"
    text = composed(tmp_path, "create() { printf '%s' \"$NASTY\"; }\n", NASTY=nasty)
    assert results(bash(text, root=tmp_path).stdout) == nasty
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("printed", ["", "one", "one\ntwo\n", "--- kubeadm-ipvs: begin ---\nx"])
def test_results_are_found_between_other_text(tmp_path: Path, printed: str) -> None:
    text = composed(tmp_path, "create() { printf '%s' \"$PRINTED\"; }\n", PRINTED=printed)
    output = bash(text, root=tmp_path).stdout
    for around in (output, f"Welcome: node1\n{output}Bye\n", output.removesuffix("\n")):
        assert results(around) == printed.removesuffix("\n")


def test_script_that_didnt_reach_its_end_has_no_results(tmp_path: Path) -> None:
    text = composed(tmp_path, "create() { echo early; exit 0; }\n")
    for output, reported in (
        ("", "it returned nothing"),
        ("Welcome\n", "without the lines that frame"),
        # From a host that returns its input.
        (text, "without the lines that frame"),
        (step_text(STEPS["init"], {}), "without the lines that frame"),
        ((SCRIPTS / "run.sh").read_text(), "without the lines that frame"),
        (bash(text, root=tmp_path).stdout, "without the lines that frame"),
    ):
        with pytest.raises(ValueError, match=reported) as caught:
            results(output)
        assert "early" not in str(caught.value)


def test_only_texts_of_earlier_versions_have_no_frame() -> None:
    assert has_results(script_text(CHECK, {}))
    assert not has_results("run_step create\nexit\n")
    for step in STEPS.values():
        assert has_results(step_text(step, {}))


def test_values_are_found_in_both_kinds_of_text() -> None:
    values = {"MODE": "ipvs", "PROXY": "it's\nB=c\n\nSTEP=$2 HOST=$3\n"}
    assert values_of(step_text(STEPS["init"], values)) == values
    assert values_of(script_text(CHECK, values)) == values
    assert values_of(step_text(STEPS["claim"], {})) == {}


def test_command_is_rewritten_for_another_user() -> None:
    command = command_text("update", "preparation", "node1", 600, "root") + " 4fd10a2b"
    assert as_root(command, "ops") == f"sudo -n {command}"
    assert as_root(as_root(command, "ops"), "admin") == as_root(command, "ops")
    assert as_root(as_root(command, "ops"), "root") == command
    assert (host_of(command), host_of("true")) == ("node1", None)
    assert step_of(as_root(command, "ops")) == STEPS["preparation"]


def test_commands_of_earlier_versions_are_recognized() -> None:
    def known(name: str) -> str | None:
        step = step_of(command_text("create", name, "node1", 600, "root"))
        return None if step is None else step.name

    earlier = {"runtime": "preparation", "member": "node", "registration": "deregister"}
    earlier |= {"look": "expected_services", "proof": "verification"}
    assert {name: known(name) for name in earlier} == earlier
    # These don't exist any more.
    assert not any(map(known, ("kernel", "firewall", "packages", "proxy", "token", "admin", "kubeconfig")))


def test_value_name_must_be_a_shell_variable() -> None:
    with pytest.raises(ValueError, match="rm -rf"):
        script_text(CHECK, {"rm -rf": "x"})
    with pytest.raises(ValueError, match="rm -rf"):
        step_text(STEPS["init"], {"rm -rf": "x"})


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
    text = command_text("create", "preparation", "node1", 600, "root")
    assert text == "timeout --kill-after=20 600 bash -s -- create preparation node1"
    assert command_text("create", "preparation", "node1", 600, "ops").startswith("sudo -n timeout ")


@pytest.mark.parametrize("script", scripts(), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_no_script_sleeps_or_pipes_into_early_readers(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"^\s*sleep\b", text, re.MULTILINE)
    # grep -q closes the pipe at its first match, and pipefail reports the writer's SIGPIPE.
    early = re.compile(r"(?<!\|)\|\s*grep\s+(-\S*[qm]|--quiet|--max-count)")
    assert [line for line in text.splitlines() if early.search(line)] == []
