"""What goes wrong in the middle, and what mends it: the cause away, and the same command again."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import yaml

from common.errors import UserError
from common.paths import project_dir, stack_file
from common.progress import Progress
from lab import services
from tests.lab.cluster import (
    Cluster,
    Config,
    balances,
    differences,
    drift,
    edited,
    identity,
    proxy,
    repaired,
    secrets_of,
    up,
)
from tests.lab.kills import killed_at_each_line, prepare, run_to_its_end, texts
from tests.lab.resilience import results
from tests.live_engine import Engine
from tools import env, stack

Figure = Callable[[str], None]
EVICTION_SECONDS = 300  # Kubernetes' own, for a node that doesn't answer
DEAD_HOST_SECONDS = 120  # beside what the others need, which on emulated hosts is minutes by itself


def without(name: str) -> Callable[[Config], None]:
    """The settings without a host."""

    def change(config: Config) -> None:
        config["hosts"] = [host for host in config["hosts"] if host["name"] != name]

    return change


def unlike_before(cluster: Cluster, host: str) -> str:
    """What on a host is not as it was before it was in the cluster."""
    return differences({host: cluster.before[host]}, cluster.state_of([host]))


def failing(cluster: Cluster) -> str:
    """What an `up` prints that must fail."""
    done = cluster.pulumi("up", "--yes", "--skip-preview")
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


@contextmanager
def processes_seen(cluster: Cluster) -> Iterator[list[str]]:
    """Every host's command lines, a line an argument, sampled while the block runs."""
    seen: list[str] = []
    ended = threading.Event()
    # Two processes in all: one for each that is seen would keep an emulated host busy with being watched.
    sample = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"

    def watch(host: str) -> None:
        while not ended.wait(3):
            try:
                seen.append(cluster.lab.ssh(host, ["bash", "-c", sample], timeout=60).stdout)
            except UserError:  # a host that is being broken answers the next time
                continue

    threads = [threading.Thread(target=watch, args=(host,)) for host in cluster.hosts]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def no_secret_is_in_the_open(cluster: Cluster, texts: Iterable[str]) -> None:
    """Not in what was printed, a preview for machines, the state, the lab's logs, or the hosts' journals."""
    places = {f"text {number}": text for number, text in enumerate(texts)}
    places["preview"] = cluster.pulumi("preview", "--json").stdout
    places["state"] = cluster.pulumi("stack", "export").stdout
    for file in cluster.lab.folder.rglob("*.log"):
        places[str(file)] = file.read_text(errors="replace")
    for host in cluster.hosts:
        places[f"{host}'s logs"] = cluster.logs(host)
    for secret in secrets_of(cluster):
        assert [place for place, text in places.items() if secret in text] == []


def killed_in_the_middle(run: Engine, every: int, until: str) -> str:
    """Kill the engine when so many resources have ended and others have begun; the ones that had.

    Nothing, and it isn't killed, where it ends before, or where the step `until` begins before.
    """
    for _ in run.events():
        if until in run.begun:
            return ""
        if len(run.begun) > len(run.ended) >= every:
            run.kill()
            return " and ".join(step for step in run.begun if step not in run.ended)
    return ""


def killed_again_and_again(
    cluster: Cluster, verb: str, every: int, printed: list[str], figure: Figure, until: str = ""
) -> Engine:
    """Run again and again, each time killed when so many more resources have ended; the one that isn't.

    The engine tells of an end before it writes it down. What takes no time, as the deletion of what goes with
    its host, may so end again and again: then the next run is killed one later.
    """
    killed: list[Engine] = []
    while point := killed_in_the_middle(run := cluster.start(verb), every, until):
        figure(f"{verb}: {len(run.ended)} steps ended, killed in the middle of {point}")
        printed.append(run.printed)
        every += bool(killed and set(killed[-1].ended) & set(run.ended))
        killed.append(run)
        cluster.unlock()
    for former in killed:
        former.end_plugins()
    assert until or len(killed) > 2, "not killed in the middle"
    return run


def held_up(cluster: Cluster, host: str, *arguments: str) -> float:
    """Run what must fail at a dead host's claim; for how many seconds it waited for that host only.

    Nor does anything that is updated elsewhere wait until Kubernetes moves the dead host's pods.
    """
    run = cluster.start(*arguments)
    last = time.monotonic()
    began: dict[str, float] = {}
    for word in run.events():
        step = run.ended[-1] if word == "ended" else run.begun[-1]
        if step.split()[1].startswith(f"{host}-"):
            continue
        last = time.monotonic()
        if word == "begun":
            began[step] = last
        elif step.startswith("update "):
            assert last - began[step] < EVICTION_SECONDS, step
    assert run.wait() != 0
    assert f"{host}-claim" in run.said
    return time.monotonic() - last


