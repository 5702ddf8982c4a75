"""The step `packages`, for both families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import home_of, put, record, run, stdout_of

PACKAGES = "steps/packages.sh"
PLAN = (Path(__file__).parent.parent / "data/dnf-plan.txt").read_text()


def put_plugin(root: Path) -> None:
    put(root, "opt/cni/bin/loopback").chmod(0o755)


@pytest.mark.parametrize(
    ("missing", "version", "message"),
    [
        ("", "v1.37.2", "packages.manage is off: using the installed packages; kubeadm is 1.37.2"),
        ("", "v1.36.0", "FAILED: kubeadm is v1.36.0, not v1.37.2"),
        ("crictl", "v1.37.2", "FAILED: crictl is missing"),
        ("loopback", "v1.37.2", "FAILED: the CNI plugins aren't in"),
    ],
)
def test_unmanaged_packages_are_checked_and_unchanged(
    tmp_path: Path, missing: str, version: str, message: str
) -> None:
    record(tmp_path)
    if missing != "loopback":
        put_plugin(tmp_path)
    code = f"""
kubeadm() {{ echo {version}; }}
have() {{ [[ $1 != {missing or "nothing"} ]]; }}
install_deb() {{ echo changed; }}
install_rpm() {{ echo changed; }}
systemctl() {{ echo changed; }}
"""
    failed = message.startswith("FAILED")
    done = run(PACKAGES, code, tmp_path, int(failed), MANAGE="false", VERSION="1.37.2")
    assert message in done.stderr
    assert done.stdout == ""


ARMORED = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("echo 'no route' >&2; return 7", "can't download the repository's signing key from"),
        ("echo '<html>'", "is not an armored key"),
    ],
)
def test_failed_key_download_keeps_the_old_key(tmp_path: Path, response: str, error: str) -> None:
    file = tmp_path / "key.asc"
    for command, status in ((f"echo '{ARMORED}'", 0), (response, 1)):
        code = f"""
