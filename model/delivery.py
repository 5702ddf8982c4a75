"""The archive of all scripts that hosts get (`scripts/deliver.sh`)."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass, field

from model.steps import SCRIPTS, SCRIPTS_ON_HOSTS, assignments, body

_RUNNER = "run.sh"
_SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Delivery:
    """All scripts of this version of the program.

    Attributes:
        digest: 16 hexadecimal digits that identify their content.
        archive: A gzip-compressed tar file in base64: the scripts, and their checksums in `SHA256SUMS`.
    """

    digest: str
    archive: str = field(repr=False)

    def text(self, owner: str) -> str:
        """The text with which bash delivers the scripts.

        Args:
            owner: The stack's owner; a host with another owner gets them in another place.
        """
        values = {"ARCHIVE": self.archive, "DIGEST": self.digest, "OWNER": owner}
        return assignments(values) + (SCRIPTS / "deliver.sh").read_text(encoding="utf-8")


@functools.cache
def delivery() -> Delivery:
    """The scripts of this version of the program, packed on first use."""
    files = {f"{script.name}.sh": body(f"steps/{script.name}.sh").encode() for script in SCRIPTS_ON_HOSTS}
    files[_RUNNER] = (SCRIPTS / _RUNNER).read_bytes()
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in [*sorted(files.items()), (_SUMS, sums)]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    archive = base64.b64encode(gzip.compress(packed.getvalue(), mtime=0)).decode()
    return Delivery(hashlib.sha256(sums).hexdigest()[:16], archive)