def power_cut(cluster: Cluster, run: Engine) -> None:
    """The control plane loses its power in the init of this run, with etcd's manifest just written."""
    master = cluster.hosts[0]
    there = "until [[ -e /etc/kubernetes/manifests/etcd.yaml ]]; do read -rt 0.2 <> <(:) || :; done"
    cluster.run(master, f"timeout 900 bash -c '{there}'", timeout=1000)
    cluster.lab.power_off(master)
    assert run.wait() != 0
    assert f"{master}-init" in run.said
    cluster.lab.up()


def test_the_engine_is_killed_at_many_points_of_destroy_and_up(cluster: Cluster, figure: Figure) -> None:
    """The engine is killed (SIGKILL) at twenty points and more of a destroy and an up, the control plane's
    power cut in init; the same command goes on"""
    printed: list[str] = []
    points: list[str] = []

    def point(text: str) -> None:
        points.append(text)
        figure(text)

    def ended(run: Engine) -> None:
        assert run.wait() == 0, run.said
        printed.append(run.printed)
        figure(f"{len(run.ended)} steps ended, success")

    init = f"create {cluster.hosts[0]}-init"
    with processes_seen(cluster) as commands:
        ended(killed_again_and_again(cluster, "destroy", 3, printed, point))
        assert differences(cluster.before, cluster.state()) == ""
        run = killed_again_and_again(cluster, "up", 3, printed, point, until=init)
        assert init in run.begun, run.said
        power_cut(cluster, run)
        printed.append(run.printed)
        figure(f"up: {len(run.ended)} steps ended, the control plane's power cut in init, named")
        ended(killed_again_and_again(cluster, "up", 2, printed, point))
    assert len(points) >= 20
    no_secret_is_in_the_open(cluster, [*printed, *commands])
    assert cluster.kubectl("get nodes -o name").splitlines() == sorted(
        f"node/{host}" for host in cluster.hosts
    )


CUT = r"""
while [[ $(ps -o comm= -p "$pid") != sshd* ]]; do pid=$(ps -o ppid= -p "$pid" | tr -d ' '); done
kill -KILL "$pid"
echo "$call" >/run/cut
"""
# Stopped first: a short step would be over before its sshd, the nearest one above it, is found.
IN_ITS_MIDDLE = rf"""call=$0
until pkill -STOP -f "[b]ash -s -- $call"; do read -rt 0.2 <> <(:) || :; done
pid=$(pgrep -of "[b]ash -s -- $call")
{CUT}
pkill -CONT -f "[b]ash -s -- $call"
"""
# In the place of `timeout`, which every step begins with: nobody sees so short a step in time to stop it.
# It has done what it does by then, and what it printed is lost.
AT_ITS_END = rf"""[[ "$*" == *" bash -s -- $call" ]] || exec /usr/bin/timeout "$@"
/usr/bin/timeout "$@" >/dev/null
pid=$$
{CUT}
rm "$0"
"""
SHORT = frozenset({"kubeconfig"})


def cut_off(cluster: Cluster, printed: list[str], figure: Figure, steps: dict[str, str]) -> None:
    """`up`, and the connection of each of these steps (resource: verb, step and host) is cut in its middle.

    The step's own alone; what runs on the host finds out for itself.
    """
    instead = "/usr/local/bin/timeout"
    # On the hosts before it begins: a login takes a busy one longer than a short step.
    for call in steps.values():
        _, step, host = call.split()
        if step in SHORT:
            text = f"#!/bin/bash\ncall={shlex.quote(call)}\n{AT_ITS_END}"
            cutting = f"printf %s {shlex.quote(text)} >{instead}; chmod +x {instead}"
        else:
            cutting = f"setsid timeout 900 bash -c {shlex.quote(IN_ITS_MIDDLE)} {shlex.quote(call)}"
            cutting += " </dev/null >/dev/null 2>&1 &"
        cluster.run(host, f"rm -f /run/cut; {cutting}")
    run = cluster.start("up")
    status = run.wait()
    printed.append(run.printed)
    over = f"pkill -f '[p]kill -STOP'; cat /run/cut; rm -f /run/cut {instead}"
    cut = {call: cluster.run(call.split()[-1], over) for call in steps.values()}
    assert cut == {call: f"{call}\n" for call in steps.values()}
    assert status != 0
    for resource, call in steps.items():
        assert f"{resource}: " in run.said
        figure(f"{call}: cut")


