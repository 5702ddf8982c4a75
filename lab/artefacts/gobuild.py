"""Builds Go programs from modules at exact versions, each once.

Every target has a wrapper module in `go/<target>/`: a go.mod with the exact versions, the
go.sum that pins their contents, and a file that imports the programs. Results lie in
`<cache>/go/<key>/`, where the key is a hash of the wrapper module and the flags; a
manifest beside them is checked each time they are used again. A build that was
interrupted goes on where it was: finished programs wait in `<key>.partial`, and
compiled packages in Go's own build cache.
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

from common.errors import UserError
from common.progress import Progress
from lab import requirements
from lab.artefacts.cache import cached as cached
from lab.artefacts.cache import sha256_of

WRAPPERS = Path(__file__).parent / "go"
# Where Go may be without being on PATH; /usr/lib/go-* is Debian's.
USUAL_PLACES = ("usr/local/go/bin/go", "usr/lib/go-*/bin/go", "snap/bin/go")

_FORMAT = 1  # raise it when the way of building changes what comes out
_TOOLCHAINS_SINCE = (1, 21)  # the first Go that can fetch a newer one by itself
_APT_PACKAGES = (
    "golang-1.29-go",
    "golang-1.28-go",
    "golang-1.27-go",
    "golang-1.26-go",
    "golang-1.25-go",
    "golang-1.24-go",
    "golang-1.23-go",
    "golang-1.22-go",
    "golang-1.21-go",
)


@dataclass(frozen=True)
class ModuleFile:
    """A file taken from a module of the wrapper's module graph as it is."""

    module: str
    path: str  # inside the module
    mode: int = 0o644


@dataclass(frozen=True)
class Target:
    """Programs that are built together from one wrapper module."""

    name: str  # the wrapper's folder in `go/`
    programs: dict[str, str]  # file name -> Go package
    ldflags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    static_c: bool = False  # needs C, linked statically; without it C is off altogether
    files: dict[str, ModuleFile] = field(default_factory=dict)  # file name -> where it comes from

    @property
    def wrapper(self) -> Path:
        """The folder of the wrapper module."""
        return WRAPPERS / self.name

    @property
    def go_version(self) -> tuple[int, ...]:
        """The least Go version, as the wrapper's go.mod says."""
        found = re.search(r"^go (\d+(?:\.\d+)*)$", (self.wrapper / "go.mod").read_text(), re.MULTILINE)
        if not found:
            raise UserError(f"{self.wrapper / 'go.mod'} names no Go version")
        return version_tuple(found.group(1))

    @property
    def version(self) -> str:
        """The version of the module that the first program comes from, as go.mod has it."""
        package = next(iter(self.programs.values()))
        text = (self.wrapper / "go.mod").read_text()
        for module, version in re.findall(r"^(?:require\s+|\t)(\S+) (v\S+)$", text, re.MULTILINE):
            if f"{package}/".startswith(f"{module}/"):
                return str(version)
        raise UserError(f"{self.wrapper / 'go.mod'} names no module that holds {package}")

    @property
    def key(self) -> str:
        """A hash of all that decides what comes out, except the Go compiler's version.

        A newer compiler makes other bytes of the same programs: no reason to build again.
        """
        digest = hashlib.sha256(json.dumps([_FORMAT, asdict(self), os.uname().machine]).encode())
        for path in sorted(self.wrapper.rglob("*")):
            if path.is_file():
                digest.update(f"\n{path.relative_to(self.wrapper)} {sha256_of(path)}".encode())
        return f"{self.name}-{digest.hexdigest()[:16]}"


PULUMI = Target(
    name="pulumi",
    programs={"pulumi": "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"},
    ldflags=("-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v3.259.0",),
    # The language host starts Python programs by it; it must lie beside the language host,
    # and is of the engine's version.
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


def kubernetes(version: str) -> Target:
    """The programs of a Kubernetes release, such as `1.37.2`.

    :raises UserError: there is no wrapper module for that release.
    """
    major, minor, _ = version.split(".")
    about = "k8s.io/component-base/version"
    target = Target(
        name=f"kubernetes-{version}",
        programs={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kubeadm",
                "kubelet",
                "kubectl",
                "kube-proxy",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
            )
        },
        ldflags=(
            f"-X {about}.gitVersion=v{version}",
            f"-X {about}.gitMajor={major}",
            f"-X {about}.gitMinor={minor}",
            f"-X {about}.gitTreeState=clean",
        ),
    )
    if not target.wrapper.exists():
        known = sorted(path.name.removeprefix("kubernetes-") for path in WRAPPERS.glob("kubernetes-*"))
        raise UserError(
            f"Kubernetes {version} can't be built here: {WRAPPERS} has modules for {', '.join(known)}",
            "choose one of these, or copy a wrapper, change its versions, and let Go write its go.sum",
        )
    return target


