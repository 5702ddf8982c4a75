"""Downloads the mirror's packages and images from upstream."""

from __future__ import annotations

import hashlib
import http.client
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.progress import Progress
from lab.artefacts import oci, registry
from lab.artefacts.command import run

PROBE_SECONDS = 5.0
_FETCH_SECONDS = 60.0


@dataclass(frozen=True)
class Endpoints:
    """Upstream's addresses. Tests, and setups with a mirror of upstream, use different ones."""

    packages: str = "https://pkgs.k8s.io/core:/stable:/v{minor}/deb"
    registries: Mapping[str, str] = field(
        default_factory=lambda: {
            "registry.k8s.io": "https://registry.k8s.io",
            "ghcr.io": "https://ghcr.io",
            "docker.io": "https://registry-1.docker.io",
        }
    )

    def repository(self, minor: str) -> str:
        """The address of the package repository of a minor release such as `1.37`."""
        return self.packages.format(minor=minor).rstrip("/")


def probe(endpoints: Endpoints, minor: str, timeout: float = PROBE_SECONDS) -> dict[str, str]:
    """Check in parallel whether all endpoints are reachable.

    Args:
        endpoints: The addresses to check.
        minor: The minor release whose packages are needed, such as `1.37`.
        timeout: How long to wait for each response, in seconds.

    Returns:
        The reason for each address that fails, by URL.
    """
    expected: dict[str, tuple[int, ...]] = {f"{endpoints.repository(minor)}/InRelease": (200,)}
    # A reachable registry responds with 401 if it requires a token even from anonymous clients.
    expected |= {f"{base}/v2/": (200, 401) for base in endpoints.registries.values()}

    def problem(url: str) -> str:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            status = error.code
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)
        return "" if status in expected[url] else f"status {status}"

    with ThreadPoolExecutor(max_workers=len(expected)) as pool:
        problems = zip(expected, pool.map(problem, expected), strict=True)
        return {url: reason for url, reason in problems if reason}


def summary(problems: Mapping[str, str]) -> str:
    """Group the result of `probe` by reason, as in `pkgs.k8s.io, ghcr.io: Name or service not known`."""
    by_reason: dict[str, list[str]] = {}
    for url, reason in problems.items():
        by_reason.setdefault(reason, []).append(urllib.parse.urlsplit(url).netloc)
    return "; ".join(f"{', '.join(hosts)}: {reason}" for reason, hosts in by_reason.items())


@dataclass(frozen=True)
class Listed:
    """A package's entry in the signed index."""

    name: str
    version: str
    filename: str
    size: int
    sha256: str


def parse_index(text: str) -> list[Listed]:
    """The packages for amd64 in a `Packages` file."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): *(.*)$", block, re.MULTILINE))
        if fields.get("Architecture") in ("amd64", "all"):
            found.append(
                Listed(
                    fields["Package"],
                    fields["Version"],
                    fields["Filename"],
                    int(fields["Size"]),
                    fields["SHA256"],
                )
            )
    return found


def choose(index: Sequence[Listed], kubernetes_version: str) -> list[Listed]:
    """The packages that a mirror needs: Kubernetes' own in the given version, the others' newest.

    Raises:
        UserError: The index lacks one of them.
    """
    chosen = []
    for name in ("kubeadm", "kubelet", "kubectl", "cri-tools", "kubernetes-cni"):
        of_release = name.startswith("kube") and name != "kubernetes-cni"
        candidates = [
            entry
            for entry in index
            if entry.name == name and (not of_release or entry.version.split("-")[0] == kubernetes_version)
        ]
        if not candidates:
            wanted = f"{name} {kubernetes_version}" if of_release else name
            raise UserError(f"upstream's package index lacks {wanted} for amd64")
        chosen.append(max(candidates, key=_numbers))
    return chosen


def _numbers(entry: Listed) -> list[int]:
    """The numbers in a package's version, to compare versions by."""
    return [int(part) for part in re.findall(r"\d+", entry.version)]


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as response:
            content: bytes = response.read()
            return content
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{url} can't be downloaded: {error}", "try again, or build instead with --source build"
        ) from None


def _verified_release(repository: str) -> str:
    """The content of InRelease, after verifying its signature.

    The key is downloaded from the same host over HTTPS, as in upstream's instructions.
    """
    key, signed = _get(f"{repository}/Release.key"), _get(f"{repository}/InRelease")
    with tempfile.TemporaryDirectory(prefix="gpgv-") as name:
        folder = Path(name)
        (folder / "key.asc").write_bytes(key)
        (folder / "InRelease").write_bytes(signed)
        keyring, content = folder / "key.gpg", folder / "Release"
        gpg = ["gpg", "--homedir", folder, "--batch", "--quiet", "--output", keyring]
        run([*gpg, "--dearmor", folder / "key.asc"], f"reading {repository}/Release.key")
        gpgv = ["gpgv", "--quiet", "--keyring", keyring, "--output", content, folder / "InRelease"]
        run(gpgv, f"verifying the signature of {repository}/InRelease")
        return content.read_text()


def fetch_packages(
    endpoints: Endpoints, kubernetes_version: str, folder: Path, progress: Progress
) -> tuple[Path, ...]:
    """Download a release's packages to a folder, verifying the signature and the checksums.

    Returns:
        The package files.

    Raises:
        UserError: Something can't be downloaded, or verification fails.
    """
    repository = endpoints.repository(kubernetes_version.rpartition(".")[0])
    release = _verified_release(repository)
    content = _get(f"{repository}/Packages")
    sha256 = hashlib.sha256(content).hexdigest()
    if not re.search(rf"^ {sha256} +{len(content)} +Packages$", release, re.MULTILINE):
        raise UserError(f"{repository}/Packages doesn't match the checksum in the signed InRelease")

    def download(entry: Listed) -> Path:
        target = folder / f"{entry.name}_{entry.version}_amd64.deb"
        with progress.step(f"downloading {target.name}"):
            deb = _get(f"{repository}/{entry.filename.removeprefix('./')}")
        if len(deb) != entry.size or hashlib.sha256(deb).hexdigest() != entry.sha256:
            raise UserError(f"{repository}/{entry.filename} doesn't match the checksum in the signed index")
        target.write_bytes(deb)
        return target

    with ThreadPoolExecutor(max_workers=3) as pool:
        return tuple(pool.map(download, choose(parse_index(content.decode()), kubernetes_version)))


def copy_images(
    endpoints: Endpoints, references: Sequence[str], layout: oci.Layout, progress: Progress
) -> None:
    """Copy images to a layout, one after the other. Blobs that the layout already has aren't downloaded.

    Raises:
        UserError: Part of an image can't be downloaded.
    """
    clients = {host: registry.Client(base) for host, base in endpoints.registries.items()}
    for reference in references:
        with progress.step(f"copying {reference}"):
            registry.copy(clients[registry.Name.parse(reference).registry], reference, layout)