def test_each_steps_connection_is_cut_in_the_middle(cluster: Cluster, figure: Figure) -> None:
    """SSH is cut in the middle of a worker's steps and of the control plane's; the next `up` goes on, or
    puts back what was taken back"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    same = identity(cluster)
    printed: list[str] = []
    for name, steps in (
        (host, ("kernel", "firewall", "packages", "runtime", "join")),
        (master, ("init", "kubeconfig")),
    ):
        with edited(cluster, repaired(name)):
            for step in steps:
                cut_off(cluster, printed, figure, {f"{name}-{step}": f"update {step} {name}"})
            up(cluster)
    with edited(cluster, proxy(scheduler="lc")):
        cut_off(cluster, printed, figure, {f"{master}-proxy": f"update proxy {master}"})
        for name in cluster.hosts[1:]:
            assert " rr" in cluster.run(name, "ipvsadm -Ln"), "the hosts after it are as they were"
    up(cluster)
    balances(cluster, "ipvs", "rr")
    figure("scheduler: taken back after the cut, and every kernel has the former one")
    assert identity(cluster) == same
    no_secret_is_in_the_open(cluster, printed)


def test_a_workers_connections_are_cut_while_it_goes_and_comes_back(cluster: Cluster, figure: Figure) -> None:
    """SSH is cut in the middle of each step that takes a worker away and makes it; the next `up` goes on"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    same = identity(cluster)[0]
    printed: list[str] = []
    with edited(cluster, without(host)):
        cut_off(cluster, printed, figure, {f"{host}-node": f"delete node {master}"})
        cut_off(cluster, printed, figure, {f"{host}-claim": f"delete claim {host}"})
        cut_off(cluster, printed, figure, {f"{host}-deregister": f"delete deregister {master}"})
        up(cluster)
    assert unlike_before(cluster, host) == ""
    assert host not in cluster.kubectl("get nodes -o name")

    # Nothing is before the token but the cluster, so it is made beside the claim.
    beside = {f"{host}-claim": f"create claim {host}", f"{host}-token": f"create token {master}"}
    cut_off(cluster, printed, figure, beside)
    for step in ("kernel", "firewall", "packages", "runtime", "join"):
        cut_off(cluster, printed, figure, {f"{host}-{step}": f"create {step} {host}"})
    # Both come right after the join.
    beside = {f"{host}-node": f"create node {master}", f"{host}-proxy": f"create proxy {host}"}
    cut_off(cluster, printed, figure, beside)
    cut_off(cluster, printed, figure, {"expected-services": f"update look {master}"})
    cut_off(cluster, printed, figure, {f"{host}-verification": f"create proof {host}"})
    up(cluster)
    assert identity(cluster)[0] == same
    assert f"node/{host}" in cluster.kubectl("get nodes -o name")
    assert not any(drift(cluster).values())
    no_secret_is_in_the_open(cluster, printed)


def test_a_worker_is_removed_and_comes_back(cluster: Cluster, figure: Figure) -> None:
    """A worker is removed, its power cut meanwhile, and comes back over a full disk and missing sources"""
    host = cluster.hosts[-1]
    others = [name for name in cluster.hosts if name != host]
    same = identity(cluster)[0]
    with edited(cluster, without(host)):
        run = cluster.start("up")
        assert run.until(f"delete {host}-claim"), run.said
        cluster.lab.power_off(host)
        assert run.wait() != 0
        assert f"{host}-claim" in run.said
        figure("power cut in reset: the error names the claim")
        cluster.lab.up()
        cluster.kubectl(f"wait --for=create node/{host} --timeout=280s")
        figure("its kubelet registers the node again")
        began = time.monotonic()
        up(cluster)
        figure(f"given back by the next up in {time.monotonic() - began:.0f} s")
    assert unlike_before(cluster, host) == ""
    assert host not in cluster.kubectl("get nodes -o name")

    cluster.run(host, "fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 2000000)) /fill; sync")
    said = failing(cluster)
    cluster.run(host, "rm /fill")
    assert f"{host}-" in said
    assert re.search(r"[Nn]o space left|free space", said), said
    figure("full disk: named")

    services.stop(cluster.lab.folder, "packages")
    said = failing(cluster)
    cluster.lab.up()
    assert f"{host}: packages: FAILED" in said
    figure("package source gone: named")

    run = cluster.start("up")
    assert run.until(f"create {host}-join"), run.said
    cluster.lab.power_off(host)
    assert run.wait() != 0
    assert f"{host}-join" in run.said
    cluster.lab.up()
    run = cluster.start("up")
    assert run.wait() == 0, run.said
    touched = {step.split()[1] for step in run.begun}
    # What was promised is asked again, since there is one host more to be proved.
    strangers = [
        name
        for name in touched
        if any(name.startswith(f"{o}-") for o in others) and "verification" not in name
    ]
    assert not strangers, strangers
    figure("power cut in join: joined by the next up, the others untouched")
    assert identity(cluster)[0] == same
    assert f"node/{host}" in cluster.kubectl("get nodes -o name")


