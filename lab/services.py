"""What the lab serves from the developer's machine: packages over HTTP, images by a registry.

Two background processes of the lab, with pid file and log in `<lab>/services/`. They serve
folders of the cache; should that be deleted or renewed, the next `up` starts them anew.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common import paths, processes
from common.errors import UserError
from common.files import write_atomic
from lab import requirements
from lab.options import Family
from lab.ports import LOOPBACK, Ports

_START_SECONDS = 20.0

_REGISTRY_CONFIG = """\
version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {data}
  maintenance:
    # Labs share the folder, and nobody pushes: it was filled when it was made.
    readonly:
      enabled: true
    uploadpurging:
      enabled: false
  cache:
    blobdescriptor: inmemory
http:
  addr: {address}:{port}
"""


@dataclass(frozen=True)
class Service:
    """One server process of a lab."""

    name: str
    port: int
    folder: Path  # what it serves
    health: str  # a path that must be answered with 200


def services(
    ports: Ports, root: Path, registry_data: Path, release: str, family: Family
) -> tuple[Service, ...]:
    """The lab's services for a mirror's folders.

    :param root: the folder of package repositories.
    :param registry_data: docker-registry's storage.
    """
    index = f"/rpm/{release}/repodata/repomd.xml" if family == "rpm" else f"/debian/{release}/InRelease"
    return (
        Service("packages", ports.packages, root, index),
        Service("registry", ports.registry, registry_data, "/v2/"),
    )


def healthy(service: Service, timeout: float = 5.0) -> bool:
    """Whether it answers as it should."""
    connection = http.client.HTTPConnection(LOOPBACK, service.port, timeout=timeout)
    try:
        connection.request("GET", service.health)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def pid(lab_folder: Path, service_name: str) -> int | None:
    """The service's process id, if it runs."""
    return processes.running(_pid_file(lab_folder, service_name), _mark(lab_folder, service_name))


def _pid_file(lab_folder: Path, name: str) -> Path:
    return lab_folder / "services" / f"{name}.pid"


def _mark(lab_folder: Path, name: str) -> str:
    # A word of the command line that no other process has.
    return str(lab_folder) if name == "packages" else str(lab_folder / "services/registry.yaml")


def _command(lab_folder: Path, service: Service) -> list[str]:
    if service.name == "packages":
        return [
            sys.executable,
            "-m",
            "lab.serve",
            "--lab",
            str(lab_folder),
            str(service.folder),
            str(service.port),
        ]
    config = lab_folder / "services/registry.yaml"
    text = _REGISTRY_CONFIG.format(data=service.folder, address=LOOPBACK, port=service.port)
    write_atomic(config, text)
    return [requirements.program("docker-registry"), "serve", str(config)]


def running_as_wanted(lab_folder: Path, service: Service) -> bool:
    """Whether the process runs, serves that folder, and answers."""
    served = lab_folder / "services" / f"{service.name}.folder"
    same = served.exists() and served.read_text() == str(service.folder)
    return same and pid(lab_folder, service.name) is not None and healthy(service)


def start(lab_folder: Path, service: Service) -> None:
    """Start it, ending an earlier process that serves something else or doesn't answer.

    :raises UserError: it doesn't answer in time; with its log's last lines.
    """
    if running_as_wanted(lab_folder, service):
        return
    stop(lab_folder, service.name)
    folder = lab_folder / "services"
    folder.mkdir(exist_ok=True)
    log = folder / f"{service.name}.log"
    write_atomic(folder / f"{service.name}.folder", str(service.folder))
    # The process writes its own id before it is the server, so that none is ever lost.
    wrapper = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(_pid_file(lab_folder, service.name))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*wrapper, *_command(lab_folder, service)],
            cwd=paths.project_dir(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C isn't meant for it
            env={key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")},
        )
    deadline = time.monotonic() + _START_SECONDS
    while not healthy(service, 1.0):
        if process.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            stop(lab_folder, service.name)
            raise UserError(f"the lab's {service.name} server on port {service.port} doesn't answer:\n{last}")
        time.sleep(0.05)


def stop(lab_folder: Path, service_name: str) -> None:
    """End it, if it runs."""
    processes.end(_pid_file(lab_folder, service_name), _mark(lab_folder, service_name))