ETCD_VERSION = "3.7.0"
ETCD = Target(
    name="etcd",
    programs={
        "etcd": "go.etcd.io/etcd/server/v3",
        "etcdctl": "go.etcd.io/etcd/etcdctl/v3",
        "etcdutl": "go.etcd.io/etcd/etcdutl/v3",
    },
)


def _coredns(version: str) -> Target:
    return Target(name=f"coredns-{version}", programs={"coredns": "github.com/coredns/coredns"})


# kubeadm 1.37 asks for 1.14.6. Its modules are not to be had everywhere; 1.13.1 reads the
# same Corefile, so it may take the place, and the image's labels say which it is.
COREDNS = (_coredns("1.14.6"), _coredns("1.13.1"))

CRICTL_VERSION = "1.36.0"
CRICTL = Target(
    name="cri-tools",
    programs={"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"},
    ldflags=(f"-X sigs.k8s.io/cri-tools/pkg/version.Version=v{CRICTL_VERSION}",),
)

CNI_PLUGINS_VERSION = "1.7.1"
CNI_PLUGINS = Target(
    name="cni-plugins",
    programs={
        path.rpartition("/")[2]: f"github.com/containernetworking/plugins/plugins/{path}"
        for path in (
            "ipam/dhcp",
            "ipam/host-local",
            "ipam/static",
            "main/bridge",
            "main/dummy",
            "main/host-device",
            "main/ipvlan",
            "main/loopback",
            "main/macvlan",
            "main/ptp",
            "main/tap",
            "main/vlan",
            "meta/bandwidth",
            "meta/firewall",
            "meta/portmap",
            "meta/sbr",
            "meta/tuning",
            "meta/vrf",
        )
    },
    ldflags=(
        "-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion="
        f"v{CNI_PLUGINS_VERSION}",
    ),
)

# flannel's own plugin can't be had as a module. This one is its ancestor, from before the
# two repositories were parted: it reads the same subnet file and the same settings.
CNI_PLUGIN_FLANNEL_VERSION = "0.9.1"
CNI_PLUGIN_FLANNEL = Target(
    name="cni-plugin-flannel",
    programs={"flannel": "github.com/containernetworking/plugins/plugins/meta/flannel"},
)

FLANNEL_VERSION = "0.28.9"
FLANNEL = Target(
    name="flannel",
    programs={"flanneld": "github.com/flannel-io/flannel"},
    ldflags=(f"-X github.com/flannel-io/flannel/pkg/version.Version=v{FLANNEL_VERSION}",),
    tags=("netgo", "osusergo"),  # Go's own resolver and user lookup: the C library's don't work statically
    static_c=True,
)

# The network of a lab under User Mode Linux: this project's own program around a library.
LAB_NETWORK = Target(name="lab-network", programs={"lab-network": "kubeadm-ipvs/build/lab-network"})

# Not for the lab: `make lint` checks the workflows of .github with it.
ACTIONLINT = Target(name="actionlint", programs={"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"})


def version_tuple(text: str) -> tuple[int, ...]:
    """`1.26.8` as (1, 26, 8); what follows the numbers (`rc1`) is ignored."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def build(target: Target, progress: Progress) -> Path:
    """The folder with the target's programs and files, built unless they are in the cache.

    :raises UserError: no usable Go, a module can't be had, or the build fails.
    """
    told = progress.scope(target.name)

    def make(partial: Path) -> dict[str, str]:
        go = find_go(target.go_version, told)
        _compile(go, target, partial, told)
        return {"go": go.version, "target": target.name}

    return cached("go", target.key, told, make, resume=True)


def build_first(targets: Sequence[Target], progress: Progress) -> tuple[Target, Path]:
    """Build the first of several versions of the same whose modules can be had.

    :raises UserError: none of them can be built; the message is the last one's.
    """
    for target in targets[:-1]:
        try:
            return target, build(target, progress)
        except ModulesMissing as missing:
            progress.say(f"{target.name} can't be built ({missing.what}): taking the next version")
    return targets[-1], build(targets[-1], progress)


class ModulesMissing(UserError):
    """A target's modules couldn't be fetched, so that nothing was compiled."""


@dataclass(frozen=True)
class Go:
    """A Go command, and what to put into its environment."""

    command: Path
    toolchain: str  # value of GOTOOLCHAIN
    version: str  # as it will compile, such as 1.26.8


def _environment(toolchain: str, *, static_c: bool = False) -> dict[str, str]:
    # The person's own flags and workspaces must not change what is built; proxy and caches stay theirs.
    return {
        **os.environ,
        "GOTOOLCHAIN": toolchain,
        "GOFLAGS": "",
        "GOWORK": "off",
        "GO111MODULE": "on",
        "CGO_ENABLED": "1" if static_c else "0",
    }


def _go_version(command: Path, toolchain: str) -> str | None:
    """What `go version` says under that toolchain; nothing if it doesn't run."""
    try:
        done = subprocess.run(
            [command, "version"],
            env=_environment(toolchain),
            cwd="/",  # outside any module, whose toolchain line would be followed
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
    """A Go that is new enough: one that is there, one that it fetches, or one from Debian's packages.

    :raises UserError: none of these can be had.
    """
    go = present_go(needed, progress)
    if go is None:
        package = _apt_package()
        _apt_install(package, progress)
        go = present_go(needed, progress)
    if go is None:
        wanted = ".".join(str(part) for part in needed)
        raise UserError(
            f"no Go of version {wanted} or newer is here, and none could be fetched through the Go proxy",
            f"install Go {wanted} or newer and put it on PATH",
        )
    return go


def present_go(needed: tuple[int, ...], progress: Progress) -> Go | None:
    """A Go that is here and new enough, or able to fetch one that is; nothing is installed."""
    able: list[Path] = []
    for command in _go_commands():
        version = _go_version(command, "local")
        if version and version_tuple(version) >= needed:
            return Go(command, "local", version)
        if version and version_tuple(version) >= _TOOLCHAINS_SINCE:
            able.append(command)
    name = "go" + ".".join(str(part) for part in (*needed, 0, 0)[:3])
    for command in able:
        with progress.step(f"fetching the Go toolchain {name}"):
            version = _go_version(command, name)
        if version:
            return Go(command, name, version)
    return None


def _apt_package() -> str:
    """The newest Go that apt knows here, backports included."""
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
        "Go isn't installed, and apt knows no golang package of version 1.21 or newer",
        "add Debian's backports to apt's sources, or install Go 1.26 or newer yourself",
    )


