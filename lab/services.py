"""The lab's servers on this machine: packages over HTTP, and a container registry.

Each is a background process with its pid file and log in `<lab>/services/`. They serve folders of the
cache; if the cache was deleted or replaced, the next `up` restarts them.
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
    # Labs share the folder, and nothing pushes to it.
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
    health: str  # a path that must return status 200


def services(
    ports: Ports, root: Path, registry_data: Path, release: str, family: Family
) -> tuple[Service, ...]:
    """The servers of a lab.

    Args:
        ports: The lab's ports.
        root: The folder with the package repositories.
        registry_data: docker-registry's storage.
        release: Debian's code name.
        family: The hosts' family.
    """
    index = f"/rpm/{release}/repodata/repomd.xml" if family == "rpm" else f"/debian/{release}/InRelease"
    return (
        Service("packages", ports.packages, root, index),
        Service("registry", ports.registry, registry_data, "/v2/"),
    )


def healthy(service: Service, timeout: float = 5.0) -> bool:
    """Whether the server responds with status 200."""
    connection = http.client.HTTPConnection(LOOPBACK, service.port, timeout=timeout)
    try:
        connection.request("GET", service.health)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def pid(lab_folder: Path, service_name: str) -> int | None:
    """The server's pid; None if it isn't running."""
    return processes.running(_pid_file(lab_folder, service_name), _mark(lab_folder, service_name))


def _pid_file(lab_folder: Path, name: str) -> Path:
    return lab_folder / "services" / f"{name}.pid"


def _mark(lab_folder: Path, name: str) -> str:
    # A word of the command line that is unique to this process.
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


def up_to_date(lab_folder: Path, service: Service) -> bool:
    """Whether the server is running, serves the right folder, and is healthy."""
    served = lab_folder / "services" / f"{service.name}.folder"
    same = served.exists() and served.read_text() == str(service.folder)
    return same and pid(lab_folder, service.name) is not None and healthy(service)


def start(lab_folder: Path, service: Service) -> None:
    """Start the server, replacing one that serves a different folder or isn't healthy.

    Raises:
        UserError: It doesn't become healthy in time; the message includes the end of its log.
    """
    if up_to_date(lab_folder, service):
        return
    stop(lab_folder, service.name)
    folder = lab_folder / "services"
    folder.mkdir(exist_ok=True)
    log = folder / f"{service.name}.log"
    write_atomic(folder / f"{service.name}.folder", str(service.folder))
    # The shell writes its pid before it becomes the server, so the process can always be found.
    wrapper = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(_pid_file(lab_folder, service.name))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*wrapper, *_command(lab_folder, service)],
            cwd=paths.project_dir(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in the terminal doesn't stop it
            env={key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")},
        )
    deadline = time.monotonic() + _START_SECONDS
    while not healthy(service, 1.0):
        if process.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            stop(lab_folder, service.name)
            raise UserError(
                f"the lab's {service.name} server didn't start on port {service.port}:\n{last}", f"see {log}"
            )
        time.sleep(0.05)


def stop(lab_folder: Path, service_name: str) -> None:
    """Stop the server if it is running."""
    processes.end(_pid_file(lab_folder, service_name), _mark(lab_folder, service_name))
