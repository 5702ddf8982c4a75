"""`python -m lab.artefacts`: make the whole site, and print what it holds."""

from __future__ import annotations

import argparse
import sys

from lab.artefacts import site
from lab.errors import Trouble
from lab.progress import Progress


def main() -> int:
    """Make the site; 1 if that isn't possible."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.artefacts", description="Packages and container images of a site, in the cache."
    )
    parser.add_argument(
        "--source",
        choices=("auto", "build", "upstream"),
        default="auto",
        help="build from Go modules and Debian packages, or fetch what upstream publishes (default: auto)",
    )
    parser.add_argument("--kubernetes-version", default=site.KUBERNETES_VERSION, metavar="VERSION")
    parser.add_argument("--debian-release", default=site.DEBIAN_RELEASE, metavar="NAME", help="of the hosts")
    given = parser.parse_args()
    progress = Progress()
    try:
        made = site.ensure_site(progress, given.source, given.kubernetes_version, given.debian_release)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        return 130
    print(site.table(made), end="")
    print(f"source:   {made.source}\npackages: {made.root}")
    print(f"registry: {made.registry_data}\npreload:  {made.preload}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
