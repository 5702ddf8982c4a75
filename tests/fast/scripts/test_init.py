"""The step `init`: configuration, certificates, repair."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model.certificates import first_expiry
from model.steps import body
from tests.fast.shell import home_of, put, run, stdout_of

INIT = "steps/init.sh"

MANIFEST = """I1125 03:44:56 a warning from kubeadm
---
apiVersion: v1
kind: ServiceAccount
---
kind: ConfigMap
apiVersion: v1
data:
  config.conf: |-
    mode: nftables
---apiVersion: apps/v1
kind: DaemonSet
"""


def test_only_kube_proxys_configmap_is_uploaded(tmp_path: Path) -> None:
    put(tmp_path, "manifest", MANIFEST)
    code = f"""
kubeadm() {{ cat {tmp_path}/manifest; }}
kubectl() {{ cat >{tmp_path}/uploaded; }}
create() {{ upload_proxy_config; }}
"""
    run(INIT, code, tmp_path)
    uploaded = (tmp_path / "uploaded").read_text()
    assert uploaded.startswith("kind: ConfigMap\n")
    assert uploaded.endswith("mode: nftables\n")


def test_patches_exist_before_kubeadm_runs(tmp_path: Path) -> None:
    code = """
kubeadm_phase() { ls "$HOME_DIR/patches"; }
upload_proxy_config() { :; }
refuse_older_version() { :; }
create() { converge_config; }
"""
    output = stdout_of(INIT, code, tmp_path, CONFIG="new", PATCHES="etcd+strategic.json\t{}")
    assert output == "etcd+strategic.json\n"


@pytest.mark.parametrize(
    ("server", "stored", "newest"),
    [
        ("v1.37.2", "v1.37.2", ""),
        ("v1.37.1", "v1.36.9", ""),
        ("v1.37.10", "v1.37.2", "1.37.10"),
        ("v1.37.2-0.build", "v1.38.0", "1.38.0"),
    ],
)
def test_older_version_is_never_uploaded(tmp_path: Path, server: str, stored: str, newest: str) -> None:
    code = f"""
kubeadm_phase() {{ echo uploaded; }}
upload_proxy_config() {{ :; }}
kubectl() {{
  case $* in
    *" --raw /version") printf '{{\n  "major": "1",\n  "gitVersion": "{server}",\n}}\n' ;;
    *" configmap kubeadm-config "*) printf 'kind: ClusterConfiguration\nkubernetesVersion: {stored}\n' ;;
  esac
}}
create() {{ converge_config; }}
"""
    config = "kind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n---\nkind: Other\n"
    done = run(INIT, code, tmp_path, int(bool(newest)), CONFIG=config, PATCHES="")
    assert done.stdout == ("" if newest else "uploaded\n")
    assert (f"set cluster.kubernetesVersion to {newest}" in done.stderr) is bool(newest)


def test_schema_is_requested_in_the_format_of_the_provider(tmp_path: Path) -> None:
    # The JSON form arrived while the binary form took longer than the API server's own limit of a minute.
    code = """
