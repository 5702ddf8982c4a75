"""What this program relies on in the provider plugins, whichever are present.

Pulumi's own plugins and the stand-ins run the same scenarios: the first found on PATH is
used (`tools/plugins/install.py`). Where the two are known to differ, the test says so.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import asyncssh
import pytest

from tests.engine.api_server import ApiServer
from tests.engine.ssh_server import (
    SshServer,
    closed_port,
    private,
    public,
    ssh_agent,
    ssh_server,
    turn_one_away,
)
from tests.engine.stack import Stack

COMMAND = """
import json, os, pulumi
from pulumi_command import remote

given = json.loads(os.environ["GIVEN"])

def connection(**more):
    return remote.ConnectionArgs(
        **{"host": "127.0.0.1", "port": given["port"], "user": "root", "host_key": given["host_key"],
           "private_key": pulumi.Output.secret(given["private_key"]), "dial_error_limit": 2,
           "per_dial_timeout": 5, **more})

def command(name, opts=None, connection=connection(), **args):
    return remote.Command(name, connection=connection, add_previous_output_in_env=False,
        opts=opts, **args)

"""

KUBERNETES = """
import json, os, pulumi
import pulumi_kubernetes as k8s

given = json.loads(os.environ["GIVEN"])
namespace = given["namespace"]

def options(timeouts=None, **args):
    return pulumi.ResourceOptions(provider=provider(**args), custom_timeouts=timeouts)

def timeouts(**args):
    return pulumi.CustomTimeouts(**args)

def provider(name="cluster", **args):
    return k8s.Provider(name, **{"kubeconfig": given["kubeconfig"], "cluster_identifier": "one", **args})

def config_map(name, opts, data, **metadata):
    return k8s.core.v1.ConfigMap(
        name, metadata={"name": name, "namespace": namespace, **metadata}, data=data, opts=opts)

def deployment(name, opts, labels=None, replicas=1, image="nginx", **more):
    labels = labels or {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}
    return k8s.apps.v1.Deployment(
        name, metadata={"name": name, "namespace": namespace, **more.pop("metadata", {})},
        spec={"replicas": replicas, "selector": {"matchLabels": labels}, "template": pod}, opts=opts)

"""


def commands(stack: Stack, host: SshServer, text: str, **given: Any) -> Stack:
    """The program `text` with `command(...)`, on that host."""
    about = {"port": host.port, "host_key": host.host_key, "private_key": host.private_key, **given}
    stack.extra["GIVEN"] = json.dumps(about)
    stack.program(COMMAND + textwrap.dedent(text))
    return stack


def objects(stack: Stack, cluster: ApiServer, namespace: str, text: str, **given: Any) -> Stack:
    """The program `text` with `provider(...)` and objects, on that cluster."""
    about = {"kubeconfig": cluster.kubeconfig, "namespace": namespace, **given}
    stack.extra["GIVEN"] = json.dumps(about)
    stack.program(KUBERNETES + textwrap.dedent(text))
    return stack


@pytest.fixture
def namespace(cluster: ApiServer) -> str:
    """A namespace of the test's own."""
    return cluster.namespace()


# -- the plugins themselves


def test_a_stand_in_says_so_in_every_run(stack: Stack, host: SshServer, stand_ins: set[str]) -> None:
    stack.language_host = True
    commands(stack, host, "command('a', create='true')\n")
    for run in (stack.up(), stack.preview(), stack.destroy()):
        assert ("stand-in" in run.text) == ("command" in stand_ins)


# -- command: create, update, delete


def test_a_created_command_runs_once_and_its_output_is_kept(stack: Stack, host: SshServer) -> None:
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
    # One newline goes, as with a shell's substitution; but one only.
    assert (stack.output("stdout"), stack.output("stderr")) == ("out\n", "err")


def test_an_edit_runs_update_and_without_update_runs_create_again(stack: Stack, host: SshServer) -> None:
    text = """
    command("with", create="echo 1 create >> log", update="echo 1 update VERSION >> log")
    command("without", create="echo 2 create VERSION >> log", opts=pulumi.ResourceOptions(depends_on=[]))
    """
    commands(stack, host, text.replace("VERSION", "a")).up()
    commands(stack, host, text.replace("VERSION", "b"))
    assert sorted(stack.up().ops) == ["update with", "update without"]
    assert sorted(host.lines()) == ["1 create", "1 update b", "2 create a", "2 create b"]


