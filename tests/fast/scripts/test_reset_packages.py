"""Removing packages."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.fast.shell import put, record, run

PACKAGES = "lib/reset/packages.sh"

DEBS = """
cd "$ROOT"
package_family() { echo deb; }
dpkg-query() {
  case $* in
    *Conffiles*) cat conffiles-${*: -1} 2>/dev/null || : ;;
    *) echo 'ii ' ;;
  esac
}
dpkg() { :; }
ls() { :; }
systemctl() { :; }
apt-mark() { :; }
apt-cache() { cat depends; }
apt-get() {
  case $* in
    *' -s '*)
      cat plan
      printf 'Purg %s [1]\\n' ${*:5}
      ;;
    *) echo "$*" >>calls ;;
  esac
}
find() { :; }
create() {
  choose_packages
  remove_packages
}
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with five added packages, and edited configuration of nftables and containerd."""
    record(
        tmp_path,
        packages_added="kubelet\ncontainerd\nnftables\nlibnftables1\nipset\n",
        holds="",
    )
    for name in ("plan", "depends"):
        put(tmp_path, name)
    conf = put(tmp_path, "nftables.conf", "edited\n")
    put(tmp_path, "conffiles-nftables", f" {conf} 3e9dd59cb2e4d3d1a8dd2a9b4ac9e80c\n")
    put(tmp_path, "conffiles-containerd", f" {conf} 0123456789abcdef0123456789abcdef\n")
    return tmp_path


def removed(host: Path) -> tuple[list[str], str]:
    """The packages that apt-get purges, and the messages."""
    messages = run(PACKAGES, DEBS, host).stderr
    words = (host / "calls").read_text().split()
    return words[words.index("Dpkg::Use-Pty=0") + 1 :], messages


def unedited(host: Path) -> str:
    conf = host / "nftables.conf"
    return f" {conf} {hashlib.md5(conf.read_bytes(), usedforsecurity=False).hexdigest()}\n"


def test_added_packages_are_removed(host: Path) -> None:
    put(host, "conffiles-nftables", f"{unedited(host)} /gone 0123\n /new newconffile\n")
    assert removed(host)[0] == ["kubelet", "containerd", "nftables", "libnftables1", "ipset"]


def test_package_with_edited_configuration_stays(host: Path) -> None:
    put(host, "depends", "nftables\n  Depends: libnftables1\n  Depends: <virtual>\nlibnftables1\nlibc6\n")
    packages, messages = removed(host)
    assert packages == ["kubelet", "containerd", "ipset"]
    assert f"nftables stays: its configuration was edited ({host}/nftables.conf)" in messages
    assert "libnftables1 stays: nftables needs it" in messages


def test_kept_package_without_dependencies_keeps_nothing_else(host: Path) -> None:
    put(host, "depends", "nftables\nlibc6\n")
    assert removed(host)[0] == ["kubelet", "containerd", "libnftables1", "ipset"]


def test_dependency_of_a_foreign_package_stays(host: Path) -> None:
    put(host, "conffiles-nftables", unedited(host))
    put(host, "depends", "shorewall\nipset\n")
    # As long as ipset is on the list, apt would also remove shorewall.
    put(host, "plan", "Purg shorewall [1]\n")
    code = DEBS.replace("cat plan", "[[ $* != *ipset* ]] || cat plan")
    assert "ipset stays: shorewall needs it" in run(PACKAGES, code, host).stderr
    assert "ipset" not in (host / "calls").read_text()


def test_foreign_package_that_needs_containerd_blocks_the_delete(host: Path) -> None:
    put(host, "conffiles-nftables")
    put(host, "depends", "docker.io\ncontainerd\n")
    put(host, "plan", "Purg docker.io [1]\n")
    code = f"""{DEBS}
refuse_foreign_containers() {{ :; }}
reset_node() {{ touch calls; }}
"""
    messages = run("steps/claim.sh", code, host, 1, verb="delete").stderr
    assert "docker.io, which this program didn't install, needs containerd, which it would remove" in messages
    assert "nothing was changed" in messages
    assert not (host / "calls").exists()


@pytest.mark.parametrize("needed", [False, True])
def test_rpms_that_others_need_block_the_removal(tmp_path: Path, needed: bool) -> None:
    record(tmp_path, packages_added="socat\n", units="kubelet not-found inactive\n")
    code = f"""
package_family() {{ echo rpm; }}
rpm() {{
  if [[ $1 == --erase && $2 == --test ]] && {str(needed).lower()}; then
    printf 'error: Failed dependencies:\n\tsocat is needed by (installed) mine-1-1\n' >&2
    return 1
  fi
}}
dnf() {{ echo "dnf $*" >>{tmp_path}/calls; }}
systemctl() {{ :; }}
create() {{
  choose_packages
  remove_packages
}}
"""
    done = run(PACKAGES, code, tmp_path, int(needed))
    assert ("socat is needed by (installed) mine-1-1" in done.stderr) is needed
    assert (tmp_path / "calls").exists() is not needed
