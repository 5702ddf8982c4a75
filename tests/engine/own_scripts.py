"""Programs whose steps run a test's own scripts, which hosts get in the same way as the project's."""

from __future__ import annotations

import shutil
from pathlib import Path

from model.steps import SCRIPTS

PRELUDE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {project!r})
import pulumi
from components import remote, ssh_access
from model import delivery, steps

given = json.loads(os.environ["GIVEN"])
steps.SCRIPTS = Path(given["scripts"])
SCRIPTS = {{
    file.stem: steps.Script(file.stem, frozenset({{"WANTED"}}))
    for file in sorted(steps.SCRIPTS.glob("steps/*.sh"))
}}
delivery.SCRIPTS_ON_HOSTS = tuple(SCRIPTS.values())
"""
"""The start of such a program, to be formatted with the project's folder.

`given` has the test's values, of which `scripts` names the folder. `SCRIPTS` has the scripts by name; each
has the value WANTED.
"""


def write(folder: Path, **scripts: str) -> Path:
    """Write scripts by name; others in the folder stay."""
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    shutil.copy(SCRIPTS / "loader.sh", folder)
    for name, text in scripts.items():
        (folder / f"steps/{name}.sh").write_text(text)
    return folder