def test_an_edit_of_any_other_input_is_an_update(stack: Stack, host: SshServer) -> None:
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


def test_without_commands_to_run_nothing_is_run(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", triggers=[1])\n').up()
    commands(stack, host, 'command("a", triggers=[1], stdin="x")\n').up()
    stack.destroy()
    assert host.commands == []


def test_changed_triggers_replace_and_delete_runs_first_where_asked(stack: Stack, host: SshServer) -> None:
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


def test_the_id_stays_over_updates(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="echo 1")\n').up()
    before = stack.state()[0]["id"]
    commands(stack, host, 'command("a", create="echo 2")\n').up()
    assert stack.state()[0]["id"] == before


# -- command: failure


def test_a_failed_create_stores_nothing_and_runs_again(stack: Stack, host: SshServer) -> None:
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


def test_a_failure_shows_status_command_and_output(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """command("a", create='echo "said\tso"; echo loud >&2; exit 7', logging=remote.Logging.NONE)\n""",
    )
    said = "\n".join(stack.up(fails=True).messages)
    assert 'Process exited with status 7: running "echo \\"said\\tso\\"; echo loud >&2; exit 7":' in said
    assert "said\tso" in said
    assert "loud" in said


def test_a_command_killed_by_a_signal_fails(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="kill -9 $$")\n')
    assert "from signal KILL" in "\n".join(stack.up(fails=True).messages)


def test_a_failed_update_keeps_the_old_state_and_is_tried_again(stack: Stack, host: SshServer) -> None:
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


def test_a_failed_delete_keeps_the_resource(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="true", delete="test -e allowed")\n').up()
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    (host.folder / "allowed").touch()
    stack.destroy()
    assert stack.state() == []


# -- command: connections


def test_delete_uses_the_stored_connection(
    stack: Stack, host: SshServer, hosts: Callable[[str], SshServer]
) -> None:
    text = 'command("a", create="echo create >> log", delete="echo delete >> log")\n'
    commands(stack, host, text).up()
    # The program may say what it will: nothing of it is used.
    commands(stack, hosts("other"), text)
    stack.destroy()
    assert host.lines() == ["create", "delete"]


def test_a_host_that_refuses_is_given_up_after_the_set_attempts(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        'command("a", create="true", connection=connection(port=given["closed"], dial_error_limit=3))\n',
        closed=closed_port(),
    )
    begun = time.monotonic()
    run = stack.up(fails=True)
    assert time.monotonic() - begun < 60
    assert "after 3 failed attempts" in "\n".join(run.messages)
    assert any("3/3 failed: retrying" in sign for sign in run.signs)


def test_a_host_that_comes_up_late_is_reached(stack: Stack, tmp_path: Path) -> None:
    port = closed_port()
    late = asyncssh.generate_private_key("ssh-ed25519")
    user = asyncssh.generate_private_key("ssh-ed25519")
    with ExitStack() as running:

        def boot() -> None:
            turn_one_away(port)
            running.enter_context(ssh_server(tmp_path / "late", port, late, user))

        start = Thread(target=boot)
        start.start()
        commands(
            stack,
            SshServer(port, tmp_path / "late", public(late), private(user)),
            'command("a", create="echo late >> log", connection=connection(dial_error_limit=-1))\n',
        )
        assert stack.up().ops == ["create a"]
        start.join()
    assert (tmp_path / "late" / "log").read_text() == "late\n"


def test_a_wrong_host_key_is_refused_and_nothing_runs(stack: Stack, host: SshServer) -> None:
    other = public(asyncssh.generate_private_key("ssh-ed25519"))
    commands(
        stack,
        host,
        """
        wrong = connection(host_key=given["other"], dial_error_limit=0)
        command("a", create="echo run >> log", connection=wrong)
        """,
        other=other,
    )
    assert "host key mismatch" in "\n".join(stack.up(fails=True).messages)
    assert host.commands == []


def test_a_proxy_is_passed_through(stack: Stack, host: SshServer, hosts: Callable[[str], SshServer]) -> None:
    proxy = hosts("proxy")
    commands(
        stack,
        host,
        """
        p = given["proxy"]
        a = command("a", create="echo there", connection=connection(proxy=remote.ProxyConnectionArgs(
            host="127.0.0.1", port=p["port"], host_key=p["host_key"], private_key=p["private_key"])))
        pulumi.export("stdout", a.stdout)
        """,
        proxy={"port": proxy.port, "host_key": proxy.host_key, "private_key": proxy.private_key},
    )
    stack.up()
    assert stack.output("stdout") == "there"
    assert len(proxy.logins) == 1
    assert (proxy.commands, len(host.commands)) == ([], 1)


def test_a_login_without_a_key_is_by_the_agents(stack: Stack, host: SshServer) -> None:
    with ssh_agent(host.private_key) as place:
        stack.extra["SSH_AUTH_SOCK"] = place
        commands(
            stack, host, 'command("a", create="echo in >> log", connection=connection(private_key=None))\n'
        )
        assert stack.up().ops == ["create a"]
    assert host.lines() == ["in"]


def test_a_dead_agent_fails_even_with_a_key(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        'command("a", create="true", connection=connection(agent_socket_path="/nowhere/agent"))\n',
    )
    assert "/nowhere/agent" in "\n".join(stack.up(fails=True).messages)


def test_many_commands_on_one_host_run_at_the_same_time(stack: Stack, host: SshServer) -> None:
    # Each waits for the others: one after the other they would never end.
    commands(
        stack,
        host,
        """
        for n in range(6):
            command(f"c{n}", create=f"touch here{n}\\n"
                "for i in $(seq 300); do [ $(ls here* | wc -l) -ge 6 ] && exit 0; sleep 0.1; done; exit 1")
        """,
    )
    assert len(stack.up().ops) == 6


# -- command: input, output, secrets, previews


def test_stdin_arrives_and_is_in_no_argument(stack: Stack, host: SshServer) -> None:
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


def test_without_stdin_a_reading_command_sees_the_end(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="cat; echo done > got")\n').up()
    assert host.lines("got") == ["done"]


# Nothing is promised for one that is larger than SSH's window (2 MiB): Pulumi's plugin fails with "EOF" if
# it waits for the window at the command's end, and succeeds between two writes. No step's text is near that.
def test_a_short_stdin_may_be_left_unread(stack: Stack, host: SshServer) -> None:
    commands(stack, host, 'command("a", create="exec 0<&-; true", stdin="x" * 10000)\n').up()


def test_secret_outputs_and_connection_are_ciphertext_in_the_state(stack: Stack, host: SshServer) -> None:
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


def test_logging_says_which_stream_shows_signs_of_life(stack: Stack, host: SshServer) -> None:
    text = 'command("a", create="echo to-out; echo to-err >&2; echo WHICH", logging=WHICH)\n'
    shown = {}
    for which in ("NONE", "STDOUT", "STDERR", "STDOUT_AND_STDERR"):
        commands(
            stack,
            host,
            text.replace("logging=WHICH", f"logging=remote.Logging.{which}").replace("WHICH", which),
        )
        signs = "\n".join(stack.up().signs)
        shown[which] = ("to-out" in signs, "to-err" in signs)
    assert shown == {
        "NONE": (False, False),
        "STDOUT": (True, False),
        "STDERR": (False, True),
        "STDOUT_AND_STDERR": (True, True),
    }


def test_environment_and_previous_output_arrive_where_the_server_takes_them(
    stack: Stack, host: SshServer
) -> None:
    text = """
    remote.Command("a", connection=connection(), environment={"COLOUR": "green"},
        create="echo $COLOUR", update="echo $COLOUR after $PULUMI_COMMAND_STDOUT VERSION")
    """
    commands(stack, host, text.replace("VERSION", "")).up()
    commands(stack, host, text.replace("VERSION", "indeed")).up()
    assert stack.state()[0]["outputs"]["stdout"] == "green after green indeed"


def test_a_preview_runs_nothing_and_knows_no_output_of_a_create(stack: Stack, host: SshServer) -> None:
    commands(
        stack, host, 'a = command("a", create="echo x")\ncommand("b", create="true", triggers=[a.stdout])\n'
    )
    run = stack.preview()
    assert run.ops == ["create a", "create b"]
    assert "stdout" not in json.dumps(run.step("a").state.get("outputs", {}).get("stdout", ""))
    assert host.commands == []


def test_a_preview_of_an_edit_makes_stdout_unknown_and_with_it_what_depends_on_it(
    stack: Stack, host: SshServer
) -> None:
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
    assert plan.get("by_id", "same") == "same"  # the plan leaves out what stays
    # In the end the output was the same.
    assert stack.up().ops == ["update a"]


def test_a_preview_of_a_new_input_leaves_stdout_known(stack: Stack, host: SshServer) -> None:
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


def test_a_missing_connection_is_refused_before_anything_runs(stack: Stack, host: SshServer) -> None:
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


# -- the engine with these plugins


def test_a_before_create_hook_runs_before_each_attempt_to_create(stack: Stack, host: SshServer) -> None:
    stack.language_host = True
    commands(
        stack,
        host,
        """
        async def mint(args):
            with open("minted", "a") as file:
                file.write(args.name + "\\n")

        hook = pulumi.ResourceHook("mint", mint)
        command("a", create="echo create >> log; test -e allowed",
                opts=pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook])))
        """,
    )
    minted = stack.folder / "minted"
    stack.up(fails=True)
    assert minted.read_text().splitlines() == ["a"]
    (host.folder / "allowed").touch()
    stack.up()
    assert minted.read_text().splitlines() == ["a", "a"]
    stack.up()
    assert minted.read_text().splitlines() == ["a", "a"]


def test_a_failing_before_create_hook_stops_the_create(stack: Stack, host: SshServer) -> None:
    stack.language_host = True
    commands(
        stack,
        host,
        """
        def mint(args):
            raise Exception("no token to be had")

        hooks = pulumi.ResourceHookBinding(before_create=[pulumi.ResourceHook("mint", mint)])
        command("a", create="echo create >> log", opts=pulumi.ResourceOptions(hooks=hooks))
        """,
    )
    assert "no token to be had" in stack.up(fails=True).text
    assert host.commands == []


def test_what_goes_with_another_resource_is_not_deleted_by_itself(stack: Stack, host: SshServer) -> None:
    commands(
        stack,
        host,
        """
        a = command("a", create="true", delete="echo a >> log")
        command("b", create="true", delete="echo b >> log",
                opts=pulumi.ResourceOptions(depends_on=[a], deleted_with=a))
        """,
    ).up()
    stack.destroy()
    assert host.lines() == ["a"]


def test_replace_with_replaces_along(stack: Stack, host: SshServer) -> None:
    text = """
    a = command("a", create="true", triggers=["VERSION"])
    command("b", create="echo b >> log", opts=pulumi.ResourceOptions(replace_with=[a]))
    """
    commands(stack, host, text.replace("VERSION", "1")).up()
    commands(stack, host, text.replace("VERSION", "2")).up()
    assert host.lines() == ["b", "b"]


# -- kubernetes: create, change, replace, delete


def test_an_object_is_made_once_changed_in_place_and_deleted(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    o = options(enable_config_map_mutable=True)
    c = config_map("c", o, {"a": "1", LINE}, labels={"x": "y"})
    pulumi.export("uid", c.metadata.uid)
    pulumi.export("id", c.id)
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("LINE", '"b": "2"'))
    assert stack.up().ops == ["create c"]
    first = cluster.call("GET", path)
    assert first["data"] == {"a": "1", "b": "2"}
    assert (stack.output("id"), stack.output("uid")) == (f"{namespace}/c", first["metadata"]["uid"])
    assert stack.up().ops == []
    # A field that the program no longer names goes, since it was set by the program.
    objects(stack, cluster, namespace, text.replace("LINE", '"d": "4"'))
    assert stack.preview().ops == ["update c"]
    assert stack.up().ops == ["update c"]
    second = cluster.call("GET", path)
    assert second["data"] == {"a": "1", "d": "4"}
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    stack.destroy()
    assert cluster.call("GET", path) == {}


def test_fields_of_others_stay(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = 'config_map("c", options(enable_config_map_mutable=True), {"a": "VALUE"})\n'
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    cluster.call("PATCH", path, {"data": {"theirs": "x"}}, "application/merge-patch+json")
    objects(stack, cluster, namespace, text.replace("VALUE", "2")).up()
    assert cluster.call("GET", path)["data"] == {"a": "2", "theirs": "x"}


def test_a_conflict_names_the_other_manager_and_is_tried_again(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(enable_config_map_mutable=True), {"a": "VALUE"})\n'
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "theirs"}}
    cluster.call("PATCH", f"{path}?fieldManager=someone&force=true", theirs, "application/apply-patch+yaml")
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    said = "\n".join(stack.up(fails=True).messages)
    assert "Server-Side Apply field conflict" in said
    assert "someone" in said
    assert cluster.call("GET", path)["data"] == {"a": "theirs"}
    # They let go of it: the next run succeeds, though the program hasn't changed since.
    del theirs["data"]
    cluster.call("PATCH", f"{path}?fieldManager=someone&force=true", theirs, "application/apply-patch+yaml")
    stack.up()
    assert cluster.call("GET", path)["data"] == {"a": "2"}


