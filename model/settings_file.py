"""Loads a stack's settings from its configuration and from the file that it extends.

`load` is the only place where the program reads configuration. It turns the raw values of a
`Pulumi.<env>.yaml` into `Settings`, or raises one `SettingsError` that lists every problem. It reads no files
other than those that the configuration names, and never contacts Pulumi or a host.
"""

from __future__ import annotations

import copy
import difflib
import json
import typing
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from model.field_types import is_url, without_logins
from model.settings import PREFIX, Section, Settings, section_of
from model.settings_checks import Checks, UnreadableFileError, missing_file_hint, read_file
from model.settings_problems import Finding, Location, Problem, SettingsError, path_of

RENAMED: Mapping[Location, str] = {
    ("limits",): "stepTimeouts",
    ("proof",): "verification",
    ("stepTimeouts", "proof"): "stepTimeouts.verification",
    ("cluster", "certificateNames"): "cluster.certSANs",
    ("cluster", "certificateAlgorithm"): "cluster.encryptionAlgorithm",
    ("cluster", "componentEnvironment"): "cluster.extraEnvs",
    ("cluster", "overrideDisruptionBudgets"): "drain.disableEviction",
    ("registry", "imageRepository"): "cluster.imageRepository",
    ("registry", "mirrors"): "runtime.mirrors",
}
"""Settings that were renamed, with their current names."""

_FILE_SETTINGS = (("ssh", "privateKeyFile"), ("ssh", "knownHostsFile"), ("packages", "key"))


def load(raw: Mapping[str, object], base: Path, version: str | None = None) -> Settings:
    """Load and check the settings of a stack.

    Args:
        raw: Values by their names without the project's prefix (`hosts`, `cluster`, ...), either parsed or as
            the JSON text that Pulumi passes to a program.
        base: Directory of the stack file. Relative paths in it and in the file that it extends start here;
            `~` is the user's home directory.
        version: The version of the existing cluster, if any. It is used if `cluster.kubernetesVersion` isn't
            written.

    Returns:
        The settings with absolute paths (except `extends`) and with every host's key.

    Raises:
        SettingsError: The settings can't be used. It lists all problems.
    """
    findings: list[Finding] = []
    own = {name: _parsed(name, value) for name, value in raw.items()}
    shared = _shared(own.get("extends"), base, findings)
    data: dict[str, Any] = _plain(_merged(shared, own))
    _drop_unknown(Settings, data, (), findings)
    _make_paths_absolute(data, base, findings)
    if version and isinstance(data.setdefault("cluster", {}), dict):
        data["cluster"].setdefault("kubernetesVersion", version)

    def error() -> SettingsError:
        problems = []
        for location, text in findings:
            origin = _origin(location, own, shared)
            file = f"{origin} {own.get('extends')}" if origin else ""
            problems.append(Problem(path_of(location), text, file))
        return SettingsError(problems)

    settings, errors = _validate(data)
    broken: set[Location] = set()
    if settings is None:
        # A password in a URL may be in any setting, for example in one that isn't a URL.
        findings += [(details["loc"], without_logins(_explain(details))) for details in errors]
        # The settings that are valid are still checked against each other.
        settings, errors = _validate(_replace_broken(data, errors, broken))
        if settings is None:
            raise error()
    settings = Checks(settings, broken, findings).run()
    if findings:
        raise error()
    return settings


def config_of(text: str) -> dict[str, Any]:
    """The `config` section of a stack file; empty if there is none.

    Raises:
        yaml.YAMLError: The text isn't YAML.
    """
    document = yaml.safe_load(text)
    config = document.get("config") if isinstance(document, dict) else None
    return config if isinstance(config, dict) else {}


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The project's settings in a stack file's `config` section, without their prefix."""
    return {name.removeprefix(PREFIX): value for name, value in config.items() if name.startswith(PREFIX)}


def written(config: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A stack file's settings merged with those it extends: unchecked, without prefix, without `extends`.

    A shared file that can't be read adds nothing.
    """
    own = own_settings(config)
    return joined(_shared(own.get("extends"), base, []), own)