def test_a_worker_that_was_taken_apart_by_hand_joins_again_by_its_repair(
    cluster: Cluster, figure: Figure
) -> None:
    """`kubeadm reset` by hand on a worker: its `repair` joins it again, the others' nodes as they were"""
    host = cluster.hosts[-1]
    same = identity(cluster)[0]
    cluster.run(host, "kubeadm reset --force >/dev/null 2>&1; rm -rf /etc/cni/net.d")
    with edited(cluster, repaired(host)):
        began = time.monotonic()
        up(cluster)
        figure(f"joined again in {time.monotonic() - began:.0f} s")
        assert identity(cluster)[0] == same
        assert not any(drift(cluster).values())
    up(cluster)


def test_an_image_that_no_source_has_is_named_before_a_pod_needs_it(cluster: Cluster, figure: Figure) -> None:
    """An image that no source has: named by the hosts that need it, nginx goes on; the next `up` mends it"""
    same = identity(cluster)
    image = "docker.io/library/nginx:nobody-has-this"

    def absent(config: Config) -> None:
        config["nginx"] = {**config.get("nginx", {}), "image": image}

    with edited(cluster, absent):
        began = time.monotonic()
        said = failing(cluster)
        figure(f"named after {time.monotonic() - began:.0f} s")
    for host in cluster.hosts[1:]:
        assert f"{host}: runtime: FAILED: the image {image} can't be pulled" in said
    cluster.wait_for_answers(300)
    up(cluster)
    assert identity(cluster) == same
    assert image not in cluster.kubectl("get deployment nginx -o yaml")


def test_a_disruption_budget_holds_a_worker_until_it_is_overridden(cluster: Cluster, figure: Figure) -> None:
    """A disruption budget forbids a drain: an error, the cluster whole; the setting that overrides it"""
    host = cluster.hosts[-1]

    def brief(config: Config) -> None:
        config["stepTimeouts"] = {**config.get("stepTimeouts", {}), "drain": 60}

    def override(config: Config) -> None:
        config["drain"] = {"disableEviction": True}

    cluster.kubectl("create pdb all --selector=app.kubernetes.io/name=nginx --min-available=2")
    try:
        with edited(cluster, brief):
            up(cluster)
            with edited(cluster, without(host)):
                began = time.monotonic()
                said = failing(cluster)
                figure(f"refused after {time.monotonic() - began:.0f} s")
                assert f"{host} can't be drained within 60 s; it is back in service" in said
                assert "disruption budget" in said
                node = cluster.kubectl(f"get node {host} -o jsonpath='{{.spec.unschedulable}}'")
                assert node == ""
                cluster.wait_for_answers(300)
                with edited(cluster, override):
                    began = time.monotonic()
                    up(cluster)
                    figure(f"overridden, and given back, in {time.monotonic() - began:.0f} s")
        assert host not in cluster.kubectl("get nodes -o name")
        assert unlike_before(cluster, host) == ""
    finally:
        cluster.kubectl("delete pdb all")


def test_a_dead_worker_holds_up_nobody(cluster: Cluster, figure: Figure) -> None:
    """A dead worker: others are changed, it is removed within two minutes, and given back later"""
    host, other = cluster.hosts[-1], cluster.hosts[0]
    cluster.lab.power_off(host)

    def label(config: Config) -> None:
        config["hosts"][0]["labels"] = {"tried": "yes"}

    with edited(cluster, label):
        began = time.monotonic()
        up(cluster)
        figure(f"another host is changed in {time.monotonic() - began:.0f} s")
    assert cluster.kubectl(f"get node {other} -o jsonpath='{{.metadata.labels.tried}}'") == "yes"
    cluster.kubectl(f"wait --for=condition=Ready=Unknown --timeout=300s node/{host}")
    with edited(cluster, without(host)):
        took = held_up(cluster, host, "up")
        figure(f"removed, {took:.0f} s after the last step of another, with an error that names {host}-claim")
        assert host not in cluster.kubectl("get nodes -o name")
        assert took < DEAD_HOST_SECONDS
        cluster.lab.up()
        up(cluster)
    assert unlike_before(cluster, host) == ""


