"""Checks that involve several settings, or the files that settings name."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from model import knownhosts
from model.field_types import is_url, seconds
from model.settings import Host, Settings
from model.settings_problems import Finding, Location


class UnreadableFileError(Exception):
    """A file that can't be read as text. The message continues a sentence after "which"."""


def read_file(file: Path) -> str:
    """The text of a file.

    Raises:
        UnreadableFileError: It doesn't exist, can't be read, or isn't text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnreadableFileError("doesn't exist") from None
    except IsADirectoryError:
        raise UnreadableFileError("is a directory") from None
    except OSError as error:
        raise UnreadableFileError(f"can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UnreadableFileError("isn't a text file") from None


def missing_file_hint(file: str) -> str:
    """The end of a message about an unreadable file: what to do about it."""
    if "/kubeadm-ipvs/labs/" in file:
        return "; `python -m lab up` creates it"
    return "; write the path of a file"


class Checks:
    """Checks settings that are valid one by one, and adds each problem to `findings`.

    Settings in `broken` are placeholders for invalid values and are never reported.
    """

    def __init__(self, settings: Settings, broken: set[Location], findings: list[Finding]) -> None:
        self.settings = settings
        self.broken = broken
        self.findings = findings

    def run(self) -> Settings:
        """Run all checks and return the settings with host keys filled in from the known_hosts file.

        The result is usable only if no problem was found.
        """
        self._roles()
        self._distinct("name", lambda host: host.name)
        self._distinct("address", lambda host: host.address)
        self._ssh_endpoints()
        self._networks()
        self._sync_periods()
        self._private_key()
        self._signing_key()
        self._taints()
        return self._host_keys()

    def _valid(self, *location: str | int) -> bool:
        return all(location[:end] not in self.broken for end in range(1, len(location) + 1))

    def _add(self, location: Location, text: str) -> None:
        self.findings.append((location, text))

    def _roles(self) -> None:
        hosts = self.settings.hosts
        if not self._valid("hosts"):
            return
        if not hosts:
            self._add(("hosts",), "is empty; list at least the control plane")
            return
        planes = [index for index, host in enumerate(hosts) if host.role == "control-plane"]
        for index in planes[1:]:
            self._add(
                ("hosts", index, "role"),
                f"makes this a second control plane besides hosts[{planes[0]}], but only one is supported; "
                "write `role: worker`",
            )
        if not planes and all(self._valid("hosts", index, "role") for index in range(len(hosts))):
            self._add(("hosts",), "has no control plane; give one host `role: control-plane`")

    def _distinct(self, name: str, value: Callable[[Host], str]) -> None:
        seen: dict[str, int] = {}
        for index, host in enumerate(self.settings.hosts):
            if not self._valid("hosts", index, name):
                continue
            first = seen.setdefault(value(host), index)
            if first != index:
                self._add(
                    ("hosts", index, name),
                    f"is {value(host)}, the same as hosts[{first}].{name}; each host needs its own",
                )

    def _ssh_endpoints(self) -> None:
        seen: dict[tuple[str, int], int] = {}
        for index, host in enumerate(self.settings.hosts):
            # A host without `ssh.host` is reached at its address, which _distinct compares.
            if (
                host.ssh.host is None
                or not self._valid("hosts", index, "ssh")
                or not self._valid("ssh", "port")
            ):
                continue
            address, port = self.settings.ssh_endpoint(host)
            first = seen.setdefault((address, port), index)
            if first != index:
                self._add(
                    ("hosts", index, "ssh"),
                    f"is {address}:{port}, the same as hosts[{first}].ssh; write another host or port",
                )

    def _networks(self) -> None:
        network = self.settings.network
        pods, services = IPv4Network(network.pod_subnet), IPv4Network(network.service_subnet)
        pods_valid = self._valid("network", "podSubnet")
        services_valid = self._valid("network", "serviceSubnet")
        if pods_valid and services_valid and pods.overlaps(services):
            self._add(
                ("network", "podSubnet"),
                f"is {pods}, which overlaps network.serviceSubnet {services}; write another network",
            )
        for index, host in enumerate(self.settings.hosts):
            if not self._valid("hosts", index, "address"):
                continue
            for subnet, name, valid in (
                (pods, "podSubnet", pods_valid),
                (services, "serviceSubnet", services_valid),
            ):
                if valid and IPv4Address(host.address) in subnet:
                    self._add(
                        ("network", name),
                        f"is {subnet}, which contains hosts[{index}].address {host.address}; "
                        "write a network that the hosts don't use",
                    )
        room = 2 ** (24 - pods.prefixlen) if pods.prefixlen <= 24 else 0
        if pods_valid and self._valid("hosts") and len(self.settings.hosts) > room:
            self._add(
                ("network", "podSubnet"),
                f"is {pods}, which has room for {room} nodes (a /24 each), but there are "
                f"{len(self.settings.hosts)} hosts; write a larger network",
            )

    def _sync_periods(self) -> None:
        proxy = self.settings.proxy
        if not self._valid("proxy", "syncPeriod") or not self._valid("proxy", "minSyncPeriod"):
            return
        if seconds(proxy.min_sync_period) > seconds(proxy.sync_period):
            self._add(
                ("proxy", "minSyncPeriod"),
                f"is {proxy.min_sync_period}, longer than proxy.syncPeriod {proxy.sync_period}, and "
                "kube-proxy wouldn't start; write at most that duration",
            )

    def _file(self, section: str, name: str, file: str | None) -> str | None:
        """The text of a file that a setting names. None if there is none; an unreadable file is reported."""
        if file is None or is_url(file) or not self._valid(section, name):
            return None
        try:
            return read_file(Path(file))
        except UnreadableFileError as error:
            reason = error
        self._add((section, name), f"is {file}, which {reason}{missing_file_hint(file)}")
        return None

    def _signing_key(self) -> None:
        file = self.settings.packages.key
        text = self._file("packages", "key", file)
        if text is not None and "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
            self._add(("packages", "key"), f"is {file}, which isn't an armored key; use gpg --export --armor")

    def _taints(self) -> None:
        if self.settings.hosts and not self.settings.nginx_hosts:
            self._add(
                ("hosts",),
                "have taints that keep nginx's pods off every host; leave at least one host that can run "
                "pods without a NoSchedule or NoExecute taint",
            )

    def _private_key(self) -> None:
        file = self.settings.ssh.private_key_file
        text = self._file("ssh", "privateKeyFile", file)
        if text is None:
            return
        if not re.search(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
            problem = "isn't a private key; write the path of the key itself, not of its .pub file"
        elif _has_passphrase(text):
            problem = "has a passphrase; add the key to an SSH agent (ssh-add) and remove ssh.privateKeyFile"
        else:
            return
        self._add(("ssh", "privateKeyFile"), f"is {file}, which {problem}")

    def _host_keys(self) -> Settings:
        file = self.settings.ssh.known_hosts_file
        known = self._file("ssh", "knownHostsFile", file)
        # An unreadable file is one problem, not one for each host.
        unreadable = (file is not None and known is None) or not self._valid("ssh", "knownHostsFile")
        hosts = []
        for index, host in enumerate(self.settings.hosts):
            location: Location = ("hosts", index, "ssh")
            checkable = (
                self._valid("hosts", index, "address")
                and self._valid(*location)
                and self._valid("ssh", "port")
            )
            if host.ssh.host_key is None:
                address, port = self.settings.ssh_endpoint(host)
                key = knownhosts.find(known, address, port) if known is not None else None
                if key is not None:
                    host = host.model_copy(update={"ssh": host.ssh.model_copy(update={"host_key": key})})
                elif checkable and not unreadable:
                    reason = (
                        f"{file} has no ed25519 or ECDSA key for {address} port {port}"
                        if file
                        else f"ssh.knownHostsFile, which could have the key for {address} port {port}, isn't "
                        "set"
                    )
                    self._add(
                        (*location, "hostKey"),
                        f"is missing, and {reason}; write the host's public key (its "
                        "/etc/ssh/ssh_host_ed25519_key.pub), or add it to a known_hosts file",
                    )
            hosts.append(host)
        return self.settings.model_copy(update={"hosts": tuple(hosts)})


def _has_passphrase(key: str) -> bool:
    """Whether a private key is encrypted. Keys that can't be parsed are left to the SSH client."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        # The policy pack's environment doesn't have it. The program itself checks the key.
        return False
    data = key.encode()
    for parse in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
        try:
            parse(data, None)
        except TypeError:
            return True  # both raise it only if a password is required
        except (ValueError, UnsupportedAlgorithm):
            continue
    return False
