"""The command line of the lab: `python -m lab`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from common import cli
from common.paths import DEFAULT_LAB
from common.progress import Progress
from lab import prune, requirements
from lab.artefacts import mirror
from lab.lab import Lab
from lab.options import FAMILIES, RELEASES, Family
from lab.status import LabStatus


def status_text(status: LabStatus) -> str:
    """A lab's status as text."""
    from common import tables  # Rich, which most commands don't need

    hosts = [
        (
            host.name, host.role, host.state, host.address, f"{host.ssh_host}:{host.ssh_port}",
            str(host.cpus), f"{host.memory} MiB", "-" if host.resident is None else f"{host.resident} MiB",
        )
        for host in status.hosts
    ]  # fmt: skip
    family = "" if status.family == "deb" else f", {status.family} family"
    rest = [
        *((served.name, f"{served.url}  {'up' if served.answers else 'DOWN'}") for served in status.services),
        ("API", status.api),
        ("NodePort", "  ".join(status.node_ports)),
        ("runs with", f"{status.accelerator} ({status.accelerator_reason})"),
        ("image", f"Debian {status.release}{family}, {status.image}"),
        ("mirror", status.packages_from),
        ("snapshots", ", ".join(status.snapshots) or "none"),
    ]
    headings = ("HOST", "ROLE", "STATE", "ADDRESS", "SSH", "CPUS", "MEMORY", "RESIDENT")
    lines = [tables.table(headings, hosts), "", *tables.lines(rest)]
    return "\n".join([*lines, f"lab '{status.name}' is {'up' if status.ready else 'not up'}"])


def mirror_text(made: mirror.Mirror) -> str:
    """A mirror's contents and folders as text."""
    from common import tables

    items = [
        (
            item.kind, item.what, item.version, f"{item.size / 1e6:.1f} MB",
            "" if item.seconds is None else f"{item.seconds:.0f}", item.source,
        )
        for item in made.items
    ]  # fmt: skip
    folders = [
        ("source:", made.source),
        ("packages:", str(made.root)),
        ("registry:", str(made.registry_data)),
        ("preload:", str(made.preload)),
    ]
    headings = ("", "WHAT", "VERSION", "SIZE", "SECONDS", "SOURCE")
    return "\n".join([tables.table(headings, items, right=(3, 4)), *tables.lines(folders)])


def _keep_name(context: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        context.obj = name


# Accepted before and after a command's name.
_name = click.option(
    "--name",
    callback=_keep_name,
    expose_value=False,
    metavar="NAME",
    help=f"The lab (default: {DEFAULT_LAB}).",
)
_host = click.argument("host")
_source = click.option(
    "--source",
    type=click.Choice(get_args(mirror.Source)),
    default="auto",
    help="Build packages and images here, or download them; auto downloads if possible (default: auto).",
)


@click.group(cls=cli.Group, context_settings=cli.SETTINGS)
@_name
def commands() -> None:
    """Local virtual machines for trying out the program."""


def _command(name: str, **settings: Any) -> Callable[[Callable[..., int | None]], click.Command]:
    """Add a command whose function gets the lab as its first argument."""

    def add(function: Callable[..., int | None]) -> click.Command:
        @click.pass_obj
        @functools.wraps(function)
        def run(lab: str | None, /, **options: Any) -> int | None:
            return function(Lab.load(lab or DEFAULT_LAB, Progress()), **options)

        return commands.command(name, **settings)(_name(run))

    return add


@_command("up")
@click.option(
    "--count",
    type=int,
    metavar="N",
    help="Number of hosts: one control plane, the rest workers (default: 3).",
)
@click.option(
    "--memory",
    type=int,
    metavar="MIB",
    help="Memory per host (default: 3072 for the control plane, 2048 for workers).",
)
@click.option(
    "--cpus", type=int, metavar="N", help="CPUs per host (default: 2 for the control plane, 1 for workers)."
)
@click.option("--release", type=click.Choice(RELEASES), help="Debian's code name (default: trixie).")
@click.option("--family", type=click.Choice(FAMILIES), help="Package family of the hosts (default: deb).")
@_source
def _up(lab: Lab, **options: Any) -> int:
    """Create the lab, or start what isn't running."""
    status = lab.up(**options)
    print(status_text(status))
    return 0 if status.ready else 1


@_command("down")
def _down(lab: Lab) -> None:
    """Stop the hosts and remove their disks."""
    lab.down()


@_command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def _status(lab: Lab, *, as_json: bool) -> int:
    """Show which hosts and servers are up."""
    status = lab.status()
    print(status.to_json().rstrip() if as_json else status_text(status))
    return 0 if status.ready else 1


# All words after the host are for ssh, even if they look like options.
@_command("ssh", context_settings={"allow_interspersed_args": False})
@_host
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]")
def _ssh(lab: Lab, host: str, words: tuple[str, ...]) -> None:
    """Open a shell on a host, or run one command."""
    rest = words[1:] if words[:1] == ("--",) else words
    command = lab.ssh_command(host, tty=not rest and sys.stdin.isatty())
    os.execv(command[0], [*command, *rest])


