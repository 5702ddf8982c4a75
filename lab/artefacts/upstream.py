"""The same packages and images from where upstream publishes them, where that can be reached."""

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
    """Where upstream is; other addresses are for tests and for mirrors."""

    packages: str = "https://pkgs.k8s.io/core:/stable:/v{minor}/deb"
    registries: Mapping[str, str] = field(
        default_factory=lambda: {
            "registry.k8s.io": "https://registry.k8s.io",
            "ghcr.io": "https://ghcr.io",
            "docker.io": "https://registry-1.docker.io",
        }
    )

    def repository(self, minor: str) -> str:
        """The address of a minor release's package repository, such as `1.37`'s."""
        return self.packages.format(minor=minor).rstrip("/")


def probe(endpoints: Endpoints, minor: str, timeout: float = PROBE_SECONDS) -> dict[str, str]:
    """Ask every place at the same time; returns address -> reason of each that doesn't answer as it should.

    :param timeout: seconds that each may take.
    """
    places: dict[str, tuple[int, ...]] = {f"{endpoints.repository(minor)}/InRelease": (200,)}
    # A registry that wants a token from everyone says so by 401: it is there.
    places |= {f"{base}/v2/": (200, 401) for base in endpoints.registries.values()}

    def ask(url: str) -> str:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            status = error.code
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)
        return "" if status in places[url] else f"status {status}"

    with ThreadPoolExecutor(max_workers=len(places)) as pool:
        answers = zip(places, pool.map(ask, places), strict=True)
        return {url: reason for url, reason in answers if reason}


def in_words(problems: Mapping[str, str]) -> str:
    """What `probe` has found, by reason: `pkgs.k8s.io, ghcr.io: Name or service not known`."""
    by_reason: dict[str, list[str]] = {}
    for url, reason in problems.items():
        by_reason.setdefault(reason, []).append(urllib.parse.urlsplit(url).netloc)
    return "; ".join(f"{', '.join(hosts)}: {reason}" for reason, hosts in by_reason.items())


@dataclass(frozen=True)
class Listed:
    """A package as the signed index has it."""

    name: str
    version: str
    filename: str
    size: int
    sha256: str


def parse_index(text: str) -> list[Listed]:
    """The amd64 packages of a `Packages` file."""
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
    """The packages that a mirror needs: those of the release, and the newest of what comes with it.

    :raises UserError: the index doesn't hold one of them.
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
            raise UserError(f"upstream's package index holds no {wanted} for amd64")
        chosen.append(max(candidates, key=_age))
    return chosen


def _age(entry: Listed) -> list[int]:
    """A key that sorts a package's versions: their numbers."""
    return [int(part) for part in re.findall(r"\d+", entry.version)]


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as response:
            content: bytes = response.read()
            return content
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{url} can't be fetched: {error}", "try again, or build instead (--source build)"
        ) from None


def _verified_release(repository: str) -> str:
    """The content of InRelease, whose signature the repository's own key has made.

    The key comes from the same place by HTTPS, as upstream's instructions have it.
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
    """Fetch the release's packages into a folder; signature and checksums are verified.

    :raises UserError: something can't be had, or isn't what upstream has signed.
    """
    repository = endpoints.repository(kubernetes_version.rpartition(".")[0])
    release = _verified_release(repository)
    content = _get(f"{repository}/Packages")
    sha256 = hashlib.sha256(content).hexdigest()
    if not re.search(rf"^ {sha256} +{len(content)} +Packages$", release, re.MULTILINE):
        raise UserError(f"{repository}/Packages isn't what its signed Release says")

    def one(entry: Listed) -> Path:
        target = folder / f"{entry.name}_{entry.version}_amd64.deb"
        with progress.step(f"fetching {target.name}"):
            deb = _get(f"{repository}/{entry.filename.removeprefix('./')}")
        if len(deb) != entry.size or hashlib.sha256(deb).hexdigest() != entry.sha256:
            raise UserError(f"{repository}/{entry.filename} isn't what the signed index says")
        target.write_bytes(deb)
        return target

    with ThreadPoolExecutor(max_workers=3) as pool:
        return tuple(pool.map(one, choose(parse_index(content.decode()), kubernetes_version)))


def copy_images(
    endpoints: Endpoints, references: Sequence[str], layout: oci.Layout, progress: Progress
) -> None:
    """Copy images into a layout, one after the other; what is there already isn't fetched again.

    :raises UserError: an image can't be had whole.
    """
    clients = {host: registry.Client(base) for host, base in endpoints.registries.items()}
    for reference in references:
        with progress.step(f"copying {reference}"):
            registry.copy(clients[registry.Name.parse(reference).registry], reference, layout)