def test_hosts_are_rebooted_one_by_one_and_all_at_once(cluster: Cluster, figure: Figure) -> None:
    """Each host is rebooted, then all lose their power at once; nothing needs `up`"""
    for host in reversed(cluster.hosts):
        cluster.lab.reboot(host)
        figure(f"{host} rebooted: all NodePorts answer {cluster.wait_for_answers(900):.0f} s later")
    pods = {host: cluster.empty_notes(host) for host in cluster.hosts[:2]}
    for host in cluster.hosts:
        cluster.lab.power_off(host)
    cluster.lab.up()
    figure(f"all at once: all NodePorts answer {cluster.wait_for_answers(1200):.0f} s later")
    for host, count in pods.items():
        cluster.wait_for_pods(host, count, 600)
    for host in cluster.hosts:
        assert cluster.run(host, "sed 1d /proc/swaps") == ""
        assert " rr" in cluster.run(host, "ipvsadm -Ln")
    done = cluster.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes")
    assert done.returncode == 0, done.stdout


def test_a_second_up_and_another_stack_are_refused(cluster: Cluster) -> None:
    """Two `up` at once, and another stack on the same hosts, are refused before anything is touched"""
    host = cluster.hosts[-1]
    with edited(cluster, repaired(host)):
        first = cluster.start("up")
        assert first.until(f"update {host}-kernel"), first.said
        assert "currently locked" in failing(cluster)
        assert first.wait() == 0, first.said
    configured = "find /etc -xdev -type f -print0 | xargs -0 sha256sum | sort"
    before = [cluster.run(host, configured) for host in cluster.hosts]
    name = f"{cluster.stack}-intruder"
    mine = project_dir() / f"Pulumi.{cluster.stack}.yaml"
    theirs = project_dir() / f"Pulumi.{name}.yaml"
    theirs.write_text("".join(li for li in mine.open() if not li.startswith("encryptionsalt:")))
    try:
        stack.ensure(name, env.toolbox(), Progress(quiet=True))
        done = cluster.pulumi("up", "--yes", "--skip-preview", on=name)
        assert done.returncode != 0
        assert f"belongs to the stack {cluster.stack}" in done.stdout
    finally:
        cluster.pulumi("stack", "rm", "--yes", "--force", on=name)
        theirs.unlink(missing_ok=True)
        stack.ensure(cluster.stack, env.toolbox(), Progress(quiet=True))
    assert [cluster.run(host, configured) for host in cluster.hosts] == before


def test_a_renamed_worker_is_refused_and_stays_the_node_that_it_was(cluster: Cluster) -> None:
    """A worker gets another name: refused before it is touched, and the old name is as good as before"""
    host = cluster.hosts[-1]
    same = identity(cluster)

    def rename(config: Config) -> None:
        config["hosts"][-1]["name"] = "another"

    with edited(cluster, rename):
        assert f"the host is {host} of this same stack" in failing(cluster)
    up(cluster)
    assert identity(cluster) == same
    assert not any(drift(cluster).values())