def test_an_existing_object_is_not_taken_over(
    stack: Stack, cluster: ApiServer, namespace: str, stand_ins: set[str]
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.call("POST", path, {"metadata": {"name": "c"}, "data": {"a": "theirs"}})
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"b": "ours"})\n',
    )
    run = stack._run("up", "--yes", "--skip-preview", "--json")
    if run.status == 0 and "kubernetes" not in stand_ins:
        pytest.skip("Pulumi's plugin before 4.29 takes existing objects over")
    assert "already exists" in "\n".join(run.messages)
    assert cluster.call("GET", f"{path}/c")["data"] == {"a": "theirs"}
    assert stack.state() == []


def test_upsert_takes_an_existing_object_over(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.call("POST", path, {"metadata": {"name": "c"}, "data": {"a": "theirs"}})
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(upsert_existing_objects=True), {"b": "ours"})\n',
    ).up()
    assert cluster.call("GET", f"{path}/c")["data"] == {"a": "theirs", "b": "ours"}


def test_another_name_replaces(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    k8s.core.v1.ConfigMap("c", metadata={"name": "NAME", "namespace": namespace}, data={"a": "1"},
        opts=options())
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    objects(stack, cluster, namespace, text.replace("NAME", "one")).up()
    objects(stack, cluster, namespace, text.replace("NAME", "two"))
    ops = stack.up().ops
    assert ops.index("create-replacement c") < ops.index("delete-replaced c")
    assert cluster.call("GET", f"{path}/one") == {}
    assert cluster.call("GET", f"{path}/two")["data"] == {"a": "1"}


def test_a_config_map_is_replaced_delete_first_unless_mutable(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(), {"a": "VALUE"})\n'
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    ops = stack.up().ops
    assert ops.index("delete-replaced c") < ops.index("create-replacement c")
    assert cluster.call("GET", f"/api/v1/namespaces/{namespace}/configmaps/c")["data"] == {"a": "2"}


def test_an_immutable_selector_replaces_the_deployment_delete_first(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'deployment("d", options(), labels={"app": "LABEL"})\n'
    with cluster.pods_ready(namespace):
        objects(stack, cluster, namespace, text.replace("LABEL", "one")).up()
        objects(stack, cluster, namespace, text.replace("LABEL", "two"))
        assert "replace d" in stack.preview().ops
        ops = stack.up().ops
    assert ops.index("delete-replaced d") < ops.index("create-replacement d")
    live = cluster.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/d")
    assert live["spec"]["selector"]["matchLabels"] == {"app": "two"}


def test_an_autonamed_object_keeps_its_name(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    c = k8s.core.v1.ConfigMap("auto", metadata={"namespace": namespace}, data={"a": "VALUE"},
        opts=options(enable_config_map_mutable=True))
    pulumi.export("name", c.metadata.name)
    """
    objects(stack, cluster, namespace, text.replace("VALUE", "1")).up()
    name = stack.output("name")
    assert name.startswith("auto-")
    objects(stack, cluster, namespace, text.replace("VALUE", "2"))
    assert stack.up().ops == ["update auto"]
    assert stack.output("name") == name


def test_the_default_namespace_is_filled_in_and_cluster_objects_have_none(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    o = options()
    c = k8s.core.v1.ConfigMap("c", metadata={"name": namespace}, data={"a": "1"}, opts=o)
    r = k8s.rbac.v1.ClusterRole("r", metadata={"name": namespace},
        rules=[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}], opts=o)
    pulumi.export("ids", pulumi.Output.all(c.id, r.id))
    """
    objects(stack, cluster, namespace, text).up()
    assert stack.output("ids") == [f"default/{namespace}", namespace]
    assert stack.up().ops == []
    stack.destroy()


def test_a_deleted_object_may_be_gone_already(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"a": "1"})\n',
    ).up()
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/configmaps/c")
    stack.destroy()
    assert stack.state() == []


def test_a_deletion_waits_for_finalizers_and_fails_after_its_time(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    config_map("c", options(timeouts(delete="3s")), {"a": "1"})
    """
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    objects(stack, cluster, namespace, text).up()
    cluster.call(
        "PATCH", path, {"metadata": {"finalizers": ["example.org/hold"]}}, "application/merge-patch+json"
    )
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
    stack.destroy()
    assert stack.state() == []


# -- kubernetes: waiting


def test_a_deployment_is_waited_for(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        d = deployment("d", options(), replicas=2)
        pulumi.export("available", d.status.available_replicas)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("available") == 2


def test_a_deployment_that_does_not_get_ready_fails_and_is_kept(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = """
    deployment("d", options(timeouts(create="4s", update="60s")))
    """
    objects(stack, cluster, namespace, text)
    run = stack.up(fails=True)
    assert "failed to fully initialize or become live" in "\n".join(run.messages)
    assert "timed out waiting to be Ready" in "\n".join(run.messages)
    assert [entry["id"] for entry in stack.state()] == [f"{namespace}/d"]
    # The next run waits again, by an update.
    with cluster.pods_ready(namespace):
        assert stack.up().ops == ["update d"]
    assert stack.up().ops == []


def test_the_timeout_annotation_bounds_the_wait(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'deployment("d", options(), metadata={"annotations": {"pulumi.com/timeoutSeconds": "3"}})\n',
    )
    begun = time.monotonic()
    stack.up(fails=True)
    assert time.monotonic() - begun < 90


def test_skip_await_waits_neither_for_readiness_nor_for_a_workloads_end(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        note = {"annotations": {"pulumi.com/skipAwait": "true"}}
        o = options(timeouts(create="60s"))
        deployment("d", o, metadata=note)
        k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace, **note},
            spec={"selector": {"app": "none"}, "ports": [{"port": 80}]}, opts=o)
        """,
    )
    assert len(stack.up().ops) == 2
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/d"
    cluster.call(
        "PATCH", path, {"metadata": {"finalizers": ["example.org/hold"]}}, "application/merge-patch+json"
    )
    stack.destroy()
    assert cluster.call("GET", path)["metadata"]["deletionTimestamp"]
    cluster.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")


def test_a_service_is_waited_for_until_its_pods_are_ready(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        o = options()
        d = deployment("d", o)
        s = k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace},
            spec={"selector": {"app": "d"}, "ports": [{"port": 80}]},
            opts=pulumi.ResourceOptions(provider=o.provider, depends_on=[d]))
        pulumi.export("ip", s.spec.cluster_ip)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("ip").startswith("10.0.")
    assert stack.up().ops == []