kubectl() { [[ $* == *" explain "*--output=plaintext-openapiv2* ]]; }
create() { schema_ready && echo ready; }
"""
    assert stdout_of(INIT, code, tmp_path) == "ready\n"


def test_update_refuses_a_reinstalled_control_plane(tmp_path: Path) -> None:
    code = "create() { echo made; }\n"
    lost = run(INIT, code, tmp_path, 1, verb="update")
    assert "the host was reinstalled" in lost.stderr
    assert lost.stdout == ""
    (home_of(tmp_path) / "node.done").touch()
    assert run(INIT, code, tmp_path, verb="update").stdout == "made\n"


def expiration(days: int, compact: bool) -> str:
    """The output of `kubeadm certs check-expiration --output json`."""
    end = f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
    text = {
        "kind": "CertificateExpirationInfo",
        "certificates": [
            {"name": "admin.conf", "expirationDate": "2100-01-01T00:00:00Z", "caName": "ca"},
            {"name": "apiserver", "expirationDate": end, "caName": "ca"},
        ],
        "certificateAuthorities": [{"name": "ca", "expirationDate": "2001-01-01T00:00:00Z"}],
    }
    return json.dumps(text, separators=(",", ":")) if compact else json.dumps(text, indent=4)


# kubeadm and crictl, which log their calls. The fake renewal lasts until 2100.
PROGRAMS = """
kubeadm() {{
  case "$1 $2" in
    "certs check-expiration") cat {root}/expiration ;;
    *)
      echo "kubeadm $1 $2 $3" >>{root}/calls
      echo "$*" >>{root}/arguments
      {renewal}
      ;;
  esac
}}
cri() {{ if [[ $1 == ps ]]; then echo "id-$4"; else echo "stop ${{*: -1}}" >>{root}/calls; fi; }}
kubectl() {{ echo ok; }}
systemctl() {{ echo "systemctl $*" >>{root}/calls; }}
"""
RENEWED = "sed -i 's/20[2-9][0-9]-/2100-/' {root}/expiration"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
RENEWAL = ["kubeadm certs renew all", *(f"stop id-^{name}$" for name in COMPONENTS)]


def programs(root: Path, renewal: str = RENEWED) -> str:
    put(root, "calls")
    return PROGRAMS.format(root=root, renewal=renewal.format(root=root))


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("kubeadm", "cri", "error"),
    [
        (
            "echo 'ca.crt: no PEM' >&2; return 1",
            ":",
            "can't determine when the cluster's certificates expire",
        ),
        ("""[[ $2 == renew ]] || echo '{"expirationDate": "2100-01-01"}'""", "return 1", "container of etcd"),
        (": renew", ":", "kubeadm lists no certificate"),
    ],
)
def test_failed_renewal_fails_the_step(tmp_path: Path, kubeadm: str, cri: str, error: str) -> None:
    mark = home_of(tmp_path) / "certificates.renewing"
    if "renew" in kubeadm:
        mark.touch()
    code = f"""