def key_pair() -> tuple[str, str]:
    """A login or host key that nobody knows: private and public, as OpenSSH writes them."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


def test_a_way_in_that_is_wrong_is_refused_in_words(cluster: Cluster, figure: Figure, tmp_path: Path) -> None:
    """Wrong host key, wrong login key, a sudo that asks, a silent server: all refused or bounded, in words"""
    host = cluster.hosts[-1]
    private, public = key_pair()
    login = tmp_path / "login"
    login.touch(mode=0o600)
    login.write_text(private)
    # With the copies that the programs for accounts leave: later cases compare the whole of /etc.
    kept = "/var/tmp/accounts"
    accounts = "/etc/{passwd,group,shadow,gshadow,subuid,subgid}{,-}"
    cluster.run(
        host,
        f"[[ -d {kept} ]] || {{ mkdir {kept}; cp -a $(ls {accounts} 2>/dev/null) {kept}; }}; "
        "id asker 2>/dev/null || useradd --create-home --shell /bin/bash asker; mkdir -p ~asker/.ssh; "
        "cp ~root/.ssh/authorized_keys ~asker/.ssh/; chown -R asker: ~asker/.ssh",
    )

    def host_key(config: Config) -> None:
        config["hosts"][-1]["ssh"]["hostKey"] = public

    def login_key(config: Config) -> None:
        config["ssh"]["privateKeyFile"] = str(login)

    def user(config: Config) -> None:
        config["hosts"][-1]["ssh"]["user"] = "asker"

    def waiting(config: Config) -> None:
        config["ssh"]["waitSeconds"] = 20
        repaired(host)(config)

    # Awake again by itself: nobody gets in to wake it.
    asleep = (
        "systemd-run --quiet --on-active=120 systemctl kill --kill-whom=main --signal=CONT ssh.service; "
        "systemctl kill --kill-whom=main --signal=STOP ssh.service"
    )
    for change, before, words in (
        (host_key, "true", f"{host} .*shows another host key than the one that is pinned"),
        (login_key, "true", f"refuses the login with {login}"),
        (user, "true", "asker may not run commands as root"),
        (waiting, asleep, f"{host}: .*accepts connections and says nothing"),
    ):
        with edited(cluster, change):
            cluster.run(host, before)
            began = time.monotonic()
            said = failing(cluster)
            figure(f"{change.__name__.replace('_', ' ')}: refused after {time.monotonic() - began:.0f} s")
        assert re.search(words, said), said
        assert private.splitlines()[1] not in said
    awake = time.monotonic() + 300
    while True:
        try:
            cluster.run(host, "true")
            break
        except UserError:  # ssh itself waits a minute for a server that sleeps
            assert time.monotonic() < awake
    cluster.wait_for_answers(600)
    cluster.run(
        host,
        f"userdel --remove asker 2>/dev/null; cp -a {kept}/. /etc/; "
        f"for file in {accounts}; do [[ -e {kept}/${{file##*/}} ]] || rm -f $file; done; rm -r {kept}",
    )


# The lab's hosts have a containerd from the first. Here a person has configured it, and runs a container of
# their own in it.
OWN_CONTAINERD = """
cp -a /etc/containerd /etc/containerd.former
mkdir -p /etc/containerd/certs.d/registry.k8s.io
printf 'version = 2\\n[debug]\\n  level = "warn"\\n' >/etc/containerd/config.toml
printf '# a mirror of my own\\n[host."%s"]\\n' {registry} >/etc/containerd/certs.d/registry.k8s.io/hosts.toml
systemctl restart containerd
ctr -n own images pull --hosts-dir /etc/containerd/certs.d {image} >/dev/null
ctr -n own run -d {image} own </dev/null
"""
FORMER_CONTAINERD = """
ctr -n own tasks delete --force own; ctr -n own containers delete own
ctr -n own images rm --sync {image}; ctr namespaces rm own
rm -rf /etc/containerd /opt/containerd; mv /etc/containerd.former /etc/containerd
systemctl restart containerd
"""


def test_a_host_keeps_the_packages_that_it_had(cluster: Cluster, figure: Figure) -> None:
    """A host that had kubectl, held, and a containerd with a container: joined, removed, and as it was"""
    host = cluster.hosts[-1]
    config = yaml.safe_load(stack_file(cluster.lab.name).read_text())["config"]
    packages = config["kubeadm-ipvs:packages"]
    source = packages["repository"].format(minor="1.37", format="deb")
    key = shlex.quote(Path(packages["key"]).read_text())
    registry = config["kubeadm-ipvs:registry"]["mirrors"]["registry.k8s.io"][0]
    image = next(
        line for line in cluster.run(host, "ctr -n k8s.io images ls -q").split() if "/pause:" in line
    )
    running = "ctr -n own tasks ls | grep ^own; ctr -n own images ls -q"
    with edited(cluster, without(host)):
        up(cluster)
        # As upstream's instructions have it: the same repository, with a key of its own.
        cluster.run(host, f"mkdir -p /etc/apt/keyrings; printf %s {key} >/etc/apt/keyrings/own.asc")
        line = f"deb [signed-by=/etc/apt/keyrings/own.asc] {source} /"
        own = f"echo '{line}' >/etc/apt/sources.list.d/own.list; apt-get update -qq"
        cluster.run(host, f"{own}; apt-get install -qq -y kubectl; apt-mark hold kubectl")
        cluster.run(host, f"set -e; {OWN_CONTAINERD.format(registry=registry, image=image)}", timeout=900)
        container = cluster.run(host, running)
        assert "RUNNING" in container
    plain = cluster.state_of([host])
    up(cluster)
    assert "kubectl" in cluster.run(host, "apt-mark showhold")
    assert cluster.run(host, running) == container
    figure("joined, the same process in the container of one's own")
    with edited(cluster, without(host)):
        up(cluster)
        assert differences(plain, cluster.state_of([host])) == ""
        assert cluster.run(host, running) == container
        figure("kubectl, containerd and the container as before; kubelet and kubeadm are gone")
        back = (
            "apt-get purge -qq -y --allow-change-held-packages kubectl; "
            "rm /etc/apt/sources.list.d/own.list /etc/apt/keyrings/own.asc"
        )
        cluster.run(host, f"set -e; {back}; {FORMER_CONTAINERD.format(image=image)}", timeout=900)
        assert unlike_before(cluster, host) == ""


# What a person may have on a host in the place of the lab's: ufw, and a swap by a unit of their own.
OTHER_HABITS = """
systemctl disable --quiet --now firewalld
apt-get install -qq -y ufw ipvsadm
ufw allow 22/tcp; ufw allow 4711/tcp; ufw --force enable
dd if=/dev/zero of=/srv/swap bs=1M count=64 status=none; chmod 600 /srv/swap; mkswap -q /srv/swap
printf '[Swap]\\nWhat=/srv/swap\\n[Install]\\nWantedBy=swap.target\\n' >/etc/systemd/system/srv-swap.swap
systemctl daemon-reload; systemctl enable --quiet --now srv-swap.swap
"""
VIRTUAL_SERVER = "ipvsadm -A -f 7 -s wlc"
FORMER_HABITS = """
ufw --force disable; apt-get purge -qq -y --autoremove ufw ipvsadm
systemctl disable --quiet --now srv-swap.swap; rm /etc/systemd/system/srv-swap.swap /srv/swap
systemctl daemon-reload
systemctl enable --quiet firewalld
"""


@contextmanager
def other_habits(cluster: Cluster, host: str) -> Iterator[None]:
    """Such a host outside the cluster, then the lab's own again; what packages leave is a new `before`."""
    with edited(cluster, without(host)):
        up(cluster)
        cluster.run(host, f"set -e; {OTHER_HABITS}", timeout=900)
        cluster.lab.reboot(host)  # as it will have been in the end: firewalld's modules are gone
    try:
        yield
    finally:
        with edited(cluster, without(host)):
            up(cluster)
            cluster.run(host, FORMER_HABITS, timeout=900)
            cluster.lab.reboot(host)
            cluster.before |= cluster.state_of([host])
            results.write_state(cluster.lab.folder / "before.txt", cluster.before)


