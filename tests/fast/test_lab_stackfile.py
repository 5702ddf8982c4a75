"""A lab's stack file and the settings it extends."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import yaml

from common import paths
from common.progress import Progress
from lab import ports, stackfile, startup
from lab.hardware import Accelerator
from lab.options import Options
from tests.fast.saved_lab import saved_lab
from tests.stacks import PROJECT

pytestmark = pytest.mark.usefixtures("temporary_folders")

STACK = PROJECT / "Pulumi.dev.yaml"


def test_committed_stack_file_matches_default_lab() -> None:
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


def test_other_labs_stack_file_has_own_values(tmp_path: Path) -> None:
    other = ports.free(2, ())
    text = stackfile.text(STACK.read_text(), "blue", Options(name="blue", count=2), other, tmp_path / "blue")
    assert text.count("{name: ") == 2
    assert f"port: {other.ssh[1]}}}" in text
    assert f"{tmp_path}/blue/id_ed25519" in text
    for port in ports.fixed(3).tcp():
        assert not re.search(rf"\b{port}\b", text), port
    assert "labs/default" not in text


@pytest.fixture
def stack_of_blue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the lab `blue`'s stack file, in a temporary checkout."""
    (tmp_path / "Pulumi.dev.yaml").write_text(STACK.read_text())
    monkeypatch.setattr(paths, "project_dir", lambda: tmp_path)
    return tmp_path / "Pulumi.lab-blue.yaml"


def write_stack_of_blue(folder: Path, used: ports.Ports) -> str:
    """Write the stack file and return the progress output."""
    output = io.StringIO()
    stackfile.write("blue", Options(name="blue"), used, folder, Progress(output))
    return output.getvalue()


def test_stack_file_keeps_pulumis_salt(stack_of_blue: Path, tmp_path: Path) -> None:
    stack_of_blue.write_text("encryptionsalt: v1:abc\n")
    write_stack_of_blue(tmp_path, ports.free(3, ()))
    assert "encryptionsalt: v1:abc\n" in stack_of_blue.read_text()
    assert "master" in stack_of_blue.read_text()


def test_unedited_stack_file_follows_the_labs_ports(stack_of_blue: Path, tmp_path: Path) -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    write_stack_of_blue(tmp_path, first)
    stack_of_blue.write_text("encryptionsalt: v1:abc\n" + stack_of_blue.read_text())
    assert write_stack_of_blue(tmp_path, second) == ""
    assert f"127.0.0.1:{second.api}" in stack_of_blue.read_text()


def test_salt_of_default_labs_stack_is_dropped(stack_of_blue: Path, tmp_path: Path) -> None:
    template = tmp_path / "Pulumi.dev.yaml"
    template.write_text(template.read_text() + "encryptionsalt: v1:of-dev\n")
    write_stack_of_blue(tmp_path, ports.free(3, ()))
    assert "of-dev" not in stack_of_blue.read_text()
    assert write_stack_of_blue(tmp_path, ports.free(3, ())) == "", "it must not count as edited"


def test_edited_stack_file_is_kept(stack_of_blue: Path, tmp_path: Path) -> None:
    used = ports.free(3, ())
    write_stack_of_blue(tmp_path, used)
    edited = stack_of_blue.read_text().replace("    name: blue\n", "    name: azure\n")
    stack_of_blue.write_text(edited)
    output = write_stack_of_blue(tmp_path, used)
    assert "keeping your edits in Pulumi.lab-blue.yaml; delete the file to regenerate it" in output
    assert stack_of_blue.read_text() == edited


def test_stack_file_edited_for_other_ports_is_renamed(stack_of_blue: Path, tmp_path: Path) -> None:
    first = ports.free(3, ())
    second = ports.free(3, {*first.tcp(), first.lan})
    write_stack_of_blue(tmp_path, first)
    edited = stack_of_blue.read_text().replace("    name: blue\n", "    name: azure\n")
    stack_of_blue.write_text(edited)
    assert "your edits are in Pulumi.lab-blue.yaml.edited" in write_stack_of_blue(tmp_path, second)
    assert f"127.0.0.1:{second.api}" in stack_of_blue.read_text()
    assert (tmp_path / "Pulumi.lab-blue.yaml.edited").read_text() == edited


@pytest.mark.parametrize("accelerator", ["kvm", "uml", "tcg"])
def test_settings_depend_on_accelerator(tmp_path: Path, accelerator: Accelerator) -> None:
    stackfile.write_settings(tmp_path, accelerator)
    config = yaml.safe_load((tmp_path / "settings.yaml").read_text())["config"]
    assert (config.get("kubeadm-ipvs:preflight") == {"ignore": ["NumCPU"]}) is (accelerator == "uml")
    assert ("kubeadm-ipvs:cluster" in config) is (accelerator == "tcg")


def test_settings_are_written_for_running_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "is_up", lambda *_: True)
    lab = saved_lab("blue", accelerator="tcg")
    lab.up()
    assert "slowHosts: true" in (lab.folder / stackfile.SETTINGS).read_text()
