"""`python -m lab.artefacts`: make the whole mirror, and print what it holds."""

from __future__ import annotations

import argparse
import sys

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import mirror


def main() -> int:
    """Make the mirror; 1 if that isn't possible."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.artefacts", description="Packages and container images of a mirror, in the cache."
    )
    parser.add_argument(
        "--source",
        choices=("auto", "build", "upstream"),
        default="auto",
        help="build from Go modules and Debian packages, or fetch what upstream publishes (default: auto)",
    )
    parser.add_argument("--kubernetes-version", default=mirror.KUBERNETES_VERSION, metavar="VERSION")
    parser.add_argument(
        "--debian-release", default=mirror.DEBIAN_RELEASE, metavar="NAME", help="of the hosts"
    )
    given = parser.parse_args()
    progress = Progress()
    try:
        made = mirror.ensure_mirror(progress, given.source, given.kubernetes_version, given.debian_release)
    except UserError as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        return 130
    print(mirror.table(made), end="")
    print(f"source:   {made.source}\npackages: {made.root}")
    print(f"registry: {made.registry_data}\npreload:  {made.preload}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
