"""Writes YAML that Go programs, such as kubeadm and kubectl, read with the intended types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Also quotes strings that Go's YAML reader would take for numbers or booleans."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([yYnN]|[-+]?(\.?[0-9][0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?|0[xXoObB][0-9A-Fa-f_]+))$"),
    list("yYnN-+.0123456789"),
)


def dump(*documents: Mapping[str, Any]) -> str:
    """The documents as one YAML text, with keys in their given order."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=1000)
