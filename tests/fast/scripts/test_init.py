"""The step `init`: configuration, certificates, repair."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

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
create() { converge_config; }
"""
    output = stdout_of(INIT, code, tmp_path, CONFIG="new", PATCHES="etcd+strategic.json\t{}")
    assert output == "etcd+strategic.json\n"


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


@pytest.mark.parametrize(
    ("kubeadm", "cri", "error"),
    [
        (
            "echo 'ca.crt: no PEM' >&2; return 1",
            ":",
            "can't determine when the cluster's certificates expire",
        ),
        (":", "return 1", "can't find the container of etcd"),
    ],
)
def test_failed_renewal_fails_the_repair(tmp_path: Path, kubeadm: str, cri: str, error: str) -> None:
    mark = home_of(tmp_path) / "certificates.renewing"
    if kubeadm == ":":
        mark.touch()
    code = f"""
kubeadm() {{ {kubeadm}; }}
cri() {{ {cri}; }}
kubectl() {{ echo ok; }}
create() {{ renew_certificates; }}
"""
    done = run(INIT, code, tmp_path, 1, CERTIFICATE_DAYS="30")
    assert error in done.stderr
    assert mark.exists() == (kubeadm == ":")


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
    calls = put(tmp_path, "calls")
    code = f"""
kubeadm() {{
  case "$1 $2" in
    "certs check-expiration") cat {tmp_path}/expiration ;;
    *) echo "kubeadm $1 $2 $3" >>{calls} ;;
  esac
}}
cri() {{ if [[ $1 == ps ]]; then echo "id-$4"; else echo "stop ${{*: -1}}" >>{calls}; fi; }}
kubectl() {{ echo ok; }}
create() {{ renew_certificates; }}
"""
    run(INIT, code, tmp_path, CERTIFICATE_DAYS="30")
    components = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    assert calls.read_text().splitlines() == (
        ["kubeadm certs renew all", *(f"stop id-^{name}$" for name in components)] if renewed else []
    )
    assert not mark.exists()