def test_a_host_with_ufw_and_a_swap_of_its_own_is_given_back(cluster: Cluster, figure: Figure) -> None:
    """A worker with ufw, a swap unit, a virtual server of its own: joined, rebooted, and as it was"""
    host = cluster.hosts[-1]
    with other_habits(cluster, host):
        cluster.run(host, VIRTUAL_SERVER)
        plain = cluster.state_of([host])
        up(cluster)
        assert "10.244.0.0/16" in cluster.run(host, "ufw status")
        assert not drift(cluster)[host]
        cluster.lab.reboot(host)
        figure(f"rebooted: all NodePorts answer {cluster.wait_for_answers(900):.0f} s later")
        assert cluster.run(host, "sed 1d /proc/swaps") == "", "its own unit would have turned it on"
        cluster.run(host, f"{VIRTUAL_SERVER}; echo '# a rule of mine' >>/etc/nftables.conf")
        with edited(cluster, without(host)):
            up(cluster)
        assert "# a rule of mine" in cluster.run(host, "cat /etc/nftables.conf")
        # A package of the cluster that its owner has made use of since; without it the host is as it was.
        cluster.run(host, "apt-get purge -qq -y nftables")
        assert differences(plain, cluster.state_of([host])) == ""
        figure("as it was, ufw, swap and virtual server; nftables.conf, edited since, stays")


def removed(cluster: Cluster, host: str) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Take a worker out: what the steps would have been sent, and the host's plain state."""
    sent = texts(cluster)
    with edited(cluster, without(host)):
        up(cluster)
    return sent, cluster.state_of([host])


