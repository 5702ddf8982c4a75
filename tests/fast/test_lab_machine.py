"""What a host is made of: its seed, its command line, its processes."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from common import paths, processes
from common.errors import UserError
from common.files import locked, sparse_digest, write_atomic
from common.progress import Progress
from lab import api, image, image_root, qemu, requirements, seed, ssh
from lab.api import Lab
from lab.artefacts import kernel
from lab.hardware import Accelerator, Machine, guest_name
from lab.machine import Vm
from lab.options import Options
from lab.ports import fixed
from lab.qemu_machine import QemuVm

IDENTITY = seed.Identity(
    name="node1",
    address="192.168.166.102",
    machine_id="0123456789abcdef0123456789abcdef",
    host_key="PRIVATE\n",
    host_key_public="ssh-ed25519 AAAA host\n",
    authorized_key="ssh-ed25519 BBBB lab\n",
    packages_port=22080,
    packages_key="-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
    release="trixie",
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def machine(host: int = 0, kind: Accelerator = "tcg") -> Machine:
    options = Options()
    return Machine(
        lab="default",
        host=options.hosts()[host],
        workers_first=(2, 0, 1)[host],
        ports=fixed(3),
        accelerator=kind,
        kernel=Path("../base/vmlinuz"),
        initrd=Path("../base/initrd"),
        network_id=7,
    )


# -- seed ---------------------------------------------------------------------


def test_the_seed_gives_a_host_its_name_keys_address_and_package_source() -> None:
    with tarfile.open(fileobj=io.BytesIO(seed.archive(IDENTITY))) as tar:
        files = {entry.name: entry for entry in tar}
        texts = {}
        for name, entry in files.items():
            content = tar.extractfile(entry)
            assert content is not None
            texts[name] = content.read().decode()
    assert texts["etc/hostname"] == "node1\n"
    assert texts["etc/ssh/ssh_host_ed25519_key"] == "PRIVATE\n"
    assert texts["root/.ssh/authorized_keys"] == "ssh-ed25519 BBBB lab\n"
    assert "Address=192.168.166.102/24" in texts["etc/systemd/network/20-lan.network"]
    assert "URIs: http://10.0.2.2:22080/debian/trixie/" in texts["etc/apt/sources.list.d/mirror.sources"]
    assert files["etc/ssh/ssh_host_ed25519_key"].mode == 0o600
    assert all(entry.uid == entry.gid == 0 for entry in files.values())


def test_pods_come_before_services_only_where_that_is_asked_for() -> None:
    place = "etc/systemd/system/system.slice.d/pods-first.conf"
    assert place not in seed.contents(IDENTITY)
    _, text = seed.contents(dataclasses.replace(IDENTITY, pods_first=True))[place]
    # Below the 79 that kubelet gives the pods of a host with two CPUs.
    assert text == "[Slice]\nCPUWeight=20\n"


def test_only_an_emulated_host_lets_services_take_longer_than_usual() -> None:
    place = "etc/systemd/system.conf.d/lab.conf"
    assert place not in seed.contents(IDENTITY)
    _, text = seed.contents(dataclasses.replace(IDENTITY, emulated=True))[place]
    assert "DefaultTimeoutStartSec=600s\n" in text


def test_a_host_of_the_dnf_family_gets_a_repository_whose_lists_and_packages_are_checked() -> None:
    files = seed.contents(dataclasses.replace(IDENTITY, family="rpm"))
    assert not [path for path in files if "apt" in path]
    _, text = files["etc/yum.repos.d/mirror.repo"]
    assert "baseurl=http://10.0.2.2:22080/rpm/trixie/\n" in text
    assert "\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/mirror.asc\n" in text
    assert files["etc/pki/rpm-gpg/mirror.asc"] == (0o644, IDENTITY.packages_key)


def test_only_the_dnf_family_boots_with_selinux() -> None:
    plain, dnf = machine(), dataclasses.replace(machine(), family="rpm")
    assert "selinux" not in " ".join(qemu.command(plain))
    assert "security=selinux" in " ".join(qemu.command(dnf))


def test_a_seed_is_the_same_bytes_for_the_same_identity_and_fits_whole_sectors() -> None:
    assert seed.archive(IDENTITY) == seed.archive(IDENTITY)
    assert len(seed.archive(IDENTITY)) % 512 == 0


def test_the_machine_id_is_seeded_under_a_name_that_only_a_complete_seeding_takes_away() -> None:
    assert "etc/machine-id" not in seed.contents(IDENTITY)
    init = (Path(seed.__file__).parent / "guest-init.sh").read_text()
    assert init.index("tar -x") < init.index("mv /root/etc/machine-id.seed /root/etc/machine-id")


# -- command line -------------------------------------------------------------


def forwards(command: list[str]) -> set[str]:
    net = next(word for word in command if word.startswith("user,"))
    return {part.removeprefix("hostfwd=") for part in net.split(",") if part.startswith("hostfwd=")}


def test_the_control_plane_forwards_ssh_the_api_and_a_node_port_of_the_loopback_only() -> None:
    assert forwards(qemu.command(machine(0))) == {
        "tcp:127.0.0.1:22101-:22",
        "tcp:127.0.0.1:22643-:6443",
        "tcp:127.0.0.1:22382-:30080",
    }


def test_the_first_node_port_forward_leads_to_the_first_worker() -> None:
    assert forwards(qemu.command(machine(1))) == {"tcp:127.0.0.1:22102-:22", "tcp:127.0.0.1:22380-:30080"}


def test_hosts_share_a_network_of_the_loopback_under_different_hardware_addresses() -> None:
    commands = [qemu.command(machine(host)) for host in range(3)]
    lans = {word for command in commands for word in command if word.startswith("socket,")}
    assert lans == {"socket,id=lan,mcast=230.0.0.1:22166,localaddr=127.0.0.1"}
    addresses = [word.rsplit("mac=", 1)[1] for command in commands for word in command if "mac=" in word]
    assert len(addresses) == len(set(addresses)) == 6


def test_without_kvm_the_cpu_lacks_what_emulation_is_slow_at() -> None:
    command = qemu.command(machine(kind="tcg"))
    assert command[command.index("-accel") + 1] == "tcg,thread=multi,tb-size=1024"
    assert {"-erms", "-fsrm", "-avx2", "-avx"} <= set(command[command.index("-cpu") + 1].split(","))


def test_only_without_kvm_timers_are_coarse_and_services_kept_from_waking_each_other() -> None:
    emulated, virtual = (
        command[command.index("-append") + 1].split()
        for command in (qemu.command(machine(kind="tcg")), qemu.command(machine(kind="kvm")))
    )
    arguments = {"highres=off", "nohz=off", "systemd.setenv=GOMAXPROCS=1"}
    assert arguments <= set(emulated)
    assert not arguments & set(virtual)


def test_with_kvm_the_guest_sees_the_real_cpu() -> None:
    command = qemu.command(machine(kind="kvm"))
    assert command[command.index("-accel") + 1] == "kvm"
    assert command[command.index("-cpu") + 1] == "host"


def test_a_guest_whose_snapshot_is_to_be_loaded_starts_paused() -> None:
    assert "-S" in qemu.command(machine(), paused=True)
    assert "-S" not in qemu.command(machine())


# -- processes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "kind", "niceness"), [(0, "tcg", 0), (1, "tcg", 2), (2, "tcg", 2), (1, "kvm", 0)]
)
def test_emulated_workers_leave_the_cpu_to_the_control_plane_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: int, kind: Accelerator, niceness: int
) -> None:
    binary = tmp_path / "qemu"
    # It runs until the test ends it; the minute is for a test that fails before that.
    binary.write_text(
        f"#!{sys.executable}\nimport os, pathlib, time\n"
        "pathlib.Path('qemu.pid').write_text(str(os.getpid()))\n"
        "pathlib.Path('qmp.sock').touch()\n"
        "time.sleep(60)\n"
    )
    binary.chmod(0o755)
    monkeypatch.setattr(requirements, "program", lambda _: str(binary))
    vm = QemuVm(tmp_path, machine(host, kind))
    vm.folder.mkdir()
    vm.start()
    pid = vm.pid
    assert pid is not None
    try:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(own + niceness, 19), "19 is the most"
        group = Path(f"/proc/{pid}/autogroup")
        # Where the kernel groups sessions. A new one begins at 0.
        if group.exists():
            assert group.read_text().split()[-1] == str(niceness)
    finally:
        processes.end(vm.folder / "qemu.pid", guest_name("default", vm.host.name))


# -- image --------------------------------------------------------------------


def test_the_initramfs_is_an_archive_that_cpio_tools_can_read(tmp_path: Path) -> None:
    archive = image_root.cpio_newc(
        [("bin", 0o40755, b""), ("bin/x", 0o100755, b"odd"), ("init", 0o100755, b"")]
    )
    assert len(archive) % 4 == 0
    names, offset = [], 0
    while offset < len(archive):
        header = archive[offset : offset + 110]
        assert header[:6] == b"070701"
        size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        names.append(archive[offset + 110 : offset + 110 + name_size - 1].decode())
        offset += -(-(110 + name_size) // 4) * 4
        if names[-1] == "bin/x":
            assert archive[offset : offset + size] == b"odd"
        offset += -(-size // 4) * 4
    assert names == ["bin", "bin/x", "init", "TRAILER!!!"]


def test_an_image_with_selinuxs_labels_is_made_by_root_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("lab.requirements.program", lambda name: "true")
    monkeypatch.setattr("lab.requirements.find", lambda name: None)
    assert "--map-root-user" in image.as_root(Progress(quiet=True))
    with pytest.raises(UserError, match="labels are written by root alone"):
        image.as_root(Progress(quiet=True), labels=True)
    monkeypatch.setattr("lab.requirements.find", lambda name: "/usr/bin/sudo")
    assert image.as_root(Progress(quiet=True), labels=True)[0] == "/usr/bin/sudo"


def test_the_partition_table_leaves_no_gap_between_root_and_swap() -> None:
    table = image_root.partition_table(8 << 30, 512 << 20)
    assert len(table) == 512
    assert table[-2:] == b"\x55\xaa"
    first, second = table[446:462], table[462:478]
    start = int.from_bytes(first[8:12], "little"), int.from_bytes(second[8:12], "little")
    size = int.from_bytes(first[12:16], "little"), int.from_bytes(second[12:16], "little")
    assert start[0] * 512 == image_root.ROOT_START
    assert start[1] == start[0] + size[0]
    assert (size[0] * 512, size[1] * 512) == (8 << 30, 512 << 20)


def test_a_sparse_files_digest_depends_on_content_and_not_on_holes(tmp_path: Path) -> None:
    holes, zeros, other = tmp_path / "holes", tmp_path / "zeros", tmp_path / "other"
    with holes.open("wb") as file:
        file.seek(5 << 20)
        file.write(b"x")
        file.truncate(9 << 20)
    zeros.write_bytes(bytes(5 << 20) + b"x" + bytes((4 << 20) - 1))
    other.write_bytes(bytes(5 << 20) + b"y" + bytes((4 << 20) - 1))
    assert sparse_digest(holes) == sparse_digest(zeros) != sparse_digest(other)


# -- processes and files ------------------------------------------------------


def test_a_pid_file_of_a_process_that_is_now_another_is_not_believed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text(str(os.getpid()))
    assert processes.running(pid_file, "kubeadm-ipvs/default/master") is None
    processes.end(pid_file, "kubeadm-ipvs/default/master")  # and this process lives on


def test_a_process_that_ignores_the_polite_signal_is_ended_all_the_same(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, "mark-of-a-test"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    pid_file = tmp_path / "pid"
    pid_file.write_text(str(child.pid))
    assert processes.running(pid_file, "mark-of-a-test") == child.pid
    processes.end(pid_file, "mark-of-a-test", seconds=0.3)
    assert processes.running(pid_file, "mark-of-a-test") is None
    assert not pid_file.exists()
    child.stdout.close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old", 0o600)
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \udc80")
    assert path.read_text() == "old"
    assert path.stat().st_mode & 0o777 == 0o600


def test_whoever_waits_for_a_lock_is_told_so(tmp_path: Path) -> None:
    said = io.StringIO()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()

    class Told(io.StringIO):
        def flush(self) -> None:
            assert holder.stdin is not None
            if not holder.stdin.closed:
                holder.stdin.close()  # the holder ends once the wait has been told

    said = Told()
    with locked(tmp_path / "lock", Progress(said), "lab x"):
        assert "another process is at it" in said.getvalue()
    holder.wait(timeout=10)
    holder.stdout.close()


# -- status -------------------------------------------------------------------


def test_a_lab_that_is_not_there_says_how_to_make_it() -> None:
    with pytest.raises(UserError, match="python3 -m lab up"):
        Lab.load("default", Progress(quiet=True)).status()


def test_the_status_of_a_lab_whose_hosts_do_not_run_is_complete_json() -> None:
    lab = Lab.load("blue", Progress(quiet=True))
    lab.folder.mkdir(parents=True)
    options = Options(name="blue", count=2)
    api._Record(options, fixed(2)).write(lab.folder / "lab.json")
    status = json.loads(lab.status().to_json())
    assert status["ready"] is False
    assert [(h["name"], h["state"], h["ssh_port"]) for h in status["hosts"]] == [
        ("master", "stopped", 22101),
        ("node1", "stopped", 22102),
    ]
    assert status["api"] == "127.0.0.1:22643"
    assert lab.options == options
    assert lab.ports == fixed(2)


@pytest.mark.parametrize(("runs_by", "state"), [("tcg", "ready"), ("kvm", "booting")])
def test_an_emulated_host_that_is_busy_is_not_taken_for_one_that_boots(
    runs_by: Accelerator, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = api._Record(Options(name="blue", count=1), fixed(1), accelerator=runs_by)
    [master] = Lab.load("blue", Progress(quiet=True))._vms(record)
    monkeypatch.setattr(Vm, "pid", os.getpid())
    monkeypatch.setattr(QemuVm, "held", lambda _: False)
    monkeypatch.setattr(ssh, "greets", lambda _, patience: patience >= 10)
    assert api._host_status(master).state == state


def test_a_lab_with_other_options_is_not_changed_but_refused() -> None:
    lab = Lab.load("blue", Progress(quiet=True))
    lab.folder.mkdir(parents=True)
    api._Record(Options(name="blue", count=2), fixed(2)).write(lab.folder / "lab.json")
    with pytest.raises(UserError, match="count: is 2, asked for 3"):
        lab.up(count=3)
    with pytest.raises(UserError, match="family: is deb, asked for dnf"):
        lab.up(family="rpm")


def test_another_versions_lab_keeps_its_ports_and_a_broken_one_is_in_nobodys_way() -> None:
    labs = Lab.load("blue", Progress(quiet=True)).folder.parent
    first = Lab.load("red", Progress(quiet=True))._choose_ports(2)
    for name, text in (
        ("newer", json.dumps({"options": {"name": "newer", "colour": "red"}, "ports": asdict(first)})),
        ("broken", "{"),
    ):
        (labs / name).mkdir(parents=True)
        (labs / name / "lab.json").write_text(text)
    chosen = Lab.load("red", Progress(quiet=True))._choose_ports(2)
    assert not set(chosen.tcp()) & set(first.tcp())


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "12", "ü"])
def test_a_snapshot_tag_that_qemu_would_misread_is_refused(tag: str) -> None:
    with pytest.raises(UserError, match="snapshot"):
        Lab.load("blue", Progress(quiet=True)).snapshot(tag)


def test_taking_down_a_lab_that_is_not_there_is_no_error() -> None:
    Lab.load("blue", Progress(quiet=True)).down()


# -- down and prune -----------------------------------------------------------


def test_a_lab_whose_record_is_broken_can_still_be_taken_down_with_its_processes() -> None:
    lab = Lab.load("blue", Progress(quiet=True))
    (lab.folder / "master").mkdir(parents=True)
    (lab.folder / "lab.json").write_text("{")
    name = guest_name("blue", "master")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", name])
    (lab.folder / "master/qemu.pid").write_text(str(child.pid))
    with pytest.raises(UserError, match="down"):
        lab.status()
    lab.down()
    assert child.poll() is not None
    assert not lab.folder.exists()


def made(folder: Path, age: float) -> Path:
    folder.mkdir(parents=True)
    folder.with_name(f"{folder.name}.lock").touch()  # as whoever makes it holds
    (folder / "manifest.json").write_text("{}")
    when = time.time() - age
    os.utime(folder, (when, when))
    return folder


@pytest.mark.parametrize("everything", [False, True])
def test_pruning_keeps_what_a_lab_serves_and_removes_the_past(tmp_path: Path, everything: bool) -> None:
    cache = tmp_path / "cache/kubeadm-ipvs"
    old_image, new_image = made(cache / "image/old", 100), made(cache / "image/new", 0)
    served, idle = made(cache / "mirror/served", 300), made(cache / "mirror/idle", 200)
    newest = made(cache / "mirror/newest", 100)
    served_rpms, idle_rpms = made(cache / "rpm/served", 300), made(cache / "rpm/idle", 200)
    newest_rpms, registry = made(cache / "rpm/newest", 100), made(cache / "mirror/registry", 400)
    lab = Lab.load("blue", Progress(quiet=True))
    lab.folder.mkdir(parents=True)
    record = api._Record(Options(name="blue"), fixed(3), mirror_root=str(served / "www"), image="none")
    record.write(lab.folder / "lab.json")
    other = Lab.load("red", Progress(quiet=True))
    other.folder.mkdir(parents=True)
    api._Record(
        Options(name="red", family="rpm"),
        fixed(3),
        image="none",
        mirror_root=str(served_rpms / "www"),
        registry_data=str(registry / "registry"),
    ).write(other.folder / "lab.json")
    api.prune(Progress(quiet=True), everything=everything)
    assert served.exists()
    assert served_rpms.exists(), "the other lab serves it"
    assert registry.exists(), "and the registry of this one"
    assert not idle_rpms.exists()
    assert newest_rpms.exists() is not everything
    assert not idle.exists()
    assert not old_image.exists()
    assert new_image.exists() is newest.exists() is not everything


@pytest.mark.parametrize("everything", [False, True])
def test_pruning_takes_the_past_of_every_kind_and_leaves_a_served_sites_key(everything: bool) -> None:
    cache = paths.cache_dir()
    served = made(cache / "mirror/served", 100)
    lab = Lab.load("blue", Progress(quiet=True))
    lab.folder.mkdir(parents=True)
    record = api._Record(Options(name="blue"), fixed(3), mirror_root=str(served / "www"), image="none")
    record.write(lab.folder / "lab.json")
    (cache / "signing").mkdir()
    program, packages = made(cache / "go/etcd-of-last-year", 100), made(cache / "debian/trixie-old", 100)
    made(cache / "debian/trixie-new", 0)
    old_kernel, kernel_now = (
        made(cache / "kernel/of-last-year", 100),
        made(cache / f"kernel/{kernel.key()}", 0),
    )
    made(cache / "image/new", 0)
    base, base_now = (
        cache / f"image/base-trixie-{key}.tar" for key in ("of-last-year", image._base_key("trixie", "deb"))
    )
    for archive in (base, base_now):
        archive.touch()
    (cache / "upstream/copied").mkdir(parents=True)
    api.prune(Progress(quiet=True), everything=everything)
    assert (cache / "signing").exists(), "the served mirror would be made anew with another key"
    for gone in (program, packages, base, cache / "upstream/copied", old_kernel):
        assert not gone.exists(), gone
    assert (
        kernel_now.exists() is base_now.exists() is (cache / "debian/trixie-new").exists() is not everything
    )


def test_pruning_waits_for_an_image_in_the_making_and_takes_an_interrupted_one() -> None:
    folder = paths.cache_dir() / "image"
    work = folder / "work-1"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(json.dumps({"owner": [os.getuid(), os.getgid()]}))
    seen: list[bool] = []

    class Told(io.StringIO):
        def flush(self) -> None:
            if "another process is at it" in self.getvalue() and not holder.closed:
                seen.append(work.exists())
                holder.close()  # the build ends

    holder = (folder / ".image.lock").open("a")
    fcntl.flock(holder, fcntl.LOCK_EX)
    image.prune(set(), Progress(Told()), everything=False)
    assert seen == [True]
    assert not work.exists()


def test_what_sudo_has_built_is_removed_by_sudo_again(monkeypatch: pytest.MonkeyPatch) -> None:
    work = paths.cache_dir() / "image/work-1"
    work.mkdir(parents=True)
    commands: list[list[str]] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(requirements, "program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(image, "as_root", lambda progress: ["unshare"])
    monkeypatch.setattr(image, "_run", lambda argv, what: commands.append(argv))
    for owner in ([1000, 1000], [0, 0]):
        (work / "plan.json").write_text(json.dumps({"owner": owner}))
        image._remove_builds(Progress(quiet=True))
    assert [command[0] for command in commands] == ["/usr/bin/sudo", "unshare"]


def test_by_sudo_the_base_system_comes_through_the_proxy_whose_password_is_in_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[list[str]] = []

    def run(argv: list[str], what: str) -> None:
        commands.append(argv)
        Path(next(word for word in argv if word.endswith(".draft"))).touch()

    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example.com:3128")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(requirements, "program", lambda name: name)
    monkeypatch.setattr(image, "as_root", lambda progress: ["/usr/bin/sudo", "unshare"])
    monkeypatch.setattr(image, "_run", run)
    image.ensure_base("trixie", "deb", Progress(quiet=True))
    (command,) = commands
    assert command[:3] == ["/usr/bin/sudo", "--preserve-env=http_proxy,https_proxy,no_proxy", "mmdebstrap"]
    assert "secret" not in " ".join(command)


def test_a_full_disk_is_said_before_anything_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_DISK_NEEDED", 1 << 60)
    monkeypatch.setattr("lab.requirements.check", lambda family: None)
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)
    lab = Lab.load("blue", Progress(quiet=True))
    with pytest.raises(UserError, match="make room"):
        lab.up()


def test_a_lab_that_has_all_it_needs_begins_again_on_a_full_disk_and_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_DISK_NEEDED", 1 << 60)
    monkeypatch.setattr("lab.requirements.check", lambda family: None)
    monkeypatch.setattr("lab.ports.check_free", lambda wanted: None)

    class Reached(Exception):
        pass

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("lab.artefacts.ensure_mirror", reached)
    monkeypatch.setattr(api, "ensure_base", lambda *_: pytest.fail("nothing is made of a base system here"))
    lab = Lab.load("blue", Progress(quiet=True))
    (lab.folder / "base").mkdir(parents=True)
    (lab.folder / "base/complete").write_text("an-image")
    (tmp_path / "www").mkdir()
    record = api._Record(Options(name="blue"), fixed(3), mirror_root=str(tmp_path / "www"), image="an-image")
    record.write(lab.folder / "lab.json")
    with pytest.raises(Reached):
        lab._provide(record, "auto")
