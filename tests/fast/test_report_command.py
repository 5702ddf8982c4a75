"""`python -m tools report`: its input files and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.settings import PREFIX
from report.policy_findings import Finding
from report.settings_diff import settings_diff
from tests.fast.report_plans import REMOVED_WORKER
from tools import report
from tools.__main__ import main


def write_preview(folder: Path, *steps: Any) -> str:
    """Write a preview; returns `prod=FILE`."""
    file = folder / "plan.json"
    file.write_text("warning: of the engine\n" + json.dumps({"steps": list(steps)}, indent=4))
    return f"prod={file}"


def write_errors(folder: Path) -> Path:
    file = folder / "errors"
    file.write_text("no stack named 'prod'")
    return file


@pytest.mark.parametrize(
    ("destroys", "fails", "options", "status"),
    [
        (False, False, [], 0),
        (True, False, [], 3),
        (True, False, ["--allow-destructive"], 0),
        (False, True, [], 1),
        (True, True, [], 1),
    ],
)
def test_exit_status_reflects_destruction_and_failures(
    tmp_path: Path, destroys: bool, fails: bool, options: list[str], status: int
) -> None:
    preview = write_preview(tmp_path, *(REMOVED_WORKER if destroys else []))
    arguments = ["--preview", preview, "--output", str(tmp_path / "out"), *options]
    if fails:
        arguments += ["--errors", f"other={write_errors(tmp_path)}"]
    assert main(["report", *arguments]) == status
    text = (tmp_path / "out").read_text()
    assert ("node2 is drained" in text) == destroys
    assert ("no stack named" in text) == fails


@pytest.mark.parametrize("mandatory", [False, True])
def test_broken_mandatory_rule_sets_the_status(tmp_path: Path, mandatory: bool) -> None:
    findings = tmp_path / "policy"
    findings.write_text(report.findings_text([Finding("a-rule", mandatory, "x", "x is odd")]))
    arguments = ["--preview", write_preview(tmp_path), "--policy", f"prod={findings}"]
    status = main(["report", *arguments, "--output", str(tmp_path / "out"), "--allow-destructive"])
    assert status == (1 if mandatory else 0)
    assert "x is odd" in (tmp_path / "out").read_text()


def test_invalid_findings_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preview = write_preview(tmp_path)
    assert main(["report", "--preview", preview, "--policy", preview]) == 1
    assert "has no findings of the policy pack" in capsys.readouterr().err


def test_invalid_preview_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = write_errors(tmp_path)
    assert main(["report", "--preview", f"prod={errors}"]) == 1
    assert "isn't a preview\n  -> pass the output of `pulumi preview --json`" in capsys.readouterr().err
    assert main(["report", "--preview", write_preview(tmp_path), "--errors", f"prod={errors}"]) == 1
    assert "prod has both a preview and errors" in capsys.readouterr().err


def test_extended_settings_are_part_of_the_diff(tmp_path: Path) -> None:
    shared = {"config": {f"{PREFIX}proxy": {"scheduler": "rr", "mode": "ipvs"}}}
    own = {"config": {f"{PREFIX}extends": "common.yaml", f"{PREFIX}proxy": {"scheduler": "wrr"}}}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(shared))
    (tmp_path / "Pulumi.prod.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(shared))
    preview = Path(write_preview(tmp_path).removeprefix("prod="))
    [found] = report.environments(tmp_path, {"prod": preview}, {}, {"prod": tmp_path / "before.yaml"}, {})
    assert settings_diff(found.before or {}, found.after) == [
        "-proxy.scheduler: rr",
        "+proxy.scheduler: wrr  # rolling",
    ]
