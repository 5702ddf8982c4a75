"""Creating and unlocking stacks, and their files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from common.errors import UserError
from common.progress import Progress
from tests.fast.checkout import commit, git
from tools import env, stack
from tools.engine import Tool

pytestmark = pytest.mark.usefixtures("temporary_folders")

TEXT = "# The lab of `make up`.\nconfig:\n  p:a: [1, 2]  # kept\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with a committed stack file."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "Pulumi.yaml").write_text("name: p\nruntime: python\n")
    (folder / "Pulumi.dev.yaml").write_text(TEXT)
    (folder / ".gitattributes").write_text(f"Pulumi.*.yaml filter={stack.FILTER}\n")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> env.Toolbox:
    """A fake engine that records its calls and writes the files of `pulumi stack init`."""
    pulumi = tmp_path / "bin" / "pulumi"
    pulumi.parent.mkdir()
    pulumi.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {tmp_path / "calls"}\n'
        'if [ "$2" = init ]; then\n'
        '  salt=$(sed -n "s/^encryptionsalt: //p" "Pulumi.$3.yaml" 2>/dev/null)\n'
        '  [ -n "$salt" ] || salt=v1:new\n'
        '  echo "encryptionsalt: $salt" > "Pulumi.$3.yaml"\n'
        '  d="${PULUMI_BACKEND_URL#file://}/.pulumi/stacks/p"; mkdir -p "$d"\n'
        '  printf \'{"checkpoint": {"latest": {"secrets_providers": {"state": {"salt": "%s"}}}}}\' "$salt"'
        ' > "$d/$3.json"\n'
        "fi\n"
    )
    pulumi.chmod(0o755)
    tool = Tool("pulumi", "1", "PATH", pulumi)
    return env.Toolbox(tool, tool, ())


def ensure(checkout: Path, tools: env.Toolbox) -> None:
    stack.ensure("dev", tools, Progress(quiet=True), checkout)


def test_new_stack_leaves_the_checkout_clean(checkout: Path, tools: env.Toolbox) -> None:
    ensure(checkout, tools)
    assert (checkout / "Pulumi.dev.yaml").read_text() == f"{TEXT}encryptionsalt: v1:new\n"
    assert git(checkout, "status", "--short") == ""


def test_existing_stack_is_not_created_again(checkout: Path, tools: env.Toolbox, tmp_path: Path) -> None:
    ensure(checkout, tools)
    ensure(checkout, tools)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("stack init" in call for call in calls) == 1
    assert sum("stack select dev" in call for call in calls) == 2


def test_fresh_checkout_gets_the_states_salt(checkout: Path, tools: env.Toolbox) -> None:
    ensure(checkout, tools)
    git(checkout, "checkout", "HEAD", "--", "Pulumi.dev.yaml")
    (checkout / "Pulumi.dev.yaml").write_text(TEXT)
    ensure(checkout, tools)
    assert stack.salt_in((checkout / "Pulumi.dev.yaml").read_text()) == "v1:new"
    assert git(checkout, "status", "--short") == ""


def test_users_edits_are_committed_without_salt(checkout: Path, tools: env.Toolbox) -> None:
    ensure(checkout, tools)
    file = checkout / "Pulumi.dev.yaml"
    file.write_text(file.read_text().replace("[1, 2]", "[1, 2, 3]"))
    ensure(checkout, tools)
    assert git(checkout, "status", "--short") == "M Pulumi.dev.yaml"
    git(checkout, "add", "Pulumi.dev.yaml")
    assert git(checkout, "show", ":Pulumi.dev.yaml") == TEXT.replace("[1, 2]", "[1, 2, 3]").strip()


def test_stack_is_created_without_git(checkout: Path, tools: env.Toolbox, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "Pulumi.yaml").write_text("name: p\nruntime: python\n")
    assert not stack.install_filter(plain)
    ensure(plain, tools)
    assert (plain / "Pulumi.dev.yaml").read_text() == "encryptionsalt: v1:new\n"


def test_other_salt_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.dev.yaml"
    file.write_text(f"encryptionsalt: v1:old\n{TEXT}")
    stack.write_salt(file, "v1:new")
    assert file.read_text() == f"{TEXT}encryptionsalt: v1:new\n"


def test_salt_of_existing_secrets_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "Pulumi.dev.yaml"
    text = "config:\n  p:key:\n    secure: v1:abc\nencryptionsalt: v1:old\n"
    file.write_text(text)
    with pytest.raises(UserError, match="another state"):
        stack.write_salt(file, "v1:new")
    assert file.read_text() == text


def test_new_stack_keeps_the_salt_of_secrets(checkout: Path, tools: env.Toolbox) -> None:
    file = checkout / "Pulumi.dev.yaml"
    file.write_text(f"{TEXT}  p:key:\n    secure: v1:abc\nencryptionsalt: v1:kept\n")
    ensure(checkout, tools)
    assert stack.salt_in(file.read_text()) == "v1:kept"


def test_stack_in_another_backend_is_refused(checkout: Path, tools: env.Toolbox) -> None:
    file = checkout / "Pulumi.prod.yaml"
    for line in ("encryptionsalt: v1:theirs", "secretsprovider: awskms://alias/a"):
        file.write_text(f"{TEXT}{line}\n")
        with pytest.raises(UserError, match=r"Pulumi\.prod\.yaml isn't in this project's local"):
            stack.ensure("prod", tools, Progress(quiet=True), checkout)
        assert file.read_text() == f"{TEXT}{line}\n"
    file.write_text(TEXT)
    stack.ensure("prod", tools, Progress(quiet=True), checkout)
    stack.ensure("prod", tools, Progress(quiet=True), checkout)
    assert stack.salt_in(file.read_text()) == "v1:new"
    file.write_text(f"{TEXT}encryptionsalt: v1:theirs\n")
    with pytest.raises(UserError, match="isn't in this project's local backend"):
        stack.ensure("prod", tools, Progress(quiet=True), checkout)


def test_preview_of_unknown_stack_leaves_nothing_behind(checkout: Path, tools: env.Toolbox) -> None:
    file = checkout / "Pulumi.prod.yaml"
    file.write_text(TEXT)
    variables = env.environment(tools)
    with stack.for_preview("prod", tools, variables, Progress(quiet=True), checkout) as (changed, arguments):
        backend = Path(changed["PULUMI_BACKEND_URL"].removeprefix("file://"))
        assert (backend / ".pulumi/stacks/p/prod.json").exists()
        assert backend != env.backend_dir()
        copy = Path(arguments[1])
        assert arguments[0] == "--config-file"
        assert copy.name == file.name
        assert copy.exists()
    assert not copy.exists()
    assert not backend.exists()
    assert file.read_text() == TEXT
    assert not (env.backend_dir() / ".pulumi/stacks").exists()
    assert git(checkout, "status", "--short") == "?? Pulumi.prod.yaml"


def test_preview_of_known_stack_uses_its_state(checkout: Path, tools: env.Toolbox) -> None:
    (checkout / "Pulumi.mine.yaml").write_text(TEXT)
    stack.ensure("mine", tools, Progress(quiet=True), checkout)
    variables = env.environment(tools)
    for name in ("dev", "mine"):
        with stack.for_preview(name, tools, variables, Progress(quiet=True), checkout) as given:
            assert given == (variables, [])
        assert stack.salt_in((checkout / f"Pulumi.{name}.yaml").read_text()) == "v1:new"


def test_qualified_name_means_the_same_stack(checkout: Path, tools: env.Toolbox, tmp_path: Path) -> None:
    ensure(checkout, tools)
    (tmp_path / "calls").unlink()
    stack.ensure("organization/p/dev", tools, Progress(quiet=True), checkout)
    with stack.for_preview("organization/p/dev", tools, {}, Progress(quiet=True), checkout) as (_, arguments):
        assert arguments == []
    assert "init" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("name", ["acme/p/dev", "acme/dev", "organization/other/dev"])
def test_stack_of_another_organization_is_refused(checkout: Path, tools: env.Toolbox, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} isn't in this project's local backend"):
        stack.ensure(name, tools, Progress(quiet=True), checkout)
    with (
        pytest.raises(UserError, match="run plain pulumi"),
        stack.for_preview(name, tools, {}, Progress(quiet=True), checkout),
    ):
        pass


def test_mistyped_stack_is_not_created(checkout: Path, tools: env.Toolbox) -> None:
    def preview(name: str) -> None:
        with stack.for_preview(name, tools, {}, Progress(quiet=True), checkout):
            pytest.fail("previewed a stack that doesn't exist")

    with pytest.raises(UserError, match=r"no stack prdo: .*Pulumi\.prdo\.yaml doesn't exist"):
        preview("prdo")
    assert not (checkout / "Pulumi.prdo.yaml").exists()
    (checkout / "Pulumi.prod.yaml").write_text(f"{TEXT}secretsprovider: awskms://alias/a\n")
    with pytest.raises(UserError, match="isn't in this project's local backend"):
        preview("prod")


def test_missing_stack_is_refused_on_request(checkout: Path, tools: env.Toolbox) -> None:
    with pytest.raises(UserError, match="no stack dev"):
        stack.ensure("dev", tools, Progress(quiet=True), checkout, make=False)
    assert (checkout / "Pulumi.dev.yaml").read_text() == TEXT
    ensure(checkout, tools)
    stack.ensure("dev", tools, Progress(quiet=True), checkout, make=False)


def test_state_without_passphrase_is_named(checkout: Path, tools: env.Toolbox) -> None:
    place = env.backend_dir() / ".pulumi" / "stacks" / "p"
    place.mkdir(parents=True)
    (place / "dev.json").write_text(json.dumps({"checkpoint": {}}))
    with pytest.raises(UserError, match=r"dev\.json"):
        ensure(checkout, tools)


def lock(checkout: Path, pid: int, hostname: str) -> None:
    """Write a run's lock."""
    folder = env.backend_dir() / ".pulumi" / "locks" / "organization" / "p" / "dev"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{pid}.json").write_text(json.dumps({"pid": pid, "username": "me", "hostname": hostname}))


