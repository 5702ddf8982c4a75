"""The saved record of a lab, `lab.json` in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import paths
from common.errors import UserError
from common.files import locked, write_atomic
from common.paths import DEFAULT_LAB, lab_command
from common.progress import Progress
from lab import ports, services
from lab.hardware import Accelerator
from lab.options import Options
from lab.ports import Ports

# Old names of fields and values, which records written by earlier versions contain.
_RENAMED = {"site": "mirror", "site_root": "mirror_root", "dnf": "rpm"}


@dataclass(frozen=True)
class Record:
    """The properties of a lab. `up` fills in those with defaults step by step."""

    options: Options
    ports: Ports
    image: str = ""  # the image's key
    accelerator: Accelerator = "tcg"
    accelerator_reason: str = ""
    mirror: str = ""  # whether the mirror was built or downloaded, and why
    mirror_root: str = ""  # the folder of its package repositories
    registry_data: str = ""  # the folder of its registry

    @staticmethod
    def read(path: Path) -> Record:
        """Read a record from a file."""
        saved: dict[str, Any] = json.loads(path.read_text())
        raw = {_RENAMED.get(key, key): value for key, value in saved.items()}
        options = dict(raw["options"])
        options["family"] = _RENAMED.get(options["family"], options["family"])
        raw["options"] = Options(**options)
        raw["ports"] = _ports(raw)
        return Record(**raw)

    def write(self, path: Path) -> None:
        """Write the record to a file."""
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n", 0o600)

    def services(self) -> tuple[services.Service, ...]:
        """The lab's servers; none before the mirror is known."""
        if not self.mirror_root:
            return ()
        root, data = Path(self.mirror_root), Path(self.registry_data)
        return services.services(self.ports, root, data, self.options.release, self.options.family)


def _ports(raw: dict[str, Any]) -> Ports:
    plain: dict[str, Any] = dict(raw["ports"])
    plain |= {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
    return Ports(**plain)


def record_path(name: str) -> Path:
    """The path of a lab's record."""
    return paths.lab_dir(name) / "lab.json"


def load(name: str) -> Record:
    """The record of an existing lab.

    Raises:
        UserError: There is no such lab, or its record is damaged.
    """
    path = record_path(name)
    if not path.exists():
        raise UserError(f"there is no lab '{name}'", lab_command("up", name))
    try:
        return Record.read(path)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"can't read {path}: {error}", lab_command("down", name)) from None


def load_or_create(name: str, wanted: dict[str, Any], progress: Progress) -> Record:
    """The record of a lab. For a new lab, choose its ports and save a new record.

    Args:
        name: The lab.
        wanted: The options that the user has set, by name in `Options`.
        progress: Reports a wait for another process.

    Raises:
        UserError: The lab exists with other options, an option is invalid, or a port is in use.
    """
    if record_path(name).exists():
        record = load(name)
        now = asdict(record.options)
        different = [f"{key}: is {now[key]}, not {wanted[key]}" for key in wanted if now[key] != wanted[key]]
        if different:
            raise UserError(
                f"the lab '{name}' exists with other options:\n" + "\n".join(different),
                f"{lab_command('down', name)}, then up again",
            )
        return record
    options = Options(name=name, **wanted)
    # Choose and save the ports under one lock, so that two new labs don't choose the same ones.
    with locked(paths.labs_dir() / ".ports.lock", progress, "ports"):
        record = Record(options, choose_ports(name, options.count, progress))
        record_path(name).parent.mkdir(mode=0o700, exist_ok=True)
        record.write(record_path(name))
    return record


def choose_ports(name: str, count: int, progress: Progress) -> Ports:
    """The ports for a new lab.

    Args:
        name: The lab; the default lab has fixed ports.
        count: The number of hosts.
        progress: Reports labs with a damaged record.

    Raises:
        UserError: A fixed port is in use, or there aren't enough free ones.
    """
    if name == DEFAULT_LAB:
        chosen = ports.fixed(count)
        ports.check_free(chosen.tcp())
        return chosen
    reserved: set[int] = set()
    for path in paths.labs_dir().glob("*/lab.json"):
        try:
            # Read only the ports: another version of this program may have written the rest differently.
            other = _ports(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            progress.say(f"can't read {path}, so its ports aren't reserved: {error}")
            continue
        reserved |= {*other.tcp(), other.lan}
    return ports.free(count, reserved)
