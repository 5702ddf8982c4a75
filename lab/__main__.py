"""`python -m lab`: the lab on the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.paths import DEFAULT_LAB
from common.progress import Progress
from lab import api, requirements
from lab.api import Lab, LabStatus
from lab.options import FAMILIES, RELEASES


def table(status: LabStatus) -> str:
    """A lab's status for people."""
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
        f"{service.name:<11} {service.url}  {'answers' if service.answers else 'DOES NOT ANSWER'}"
        for service in status.services
    ]
    lines.append(f"{'API':<11} {status.api}")
    lines.append(f"{'NodePort':<11} {'  '.join(status.node_ports)}")
    lines.append(f"{'runs by':<11} {status.accelerator} ({status.accelerator_reason})")
    kind = "" if status.family == "deb" else f", {status.family} family"
    lines.append(f"{'image':<11} Debian {status.release}{kind}, {status.image}")
    lines.append(f"{'mirror':<11} {status.packages_from}")
    lines.append(f"{'snapshots':<11} {', '.join(status.snapshots) or 'none'}")
    lines.append(f"lab '{status.name}' is {'up' if status.ready else 'not up'}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab", description="Local virtual machines to try things on."
    )
    which = "which lab (default: default)"
    parser.add_argument("--name", default=DEFAULT_LAB, help=which)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        # Here as well; without a default, which would undo a name given before the command.
        added.add_argument("--name", default=argparse.SUPPRESS, help=which)
        return added

    up = command("up", "Make the lab, or what is missing of it.")
    up.add_argument("--count", type=int, help="hosts: one control plane, the rest workers (default: 3)")
    up.add_argument("--memory", type=int, metavar="MIB", help="for each host (default: 3072 and 2048)")
    up.add_argument("--cpus", type=int, help="for each host (default: 2 and 1)")
    up.add_argument("--release", choices=RELEASES, help="Debian's code name (default: trixie)")
    up.add_argument("--family", choices=FAMILIES, help="what the hosts' packages are (default: deb)")
    up.add_argument(
        "--source",
        choices=("auto", "build", "upstream"),
        default="auto",
        help="where Kubernetes' packages and images come from (default: auto)",
    )
    command("down", "End the hosts and remove their disks.")
    status = command("status", "What runs and answers.")
    status.add_argument("--json", action="store_true", help="for programs")
    ssh = command("ssh", "A shell on a host, or one command.")
    ssh.add_argument("host")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="as ssh itself takes it")
    command("reboot", "Reboot a host and wait until it is ready.").add_argument("host")
    command("power-off", "Take a host's power away; `up` starts it again.").add_argument("host")
    logs = command("logs", "A host's console and journal.")
    logs.add_argument("host")
    logs.add_argument("--console", action="store_true", help="the console alone")
    collect = command("collect-logs", "Every host's logs and tables, in a folder.")
    collect.add_argument("folder")
    for name, text in (("snapshot", "Save all hosts together."), ("restore", "Bring all hosts back.")):
        command(name, text).add_argument("tag")
    prune = command("prune", "Remove from the cache what nothing uses.")
    prune.add_argument("--all", action="store_true", help="the whole cache")
    needs = command("requirements", "The programs that the lab needs.")
    needs.add_argument("--install", action="store_true", help="install what is missing, with apt")
    needs.add_argument("--family", choices=FAMILIES, default="deb", help="of the labs (default: deb)")
    needs.add_argument(
        "--browser", action="store_true", help="with --install, also one for the tests of pages"
    )
    return parser


def run(arguments: argparse.Namespace, progress: Progress) -> int:
    """Do what the command line asks; returns the exit status.

    :raises UserError: it can't be done.
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
            api.prune(progress, everything=arguments.all)
        case "requirements":
            if arguments.install:
                extra = requirements.browser_package(progress) if arguments.browser else ()
                requirements.install(progress, extra, arguments.family)
            requirements.check(arguments.family)
            for requirement in requirements.wanted(arguments.family):
                print(f"{requirement.what} (package {requirement.package}) is there")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry: expected failures become a message and status 1."""
    arguments = _parser().parse_args(argv)
    progress = Progress()
    try:
        return run(arguments, progress)
    except UserError as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is left to say, to no one.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