def test_a_daemon_set_is_waited_for(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
        s = k8s.apps.v1.DaemonSet("s", metadata={"name": "s", "namespace": namespace},
            spec={"selector": {"matchLabels": {"a": "b"}}, "template": pod},
            opts=options())
        pulumi.export("ready", s.status.number_ready)
        """,
    )
    with cluster.pods_ready(namespace):
        stack.up()
    assert stack.output("ready") == 1


# -- kubernetes: the provider


def test_a_kubeconfig_unknown_at_preview_leaves_objects_planned(
    stack: Stack, cluster: ApiServer, namespace: str, host: SshServer
) -> None:
    text = """
    from pulumi_command import remote
    there = remote.ConnectionArgs(
        host="127.0.0.1", port=given["port"], host_key=given["host_key"], private_key=given["private_key"])
    secret = remote.Command("kubeconfig", connection=there, create="cat", stdin=given["kubeconfig"],
        logging=remote.Logging.NONE, add_previous_output_in_env=False,
        opts=pulumi.ResourceOptions(additional_secret_outputs=["stdout"]))
    config_map("c", options(kubeconfig=secret.stdout, cluster_identifier=secret.id), {"a": "1"})
    """
    about = {"port": host.port, "host_key": host.host_key, "private_key": host.private_key}
    objects(stack, cluster, namespace, text, **about)
    assert stack.preview().ops == ["create kubeconfig", "create c"]
    assert sorted(stack.up().ops) == ["create c", "create kubeconfig"]
    assert stack.up().ops == []


def test_a_changed_kubeconfig_of_the_same_cluster_replaces_nothing(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(), {"a": "1"})\n'
    objects(stack, cluster, namespace, text).up()
    other = cluster.kubeconfig_for(cluster.url.replace("127.0.0.1", "localhost"), "renamed")
    objects(stack, cluster, namespace, text, kubeconfig=other)
    assert stack.preview().ops == []
    assert stack.up().ops == []


def test_another_cluster_identifier_replaces_the_objects(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(cluster_identifier="WHICH"), {"a": "1"})\n'
    objects(stack, cluster, namespace, text.replace("WHICH", "one")).up()
    objects(stack, cluster, namespace, text.replace("WHICH", "two"))
    assert "replace c" in stack.preview().ops


def test_a_changed_kubeconfig_without_identifier_replaces_the_objects(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(cluster_identifier=None), {"a": "1"})\n'
    objects(stack, cluster, namespace, text).up()
    other = cluster.kubeconfig_for(cluster.url.replace("127.0.0.1", "localhost"))
    objects(stack, cluster, namespace, text, kubeconfig=other)
    assert "replace c" in stack.preview().ops


def test_objects_of_an_unreachable_cluster_stay_unless_the_provider_says_otherwise(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    text = 'config_map("c", options(delete_unreachable=FLAG), {"a": "1"})\n'
    gone = cluster.kubeconfig_for(f"https://127.0.0.1:{closed_port()}")
    objects(stack, cluster, namespace, text.replace("FLAG", "False")).up()
    # Only the provider's settings change; the cluster "moves" to where nobody listens.
    objects(stack, cluster, namespace, text.replace("FLAG", "False"), kubeconfig=gone).up(
        "--target", "**cluster"
    )
    stack.destroy(fails=True)
    assert len(stack.state()) == 1
    objects(stack, cluster, namespace, text.replace("FLAG", "True"), kubeconfig=gone).up(
        "--target", "**cluster"
    )
    stack.destroy()
    assert stack.state() == []


def test_secrets_are_ciphertext_in_the_state(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        o = options(kubeconfig=pulumi.Output.secret(given["kubeconfig"]))
        k8s.core.v1.Secret("s", metadata={"name": "s", "namespace": namespace},
            string_data={"key": "hidden-treasure"}, opts=o)
        config_map("c", o, {"open": "visible", "closed": pulumi.Output.secret("hidden-map")})
        """,
    )
    run = stack.up()
    raw = stack.raw_state()
    assert "visible" in raw
    for text in (raw, run.text):
        assert "hidden-treasure" not in text
        assert "aGlkZGVuLXRyZWFzdXJl" not in text  # the same in base64, as the API stores it
        assert "hidden-map" not in text
        assert cluster.token not in text
    assert stack.up().ops == []