def joined(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Shared settings merged with a stack's own, without `extends`."""
    merged: dict[str, Any] = _merged(shared, own)
    return {name: value for name, value in merged.items() if name != "extends"}


def _shared(name: object, base: Path, findings: list[Finding]) -> dict[str, Any]:
    """The settings in the file that a stack file extends, without prefix; empty if it extends none."""
    if not isinstance(name, str) or not name:
        return {}
    problem = "isn't a stack file: write `config:` and the settings below it, as in a stack file"
    try:
        document = yaml.safe_load(read_file(base / Path(name).expanduser()))
    except UnreadableFileError as error:
        document, problem = None, f"{error}{missing_file_hint(name)}"
    except RuntimeError:  # from expanduser
        document, problem = None, "is in the home directory of an unknown user; write a path"
    except yaml.YAMLError as error:
        document, problem = None, f"isn't valid YAML: {' '.join(str(error).split())}"
    config = document.get("config") if isinstance(document, dict) and set(document) == {"config"} else None
    if not isinstance(config, dict):
        findings.append((("extends",), f"is {name}, which {problem}"))
        return {}
    unusable = [str(key) for key in config if not str(key).startswith(PREFIX) or key == f"{PREFIX}extends"]
    if unusable:
        findings.append(
            (
                ("extends",),
                f"is {name}, which contains {', '.join(unusable)}; a shared file can contain only settings "
                f"that begin with {PREFIX}, and can't extend another file",
            )
        )
    return {str(key).removeprefix(PREFIX): value for key, value in config.items() if str(key) not in unusable}


def _merged(shared: Any, own: Any) -> Any:
    if isinstance(shared, Mapping) and isinstance(own, Mapping):
        return {**shared, **{key: _merged(shared.get(key), value) for key, value in own.items()}}
    return own


def _origin(location: Location, own: Any, shared: Any) -> Literal["", "in", "partly in"]:
    """Whether the value at a location comes from the stack file (empty), the shared file, or both."""
    for part in location:
        if not isinstance(own, Mapping) or not isinstance(shared, Mapping) or part not in shared:
            return ""
        if part not in own:
            return "in"
        own, shared = own[part], shared[part]
    return "partly in" if isinstance(own, Mapping) and isinstance(shared, Mapping) else ""


def _parsed(name: str, value: object) -> object:
    """Parse the JSON text in which Pulumi passes objects and lists. Plain text stays text."""
    field = next((field for field in Settings.model_fields.values() if field.alias == name), None)
    if not isinstance(value, str) or field is None or typing.get_origin(field.annotation) is Literal:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _plain(value: Any) -> Any:
    """A deep copy as plain JSON values, without names that have no value (`key:` in YAML)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # YAML parses 2026-01-01 as a date. As text, it gets the error message of its setting.
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def _drop_unknown(model: type[Section], data: Any, location: Location, findings: list[Finding]) -> None:
    """Remove names from `data` that `model` doesn't have, and report each."""
    if not isinstance(data, dict):
        return
    known = {str(field.alias or name): field for name, field in model.model_fields.items()}
    for name in [name for name in data if name not in known]:
        _report_unknown(list(known), data.pop(name), (*location, name), findings)
    for name, field in known.items():
        section, is_list = section_of(field.annotation)
        if section is None or name not in data:
            continue
        if not is_list:
            _drop_unknown(section, data[name], (*location, name), findings)
        elif isinstance(data[name], list):
            for index, item in enumerate(data[name]):
                _drop_unknown(section, item, (*location, name, index), findings)


def _report_unknown(known: list[str], value: Any, location: Location, findings: list[Finding]) -> None:
    if location in RENAMED:
        findings.append((location, f"is called `{RENAMED[location]}` now"))
        return
    # A section that was renamed: report the settings in it that were renamed.
    moved = [name for name in value if (*location, name) in RENAMED] if isinstance(value, dict) else []
    for name in moved:
        _report_unknown([], value[name], (*location, name), findings)
    if moved and len(moved) == len(value):
        return
    # Names are often mistyped: wrong case, snake_case, one wrong letter.
    by_lower_case = {name.lower(): name for name in known}
    mistyped = str(location[-1]).replace("_", "").replace("-", "").lower()
    near = difflib.get_close_matches(mistyped, list(by_lower_case), n=1, cutoff=0.6)
    advice = (
        f"did you mean `{by_lower_case[near[0]]}`?" if near else f"known names are {', '.join(sorted(known))}"
    )
    findings.append((location, f"isn't a setting; {advice}"))


def _make_paths_absolute(data: dict[str, Any], base: Path, findings: list[Finding]) -> None:
    places: list[tuple[Location, Any]] = [
        ((section, name), data.get(section)) for section, name in _FILE_SETTINGS
    ]
    runtime = data.get("runtime")
    registries = runtime.get("mirrors") if isinstance(runtime, dict) else None
    for registry, mirrors in registries.items() if isinstance(registries, dict) else ():
        for index, mirror in enumerate(mirrors) if isinstance(mirrors, list) else ():
            places.append((("runtime", "mirrors", registry, index, "ca"), mirror))
    for location, values in places:
        name = location[-1]
        if not isinstance(values, dict):
            continue
        value = values.get(name)
        if not isinstance(value, str) or not value or is_url(value):
            continue
        try:
            values[name] = str((base / Path(value).expanduser()).absolute())
        except RuntimeError:
            findings.append(
                (location, f"is {value!r}, but that user has no home directory here; write a path")
            )
            del values[name]


def _validate(data: dict[str, Any]) -> tuple[Settings | None, list[ErrorDetails]]:
    try:
        # Through JSON, because pydantic's strict mode accepts a list for a tuple only there.
        return Settings.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


_MISSING = {
    "hosts": "list the hosts, each with name, role and address",
    "name": "write the node's name: `name: node1`",
    "role": "write `role: control-plane` or `role: worker`",
    "address": "write the host's IPv4 address: `address: 192.168.166.101`",
}


def _explain(error: ErrorDetails) -> str:
    value = error.get("input")
    # Before the text is cut, which could remove the `@`.
    shown = without_logins(json.dumps(value))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing":
            return f"is missing; {_MISSING[str(error['loc'][-1])]}"
        case "literal_error":
            return f"is {shown}; write {str(error['ctx']['expected']).replace(chr(39), '`')}"
        case "string_type" if isinstance(value, (int, float)):
            return f'is {shown}, which YAML doesn\'t read as text; put it in quotes: "{shown}"'
        case "string_type":
            return f"is {shown}; write text"
        case "bool_type":
            return f"is {shown}; write true or false"
        case "int_type" | "int_from_float" | "int_parsing":
            return f"is {shown}; write a whole number"
        case "tuple_type":
            return f"is {shown}; write a list"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"is {shown}; write names and values"
    return f"is {shown}: {error['msg']}"


def _replace_broken(
    data: dict[str, Any], errors: list[ErrorDetails], broken: set[Location]
) -> dict[str, Any]:
    """A copy of `data` with defaults or harmless placeholders for invalid values.

    It only serves to find more problems. The locations of the invalid values are added to `broken`, so that
    no check reports a placeholder.
    """
    data = copy.deepcopy(data)
    for error in errors:
        location = error["loc"]
        if location[0] != "hosts":
            _remove(data, location[:2])
            broken.add(location[:2])
        elif len(location) > 1 and isinstance(data["hosts"][location[1]], dict):
            _remove(data, location[:3])
            broken.add(location[:3])
        else:
            if len(location) > 1:
                data["hosts"][location[1]] = {}
            broken.add(location[:2])
    if not isinstance(data.get("hosts"), list):
        data["hosts"] = [{}]
        broken.add(("hosts",))
    for index, host in enumerate(data["hosts"]):
        # Addresses reserved for benchmarks, which no real host has.
        host.setdefault("name", f"unnamed-{index}")
        host.setdefault("role", "worker")
        host.setdefault("address", str(IPv4Address("198.18.0.0") + index))
    return data


def _remove(data: dict[str, Any], location: Location) -> None:
    parent: Any = data
    for part in location[:-1]:
        if part not in parent and not isinstance(parent, list):
            return
        parent = parent[part]
    if isinstance(parent, dict):
        parent.pop(location[-1], None)
