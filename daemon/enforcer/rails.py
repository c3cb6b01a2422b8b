"""The rails: limits on every action that no playbook and no request can lift, read from one root-owned file.

Addresses in it are literal; nothing is looked up. The analyser reads the same file for the networks and the
endpoints that it names, and must never write it.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from ..errors import ConfigError
from .protocol import principal

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

PREFIXES = {4: (32, 24), 6: (128, 64, 48)}
"""The prefix lengths that can be blocked, by family: one hash set in the kernel for each."""

TWO_PEOPLE = ("release", "unblock", "unblock_user", "lift", "kill", "block", "block_user")
"""The actions that can be made to need two different people."""

ROOT = ("account", "root")
"""Never blocked, whatever the file says."""

SSH = 22
CRITICALITIES = ("critical", "high", "normal")

IMPLICIT = tuple(
    (ip_network(network), why)
    for network, why in (
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.0.0/16", "link_local"),
        ("fe80::/10", "link_local"),
        ("0.0.0.0/8", "unspecified"),
        ("::/128", "unspecified"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("255.255.255.255/32", "broadcast"),
    )
)
"""Never blocked, whatever the file says: RFC 6890, RFC 4291."""


class Service(NamedTuple):
    """An address, a port and a protocol; no address means any of this machine's own."""

    address: Address | None
    port: int
    protocol: str  # "tcp" or "udp"

    def __str__(self) -> str:
        host = "*" if self.address is None else str(self.address)
        return f"{f'[{host}]' if ':' in host else host}:{self.port}/{self.protocol}"


class Endpoint(NamedTuple):
    """A model service: where clients arrive and where it really listens."""

    name: str
    criticality: str
    fronts: tuple[Service, ...]
    backs: tuple[Service, ...]
    kill_switch: bool
    kill_without_person: bool
    namespaces: tuple[str, ...] = ()  # paths (or patterns) of network namespaces in which it serves
    allowed: tuple[Network, ...] = ()  # who reaches it while it is restricted; none: it cannot be
    restrict_without_person: bool = False

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(dict.fromkeys((*self.fronts, *self.backs)))


class Limits(NamedTuple):
    most_blocks: int = 100_000
    most_new_per_minute: int = 600
    longest_ttl_s: int = 604_800
    smallest_prefix_ipv4: int = 24
    smallest_prefix_ipv6: int = 48
    most_users: int = 100_000
    most_waiting: int = 40


_LIMITS = {
    "most_blocks": (1, 1_000_000),
    "most_new_per_minute": (1, 1_000_000),
    "longest_ttl_s": (1, 31_536_000),
    "smallest_prefix_ipv4": (24, 32),
    "smallest_prefix_ipv6": (48, 128),
    "most_users": (1, 1_000_000),
    "most_waiting": (1, 45),
}


class Signer(NamedTuple):
    """A person who may command by signature."""

    name: str
    public_key: bytes  # Ed25519, RFC 8032: 32 bytes
    uid: int = -1  # the account of the same person here, so that nobody counts twice


class Command(NamedTuple):
    """A program that the analyser may have run, by its name alone: the arguments stand here and nowhere else."""

    name: str
    run: tuple[str, ...]
    undo: tuple[str, ...] = ()
    timeout_s: int = 10


class Rails(NamedTuple):
    """What `rails.toml` says. `text` is the file as read."""

    management: tuple[Network, ...] = ()
    never_block: tuple[Network, ...] = ()
    proxies: tuple[Network, ...] = ()
    sinks: tuple[Network, ...] = ()
    never_block_users: tuple[tuple[str, str], ...] = (ROOT,)  # (kind, name)
    operators: str = ""
    two_people: frozenset[str] = frozenset()
    signers: tuple[Signer, ...] = ()
    cut_helper: bool = False
    accounts_helper: bool = False
    limits: Limits = Limits()
    endpoints: tuple[Endpoint, ...] = ()
    commands: tuple[Command, ...] = ()
    path: str = ""
    text: str = ""

    def endpoint(self, name: str) -> Endpoint | None:
        return next((e for e in self.endpoints if e.name == name), None)

    def never(self, surroundings: tuple[tuple[Network, str], ...] = ()) -> tuple[tuple[Network, str], ...]:
        """Every network that is never blocked, with why. `surroundings`: this machine's own addresses, its
        gateways and name servers, as they are now (`host.surroundings`)."""
        named = [(n, "management") for n in self.management]
        named += [(n, "never_block") for n in self.never_block]
        named += [(n, "proxies") for n in self.proxies]
        named += [(n, "sinks") for n in self.sinks]
        return (*IMPLICIT, *named, *surroundings)


class Refusal(NamedTuple):
    """Why an action is refused: in words, and the name of the rail."""

    reason: str
    rail: str


