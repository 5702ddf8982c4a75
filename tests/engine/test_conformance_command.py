"""Behaviour of the resource `command:remote:Command` that this project relies on; see conformance.py."""

from __future__ import annotations

from tests.engine.conformance import commands
from tests.engine.ssh_server import SshServer
from tests.engine.stack import Stack

# -- create, update, delete


def test_create_runs_once_and_keeps_output(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        a = command("a", create="echo create >> log; echo out; echo; echo err >&2")
        pulumi.export("stdout", a.stdout)
        pulumi.export("stderr", a.stderr)
        """,
    )
    assert stack.up().ops == ["create a"]
    assert stack.up().ops == []
    assert host.lines() == ["create"]
    # Only the last newline is removed, unlike in a shell's substitution.
    assert (stack.output("stdout"), stack.output("stderr")) == ("out\n", "err")


def test_edit_runs_update_or_else_create(stack: Stack, host: SshServer) -> None:
    text = """
    command("with", create="echo 1 create >> log", update="echo 1 update VERSION >> log")
    command("without", create="echo 2 create VERSION >> log", opts=pulumi.ResourceOptions(depends_on=[]))
    """
    commands(stack, host, text.replace("VERSION", "a")).up()
    commands(stack, host, text.replace("VERSION", "b"))
    assert sorted(stack.up().ops) == ["update with", "update without"]
    assert sorted(host.lines()) == ["1 create", "1 update b", "2 create a", "2 create b"]


def test_edit_of_any_other_input_updates(stack: Stack, host: SshServer) -> None:
    text = 'command("a", create="echo create >> log", update="echo update >> log", delete="DELETE")\n'
    commands(stack, host, text).up()
    commands(stack, host, text.replace("DELETE", "echo delete >> log"))
    assert stack.up().ops == ["update a"]
    text = text.replace("DELETE", "echo delete >> log").replace(
        ")\n", ", connection=connection(per_dial_timeout=6))\n"
    )
    commands(stack, host, text)
    assert stack.up().ops == ["update a"]
    assert host.lines() == ["create", "update", "update"]


def test_resource_without_commands_runs_nothing(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", triggers=[1])\n').up()
    commands(stack, host, 'command("a", triggers=[1], stdin="x")\n').up()
    stack.destroy()
    assert (host.commands, host.logins) == ([], [])


def test_resource_with_only_a_delete_connects_only_then(stack: Stack, host: SshServer) -> None:
    text = 'command("a", delete="cat >> log", stdin="VERSION\\n", triggers=[1])\n'
    commands(stack, host, text.replace("VERSION", "1")).up()
    commands(stack, host, text.replace("VERSION", "2"))
    assert stack.up().ops == ["update a"]
    assert host.logins == []
    stack.destroy()
    assert (host.lines(), len(host.logins)) == (["2"], 1)


def test_changed_triggers_replace_in_the_requested_order(stack: Stack, host: SshServer) -> None:
    text = """
    command("first", create="echo first create >> log", delete="echo first delete >> log", triggers=[VALUE],
            opts=pulumi.ResourceOptions(delete_before_replace=True))
    command("last", create="echo last create >> log", delete="echo last delete >> log",
            triggers=["same", VALUE])
    """
    commands(stack, host, text.replace("VALUE", "'a'")).up()
    before = {entry["urn"].split("::")[-1]: entry["id"] for entry in stack.state()}
    commands(stack, host, text.replace("VALUE", "'b'"))
    run = stack.up()
    assert {"create-replacement first", "create-replacement last"} <= set(run.ops)
    lines = host.lines()
    assert lines[2:].index("first delete") < lines[2:].index("first create")
    assert lines[2:].index("last create") < lines[2:].index("last delete")
    after = {entry["urn"].split("::")[-1]: entry["id"] for entry in stack.state()}
    assert before["first"] != after["first"]


def test_added_triggers_replace(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="echo create >> log")\n').up()
    commands(stack, host, 'command("a", create="echo create >> log", triggers=["new"])\n')
    assert "create-replacement a" in stack.up().ops


def test_update_keeps_the_id(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="echo 1")\n').up()
    before = stack.state()[0]["id"]
    commands(stack, host, 'command("a", create="echo 2")\n').up()
    assert stack.state()[0]["id"] == before


# -- failure


def test_failed_create_stores_nothing_and_is_retried(stack: Stack, host: SshServer) -> None:
    commands(
        stack, host, 'command("a", create="echo try >> log; test -e allowed", delete="echo delete >> log")\n'
    )
    stack.up(fails=True)
    assert stack.state() == []
    stack.destroy()
    assert host.lines() == ["try"]
    (host.folder / "allowed").touch()
    assert stack.up().ops == ["create a"]
    assert host.lines() == ["try", "try"]


def test_failure_shows_status_command_and_output(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """command("a", create='echo "said\tso"; echo loud >&2; exit 7', logging=remote.Logging.NONE)\n""",
    )
    messages = "\n".join(stack.up(fails=True).messages)
    assert 'Process exited with status 7: running "echo \\"said\\tso\\"; echo loud >&2; exit 7":' in messages
    assert "said\tso" in messages
    assert "loud" in messages


def test_command_killed_by_a_signal_fails(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="kill -9 $$")\n')
    assert "from signal KILL" in "\n".join(stack.up(fails=True).messages)


def test_failed_update_keeps_state_and_is_retried(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'a = command("a", create="echo one")\n').up()
    commands(
        stack,
        host,
        'a = command("a", create="echo one", update="echo try >> log; test -e allowed && echo two")\n',
    )
    stack.up(fails=True)
    entry = stack.state()[0]
    assert "update" not in entry["inputs"]
    assert entry["outputs"]["stdout"] == "one"
    (host.folder / "allowed").touch()
    assert stack.up().ops == ["update a"]
    assert stack.state()[0]["outputs"]["stdout"] == "two"
    assert host.lines() == ["try", "try"]


def test_failed_delete_keeps_the_resource(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="true", delete="test -e allowed")\n').up()
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    (host.folder / "allowed").touch()
    stack.destroy()
    assert stack.state() == []


# -- input, output, secrets, previews


def test_stdin_arrives_and_stays_out_of_arguments(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        text = "first line\\nsecond: ünïcödé\\n" * 2000
        a = command("a", create="cat > got; tr '\\\\0' ' ' < /proc/$$/cmdline > arguments", stdin=text)
        """,
    )
    stack.up()
    assert (host.folder / "got").read_text() == "first line\nsecond: ünïcödé\n" * 2000
    assert "first line" not in (host.folder / "arguments").read_text()
    assert "first line" not in "".join(host.commands)


