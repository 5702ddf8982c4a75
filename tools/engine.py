"""Finds Pulumi's engine and its Python language host.

Sources, in order: a recent enough `pulumi` on PATH; this project's cache; upstream's release, if it can be
downloaded; a build from the Go modules.
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

from common import gobuild, paths, versions
from common.cache import cached
from common.errors import UserError
from common.progress import Progress

UPSTREAM = "https://get.pulumi.com/releases/sdk"
UPSTREAM_HOST = "get.pulumi.com"

_LANGUAGE_HOST = "pulumi-language-python"
_EXECUTOR = "pulumi-language-python-exec"
_PROBE_SECONDS = 4.0
_DOWNLOAD_SECONDS = 60.0  # without receiving a byte
_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Tool:
    """A program that a run uses.

    Attributes:
        name: The program's name.
        version: Its version, as text for people.
        source: Where it comes from, as text for people, such as `PATH`.
        path: The program's file.
    """

    name: str
    version: str
    source: str
    path: Path


def own(path: Path) -> bool:
    """Whether this project put a program on PATH: whether it is in the project's cache."""
    return path.resolve().is_relative_to(paths.cache_dir().resolve())


def on_path(name: str) -> Path | None:
    """The first program with that name on PATH that isn't this project's own."""
    for folder in os.get_exec_path():
        found = shutil.which(name, path=folder)
        if found and not own(Path(found)):
            return Path(found)
    return None


def reachable(host: str, port: int = 443) -> bool:
    """Whether `host` accepts a connection within a few seconds, directly or through the configured proxy."""
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        try:
            with urllib.request.urlopen(f"https://{host}/", timeout=_PROBE_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            # Other errors come from the host itself; a proxy refuses with 403 or 407.
            return error.code not in (403, 407)
        except OSError:
            return False
    try:
        with socket.create_connection((host, port), timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False


def engine_version(path: Path) -> tuple[int, ...] | None:
    """The version that `pulumi version` prints, or None if it fails or prints none."""
    try:
        done = subprocess.run(
            [str(path), "version"],
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return gobuild.version_tuple(done.stdout) or None if done.returncode == 0 else None


def tools(progress: Progress) -> tuple[Tool, Tool]:
    """The engine and the language host; downloads or builds them if necessary.

    The language host is the one installed with the engine, or else on PATH, or else this project's own.

    Raises:
        UserError: They can be neither downloaded nor built.
    """
    installed = on_path("pulumi")
    if installed is not None:
        version = engine_version(installed)
        if version is not None and version >= gobuild.version_tuple(versions.MINIMUM_ENGINE):
            engine = Tool("pulumi", ".".join(map(str, version)), "PATH", installed)
            host = installed.resolve().parent / _LANGUAGE_HOST
            known = host if host.exists() else on_path(_LANGUAGE_HOST)
            if known is not None:
                return engine, Tool(_LANGUAGE_HOST, "as installed", "PATH", known)
            return engine, _ours(progress)[1]
        found = f"version {'.'.join(map(str, version))}" if version else "an unknown version"
        progress.say(f"not using {installed}: it has {found}; {versions.MINIMUM_ENGINE} or later is needed")
    return _ours(progress)


def _ours(progress: Progress) -> tuple[Tool, Tool]:
    for key, make in ((_release_key(), _from_release), (_built_key(), _from_modules)):
        if (paths.cache_dir() / "tools" / key).exists():
            return make(progress)
    if _architecture() is None:
        progress.say(
            f"upstream doesn't publish Pulumi for {platform.machine()}: building it from its Go module"
        )
    elif not reachable(UPSTREAM_HOST):
        progress.say(f"{UPSTREAM_HOST} isn't reachable: building Pulumi {versions.ENGINE} from its Go module")
    else:
        try:
            return _from_release(progress)
        except UserError as error:
            progress.say(f"{error.what}; building Pulumi {versions.ENGINE} from its Go module instead")
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
                    f"{UPSTREAM}/{name} has the SHA-256 {digest}; upstream lists {expected}",
                    "the download was altered on the way: try again, or without the proxy",
                )
            with tarfile.open(archive) as tar:
                for member in tar:
                    target = folder / Path(member.name).name
                    if member.isfile() and target.name in ("pulumi", _LANGUAGE_HOST, _EXECUTOR):
                        content = tar.extractfile(member)
                        assert content is not None  # it is a file
                        with target.open("wb") as file:
                            shutil.copyfileobj(content, file)
                        target.chmod(0o755)
            archive.unlink()
        return {"from": f"{UPSTREAM}/{name}", "sha256": digest}

    folder = cached("tools", _release_key(), progress, make)
    return _pair(folder, versions.ENGINE, "upstream release")


def _from_modules(progress: Progress) -> tuple[Tool, Tool]:
    # The executor must be in the language host's folder, so both builds go into one.
    def make(folder: Path) -> dict[str, str]:
        for target in (gobuild.PULUMI, gobuild.PULUMI_LANGUAGE_PYTHON):
            built = gobuild.build(target, progress)
            for name in (*target.programs, *target.files):
                _link(built / name, folder / name)
        return {"from": "Go modules"}

    folder = cached("tools", _built_key(), progress, make)
    return _pair(folder, versions.LANGUAGE_HOST, "built from its Go module")


def _pair(folder: Path, host_version: str, source: str) -> tuple[Tool, Tool]:
    return (
        Tool("pulumi", versions.ENGINE, source, folder / "pulumi"),
        Tool(_LANGUAGE_HOST, host_version, source, folder / _LANGUAGE_HOST),
    )


def _link(source: Path, target: Path) -> None:
    # `cached` has emptied the folder of an interrupted attempt: the target doesn't exist.
    try:
        os.link(source, target)
    except OSError:
        # Hard links don't work here, or the cache spans file systems.
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
    raise UserError(f"{url} doesn't list {name}")


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
