"""`python -m lab.artefacts`: make a mirror and list its contents."""

from __future__ import annotations

import argparse
import sys

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import mirror


def main() -> int:
    """Make the mirror and print its contents.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lab.artefacts",
        description="Make a mirror of packages and container images in the cache.",
    )
    parser.add_argument(
        "--source",
        choices=("auto", "build", "upstream"),
        default="auto",
        help="build from Go modules and Debian packages, or download what upstream publishes; auto downloads "
        "if all of upstream is reachable (default: auto)",
    )
    parser.add_argument(
        "--kubernetes-version",
        default=mirror.KUBERNETES_VERSION,
        metavar="VERSION",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--debian-release",
        default=mirror.DEBIAN_RELEASE,
        metavar="NAME",
        help="code name of the hosts' Debian release (default: %(default)s)",
    )
    given = parser.parse_args()
    progress = Progress()
    try:
        made = mirror.ensure_mirror(progress, given.source, given.kubernetes_version, given.debian_release)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished parts are kept", file=sys.stderr)
        return 130
    print(mirror.table(made), end="")
    print(f"source:   {made.source}\npackages: {made.root}")
    print(f"registry: {made.registry_data}\npreload:  {made.preload}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