have() {{ [[ $1 == curl ]]; }}
curl() {{ {command}; }}
create() {{ put_key {file} https://packages.example.com/Release.key; }}
"""
        done = run(PACKAGES, code, tmp_path, status, KEY="", KEY_URL="")
        assert file.read_text() == f"{ARMORED}\n"
    assert error in done.stderr and "https://packages.example.com/Release.key" in done.stderr
    assert done.stderr.count("FAILED") == 1


@pytest.mark.parametrize(("present", "installed"), [(False, ["kubernetes-cni"]), (True, [])])
def test_missing_cni_plugins_are_installed(tmp_path: Path, present: bool, installed: list[str]) -> None:
    record(tmp_path)
    if present:
        put_plugin(tmp_path)
    code = """
rpm() { [[ $* == *--quiet* ]] || echo 1.37.2; }
have() { :; }
put_key() { :; }
put_file() { cat >/dev/null; }
rpm_keys() { echo gpg-pubkey-1; }
grep() { :; }
install_rpms() { printf '%s\\n' "$@"; }
create() { install_rpm; }
"""
    values = {"VERSION": "1.37.2", "REVISION": "*", "REPOSITORY_RPM": "http://x/", "KEY": "key"}
    assert stdout_of(PACKAGES, code, tmp_path, **values).split() == installed


@pytest.mark.parametrize(("present", "installed"), [(False, ["cri-tools"]), (True, [])])
def test_missing_crictl_is_installed(tmp_path: Path, present: bool, installed: list[str]) -> None:
    code = f"""
deb_installed() {{ true; }}
dpkg-query() {{ echo 1.37.2-1.1; }}
finish_dpkg() {{ :; }}
put_key() {{ :; }}
put_file() {{ cat >/dev/null; }}
apt_update() {{ :; }}
apt-cache() {{ echo 'kubeadm | 1.37.2-1.1 | x'; }}
apt-mark() {{ printf '%s\n' kubelet kubeadm kubectl; }}
have() {{ [[ $1 != crictl || {str(present).lower()} == true ]]; }}
install_debs() {{ printf '%s\n' "$@"; }}
create() {{ install_deb; }}
"""
    values = {"VERSION": "1.37.2", "REVISION": "*", "REPOSITORY_DEB": "http://x/", "KEY": "key"}
    output = stdout_of(PACKAGES, code, tmp_path, **values)
    assert [name for name in output.split() if "=" not in name] == installed


@pytest.mark.parametrize(
    ("current", "finished", "refused"),
    [("1.36.3", True, True), ("1.37.2", True, False), ("1.36.3", False, False), (None, True, False)],
)
def test_finished_node_is_not_upgraded(
    tmp_path: Path, current: str | None, finished: bool, refused: bool
) -> None:
    if current:
        (home_of(tmp_path) / "version").write_text(f"{current}\n")
    if finished:
        (home_of(tmp_path) / "node.done").touch()
    code = "create() { refuse_upgrade; echo installed; }\n"
    done = run(PACKAGES, code, tmp_path, int(refused), VERSION="1.37.2")
    assert done.stdout == ("" if refused else "installed\n")
    assert ("change cluster.kubernetesVersion back to 1.36.3" in done.stderr) == refused


@pytest.mark.parametrize(
    ("release", "programs", "family"),
    [
        ("ID=debian\n", "apt-get dnf", "deb"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt-get", "deb"),
        ("ID=fedora\n", "apt-get dnf", "rpm"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "apt-get dnf", "rpm"),
        ("ID=other\n", "dnf", "rpm"),
        ("ID=fedora\n", "apt-get", "deb"),
    ],
)
def test_os_release_decides_the_package_family(
    tmp_path: Path, release: str, programs: str, family: str
) -> None:
    put(tmp_path, "etc/os-release", release)
    code = f"have() {{ [[ ' {programs} ' == *\" $1 \"* ]]; }}\ncreate() {{ package_family; }}\n"
    assert stdout_of("lib/packages.sh", code, tmp_path) == f"{family}\n"


def test_dnf_plan_includes_dependencies_and_long_names(tmp_path: Path) -> None:
    code = 'create() { planned_rpms <<<"$PLAN"; }\n'
    assert stdout_of(PACKAGES, code, tmp_path, PLAN=PLAN).splitlines() == [
        "containerd",
        "kubelet",
        "cri-tools",
        "a-library-with-a-name-that-is-too-long-for-its-column",
    ]


def dnf_code(root: Path, plan: str) -> str:
    """Code that installs kubelet with a fake dnf, which prints this plan and logs its calls to `calls`."""
    record(root, packages="containerd|1-1\n")
    (root / "plan").write_text(plan)
    return f"""
dnf() {{
  echo "dnf $1 $2" >>{root}/calls
  [[ $2 != --assumeno ]] || {{ cat {root}/plan; return 1; }}
}}
create() {{ install_rpms kubelet; }}
"""


def test_new_rpms_are_recorded_before_their_installation(tmp_path: Path) -> None:
    run(PACKAGES, dnf_code(tmp_path, PLAN), tmp_path)
    added = (home_of(tmp_path) / "record/packages-added").read_text().split()
    assert added == ["kubelet", "cri-tools", "a-library-with-a-name-that-is-too-long-for-its-column"]
    # makecache imports the keys, without which the plan would be empty.
    assert (tmp_path / "calls").read_text().splitlines() == [
        "dnf makecache -y",
        "dnf install --assumeno",
        "dnf install -y",
    ]


def test_failed_dnf_plan_installs_nothing(tmp_path: Path) -> None:
    code = dnf_code(tmp_path, "Error: Unable to find a match: kubelet-1.37.2-*\n")
    done = run(PACKAGES, code, tmp_path, 1)
    assert "Unable to find a match: kubelet-1.37.2-*" in done.stderr
    assert "dnf install -y" not in (tmp_path / "calls").read_text()


LOCKED = "dpkg: error: dpkg frontend lock was locked by another process with pid 7"


@pytest.mark.parametrize(
    ("error", "status"), [(LOCKED, 0), ("dpkg: error processing package x (--configure):", 1)]
)
def test_dpkg_waits_for_a_lock_and_reports_errors(tmp_path: Path, error: str, status: int) -> None:
    code = f"""
ls() {{ :; }}
pause() {{ :; }}
dpkg() {{
  if [[ $1 == --audit ]]; then [[ -e {tmp_path}/done ]] || echo half done; return; fi
  [[ ! -e {tmp_path}/tried ]] || {{ : >{tmp_path}/done; return; }}
  : >{tmp_path}/tried
  echo '{error}'
  return 2
}}
create() {{ finish_dpkg; }}
"""
    done = run("lib/packages.sh", code, tmp_path, status)
    assert (error in done.stderr) == bool(status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)", 0),
        ("E: no source", 1),
    ],
)
def test_apt_waits_for_a_lock_and_reports_errors(tmp_path: Path, error: str, status: int) -> None:
    code = f"""
pause() {{ :; }}
apt-get() {{
  if [[ -e {tmp_path}/tried ]]; then return; fi
  : >{tmp_path}/tried
  echo '{error}'
  return 100
}}
create() {{ apt_update; }}
"""
    done = run(PACKAGES, code, tmp_path, status)
    assert (error in done.stderr) == bool(status)


@pytest.mark.parametrize(
    ("name", "text", "used"),
    [
        ("k.list", "deb [signed-by=/etc/apt/keyrings/k.gpg] https://r.example/v1.37/deb/ /\n", True),
        ("k.list", "deb [trusted=yes] https://r.example/v1.37/deb /\n", True),
        ("k.list", "# deb https://r.example/v1.37/deb/ /\ndeb https://r.example/v1.36/deb/ /\n", False),
        (
            "k.sources",
            "Types: deb\nURIs: https://a.example/\n  https://r.example/v1.37/deb/\nSuites: /\n",
            True,
        ),
        ("k.sources", "Types: deb\n# URIs: https://r.example/v1.37/deb/\nURIs: https://a.example/\n", False),
        ("k.sources", "Enabled: no\nURIs: https://r.example/v1.37/deb/\n\nURIs: https://a.example/\n", False),
        ("k.save", "deb https://r.example/v1.37/deb/ /\n", False),
    ],
)
def test_existing_apt_source_is_used(tmp_path: Path, name: str, text: str, used: bool) -> None:
    """apt refuses two sources for one repository with different keys."""
    source = put(tmp_path, f"etc/apt/sources.list.d/{name}", text)
    own = put(
        tmp_path,
        "etc/apt/sources.list.d/kubeadm-ipvs.sources",
        "URIs: https://r.example/v1.37/deb/\n",
    )
    values = {"REPOSITORY_DEB": "https://r.example/v1.37/deb/", "KEY": "key"}
    done = run(PACKAGES, "create() { add_apt_source; }\n", tmp_path, **values)
    assert own.exists() is not used
    assert (f"the host's own source for https://r.example/v1.37/deb/: {source}" in done.stderr) is used