def test_refresh_finds_drift_and_the_next_run_mends_it(
    stack: Stack, cluster: ApiServer, namespace: str
) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(enable_config_map_mutable=True), {"a": "1"})\n',
    ).up()
    path = f"/api/v1/namespaces/{namespace}/configmaps/c"
    cluster.call(
        "PATCH",
        f"{path}?fieldManager=pulumi-kubernetes",
        {"data": {"a": "drifted"}},
        "application/merge-patch+json",
    )
    assert stack.up().ops == []
    stack.refresh()
    assert stack.up().ops == ["update c"]
    assert cluster.call("GET", path)["data"] == {"a": "1"}


def test_refresh_forgets_what_is_gone(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        'config_map("c", options(), {"a": "1"})\n',
    ).up()
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/configmaps/c")
    stack.refresh()
    assert stack.state() == []
    assert stack.up().ops == ["create c"]


def test_an_object_the_server_refuses_is_not_stored(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    objects(
        stack,
        cluster,
        namespace,
        """
        k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace},
            spec={"ports": [{"port": 99999}]},
            opts=options())
        """,
    )
    assert "99999" in "\n".join(stack.up(fails=True).messages)
    assert stack.state() == []


def test_a_preview_asks_the_server_what_it_thinks(stack: Stack, cluster: ApiServer, namespace: str) -> None:
    text = """
    note = {"pulumi.com/skipAwait": "true"}
    k8s.core.v1.Service("s", metadata={"name": "s", "namespace": namespace, "annotations": note},
        spec={"ports": [{"port": PORT}]}, opts=options())
    """
    objects(stack, cluster, namespace, text.replace("PORT", "99999"))
    assert "99999" in stack.preview(fails=True).text
    objects(stack, cluster, namespace, text.replace("PORT", "80")).up()
    objects(stack, cluster, namespace, text.replace("PORT", "99999"))
    assert "99999" in stack.preview(fails=True).text
    assert cluster.call("GET", f"/api/v1/namespaces/{namespace}/services/s")["spec"]["ports"][0]["port"] == 80
