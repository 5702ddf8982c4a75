"""What an air-gapped site holds: packages and container images, built here or copied from upstream."""

from lab.artefacts.command import missing_packages
from lab.artefacts.rpmrepo import ensure_repositories
from lab.artefacts.site import Site, ensure_site, prune

__all__ = ["Site", "ensure_repositories", "ensure_site", "missing_packages", "prune"]
