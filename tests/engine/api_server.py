"""A short-lived Kubernetes control plane on 127.0.0.1: the real API, without hosts.

It runs etcd, kube-apiserver and the controllers that deletion and readiness need, from the programs that the
lab builds for its images. Pods never run; `ApiServer.pods_ready` marks them as ready.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common import gobuild, paths
from common.progress import Progress
from lab.artefacts import targets
from tests.local_ports import free_ports

KUBERNETES = "1.37.2"
READY_SECONDS = 180


@dataclass(frozen=True)
class Programs:
    """The programs of a control plane."""

    etcd: Path
    apiserver: Path
    controllers: Path
    kubectl: Path


# The only node; nothing runs behind it.
_NODE = "no-machine"
_CONTROLLERS = (
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "endpoints-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
)


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Attributes:
        certificate: Its self-signed certificate in PEM format.
        kubectl: The path to kubectl.
    """

    url: str
    token: str
    certificate: str
    process: subprocess.Popen[bytes]
    kubectl: Path

    @property
    def kubeconfig(self) -> str:
        """A kubeconfig with all permissions."""
        return self.kubeconfig_for(self.url)

    def kubeconfig_for(self, url: str, cluster: str = "test") -> str:
        """A kubeconfig with all permissions, for a different URL or cluster name."""
        data = base64.b64encode(self.certificate.encode()).decode()
        return str(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {"name": cluster, "cluster": {"server": url, "certificate-authority-data": data}}
                    ],
                    "users": [{"name": "admin", "user": {"token": self.token}}],
                    "contexts": [{"name": "admin", "context": {"cluster": cluster, "user": "admin"}}],
                    "current-context": "admin",
                }
            )
        )

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send one request.

        Returns:
            The decoded response; empty for a 404.

        Raises:
            AssertionError: The response is any other error.
        """
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
        )
        context = ssl.create_default_context(cadata=self.certificate)
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as response:
                content: dict[str, Any] = json.loads(response.read())
                return content
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def apply(self, body: dict[str, Any], manager: str) -> None:
        """Apply an object with server-side apply, as a field manager."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as kubeconfig:
            kubeconfig.write(self.kubeconfig)
            kubeconfig.flush()
            options = ("--server-side", "--force-conflicts", f"--field-manager={manager}", "--filename=-")
            done = subprocess.run(
                [self.kubectl, f"--kubeconfig={kubeconfig.name}", "apply", *options],
                input=json.dumps(body),
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    def namespace(self) -> str:
        """Create a namespace.

        Returns:
            Its name.
        """
        name = f"test-{secrets.token_hex(4)}"
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def forget_namespace(self, name: str) -> None:
        """Delete a namespace at once, without waiting for the namespace controller."""
        path = f"/api/v1/namespaces/{name}"
        self.call("DELETE", path)
        self.call("PUT", f"{path}/finalize", {**self.call("GET", path), "spec": {"finalizers": []}})
        assert self.call("GET", path) == {}

    @contextmanager
    def pods_ready(self, namespace: str) -> Iterator[None]:
        """While the block runs, schedule a namespace's pods, mark them ready, and complete deletions."""
        ended = threading.Event()
        path = f"/api/v1/namespaces/{namespace}/pods"

        def update(pod: dict[str, Any], address: str) -> None:
            name = pod["metadata"]["name"]
            if pod["metadata"].get("deletionTimestamp"):
                self.call("DELETE", f"{path}/{name}?gracePeriodSeconds=0")
                return
            if (pod.get("status") or {}).get("podIP"):
                return
            if not pod["spec"].get("nodeName"):
                target = {"kind": "Node", "name": _NODE}
                binding = {
                    "apiVersion": "v1",
                    "kind": "Binding",
                    "metadata": {"name": name},
                    "target": target,
                }
                self.call("POST", f"{path}/{name}/binding", binding)
            status = {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            self.call("PATCH", f"{path}/{name}/status", {"status": status}, "application/merge-patch+json")

        failures: list[Exception] = []

        def update_all() -> None:
            address = 0
            try:
                while not ended.wait(0.2):
                    for pod in self.call("GET", path).get("items") or []:
                        address += 1
                        update(pod, f"10.1.{address // 250}.{address % 250 + 1}")
            except Exception as error:
                failures.append(error)

        updater = threading.Thread(target=update_all, daemon=True)
        updater.start()
        try:
            yield
        finally:
            ended.set()
            updater.join()
        assert not failures, failures[0]


def programs(progress: Progress, *, build: bool) -> Programs | None:
    """The programs from PATH or the cache.

    Args:
        progress: Reports a build.
        build: Build programs that are missing.

    Returns:
        None if a program is missing and `build` is false.
    """
    names = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
    on_path = [shutil.which(name) for name in names]
    if all(on_path):
        return Programs(*(Path(found) for found in on_path if found))
    needed = (targets.ETCD, targets.kubernetes(KUBERNETES))
    if not build and not all((paths.cache_dir() / "go" / target.key).exists() for target in needed):
        return None
    store, kubernetes = (gobuild.build(target, progress) for target in needed)
    return Programs(store / names[0], *(kubernetes / name for name in names[1:]))


@contextmanager
def api_server(folder: Path, found: Programs) -> Iterator[ApiServer]:
    """Run the control plane until the block ends.

    Args:
        folder: Holds its data and logs.
        found: The programs.
    """
    peer, client, port = free_ports(3)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(
        ["openssl", "genrsa", "-out", str(folder / "service-accounts.key"), "2048"],
        check=True,
        capture_output=True,
    )
    running: list[subprocess.Popen[bytes]] = []
    with (folder / "etcd.log").open("wb") as etcd_log, (folder / "apiserver.log").open("wb") as log:
        try:
            running.append(
                subprocess.Popen(
                    [
                        str(found.etcd),
                        f"--data-dir={folder / 'etcd'}",
                        f"--listen-client-urls=http://127.0.0.1:{client}",
                        f"--advertise-client-urls=http://127.0.0.1:{client}",
                        f"--listen-peer-urls=http://127.0.0.1:{peer}",
                        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                        f"--initial-cluster=default=http://127.0.0.1:{peer}",
                        "--unsafe-no-fsync",
                    ],
                    stdout=etcd_log,
                    stderr=etcd_log,
                )
            )
            running.append(
                subprocess.Popen(
                    [
                        str(found.apiserver),
                        f"--etcd-servers=http://127.0.0.1:{client}",
                        f"--secure-port={port}",
                        "--bind-address=127.0.0.1",
                        "--endpoint-reconciler-type=none",  # all other types reject a loopback address
                        f"--cert-dir={folder / 'certificates'}",
                        f"--token-auth-file={folder / 'tokens.csv'}",
                        "--authorization-mode=RBAC",
                        # TaintNodesByCondition would taint the node until a kubelet reports it as ready, so
                        # the DaemonSet controller would create no pods for it.
                        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
                        "--service-cluster-ip-range=10.0.0.0/16",
                        "--service-account-issuer=https://kubernetes.default.svc",
                        f"--service-account-key-file={folder / 'service-accounts.key'}",
                        f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            )
            server = _ready(folder, port, token, running, found.kubectl)
            # Before the controllers start, so that they know the node from the beginning.
            server.call("POST", "/api/v1/nodes", {"metadata": {"name": _NODE}})
            (folder / "kubeconfig").write_text(server.kubeconfig)
            with (folder / "controllers.log").open("wb") as controllers_log:
                running.append(
                    subprocess.Popen(
                        [
                            str(found.controllers),
                            f"--kubeconfig={folder / 'kubeconfig'}",
                            f"--controllers={','.join(_CONTROLLERS)}",
                            "--leader-elect=false",
                            "--secure-port=0",
                        ],
                        stdout=controllers_log,
                        stderr=controllers_log,
                    )
                )
            yield server
        finally:
            for process in reversed(running):
                process.terminate()
            for process in reversed(running):
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _ready(
    folder: Path, port: int, token: str, running: list[subprocess.Popen[bytes]], kubectl: Path
) -> ApiServer:
    certificate = folder / "certificates" / "apiserver.crt"
    deadline = time.monotonic() + READY_SECONDS
    last = "there is no certificate yet"
    while time.monotonic() < deadline:
        for process, name in zip(running, ("etcd", "apiserver"), strict=False):
            if process.poll() is not None:
                tail = (folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"{name} exited with status {process.returncode}:\n{tail}")
        if certificate.exists():
            url = f"https://127.0.0.1:{port}"
            server = ApiServer(url, token, certificate.read_text(), running[1], kubectl)
            try:
                if server.call("GET", "/api/v1/namespaces/default"):
                    return server
                last = "there is no namespace 'default' yet"
            except (OSError, AssertionError) as error:
                last = str(error)
        time.sleep(0.2)
    tail = (folder / "apiserver.log").read_text(errors="replace")[-2000:]
    raise AssertionError(f"the API server isn't ready after {READY_SECONDS} s: {last}\n{tail}")
