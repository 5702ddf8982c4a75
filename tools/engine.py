"""Where Pulumi's engine and its Python language host come from.

The order: a recent enough `pulumi` on PATH; what this project already has in its cache;
upstream's release, where it can be reached; the Go modules, built here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from common import paths
from common.errors import UserError
from common.progress import Progress
from lab.artefacts import gobuild
from tools import versions

UPSTREAM = "https://get.pulumi.com/releases/sdk"
UPSTREAM_HOST = "get.pulumi.com"

_LANGUAGE_HOST = "pulumi-language-python"
_EXECUTOR = "pulumi-language-python-exec"
_PROBE_SECONDS = 4.0
_DOWNLOAD_SECONDS = 60.0  # without a byte
_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Tool:
    """A program that a run uses."""

    name: str
    version: str
    source: str  # a word or a short sentence for a person: `PATH`, `upstream release`, ...
    path: Path


def own(path: Path) -> bool:
    """Whether a program on PATH is one that this project put there: it lies in the project's cache."""
    return path.resolve().is_relative_to(paths.cache_dir().resolve())


def on_path(name: str) -> Path | None:
    """The first program of that name on PATH that isn't this project's own."""
    for folder in os.get_exec_path():
        found = shutil.which(name, path=folder)
        if found and not own(Path(found)):
            return Path(found)
    return None


def reachable(host: str, port: int = 443) -> bool:
    """Whether a connection to `host` can be made within a few seconds, directly or by the proxy in use."""
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        try:
            with urllib.request.urlopen(f"https://{host}/", timeout=_PROBE_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            # The host itself answers with a status of its own; a proxy that refuses says 403 or 407.
            return error.code not in (403, 407)
        except OSError:
            return False
    try:
        with socket.create_connection((host, port), timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False


def engine_version(path: Path) -> tuple[int, ...] | None:
    """What `pulumi version` says; nothing if it doesn't run or says no version."""
    try:
        said = subprocess.run(
            [str(path), "version"],
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return gobuild.version_tuple(said.stdout) or None if said.returncode == 0 else None


def tools(progress: Progress) -> tuple[Tool, Tool]:
    """The engine and the language host, made if they have to be.

    The language host is the one beside the engine, else one of ours.

    :raises UserError: neither upstream nor the Go modules can be had.
    """
    ambient = on_path("pulumi")
    if ambient is not None:
        version = engine_version(ambient)
        if version is not None and version >= gobuild.version_tuple(versions.MINIMUM_ENGINE):
            engine = Tool("pulumi", ".".join(map(str, version)), "PATH", ambient)
            host = ambient.resolve().parent / _LANGUAGE_HOST
            known = host if host.exists() else on_path(_LANGUAGE_HOST)
            if known is not None:
                return engine, Tool(_LANGUAGE_HOST, "as installed", "PATH", known)
            return engine, _ours(progress)[1]
        said = ".".join(map(str, version)) if version else "no version"
        progress.say(f"{ambient} is not used: {said}, and {versions.MINIMUM_ENGINE} or later is needed")
    return _ours(progress)


def _ours(progress: Progress) -> tuple[Tool, Tool]:
    for key, make in ((_release_key(), _from_release), (_built_key(), _from_modules)):
        if (paths.cache_dir() / "tools" / key).exists():
            return make(progress)
    if _architecture() is None:
        progress.say(f"upstream has no Pulumi for {platform.machine()}: building it")
    elif not reachable(UPSTREAM_HOST):
        progress.say(f"{UPSTREAM_HOST} isn't reachable: building Pulumi {versions.ENGINE} from its Go module")
    else:
        try:
            return _from_release(progress)
        except UserError as trouble:
            progress.say(f"{trouble.what}; building Pulumi {versions.ENGINE} from its Go module instead")
    return _from_modules(progress)


def _architecture() -> str | None:
    return _ARCHITECTURES.get(platform.machine()) if platform.system() == "Linux" else None


def _release_key() -> str:
    return f"pulumi-{versions.ENGINE}-release-{platform.machine()}"


def _built_key() -> str:
    both = f"{gobuild.PULUMI.key} {gobuild.PULUMI_LANGUAGE_PYTHON.key}"
    return f"pulumi-{versions.ENGINE}-built-{hashlib.sha256(both.encode()).hexdigest()[:16]}"


def _from_release(progress: Progress) -> tuple[Tool, Tool]:
    name = f"pulumi-v{versions.ENGINE}-linux-{_architecture()}.tar.gz"

    def make(folder: Path) -> dict[str, str]:
        with progress.step(f"downloading {name}"):
            expected = _checksum(name)
            archive = folder / name
            digest = _download(f"{UPSTREAM}/{name}", archive)
            if digest != expected:
                raise UserError(
                    f"{UPSTREAM}/{name}: SHA-256 is {digest}, upstream's list says {expected}",
                    "something on the way changes what is downloaded: try again, or without the proxy",
                )
            with tarfile.open(archive) as tar:
                for member in tar:
                    target = folder / Path(member.name).name
                    if member.isfile() and target.name in ("pulumi", _LANGUAGE_HOST, _EXECUTOR):
                        content = tar.extractfile(member)
                        assert content is not None  # a file has content
                        with target.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        target.chmod(0o755)
            archive.unlink()
        return {"from": f"{UPSTREAM}/{name}", "sha256": digest}

    folder = gobuild.cached("tools", _release_key(), progress, make)
    return _pair(folder, versions.ENGINE, "upstream release")


def _from_modules(progress: Progress) -> tuple[Tool, Tool]:
    # The executor must lie beside the language host: both builds go into one folder.
    def make(folder: Path) -> dict[str, str]:
        for target in (gobuild.PULUMI, gobuild.PULUMI_LANGUAGE_PYTHON):
            built = gobuild.build(target, progress)
            for name in (*target.programs, *target.files):
                _link(built / name, folder / name)
        return {"from": "Go modules"}

    folder = gobuild.cached("tools", _built_key(), progress, make)
    return _pair(folder, versions.LANGUAGE_HOST, "built from its Go module")


def _pair(folder: Path, host_version: str, source: str) -> tuple[Tool, Tool]:
    return (
        Tool("pulumi", versions.ENGINE, source, folder / "pulumi"),
        Tool(_LANGUAGE_HOST, host_version, source, folder / _LANGUAGE_HOST),
    )


def _link(source: Path, target: Path) -> None:
    # An interrupted attempt's folder is emptied before, so the target isn't there.
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copy2(source, target)


def _checksum(name: str) -> str:
    url = f"{UPSTREAM}/pulumi-{versions.ENGINE}-checksums.txt"
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as answer:
            text: str = answer.read().decode()
    except OSError as error:
        raise UserError(f"{url}: {error}") from error
    for line in text.splitlines():
        digest, _, file = line.partition(" ")
        if file.strip().lstrip("*") == name:
            return digest.lower()
    raise UserError(f"{url} doesn't name {name}")


def _download(url: str, target: Path) -> str:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_SECONDS) as answer, target.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise UserError(f"{url}: {error}") from error
    return digest.hexdigest()