def cancelled(tmp_path: Path) -> bool:
    return "cancel --yes --stack dev" in (tmp_path / "calls").read_text()


def test_killed_runs_lock_is_removed(checkout: Path, tools: env.Toolbox, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock(checkout, ended.pid, socket.gethostname())
    ensure(checkout, tools)
    assert cancelled(tmp_path)


def test_other_locks_stay(checkout: Path, tools: env.Toolbox, tmp_path: Path) -> None:
    lock(checkout, os.getpid(), socket.gethostname())
    ensure(checkout, tools)
    assert not cancelled(tmp_path)
    lock(checkout, 2**22 + 1, "elsewhere")
    ensure(checkout, tools)
    assert not cancelled(tmp_path)


def test_busy_stack_is_refused(checkout: Path) -> None:
    stack.refuse_if_busy("dev", checkout)
    lock(checkout, os.getpid(), socket.gethostname())
    with pytest.raises(
        UserError, match=rf"changing the stack dev: process {os.getpid()} on {socket.gethostname()}"
    ):
        stack.refuse_if_busy("dev", checkout)


def test_unreadable_lock_is_respected(checkout: Path) -> None:
    lock(checkout, 1, "elsewhere")
    for file in env.backend_dir().glob(".pulumi/locks/**/*.json"):
        file.write_text("{")
    with pytest.raises(UserError, match=r"an unknown machine \(see .*1\.json\)"):
        stack.refuse_if_busy("dev", checkout)


def test_lock_of_a_zombie_process_is_abandoned(checkout: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as ended:
        lock(checkout, ended.pid, socket.gethostname())
        with pytest.raises(UserError):
            stack.refuse_if_busy("dev", checkout)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        stack.refuse_if_busy("dev", checkout)


def refreshes(checkout: Path, tools: env.Toolbox, tmp_path: Path, *existing: str) -> list[str]:
    """The engine's calls if the creates of `a` and `b` were interrupted and some resources exist."""
    place = env.backend_dir() / ".pulumi" / "stacks" / "p"
    place.mkdir(parents=True, exist_ok=True)
    latest = {
        "secrets_providers": {"state": {"salt": "v1:s"}},
        "resources": [{"urn": urn} for urn in existing],
        "pending_operations": [{"resource": {"urn": urn}, "type": "creating"} for urn in ("b", "a")],
    }
    (place / "dev.json").write_text(json.dumps({"checkpoint": {"latest": latest}}))
    (tmp_path / "calls").write_text("")
    stack.clear_pending_creates("dev", tools, Progress(quiet=True), checkout)
    return (tmp_path / "calls").read_text().splitlines()


def test_pending_creates_are_cleared_when_all_are_finished(
    checkout: Path, tools: env.Toolbox, tmp_path: Path
) -> None:
    assert refreshes(checkout, tools, tmp_path, "a", "other") == []
    [call] = refreshes(checkout, tools, tmp_path, "a", "b", "other")
    assert call.startswith("refresh --clear-pending-creates --yes --skip-preview --stack dev ")
    assert "--target a --target b" in call
    assert "other" not in call


def test_stack_without_pending_creates_is_not_refreshed(
    checkout: Path, tools: env.Toolbox, tmp_path: Path
) -> None:
    ensure(checkout, tools)
    (tmp_path / "calls").write_text("")
    stack.clear_pending_creates("dev", tools, Progress(quiet=True), checkout)
    assert (tmp_path / "calls").read_text() == ""
