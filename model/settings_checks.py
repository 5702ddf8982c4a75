"""Checks that involve several settings, or the files that settings name."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pydantic.alias_generators import to_camel

from model import knownhosts
from model.field_types import NODE_PREFIX, is_url, seconds
from model.settings import ANYWHERE, Host, Settings
from model.settings_problems import Finding, Location


class UnreadableFileError(Exception):
    """A file that can't be read as text. The message continues a sentence after "which"."""


def read_file(file: Path, decode: Callable[[bytes], str] | None = None) -> str:
    """The text of a file.

    Args:
        file: The file.
        decode: Turns its content into text. By default it must be UTF-8.

    Raises:
        UnreadableFileError: It doesn't exist, can't be read, or isn't text.
    """
    try:
        return decode(file.read_bytes()) if decode else file.read_text(encoding="utf-8")
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
        self._firewall_sources()
        self._node_port_addresses()
        self._private_key()
        self._signing_key()
        self._mirror_cas()
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
        room = 2 ** (NODE_PREFIX - pods.prefixlen) if pods.prefixlen <= NODE_PREFIX else 0
        if pods_valid and self._valid("hosts") and len(self.settings.hosts) > room:
            self._add(
                ("network", "podSubnet"),
                f"is {pods}, which has room for {room} nodes (a /{NODE_PREFIX} each), but there are "
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

    def _firewall_sources(self) -> None:
        settings, sources = self.settings, self.settings.firewall_sources
        section = "firewallSources"
        if not self._valid("firewall"):
            return
        if settings.firewall != "open":
            for name in map(to_camel, sorted(sources.model_fields_set)):
                if self._valid(section, name):
                    self._add(
                        (section, name),
                        f"has no effect with `firewall: {settings.firewall}`; remove it, or write `firewall: "
                        "open`",
                    )
            return
        mode = settings.proxy.mode
        valid = self._valid(section, "nodePorts") and self._valid("proxy", "mode")
        if valid and ANYWHERE not in sources.node_ports and mode != "ipvs":
            self._add(
                (section, "nodePorts"),
                f"is set, but with proxy.mode {mode} traffic to NodePorts is forwarded to the pods past the "
                "hosts' rules for incoming traffic, so it can't be restricted; remove it, or write `mode: "
                "ipvs`",
            )
        flannel = settings.network.flannel
        regex, hosts = flannel.interface_regex, (section, "hosts")
        if regex is None or flannel.backend != "vxlan" or sources.hosts or not self._valid(*hosts):
            return
        # flannel compares it with addresses first.
        if all(re.search(regex, host.address) for host in settings.hosts):
            return
        if all(self._valid("network", "flannel", name) for name in ("interfaceRegex", "backend")):
            self._add(
                hosts,
                f"is missing, and network.flannel.interfaceRegex {regex} may select an interface whose "
                "address isn't the host's `address`; write the networks of the addresses between which "
                "flannel sends VXLAN, because the hosts' firewalls let it in from nowhere else",
            )

    def _node_port_addresses(self) -> None:
        proxy, location = self.settings.proxy, ("proxy", "nodePortAddresses")
        if not proxy.node_port_addresses or not self._valid(*location):
            return
        if proxy.node_port_addresses == ("primary",):
            return
        networks = [IPv4Network(text) for text in proxy.node_port_addresses]
        services = IPv4Network(self.settings.network.service_subnet)
        for network in networks:
            # kube-proxy takes 0.0.0.0/0 for every address except those of services.
            if network.prefixlen and network.overlaps(services) and self._valid("network", "serviceSubnet"):
                self._add(
                    location,
                    f"has {network}, which overlaps network.serviceSubnet {services}, so that every service "
                    "address would serve every NodePort; write smaller networks, or `[primary]`",
                )
        outside = [
            f"hosts[{index}].address {host.address}"
            for index, host in enumerate(self.settings.hosts)
            if self._valid("hosts", index, "address")
            and not any(IPv4Address(host.address) in network for network in networks)
        ]
        if outside:
            more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
            self._add(
                location,
                f"doesn't contain {outside[0]}{more}, where nginx's NodePort is verified; add the network of "
                "the hosts' addresses, or write `[primary]`",
            )

    def _file(
        self, location: Location, file: str | None, decode: Callable[[bytes], str] | None = None
    ) -> str | None:
        """The text of a file that a setting names. None if there is none; an unreadable file is reported."""
        if file is None or is_url(file) or not self._valid(*location):
            return None
        try:
            return read_file(Path(file), decode)
        except UnreadableFileError as error:
            reason = error
        self._add(location, f"is {file}, which {reason}{missing_file_hint(file)}")
        return None

    def _signing_key(self) -> None:
        packages = self.settings.packages
        file = packages.key
        if (
            file is None
            and packages.manage
            and packages.repository.lower().startswith("http://")
            and self._valid("packages", "key")
            and self._valid("packages", "manage")
        ):
            self._add(
                ("packages", "key"),
                f"is missing, and packages.repository is {packages.repository}: the key would come over the "
                "same connection as the packages, on which anyone can replace both; write the path of a file "
                "with the key or an https:// URL, or use an https:// repository",
            )
        text = self._file(("packages", "key"), file)
        if text is not None and "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
            self._add(("packages", "key"), f"is {file}, which isn't an armored key; use gpg --export --armor")

    def _mirror_cas(self) -> None:
        for registry, mirrors in self.settings.runtime.mirrors.items():
            for index, mirror in enumerate(mirrors):
                location = ("runtime", "mirrors", registry, index, "ca")
                text = self._file(location, mirror.ca)
                if text is None:
                    continue
                if "PRIVATE KEY-----" in text:
                    self._add(location, f"is {mirror.ca}, which has a private key; write only certificates")
                elif "-----BEGIN CERTIFICATE-----" not in text:
                    self._add(location, f"is {mirror.ca}, which isn't a CA certificate in PEM form")

    def _taints(self) -> None:
        if self.settings.hosts and not self.settings.nginx_hosts:
            self._add(
                ("hosts",),
                "have taints that keep nginx's pods off every host; leave at least one host that can run "
                "pods without a NoSchedule or NoExecute taint",
            )

    def _private_key(self) -> None:
        file = self.settings.ssh.private_key_file
        text = self._file(("ssh", "privateKeyFile"), file)
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
        known = self._file(("ssh", "knownHostsFile"), file, knownhosts.decode)
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
            if host.ssh.host_key is not None:
                if file is not None and known is not None and checkable:
                    self._revoked(location, host, known, file)
            elif file is not None and known is not None:
                try:
                    key = knownhosts.find(known, *self.settings.ssh_endpoint(host), file)
                    host = host.model_copy(update={"ssh": host.ssh.model_copy(update={"host_key": key})})
                except knownhosts.NoKeyError as error:
                    if checkable:
                        self._add((*location, "hostKey"), f"is missing, and {error}")
            elif checkable and not unreadable:
                address, port = self.settings.ssh_endpoint(host)
                self._add(
                    (*location, "hostKey"),
                    f"is missing, and ssh.knownHostsFile, which could have the key for {address} port "
                    f"{port}, isn't set; {knownhosts.ADD_KEY}",
                )
            if checkable and not unreadable:
                host = self._jump_host_key(index, host, known)
            hosts.append(host)
        return self.settings.model_copy(update={"hosts": tuple(hosts)})

    def _jump_host_key(self, index: int, host: Host, known: str | None) -> Host:
        """The host with its jump host's key filled in."""
        jump = self.settings.jump_host(host)
        file = self.settings.ssh.known_hosts_file
        if jump is None or not self._valid("ssh", "proxyJump") or not self._valid("ssh", "proxyJumpHostKey"):
            return host
        shared = host.ssh.proxy_jump is None and host.ssh.proxy_jump_host_key is None
        location: Location = ("ssh",) if shared else ("hosts", index, "ssh")
        reason = ""
        key = jump.host_key
        if key and file is not None and known is not None:
            line = knownhosts.revoked_in(known, jump.address, jump.port, key)
            if line is not None:
                reason = f"is a key that {file}:{line} revokes; write the jump host's current one"
        elif not key and file is not None and known is not None:
            try:
                key = knownhosts.find(known, jump.address, jump.port, file)
            except knownhosts.NoKeyError as error:
                reason = f"is missing, and {error}"
        elif not key:
            reason = (
                f"is missing, and ssh.knownHostsFile, which could have the key for {jump.address} port "
                f"{jump.port}, isn't set; {knownhosts.ADD_KEY}"
            )
        if not reason:
            return host.model_copy(update={"ssh": host.ssh.model_copy(update={"proxy_jump_host_key": key})})
        place = (*location, "proxyJumpHostKey")
        # A shared jump host is one problem, not one for each host.
        if place not in (location for location, _ in self.findings):
            self._add(place, reason)
        return host

    def _revoked(self, location: Location, host: Host, known: str, file: str) -> None:
        line = knownhosts.revoked_in(known, *self.settings.ssh_endpoint(host), self.settings.host_key(host))
        if line is not None:
            self._add(
                (*location, "hostKey"),
                f"is a key that {file}:{line} revokes; create a new key on the host and write its public "
                "part",
            )


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
