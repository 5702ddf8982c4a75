"""The step `packages`, for both families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fast.shell import home_of, put, record, run, stdout_of

PACKAGES = "steps/packages.sh"
APT = {"VERSION": "1.37.2", "REVISION": "*", "REPOSITORY_DEB": "http://x/", "KEY": "key", "KEY_URL": ""}
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


@pytest.mark.parametrize("family", ["deb", "rpm"])
@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("echo 'no route' >&2; return 7", "can't download the repository's signing key from"),
        ("echo '<html>'", "is not an armored key"),
    ],
)
def test_failed_key_download_keeps_the_old_key(
    tmp_path: Path, family: str, response: str, error: str
) -> None:
    file = tmp_path / "key.asc"
    for command, status in ((f"echo '{ARMORED}'", 0), (response, 1)):
        helper = put(
            tmp_path, "usr/lib/apt/apt-helper", f'#!/bin/bash\nf() {{ {command}; }}\nf >"${{@: -1}}"\n'
        )
        helper.chmod(0o755)
        code = f"""
package_family() {{ echo {family}; }}
curl() {{ {command}; }}
create() {{ put_key {file} https://packages.example.com/Release.key; }}
"""
        put(tmp_path, "etc/dnf/dnf.conf", "[main]\n")
        done = run(PACKAGES, code, tmp_path, status, KEY="", KEY_URL="")
        assert file.read_text() == f"{ARMORED}\n"
    assert error in done.stderr and "https://packages.example.com/Release.key" in done.stderr
    assert done.stderr.count("FAILED") == 1


def test_key_download_stays_on_https(tmp_path: Path) -> None:
    put(tmp_path, "etc/dnf/dnf.conf", "[main]\nproxy=http://proxy.example.com:3128\n")
    code = f"""
unset https_proxy HTTPS_PROXY all_proxy ALL_PROXY
package_family() {{ echo rpm; }}
curl() {{ echo "$https_proxy: $*" >{tmp_path}/curl; echo '{ARMORED}'; }}
create() {{ put_key {tmp_path}/key.asc https://packages.example.com/Release.key; }}
"""
    run(PACKAGES, code, tmp_path, KEY="", KEY_URL="")
    call = (tmp_path / "curl").read_text()
    assert "--proto =https" in call
    assert call.startswith("http://proxy.example.com:3128: ")


@pytest.mark.parametrize(
    ("environment", "inherited", "expected"),
    [
        ("https_proxy=http://p:1\n", {}, {"https_proxy": "http://p:1"}),
        ('HTTPS_PROXY="http://p:1"  # ours\n', {}, {"https_proxy": "http://p:1"}),
        ("export http_proxy='http://p:1'\n", {}, {"http_proxy": "http://p:1"}),
        ("https_proxy=http://p:1\nhttps_proxy=http://p:2\n", {}, {"https_proxy": "http://p:2"}),
        ("# https_proxy=http://p:1\nPATH=/bin\n", {}, {}),
        ("no_proxy=a,b \n", {}, {"no_proxy": "a,b"}),
        ("https_proxy=http://p:1\n", {"https_proxy": "http://own:1"}, {"https_proxy": "http://own:1"}),
        ("", {"HTTPS_PROXY": "http://own:1"}, {"https_proxy": "http://own:1"}),
        (None, {}, {}),
    ],
)
def test_proxies_survive_sudo(
    tmp_path: Path, environment: str | None, inherited: dict[str, str], expected: dict[str, str]
) -> None:
    if environment is not None:
        put(tmp_path, "etc/environment", environment)
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    exports = "".join(f"export {name}={value}\n" for name, value in inherited.items())
    code = f"""
unset {" ".join([*names, *(name.upper() for name in names)])}
{exports}
create() {{ use_proxies; env; }}
"""
    found = dict(
        line.split("=", 1) for line in stdout_of(PACKAGES, code, tmp_path).splitlines() if "=" in line
    )
    assert {name: found[name] for name in names if name in found} == expected


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
    output = stdout_of(PACKAGES, code, tmp_path, **APT)
    assert [name for name in output.split() if "=" not in name] == installed


@pytest.mark.parametrize(
    ("current", "finished", "installed", "refused"),
    [
        ("1.36.3", True, "1.36.3", True),
        ("1.37.2", True, "1.37.2", False),
        ("1.36.3", False, "1.36.3", False),
        (None, True, "1.36.3", False),
        # Somebody has upgraded the host by hand.
        ("1.36.3", True, "1.37.2", False),
    ],
)
def test_finished_node_is_not_upgraded(
    tmp_path: Path, current: str | None, finished: bool, installed: str, refused: bool
) -> None:
    if current:
        (home_of(tmp_path) / "version").write_text(f"{current}\n")
    if finished:
        (home_of(tmp_path) / "node.done").touch()
    code = f"""
kubeadm() {{ echo v{installed}; }}
kubelet() {{ echo Kubernetes v{installed}; }}
create() {{ refuse_upgrade; echo installed; }}
"""
    done = run(PACKAGES, code, tmp_path, int(refused), VERSION="1.37.2")
    assert done.stdout == ("" if refused else "installed\n")
    assert ("change cluster.kubernetesVersion back to 1.36.3" in done.stderr) == refused


@pytest.mark.parametrize("family", ["deb", "rpm"])
@pytest.mark.parametrize(
    ("installed", "node", "added", "refused"),
    [
        ("1.37.10", True, True, True),
        ("1.37.10", True, False, True),
        ("1.37.10", False, False, True),
        # This program's own packages, before there is a node.
        ("1.37.10", False, True, False),
        ("1.37.2", True, True, False),
        ("1.36.11", True, True, False),
        ("", True, True, False),
    ],
)
def test_newer_packages_are_not_downgraded(
    tmp_path: Path, family: str, installed: str, node: bool, added: bool, refused: bool
) -> None:
    record(tmp_path, packages_added="kubelet\n" if added else "")
    if node:
        (home_of(tmp_path) / "node.done").touch()
        (home_of(tmp_path) / "version").write_text("1.37.2\n")
    code = f"""
package_family() {{ echo {family}; }}
installed() {{ [[ ${{*: -1}} == kubelet && -n '{installed}' ]]; }}
dpkg-query() {{ installed "$@" && echo 'hi |{installed}-1.1'; }}
rpm() {{ if installed "$@"; then printf '{installed}'; else echo not installed; return 1; fi; }}
install_deb() {{ echo installed; }}
install_rpm() {{ echo installed; }}
check_versions() {{ :; }}
systemctl() {{ :; }}
"""
    done = run(PACKAGES, code, tmp_path, int(refused), VERSION="1.37.2", MANAGE="true")
    assert done.stdout == ("" if refused else "installed\n")
    assert ("set cluster.kubernetesVersion to 1.37.10" in done.stderr) is refused
    assert ("(kubelet 1.37.10)" in done.stderr) is refused


def test_empty_version_of_a_node_is_refused(tmp_path: Path) -> None:
    for name in ("version", "node.done"):
        (home_of(tmp_path) / name).touch()
    done = run(PACKAGES, "create() { refuse_upgrade; }\n", tmp_path, 1, VERSION="1.37.2")
    assert "/version is empty" in done.stderr
    assert "write the version that `kubelet --version` prints into it" in done.stderr


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


def apt_code(root: Path, error: str, *, versions: str = "1.37.2-1.1") -> str:
    """Code that installs kubelet with a fake apt, whose first update prints this error."""
    return f"""
pause() {{ :; }}
apt-get() {{
  if [[ $1 == install ]]; then [[ $2 == -s ]] || echo "$*" >>{root}/calls; return; fi
  echo update >>{root}/calls
  if [[ -e {root}/tried ]]; then return; fi
  : >{root}/tried
  echo '{error}'
  return 100
}}
apt-cache() {{ for version in {versions}; do echo "kubeadm | $version | x"; done; }}
apt-mark() {{ printf '%s\n' kubelet kubeadm kubectl; }}
dpkg-query() {{ return 1; }}
finish_dpkg() {{ :; }}
create() {{ install_deb; }}
"""


def test_apt_waits_for_a_lock(tmp_path: Path) -> None:
    record(tmp_path)
    error = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"
    done = run(PACKAGES, apt_code(tmp_path, error), tmp_path, **APT)
    assert "Could not get lock" not in done.stderr
    assert (tmp_path / "calls").read_text().splitlines()[:2] == ["update", "update"]


BROKEN = "E: Failed to fetch http://broken.example/InRelease  Could not connect"


def test_unrelated_broken_apt_source_is_reported_only(tmp_path: Path) -> None:
    record(tmp_path)
    done = run(PACKAGES, apt_code(tmp_path, BROKEN), tmp_path, **APT)
    assert BROKEN in done.stderr
    assert "can't read all package sources" in done.stderr
    assert "kubelet=1.37.2-1.1" in (tmp_path / "calls").read_text()


def test_unreadable_repository_of_ours_is_an_error(tmp_path: Path) -> None:
    record(tmp_path)
    done = run(PACKAGES, apt_code(tmp_path, BROKEN, versions="1.36.3-1.1"), tmp_path, 1, **APT)
    assert BROKEN in done.stderr
    assert "finds no kubeadm 1.37.2-* in the repository http://x/" in done.stderr
    assert "fix what apt reports above, or check packages.repository" in done.stderr


@pytest.mark.parametrize("node", [False, True])
def test_apt_may_downgrade_only_before_there_is_a_node(tmp_path: Path, node: bool) -> None:
    record(tmp_path)
    if node:
        (home_of(tmp_path) / "node.done").touch()
    run(PACKAGES, apt_code(tmp_path, ""), tmp_path, **APT)
    assert ("--allow-downgrades" in (tmp_path / "calls").read_text()) is not node


def test_apt_removes_no_other_package(tmp_path: Path) -> None:
    record(tmp_path)
    code = f"""
apt-get() {{ echo 'Inst ipvsadm (1)'; echo 'Remv keepalived [2]'; echo "$*" >>{tmp_path}/calls; }}
create() {{ install_debs ipvsadm; }}
"""
    done = run(PACKAGES, code, tmp_path, 1)
    assert "to install ipvsadm, apt would remove keepalived" in done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_unrelated_broken_dnf_repository_is_left_out(tmp_path: Path) -> None:
    """The texts are those of dnf 4.14."""
    code = (
        dnf_code(tmp_path, PLAN)
        + f"""
dnf() {{
  echo "dnf $*" >>{tmp_path}/calls
  case $* in
    *--repo=*) ;;
    *makecache*)
      echo "Error: Failed to download metadata for repo 'one'"
      echo "Ignoring repositories: one, two"
      ;;
    *--assumeno*) cat {tmp_path}/plan; return 1 ;;
  esac
}}
"""
    )
    done = run(PACKAGES, code, tmp_path, REPOSITORY_RPM="https://x/")
    assert "continuing without one, two" in done.stderr
    assert "Failed to download metadata for repo 'one'" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "dnf makecache -y --repo=kubeadm-ipvs"
    assert all("--disablerepo=one,two" in call and "*.skip_if_unavailable=1" in call for call in calls[2:])


def test_dnf_never_downgrades_on_a_node(tmp_path: Path) -> None:
    plan = "Downgrading:\n kubelet  x86_64  1.37.2-1  kubeadm-ipvs  5 k\n\nTransaction Summary\n"
    (home_of(tmp_path) / "node.done").touch()
    done = run(PACKAGES, dnf_code(tmp_path, plan), tmp_path, 1, REPOSITORY_RPM="https://x/")
    assert "kubelet  x86_64  1.37.2-1" in done.stderr
    assert "dnf would downgrade" in done.stderr
    assert "dnf install -y" not in (tmp_path / "calls").read_text()


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