def network_of(text: str) -> Network:
    """The network (or the single address) in `text`; IPv4-mapped IPv6 becomes IPv4.

    Raises ValueError, for a network with host bits set as well.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network):
        if "%" in text:
            raise ValueError("an address with a zone is no one's in particular")
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def address_text(network: Network) -> str:
    """`network` as it is shown and keyed: a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def refusal(
    network: Network, ttl_s: int, rails: Rails, never: tuple[tuple[Network, str], ...]
) -> Refusal | None:
    """Why blocking `network` for `ttl_s` seconds is refused; None where no rail forbids it.

    A network that contains one that is never blocked is allowed: the kernel lets the latter through first.
    """
    shown = address_text(network)
    if not rails.management:
        where = rails.path or "rails.toml"
        return Refusal(
            f"{where} names no management network, so a block could lock everyone out", "management"
        )
    smallest = (
        rails.limits.smallest_prefix_ipv4 if network.version == 4 else rails.limits.smallest_prefix_ipv6
    )
    if network.prefixlen < smallest:
        return Refusal(f"{shown} is wider than /{smallest}", f"smallest_prefix_ipv{network.version}")
    if network.prefixlen not in PREFIXES[network.version]:
        lengths = ", ".join(f"/{p}" for p in PREFIXES[network.version])
        return Refusal(f"{shown}: IPv{network.version} is blocked at {lengths}", "prefixes")
    for other, why in never:
        if other.version == network.version and network.subnet_of(other):  # type: ignore[arg-type]
            return Refusal(
                f"{shown} is in {address_text(other)} ({why.replace('_', ' ')}), which is never blocked", why
            )
    if ttl_s > rails.limits.longest_ttl_s:
        return Refusal(f"{ttl_s} s is longer than {rails.limits.longest_ttl_s} s", "longest_ttl_s")
    return None


def user_refusal(kind: str, name: str, ttl_s: int, rails: Rails) -> Refusal | None:
    """Why blocking that principal for `ttl_s` seconds is refused; None where no rail of the file forbids it."""
    for never, whom in rails.never_block_users:
        if whom == name and (never == kind or "any" in (never, kind)):
            return Refusal(f"{never}:{whom} is never blocked", "never_block_users")
    if ttl_s > rails.limits.longest_ttl_s:
        return Refusal(f"{ttl_s} s is longer than {rails.limits.longest_ttl_s} s", "longest_ttl_s")
    return None


def service_of(text: str) -> Service:
    """`*:443/tcp`, `192.0.2.10:8443/tcp` or `[2001:db8::1]:443/udp`. Raises ValueError."""
    place, slash, protocol = text.rpartition("/")
    host, colon, port = place.rpartition(":")
    if not (slash and colon and host) or protocol not in ("tcp", "udp"):
        raise ValueError("address:port/tcp or address:port/udp is wanted, with * for any own address")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"{port!r} is no port")
    if host == "*":
        return Service(None, int(port), protocol)
    bracketed = host.startswith("[") and host.endswith("]")
    address = ip_address(host[1:-1] if bracketed else host)
    if bracketed != (address.version == 6):
        raise ValueError("an IPv6 address stands in brackets, an IPv4 address does not")
    return Service(address, int(port), protocol)


