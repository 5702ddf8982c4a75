"""Builds Go programs from modules at exact versions, and caches the results.

Each target has a wrapper module: a go.mod that selects exact versions, a go.sum that pins their contents,
and a file that imports the programs. Results are stored in `<cache>/go/<key>/`, where the key is a hash of
the wrapper module and the build flags, and are verified each time they are used. An interrupted build
resumes: finished programs are kept in `<key>.partial`, compiled packages in Go's own build cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.apt import apt_get
from common.cache import cached, sha256_of
from common.errors import UserError
from common.progress import Progress

WRAPPERS = Path(__file__).parent / "go"
# Where Go may be installed without being on PATH. Debian installs to /usr/lib/go-*.
USUAL_PLACES = ("usr/local/go/bin/go", "usr/lib/go-*/bin/go", "snap/bin/go")

_FORMAT = 1  # increase it when a change to this module changes the result of a build
_TOOLCHAINS_SINCE = (1, 21)  # the first version that can download a newer toolchain
_APT_PACKAGES = tuple(f"golang-1.{minor}-go" for minor in range(29, 20, -1))


@dataclass(frozen=True)
class ModuleFile:
    """A file copied unchanged from a module in the wrapper's module graph."""

    module: str
    path: str  # inside the module
    mode: int = 0o644


@dataclass(frozen=True)
class Target:
    """Programs that are built together from one wrapper module.

    Attributes:
        name: The name of the wrapper module's folder.
        programs: Go package by file name.
        ldflags: Flags for the linker, in addition to `-s -w`.
        tags: Build tags.
        static_c: Link C libraries statically. Without it cgo is disabled.
        files: Files to copy from modules, by file name.
        wrappers: The folder that holds the wrapper module's folder.
    """

    name: str
    programs: dict[str, str]
    ldflags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    static_c: bool = False
    files: dict[str, ModuleFile] = field(default_factory=dict)
    wrappers: Path = WRAPPERS

    @property
    def wrapper(self) -> Path:
        """The folder of the wrapper module."""
        return self.wrappers / self.name

    @property
    def go_version(self) -> tuple[int, ...]:
        """The oldest Go version that can build the target."""
        return go_version(self.wrapper)

    @property
    def version(self) -> str:
        """The version in go.mod of the module that provides the first program."""
        package = next(iter(self.programs.values()))
        text = (self.wrapper / "go.mod").read_text()
        for module, version in re.findall(r"^(?:require\s+|\t)(\S+) (v\S+)$", text, re.MULTILINE):
            if f"{package}/".startswith(f"{module}/"):
                return str(version)
        raise UserError(f"{self.wrapper / 'go.mod'} requires no module that provides {package}")

    @property
    def key(self) -> str:
        """A hash of everything that affects the result, except the compiler's version.

        A newer compiler produces different bytes but the same programs, so it causes no rebuild.
        """
        fields = asdict(self)
        del fields["wrappers"]
        digest = hashlib.sha256(json.dumps([_FORMAT, fields, os.uname().machine]).encode())
        for path in sorted(self.wrapper.rglob("*")):
            if path.is_file():
                digest.update(f"\n{path.relative_to(self.wrapper)} {sha256_of(path)}".encode())
        return f"{self.name}-{digest.hexdigest()[:16]}"


PULUMI = Target(
    name="pulumi",
    programs={"pulumi": "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"},
    ldflags=("-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v3.259.0",),
    # The language host starts Python programs with this script, which must be in the language host's folder
    # and match the engine's version.
    files={
        "pulumi-language-python-exec": ModuleFile(
            "github.com/pulumi/pulumi/sdk/v3", "python/cmd/pulumi-language-python-exec", 0o755
        )
    },
)
PULUMI_LANGUAGE_PYTHON = Target(
    name="pulumi-language-python",
    programs={"pulumi-language-python": "github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python"},
    ldflags=("-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v3.78.1",),
)
ACTIONLINT = Target(name="actionlint", programs={"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"})