@_command("reboot")
@_host
def _reboot(lab: Lab, host: str) -> None:
    """Reboot a host and wait until it is ready."""
    lab.reboot(host)


@_command("power-off")
@_host
def _power_off(lab: Lab, host: str) -> None:
    """Cut a host's power; `up` starts it again."""
    lab.power_off(host)


@_command("logs")
@_host
@click.option("--console", is_flag=True, help="Print only the console.")
def _logs(lab: Lab, host: str, *, console: bool) -> None:
    """Print a host's console and journal."""
    print(lab.console(host), end="")
    if not console:
        print(lab.journal(host), end="")


@_command("collect-logs")
@click.argument("folder", type=click.Path(path_type=Path))
def _collect_logs(lab: Lab, folder: Path) -> None:
    """Write the logs and tables of all hosts to a folder."""
    lab.collect_logs(folder)


@_command("snapshot")
@click.argument("tag")
def _snapshot(lab: Lab, tag: str) -> None:
    """Save all hosts together."""
    lab.snapshot(tag)


@_command("restore")
@click.argument("tag")
def _restore(lab: Lab, tag: str) -> None:
    """Restore all hosts to a snapshot."""
    lab.restore(tag)


@commands.command("prune")
@click.option("--all", "everything", is_flag=True, help="Remove everything except what existing labs serve.")
def _prune(*, everything: bool) -> None:
    """Remove unused files from the cache."""
    prune.prune(Progress(), everything=everything)


@commands.command("requirements")
@click.option("--install", is_flag=True, help="Install missing programs with apt.")
@click.option(
    "--family", type=click.Choice(FAMILIES), default="deb", help="Package family of the hosts (default: deb)."
)
@click.option("--browser", is_flag=True, help="With --install: also a browser for the tests of HTML pages.")
def _requirements(*, install: bool, family: Family, browser: bool) -> None:
    """Check the programs that the lab needs."""
    if install:
        progress = Progress()
        extra = requirements.browser_package(progress) if browser else ()
        requirements.install(progress, extra, family)
    requirements.check(family)
    for requirement in requirements.wanted(family):
        print(f"{requirement.what} (package {requirement.package}) is installed")


@commands.command("mirror")
@_source
@click.option(
    "--kubernetes-version",
    default=mirror.KUBERNETES_VERSION,
    metavar="VERSION",
    help=f"The version of Kubernetes (default: {mirror.KUBERNETES_VERSION}).",
)
@click.option(
    "--debian-release",
    default=mirror.DEBIAN_RELEASE,
    metavar="NAME",
    help=f"Code name of the hosts' Debian release (default: {mirror.DEBIAN_RELEASE}).",
)
def _mirror(source: mirror.Source, kubernetes_version: str, debian_release: str) -> None:
    """Make a mirror of packages and images in the cache."""
    print(mirror_text(mirror.ensure_mirror(Progress(), source, kubernetes_version, debian_release)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return cli.run(commands, "python -m lab", arguments)


if __name__ == "__main__":
    sys.exit(main())