def load(path: str | os.PathLike[str]) -> Rails:
    """The rails in the file `path`. Raises ConfigError, which names the file and the key."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            owner = os.fstat(file.fileno())
            data = file.read(1 << 20)
    except OSError as error:
        raise ConfigError(
            f"rails {name}: {error.strerror}", remedy="gatewatch config init writes one"
        ) from None
    if owner.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"rails {name}: owned by uid {owner.st_uid}", remedy=f"chown root {name}")
    if owner.st_mode & 0o022:
        raise ConfigError(f"rails {name}: others may write it", remedy=f"chmod go-w {name}")
    try:
        return parse(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"rails {name}: byte {error.start} is no UTF-8") from None


def parse(text: str, path: str = "rails.toml") -> Rails:
    """The rails in `text`. Raises ConfigError."""
    import tomllib

    try:
        table = _Table(tomllib.loads(text), path, "")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"rails {path}: {error}", remedy="see config/rails.toml for an example") from None
    limits = _Table(table.take("limits", dict, {}), path, "limits.")
    made = Limits(
        **{key: limits.number(key, *_LIMITS[key]) for key in Limits._fields if key in limits.values}
    )
    limits.nothing_left()
    rails = Rails(
        management=table.networks("management"),
        never_block=table.networks("never_block"),
        proxies=table.networks("proxies"),
        sinks=table.networks("sinks"),
        never_block_users=(ROOT, *table.principals("never_block_users")),
        operators=table.take("operators", str, ""),
        two_people=table.words("two_people", TWO_PEOPLE),
        signers=tuple(
            _signer(_Table(s, path, f"signer[{i}].")) for i, s in enumerate(table.tables("signer"))
        ),
        cut_helper=table.take("cut_helper", bool, False),
        accounts_helper=table.take("accounts_helper", bool, False),
        limits=made,
        endpoints=tuple(
            _endpoint(_Table(e, path, f"endpoint[{i}].")) for i, e in enumerate(table.tables("endpoint"))
        ),
        commands=tuple(
            _command(_Table(c, path, f"command[{i}].")) for i, c in enumerate(table.tables("command"))
        ),
        path=path,
        text=text,
    )
    table.nothing_left()
    for key, names in (
        ("endpoint", [e.name for e in rails.endpoints]),
        ("signer", [s.name for s in rails.signers]),
        ("command", [c.name for c in rails.commands]),
    ):
        for twice in {n for n in names if names.count(n) > 1}:
            raise ConfigError(
                f"rails {path}: key {key}: two are named {twice!r}", remedy="give each its own name"
            )
    return rails


def _signer(table: _Table) -> Signer:
    import base64

    name = table.name()
    try:
        key = base64.b64decode(table.take("public_key", str, ""), validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise table.wrong("public_key", "an Ed25519 public key: 32 bytes in base64")
    uid = table.number("uid", 1, 2**32 - 2) if "uid" in table.values else -1
    table.nothing_left()
    return Signer(name, key, uid)


def _endpoint(table: _Table) -> Endpoint:
    name = table.name()
    criticality = table.take("criticality", str, "normal")
    if criticality not in CRITICALITIES:
        raise table.wrong("criticality", f"one of {', '.join(CRITICALITIES)}")
    endpoint = Endpoint(
        name=name,
        criticality=criticality,
        fronts=table.services("fronts"),
        backs=table.services("backs"),
        kill_switch=table.take("kill_switch", bool, True),
        kill_without_person=table.take("kill_without_person", bool, False),
        namespaces=table.paths("namespaces"),
        allowed=table.networks("allowed"),
        restrict_without_person=table.take("restrict_without_person", bool, False),
    )
    table.nothing_left()
    if not endpoint.services:
        raise table.wrong("fronts", "at least one front or back")
    return endpoint


def _command(table: _Table) -> Command:
    name = table.name()
    command = Command(
        name=name,
        run=table.arguments("run"),
        undo=table.arguments("undo") if "undo" in table.values else (),
        timeout_s=table.number("timeout_s", 1, 300) if "timeout_s" in table.values else 10,
    )
    table.nothing_left()
    return command


class _Table:
    """A TOML table that is taken apart key by key; what nobody took is an unknown key."""

    def __init__(self, values: dict[str, Any], path: str, prefix: str) -> None:
        self.values = dict(values)
        self._path = path
        self._prefix = prefix

    def wrong(self, key: str, wanted: str) -> ConfigError:
        return ConfigError(
            f"rails {self._path}: key {self._prefix}{key}: {wanted}",
            remedy="see config/rails.toml for an example",
        )

    def take(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.pop(key, default)
        if type(value) is not kind:
            raise self.wrong(
                key, {str: "text in quotes", bool: "true or false"}.get(kind, f"a {kind.__name__}")
            )
        return value

    def number(self, key: str, least: int, most: int) -> int:
        value = self.values.pop(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def tables(self, key: str) -> list[dict[str, Any]]:
        value = self.take(key, list, [])
        if not all(type(item) is dict for item in value):
            raise self.wrong(key, f"tables, each under [[{key}]]")
        return list(value)

    def name(self) -> str:
        name: str = self.take("name", str, "")
        if not 0 < len(name) <= 64 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
            raise self.wrong("name", "1 to 64 letters, digits, '.', '_' or '-'")
        return name

    def words(self, key: str, known: tuple[str, ...]) -> frozenset[str]:
        value = self.take(key, list, [])
        if not all(type(item) is str and item in known for item in value):
            raise self.wrong(key, f"a list of {', '.join(known)}")
        return frozenset(value)

    def paths(self, key: str) -> tuple[str, ...]:
        value = self.take(key, list, [])
        if not all(type(item) is str and item.startswith("/") and item.isprintable() for item in value):
            raise self.wrong(key, "a list of absolute paths, such as /run/netns/models")
        return tuple(value)

    def arguments(self, key: str) -> tuple[str, ...]:
        """A program by its absolute path, and its arguments."""
        value = self.take(key, list, [])
        fine = all(type(item) is str and item.isprintable() and len(item) <= 1024 for item in value)
        if not (fine and 1 <= len(value) <= 32 and value[0].startswith("/")):
            raise self.wrong(
                key, "a list of 1 to 32 arguments, the first an absolute path, none with control characters"
            )
        return tuple(value)

    def networks(self, key: str) -> tuple[Network, ...]:
        return tuple(self._each(key, network_of))

    def principals(self, key: str) -> tuple[tuple[str, str], ...]:
        return tuple(self._each(key, principal))

    def services(self, key: str) -> tuple[Service, ...]:
        return tuple(self._each(key, service_of))

    def _each(self, key: str, of: Any) -> list[Any]:
        made = []
        for item in self.take(key, list, []):
            try:
                if type(item) is not str:
                    raise ValueError("text in quotes is wanted")
                made.append(of(item))
            except ValueError as error:
                raise self.wrong(key, f"{item!r}: {error}") from None
        return made

    def nothing_left(self) -> None:
        for key in self.values:
            raise self.wrong(key, "unknown key")