def version_tuple(text: str) -> tuple[int, ...]:
    """Convert `1.26.8` to (1, 26, 8), ignoring a suffix such as `rc1`."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def go_version(module: Path) -> tuple[int, ...]:
    """The oldest Go version that a module's go.mod allows.

    Raises:
        UserError: The go.mod has no go directive.
    """
    found = re.search(r"^go (\d+(?:\.\d+)*)$", (module / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise UserError(f"{module / 'go.mod'} has no go directive")
    return version_tuple(found.group(1))


def build(target: Target, progress: Progress) -> Path:
    """The folder with the target's programs and files, taken from the cache or built.

    Raises:
        UserError: Go isn't available, a module can't be downloaded, or the build fails.
    """
    scope = progress.scope(target.name)

    def make(partial: Path) -> dict[str, str]:
        go = find_go(target.go_version, scope)
        _compile(go, target, partial, scope)
        return {"go": go.version, "target": target.name}

    return cached("go", target.key, scope, make, resume=True)


def build_first(targets: Sequence[Target], progress: Progress) -> tuple[Target, Path]:
    """Build the first target whose modules can be downloaded.

    Args:
        targets: Versions of the same program, in order of preference.
        progress: Reports each target that is skipped.

    Raises:
        UserError: None of them can be built; the message is about the last one.
    """
    for target in targets[:-1]:
        try:
            return target, build(target, progress)
        except ModulesMissing as error:
            progress.say(f"{target.name} can't be built ({error.what}); trying the next version")
    return targets[-1], build(targets[-1], progress)


class ModulesMissing(UserError):
    """A target's modules can't be downloaded, so nothing was compiled."""


@dataclass(frozen=True)
class Go:
    """A Go command and the toolchain that it runs."""

    command: Path
    toolchain: str  # the value of GOTOOLCHAIN
    version: str  # of the compiler, such as 1.26.8


def _environment(toolchain: str, *, static_c: bool = False) -> dict[str, str]:
    # The user's flags and workspaces must not affect the build; the user's proxy and caches still apply.
    return {
        **os.environ,
        "GOTOOLCHAIN": toolchain,
        "GOFLAGS": "",
        "GOWORK": "off",
        "GO111MODULE": "on",
        "CGO_ENABLED": "1" if static_c else "0",
    }


def _go_version(command: Path, toolchain: str) -> str | None:
    """The version that `go version` reports for a toolchain, or None if the toolchain doesn't run."""
    try:
        done = subprocess.run(
            [command, "version"],
            env=_environment(toolchain),
            cwd="/",  # inside a module, Go would follow that module's toolchain line
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    found = re.search(r"go version go(\S+)", done.stdout)
    return found.group(1) if done.returncode == 0 and found else None


def _go_commands() -> list[Path]:
    on_path = shutil.which("go")
    usual = [path for pattern in USUAL_PLACES for path in sorted(Path("/").glob(pattern), reverse=True)]
    candidates = [Path(on_path)] if on_path else []
    return [*candidates, *usual]


def find_go(needed: tuple[int, ...], progress: Progress) -> Go:
    """A Go that is new enough: an installed one, a toolchain that it downloads, or Debian's package.

    Raises:
        UserError: None of these is available.
    """
    go = present_go(needed, progress)
    if go is None:
        package = _apt_package()
        _apt_install(package, progress)
        go = present_go(needed, progress)
    if go is None:
        wanted = ".".join(str(part) for part in needed)
        raise UserError(
            f"Go {wanted} or newer isn't installed and can't be downloaded through the Go module proxy",
            f"install Go {wanted} or newer and put it on PATH",
        )
    return go


def present_go(needed: tuple[int, ...], progress: Progress) -> Go | None:
    """An installed Go that is new enough or can download a toolchain that is. Installs no packages."""
    can_download: list[Path] = []
    for command in _go_commands():
        version = _go_version(command, "local")
        if version and version_tuple(version) >= needed:
            return Go(command, "local", version)
        if version and version_tuple(version) >= _TOOLCHAINS_SINCE:
            can_download.append(command)
    name = "go" + ".".join(str(part) for part in (*needed, 0, 0)[:3])
    for command in can_download:
        with progress.step(f"downloading the Go toolchain {name}"):
            version = _go_version(command, name)
        if version:
            return Go(command, name, version)
    return None


def _apt_package() -> str:
    """The newest Go package that apt offers, including backports."""
    if not shutil.which("apt-cache"):
        raise UserError(
            "Go isn't installed, and this isn't a Debian or Ubuntu system", "install Go 1.26 or newer"
        )
    known = subprocess.run(
        ["apt-cache", "madison", *_APT_PACKAGES], capture_output=True, text=True, check=False
    ).stdout
    for package in _APT_PACKAGES:
        if re.search(rf"^\s*{re.escape(package)}\s*\|", known, re.MULTILINE):
            return package
    raise UserError(
        "Go isn't installed, and apt has no golang package of version 1.21 or newer",
        "add Debian's backports to apt's sources, or install Go 1.26 or newer yourself",
    )


def _apt_install(package: str, progress: Progress) -> None:
    with progress.step(f"installing {package} with apt"):
        try:
            apt_get(progress, ["install", "--yes", "--no-install-recommends", package])
        except UserError as error:
            raise UserError(error.what, "install Go 1.26 or newer yourself") from None


def executable_name(package: str) -> str:
    """The file name that `go build` gives a package's program: the last element before any `/v2` suffix."""
    elements = package.split("/")
    return elements[-2] if re.fullmatch(r"v\d+", elements[-1]) else elements[-1]


def _compile(go: Go, target: Target, out: Path, progress: Progress) -> None:
    environment = _environment(go.toolchain, static_c=target.static_c)
    common = ["-mod=readonly", f"-tags={','.join(target.tags)}"]
    packages = sorted(set(target.programs.values()))
    with progress.step("downloading modules"):
        argv = [str(go.command), "list", *common, "-deps", *packages]
        try:
            listed = _go(argv, target.wrapper, environment)
        except UserError as error:
            raise ModulesMissing(error.what, error.next_move) from None
    total = len(listed.splitlines())

    for name, source in target.files.items():
        shown = _go([str(go.command), "mod", "download", "-json", source.module], target.wrapper, environment)
        original = Path(json.loads(shown)["Dir"]) / source.path
        shutil.copyfile(original, out / name)
        (out / name).chmod(source.mode)

    for leftover in out.glob(".link-*"):  # from a killed run
        shutil.rmtree(leftover)
    missing = {name: package for name, package in target.programs.items() if not (out / name).exists()}
    if not missing:
        return
    ldflags = ["-s", "-w", *target.ldflags]
    if target.static_c:
        ldflags.append("-linkmode external -extldflags -static")
    with tempfile.TemporaryDirectory(prefix=".link-", dir=out) as scratch:
        # The linker drops debugging information (-s -w); not generating it saves a seventh of the time.
        argv = [str(go.command), "build", "-v", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"]
        argv += common
        argv += ["-ldflags", " ".join(ldflags), "-o", f"{scratch}/", *sorted(set(missing.values()))]
        with progress.step(f"compiling {', '.join(missing)}", every=3600):
            _run_counting(argv, target.wrapper, environment, total, progress)
        for name, package in missing.items():
            (Path(scratch) / executable_name(package)).rename(out / name)


def _go(argv: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _go_error(argv, folder, done.stderr.splitlines())
    return done.stdout


def _go_error(argv: list[str], folder: Path, lines: list[str]) -> UserError:
    last = "\n".join(lines[-15:])
    return UserError(
        f"`go {argv[1]}` failed in {folder}:\n{last}",
        "if a download failed, check `go env GOPROXY`; then run this again: finished parts are kept",
    )


def _run_counting(
    argv: list[str], folder: Path, environment: dict[str, str], total: int, progress: Progress
) -> None:
    """Run `go build -v` and regularly report the number of compiled packages.

    Go doesn't print packages that it finds in its build cache, so the count may end far below the total.
    """
    lines: list[str] = []
    compiled = 0
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_lower_priority,
    )
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(30):
            progress.say(f"{compiled} of at most {total} packages compiled")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if re.fullmatch(r"[\w./~+-]+\n", line):
                compiled += 1
            else:
                lines.append(line.rstrip("\n"))
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        ended.set()
        reporter.join()
    if status != 0:
        raise _go_error(argv, folder, lines)


def _lower_priority() -> None:
    os.nice(5)
