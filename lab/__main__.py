"""The command line of the lab: `python -m lab`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.paths import DEFAULT_LAB
from common.progress import Progress
from lab import requirements
from lab.lab import Lab
from lab.options import FAMILIES, RELEASES
from lab.prune import prune
from lab.status import LabStatus


def table(status: LabStatus) -> str:
    """A lab's status as a table."""
    rows = [("HOST", "ROLE", "STATE", "ADDRESS", "SSH", "CPUS", "MEMORY", "RESIDENT")]
    for host in status.hosts:
        resident = "-" if host.resident is None else f"{host.resident} MiB"
        rows.append(
            (
                host.name, host.role, host.state, host.address, f"{host.ssh_host}:{host.ssh_port}",
                str(host.cpus), f"{host.memory} MiB", resident,
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.append("")
    lines += [
        f"{service.name:<11} {service.url}  {'up' if service.answers else 'DOWN'}"
        for service in status.services
    ]
    lines.append(f"{'API':<11} {status.api}")
    lines.append(f"{'NodePort':<11} {'  '.join(status.node_ports)}")
    lines.append(f"{'runs with':<11} {status.accelerator} ({status.accelerator_reason})")
    kind = "" if status.family == "deb" else f", {status.family} family"
    lines.append(f"{'image':<11} Debian {status.release}{kind}, {status.image}")
    lines.append(f"{'mirror':<11} {status.packages_from}")
    lines.append(f"{'snapshots':<11} {', '.join(status.snapshots) or 'none'}")
    lines.append(f"lab '{status.name}' is {'up' if status.ready else 'not up'}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description="Local virtual machines for trying out the program."
    )
    which = "which lab (default: default)"
    parser.add_argument("--name", default=DEFAULT_LAB, help=which)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        # Accepted after the command too. A default here would override a name given before the command.
        added.add_argument("--name", default=argparse.SUPPRESS, help=which)
        return added

    up = command("up", "Create the lab, or start what isn't running.")
    up.add_argument(
        "--count", type=int, help="number of hosts: one control plane, the rest workers (default: 3)"
    )
    up.add_argument(
        "--memory",
        type=int,
        metavar="MIB",
        help="memory per host (default: 3072 for the control plane, 2048 for workers)",
    )
    up.add_argument(
        "--cpus", type=int, help="CPUs per host (default: 2 for the control plane, 1 for workers)"
    )
    up.add_argument("--release", choices=RELEASES, help="Debian's code name (default: trixie)")
    up.add_argument("--family", choices=FAMILIES, help="package family of the hosts (default: deb)")
    up.add_argument(
        "--source",
        choices=("auto", "build", "upstream"),
        default="auto",
        help="build Kubernetes' packages and images here, or download them from upstream; "
        "auto downloads if possible (default: auto)",
    )
    command("down", "Stop the hosts and remove their disks.")
    status = command("status", "Show which hosts and servers are up.")
    status.add_argument("--json", action="store_true", help="print JSON")
    ssh = command("ssh", "Open a shell on a host, or run one command.")
    ssh.add_argument("host")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="passed to ssh")
    command("reboot", "Reboot a host and wait until it is ready.").add_argument("host")
    command("power-off", "Cut a host's power; `up` starts it again.").add_argument("host")
    logs = command("logs", "Print a host's console and journal.")
    logs.add_argument("host")
    logs.add_argument("--console", action="store_true", help="print only the console")
    collect = command("collect-logs", "Write the logs and tables of all hosts to a folder.")
    collect.add_argument("folder")
    for name, text in (
        ("snapshot", "Save all hosts together."),
        ("restore", "Restore all hosts to a snapshot."),
    ):
        command(name, text).add_argument("tag")
    pruning = command("prune", "Remove unused files from the cache.")
    pruning.add_argument("--all", action="store_true", help="everything except what existing labs serve")
    needs = command("requirements", "Check the programs that the lab needs.")
    needs.add_argument("--install", action="store_true", help="install missing ones with apt")
    needs.add_argument(
        "--family", choices=FAMILIES, default="deb", help="package family of the hosts (default: deb)"
    )
    needs.add_argument(
        "--browser", action="store_true", help="with --install: also a browser for the tests of HTML pages"
    )
    return parser


def run(arguments: argparse.Namespace, progress: Progress) -> int:
    """Run the command and return the exit status.

    Raises:
        UserError: The command fails.
    """
    lab = Lab.load(arguments.name, progress)
    match arguments.command:
        case "up":
            status = lab.up(
                count=arguments.count,
                memory=arguments.memory,
                cpus=arguments.cpus,
                release=arguments.release,
                family=arguments.family,
                source=arguments.source,
            )
            print(table(status))
            return 0 if status.ready else 1
        case "down":
            lab.down()
        case "status":
            status = lab.status()
            print(status.to_json() if arguments.json else table(status), end="" if arguments.json else "\n")
            return 0 if status.ready else 1
        case "ssh":
            words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
            command = lab.ssh_command(arguments.host, tty=not words and sys.stdin.isatty())
            os.execv(command[0], [*command, *words])
        case "reboot":
            lab.reboot(arguments.host)
        case "power-off":
            lab.power_off(arguments.host)
        case "logs":
            print(lab.console(arguments.host), end="")
            if not arguments.console:
                print(lab.journal(arguments.host), end="")
        case "collect-logs":
            lab.collect_logs(Path(arguments.folder))
        case "snapshot":
            lab.snapshot(arguments.tag)
        case "restore":
            lab.restore(arguments.tag)
        case "prune":
            prune(progress, everything=arguments.all)
        case "requirements":
            if arguments.install:
                extra = requirements.browser_package(progress) if arguments.browser else ()
                requirements.install(progress, extra, arguments.family)
            requirements.check(arguments.family)
            for requirement in requirements.wanted(arguments.family):
                print(f"{requirement.what} (package {requirement.package}) is installed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; expected failures become a message and exit status 1."""
    arguments = _parser().parse_args(argv)
    progress = Progress()
    try:
        return run(arguments, progress)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has exited (`| head`); keep the interpreter from flushing to the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