def test_a_join_and_its_reset_are_killed_at_each_of_their_lines(cluster: Cluster, figure: Figure) -> None:
    """A worker's join, and its reset, are killed at each of their lines; a node, and given back"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    sent, plain = removed(cluster, host)
    prepare(cluster, host, sent)
    join = sent[f"{host}-join"]
    token = re.search(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", join)
    assert token is not None
    cluster.run(master, f"kubeadm token create {token.group()} --ttl 4h", timeout=600)
    killed_at_each_line(cluster, host, "create", "join", join, figure)
    cluster.kubectl(f"wait --for=condition=Ready --timeout=290s node/{host}")
    killed_at_each_line(cluster, host, "delete", "join", join, figure)
    run_to_its_end(cluster, host, "delete", "claim", sent[f"{host}-claim"])
    cluster.kubectl(f"delete node {host}")
    cluster.run(master, f"kubeadm token delete {token.group()}", timeout=600)
    assert differences(plain, cluster.state_of([host])) == ""


def test_steps_on_a_living_node_are_killed_at_each_of_their_lines(cluster: Cluster, figure: Figure) -> None:
    """What steers and proves a living node is killed at each line: labels, kube-proxy, proof, drain"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    node = f"get node {host} -o jsonpath="

    def change(config: Config) -> None:
        config["hosts"][-1]["labels"] = {"disk": "ssd"}
        config["hosts"][-1]["taints"] = ["dedicated=web:PreferNoSchedule"]

    def kill(on: str, verb: str, step: str, name: str) -> None:
        killed_at_each_line(cluster, on, verb, step, sent[name], figure)

    with edited(cluster, change):
        up(cluster)
        sent = texts(cluster)
    for step, name in (
        ("expected_services", "expected-services"),
        ("admin", f"{master}-admin"),
        ("token", f"{host}-token"),
    ):
        kill(master, "create", step, name)
    kill(host, "create", "verification", f"{host}-verification")

    cluster.kubectl(f"label node {host} disk-")
    cluster.kubectl(f"taint node {host} dedicated-")
    cluster.kubectl(f"annotate node {host} kubeadm-ipvs/labels- kubeadm-ipvs/taints-")
    kill(master, "create", "node", f"{host}-node")
    assert cluster.kubectl(f"{node}'{{.metadata.labels.disk}} {{.spec.taints[*].key}}'") == "ssd dedicated"

    # As after a change that has uploaded kube-proxy's settings, from a mode that has left its chains.
    cluster.run(host, "rm /var/lib/kubeadm-ipvs/proxy.yaml; iptables -t nat -N KUBE-SVC-FORMER")
    kill(host, "update", "proxy", f"{host}-proxy")
    assert "KUBE-SVC-FORMER" not in cluster.run(host, "iptables-save -t nat")

    kill(master, "delete", "node", f"{host}-node")
    assert host not in cluster.kubectl("get nodes -o name")
    with edited(cluster, without(host)):
        up(cluster)
    assert unlike_before(cluster, host) == ""


def test_a_registrations_removal_is_killed_at_each_of_its_lines(cluster: Cluster, figure: Figure) -> None:
    """A removed worker that has registered again: striking it off the list is killed at each of its lines"""
    master, host = cluster.hosts[0], cluster.hosts[-1]
    sent = texts(cluster)
    run_to_its_end(cluster, master, "delete", "node", sent[f"{host}-node"])
    assert host not in cluster.kubectl("get nodes -o name")
    # As at a boot between the two: kubelet registers its node when it starts.
    cluster.run(host, "systemctl restart kubelet")
    cluster.kubectl(f"wait --for=create --timeout=290s node/{host}")
    killed_at_each_line(cluster, master, "delete", "deregister", sent[f"{host}-deregister"], figure)
    assert host not in cluster.kubectl("get nodes -o name")
    with edited(cluster, without(host)):
        up(cluster)
    assert unlike_before(cluster, host) == ""


def test_init_is_killed_at_each_of_its_lines(cluster: Cluster, figure: Figure) -> None:
    """init, and the reset of what it made, are killed at each of their lines; given back"""
    host = cluster.hosts[0]
    sent = texts(cluster)
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout
    prepare(cluster, host, sent)
    for verb in ("create", "delete"):
        killed_at_each_line(cluster, host, verb, "init", sent[f"{host}-init"], figure)
    run_to_its_end(cluster, host, "delete", "claim", sent[f"{host}-claim"])
    assert differences(cluster.before, cluster.state()) == ""


def test_destroy_ends_without_a_dead_worker_and_is_finished_when_it_is_back(
    cluster: Cluster, figure: Figure
) -> None:
    """A dead worker doesn't hold up `destroy`, which says what is left undone; the next one finishes it"""
    host, *others = reversed(cluster.hosts)
    cluster.lab.power_off(host)
    took = held_up(cluster, host, "destroy", "--continue-on-error")
    figure(
        f"destroy ended {took:.0f} s after the last step of another, with an error that names {host}-claim"
    )
    now = cluster.state_of(others)
    assert differences({name: cluster.before[name] for name in others}, now) == ""
    cluster.lab.up()
    done = cluster.pulumi("destroy", "--yes", "--skip-preview")
    assert done.returncode == 0, done.stdout
    assert unlike_before(cluster, host) == ""
    assert took < DEAD_HOST_SECONDS
