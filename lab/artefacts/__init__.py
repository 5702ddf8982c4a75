"""The lab's mirror: packages and container images, built here or copied from upstream."""

from lab.artefacts.command import missing_packages
from lab.artefacts.mirror import Mirror, ensure_mirror, prune
from lab.artefacts.rpmrepo import ensure_repositories

__all__ = ["Mirror", "ensure_mirror", "ensure_repositories", "missing_packages", "prune"]