def _apt_install(package: str, progress: Progress) -> None:
    with progress.step(f"installing {package} by apt"):
        try:
            requirements.apt(progress, ["install", "--yes", "--no-install-recommends", package])
        except UserError as trouble:
            raise UserError(trouble.what, "install Go 1.26 or newer yourself") from None


def executable_name(package: str) -> str:
    """The name `go build` gives a package's program: its last element that isn't a major version."""
    elements = package.split("/")
    return elements[-2] if re.fullmatch(r"v\d+", elements[-1]) else elements[-1]


def _compile(go: Go, target: Target, out: Path, progress: Progress) -> None:
    environment = _environment(go.toolchain, static_c=target.static_c)
    common = ["-mod=readonly", f"-tags={','.join(target.tags)}"]
    packages = sorted(set(target.programs.values()))
    with progress.step("getting modules"):
        argv = [str(go.command), "list", *common, "-deps", *packages]
        try:
            listed = _go(argv, target.wrapper, environment)
        except UserError as trouble:
            raise ModulesMissing(trouble.what, trouble.next_move) from None
    total = len(listed.splitlines())

    for name, source in target.files.items():
        shown = _go([str(go.command), "mod", "download", "-json", source.module], target.wrapper, environment)
        taken = Path(json.loads(shown)["Dir"]) / source.path
        shutil.copyfile(taken, out / name)
        (out / name).chmod(source.mode)

    for leftover in out.glob(".link-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    missing = {name: package for name, package in target.programs.items() if not (out / name).exists()}
    if not missing:
        return
    ldflags = ["-s", "-w", *target.ldflags]
    if target.static_c:
        ldflags.append("-linkmode external -extldflags -static")
    with tempfile.TemporaryDirectory(prefix=".link-", dir=out) as scratch:
        argv = [str(go.command), "build", "-v", "-trimpath", "-buildvcs=false", *common]
        argv += ["-ldflags", " ".join(ldflags), "-o", f"{scratch}/", *sorted(set(missing.values()))]
        with progress.step(f"compiling {', '.join(missing)}", every=3600):
            _run_counting(argv, target.wrapper, environment, total, progress)
        for name, package in missing.items():
            (Path(scratch) / executable_name(package)).rename(out / name)


def _go(argv: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _build_trouble(argv, folder, done.stderr.splitlines())
    return done.stdout


def _build_trouble(argv: list[str], folder: Path, lines: list[str]) -> UserError:
    last = "\n".join(lines[-15:])
    return UserError(
        f"`go {argv[1]}` failed in {folder}:\n{last}",
        "if modules couldn't be fetched, look at `go env GOPROXY`; run it again: what is finished is kept",
    )


def _run_counting(
    argv: list[str], folder: Path, environment: dict[str, str], total: int, progress: Progress
) -> None:
    """Run `go build -v`, and say now and then how many packages are through.

    Packages that Go has in its cache are not printed, so the count may end far below the total.
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
        preexec_fn=_be_nice,
    )
    ended = threading.Event()

    def remind() -> None:
        while not ended.wait(30):
            progress.say(f"{compiled} packages compiled, of {total} at most")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
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
        reminder.join()
    if status != 0:
        raise _build_trouble(argv, folder, lines)


def _be_nice() -> None:
    os.nice(5)