def test_command_without_stdin_reads_end_of_file(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="cat; echo done > got")\n').up()
    assert host.lines("got") == ["done"]


# Beyond SSH's window (2 MiB) the outcome is undefined: Pulumi's plugin fails with "EOF" if it is waiting for
# the window when the command ends, and succeeds between two writes. No step's text is that large.
def test_short_stdin_may_stay_unread(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="exec 0<&-; true", stdin="x" * 10000)\n').up()


def test_secret_outputs_and_connection_are_encrypted_in_state(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        a = command("a", create="echo open-$(cat)", stdin=pulumi.Output.secret("sesame"),
            logging=remote.Logging.NONE,
            opts=pulumi.ResourceOptions(additional_secret_outputs=["stdout", "stderr"]))
        b = command("b", create="cat > /dev/null", stdin=a.stdout, logging=remote.Logging.NONE)
        pulumi.export("stdout", a.stdout)
        """,
    )
    run = stack.up()
    raw = stack.raw_state()
    assert stack.output("stdout") == "open-sesame"
    for text in (raw, run.text):
        assert "sesame" not in text
        assert "PRIVATE KEY" not in text
    assert raw.count("ciphertext") >= 5


def test_logging_selects_the_streams_shown_as_progress(stack: Stack, host: SshServer) -> None:
    text = 'command("a", create="echo to-out; echo to-err >&2; echo WHICH", logging=WHICH)\n'
    shown = {}
    for which in ("NONE", "STDOUT", "STDERR", "STDOUT_AND_STDERR"):
        commands(
            stack,
            host,
            text.replace("logging=WHICH", f"logging=remote.Logging.{which}").replace("WHICH", which),
        )
        progress = "\n".join(stack.up().progress)
        shown[which] = ("to-out" in progress, "to-err" in progress)
    assert shown == {
        "NONE": (False, False),
        "STDOUT": (True, False),
        "STDERR": (False, True),
        "STDOUT_AND_STDERR": (True, True),
    }


def test_environment_and_previous_output_reach_the_command(stack: Stack, host: SshServer) -> None:
    text = """
    remote.Command("a", connection=connection(), environment={"COLOUR": "green"},
        create="echo $COLOUR", update="echo $COLOUR after $PULUMI_COMMAND_STDOUT VERSION")
    """
    commands(stack, host, text.replace("VERSION", "")).up()
    commands(stack, host, text.replace("VERSION", "indeed")).up()
    assert stack.state()[0]["outputs"]["stdout"] == "green after green indeed"


def test_preview_of_create_runs_nothing(stack: Stack, host: SshServer) -> None:
    commands(
        stack, host, 'a = command("a", create="echo x")\ncommand("b", create="true", triggers=[a.stdout])\n'
    )
    run = stack.preview()
    assert run.ops == ["create a", "create b"]
    assert run.step("a").state.get("outputs", {}).get("stdout") != "x"
    assert host.commands == []


def test_previewed_edit_makes_stdout_and_dependents_unknown(stack: Stack, host: SshServer) -> None:
    text = """
    a = command("a", create="echo same", update="echo same # VERSION")
    command("by_stdout", create="true", triggers=[a.stdout])
    command("by_id", create="true", triggers=[a.id])
    """
    commands(stack, host, text.replace("VERSION", "1")).up()
    commands(stack, host, text.replace("VERSION", "2"))
    plan = {step.name: step.op for step in stack.preview().steps}
    assert plan["a"] == "update"
    assert "replace" in plan["by_stdout"]
    assert plan.get("by_id", "same") == "same"  # the plan omits unchanged resources
    # The actual output is the same.
    assert stack.up().ops == ["update a"]


def test_previewed_new_input_leaves_stdout_known(stack: Stack, host: SshServer) -> None:
    commands(
        stack, host, 'a = command("a", create="echo x")\ncommand("b", create="true", triggers=[a.stdout])\n'
    ).up()
    commands(
        stack,
        host,
        'a = command("a", create="echo x", update="echo x")\n'
        'command("b", create="true", triggers=[a.stdout])\n',
    )
    assert stack.preview().ops == ["update a"]


def test_refresh_changes_nothing(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="echo x")\n').up()
    before = stack.state()[0]["outputs"]["stdout"]
    stack.refresh()
    assert stack.state()[0]["outputs"]["stdout"] == before
    assert len(host.commands) == 1
    assert stack.up().ops == []


def test_missing_connection_fails_before_anything_runs(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        class Bare(pulumi.CustomResource):
            def __init__(self):
                options = pulumi.ResourceOptions(version="1.2.1")
                super().__init__("command:remote:Command", "a", {"create": "true"}, options)
        Bare()
        """,
    )
    run = stack.up(fails=True)
    assert "connection" in "\n".join(run.messages)
    assert stack.state() == []