kubeadm() {{ {kubeadm}; }}
cri() {{ {cri}; }}
kubectl() {{ echo ok; }}
create() {{ renew_certificates 2027-01-01T00:00:00Z; }}
"""
    done = run(INIT, code, tmp_path, 1)
    assert error in done.stderr
    assert mark.exists() == ("renew" in kubeadm)


CONVERGED = """
node_finished() { true; }
converge_config() { :; }
converge_certificate() { :; }
converge_kubelet() { :; }
"""


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    ("days", "interrupted", "renewed"),
    [(29, False, True), (-1, False, True), (31, False, False), (364, True, True)],
)
def test_repair_renews_expiring_certificates(
    tmp_path: Path, days: int, interrupted: bool, renewed: bool, compact: bool
) -> None:
    put(tmp_path, "expiration", expiration(days, compact))
    mark = home_of(tmp_path) / "certificates.renewing"
    if interrupted:
        mark.touch()
    code = programs(tmp_path) + CONVERGED
    run(INIT, code, tmp_path, **VALUES, REPAIR="1")
    assert calls(tmp_path) == (RENEWAL if renewed else [])
    assert not mark.exists()


VALUES = {"CERTIFICATE_DAYS": "30", "RENEW": "", "RENEWAL_TIMER": "", "DISABLE_EVICTION": ""}
SOON, LATER = (f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}" for days in (20, 40))


@pytest.mark.parametrize(("renew", "renewed"), [("", False), (SOON, False), (LATER, True)])
def test_run_renews_the_announced_certificates(tmp_path: Path, renew: str, renewed: bool) -> None:
    """The program decides: a host whose clock is a little behind must not skip the renewal for good."""
    put(tmp_path, "expiration", expiration(39, compact=True))
    done = run(INIT, programs(tmp_path) + CONVERGED, tmp_path, **{**VALUES, "RENEW": renew})
    assert calls(tmp_path) == (RENEWAL if renewed else [])
    expected = "2100-" if renewed else f"{datetime.now(UTC) + timedelta(days=39):%Y-%m-%d}"
    assert done.stdout.startswith(f"certificates expire {expected}")
    assert first_expiry(done.stdout, "") is not None


def test_renewal_without_the_ca_key_fails(tmp_path: Path) -> None:
    put(tmp_path, "expiration", expiration(39, compact=True))
    code = programs(tmp_path, """echo "Detected external ca, certificate can't be renewed" """) + CONVERGED
    done = run(INIT, code, tmp_path, 1, **{**VALUES, "RENEW": LATER})
    assert "Detected external ca" in done.stderr
    assert "kubeadm didn't renew the certificates that expire at" in done.stderr
    assert calls(tmp_path) == ["kubeadm certs renew all"]


def test_missing_certificate_file_is_skipped(tmp_path: Path) -> None:
    """Hardening guides remove super-admin.conf."""
    text = json.loads(expiration(39, compact=True))
    text["certificates"].append({"name": "super-admin.conf", "expirationDate": None, "missing": True})
    put(tmp_path, "expiration", json.dumps(text))
    done = run(INIT, programs(tmp_path) + CONVERGED, tmp_path, **VALUES)
    assert done.stdout.startswith("certificates expire 20")


TIMER = "etc/systemd/system/kubeadm-ipvs-certificates"


def test_timer_is_installed_and_removed_again(tmp_path: Path) -> None:
    put(tmp_path, "expiration", expiration(100, compact=True))
    code = programs(tmp_path) + CONVERGED
    run(INIT, code, tmp_path, **{**VALUES, "RENEWAL_TIMER": "true"})
    script = home_of(tmp_path) / "renewal.sh"
    assert script.stat().st_mode & 0o777 == 0o600
    assert (
        f"ExecStart=/bin/bash {script} create renewal node1\n" in (tmp_path / f"{TIMER}.service").read_text()
    )
    unit = "kubeadm-ipvs-certificates.timer"
    assert calls(tmp_path) == [
        "systemctl daemon-reload",
        f"systemctl enable --quiet {unit}",
        f"systemctl restart {unit}",
    ]
    put(tmp_path, "calls")
    run(INIT, code, tmp_path, **VALUES)
    assert calls(tmp_path)[0] == f"systemctl disable --quiet --now {unit}"
    assert [path.name for path in (tmp_path / "etc/systemd/system").iterdir()] == []
    assert not script.exists()
    assert (home_of(tmp_path) / "files").read_text() == ""
    put(tmp_path, "calls")
    run(INIT, code, tmp_path, **VALUES)
    assert calls(tmp_path) == []


def test_timer_runs_the_delivered_script(tmp_path: Path) -> None:
    """It is the current version's, because a delivery replaces it."""
    put(tmp_path, "expiration", expiration(100, compact=True))
    run(INIT, programs(tmp_path) + CONVERGED, tmp_path, **{**VALUES, "RENEWAL_TIMER": "true"})
    (home_of(tmp_path) / "node.done").touch()
    put(tmp_path, "expiration", expiration(29, compact=True))
    put(tmp_path, "calls")
    delivered = f"{body('steps/renewal.sh')}\nis_root() {{ true; }}\n{programs(tmp_path)}"
    put(home_of(tmp_path), "scripts/renewal.sh", delivered)
    start = re.search("^ExecStart=(.*)$", (tmp_path / f"{TIMER}.service").read_text(), re.MULTILINE)
    assert start is not None
    subprocess.run(start[1].split(), check=True, env={**os.environ, "KUBEADM_IPVS_ROOT": str(tmp_path)})
    assert calls(tmp_path) == RENEWAL


@pytest.mark.parametrize("left", ["timer", "service", "renewal.sh"])
def test_half_removed_timer_is_removed(tmp_path: Path, left: str) -> None:
    file = home_of(tmp_path) / left if left == "renewal.sh" else put(tmp_path, f"{TIMER}.{left}")
    file.touch()
    run("lib/reset/kubeadm.sh", programs(tmp_path) + "create() { remove_renewal_timer; }\n", tmp_path)
    assert not file.exists()


@pytest.mark.parametrize(
    ("node", "days", "renewed"), [(True, 29, True), (True, 31, False), (False, 29, False)]
)
def test_timer_renews_certificates_that_expire_soon(
    tmp_path: Path, node: bool, days: int, renewed: bool
) -> None:
    put(tmp_path, "expiration", expiration(days, compact=False))
    if node:
        (home_of(tmp_path) / "node.done").touch()
    run("steps/renewal.sh", programs(tmp_path), tmp_path, CERTIFICATE_DAYS="30")
    assert calls(tmp_path) == (RENEWAL if renewed else [])
