"""Decides one request: from the headers that the gateway sent to pass or refuse, and why.

What the gateway says is believed; what clients wrote must not reach these headers, which is the gateway's duty
(docs/gateways). Of a header that comes several times every value counts, so that no second one hides the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from ..denied import DenyList
from ..errors import ConfigError
from .keys import key_id

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NO_KEY = "-"
PASSED = "-"
REASONS = (
    "kill-switch",
    "restricted",
    "blocked-client",
    "blocked-key",
    "blocked-subject",
    "blocked-certificate",
    "unknown",
)
"""Why a request is refused, in the order in which it is looked for."""

KEY, SUBJECT, CERTIFICATE, CLIENT, FORWARDED, AUTHORIZATION = range(6)
_MOST_HOPS = 32
_MOST_NAMES = 10_000  # distinct addresses whose text is remembered


class Headers(NamedTuple):
    """The names of the headers of a request, in lower case, and of an answer; none: not looked at, not sent."""

    key: tuple[str, ...] = ("authorization", "x-api-key", "api-key")
    subject: tuple[str, ...] = ("x-gatewatch-subject",)
    certificate: tuple[str, ...] = ("x-gatewatch-certificate",)
    client: tuple[str, ...] = ("x-gatewatch-client",)
    forwarded: tuple[str, ...] = ("x-forwarded-for",)
    key_id: str = "X-Gatewatch-Key-Id"
    reason: str = "X-Gatewatch-Reason"

    def table(self) -> dict[bytes, int]:
        """Which header says what: KEY, SUBJECT, CERTIFICATE, CLIENT, FORWARDED or AUTHORIZATION."""
        return {
            name.lower().encode("ascii"): AUTHORIZATION if name.lower() == "authorization" else what
            for what, names in enumerate(
                (self.key, self.subject, self.certificate, self.client, self.forwarded)
            )
            for name in names
        }


class Settings(NamedTuple):
    """What the configuration says."""

    open_by_default: bool = True
    open_endpoints: Mapping[str, bool] = {}
    """By endpoint: whether requests pass while the deny list is unknown."""
    proxies: tuple[Network, ...] = ()
    never: tuple[Network, ...] = ()
    """Who is never refused for an address: a wider block lets them through in the kernel, too."""
    own: tuple[Network, ...] = ()
    """This machine itself, which a restriction lets through."""
    headers: Headers = Headers()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Settings:
        """From plain values (JSON). Raises ConfigError naming what is wrong."""
        try:
            known = dict(document)
            words = known.pop("headers", {}).items()
            named: dict[str, Any] = {n: w if isinstance(w, str) else tuple(w) for n, w in words}
            headers = Headers()._replace(**named)
            made = cls(
                open_by_default=_open(known.pop("when_unknown", "open")),
                open_endpoints={
                    name: _open(options["when_unknown"])
                    for name, options in known.pop("endpoints", {}).items()
                },
                proxies=tuple(ip_network(text) for text in known.pop("proxies", ())),
                never=tuple(ip_network(text) for text in known.pop("never", ())),
                own=tuple(ip_network(text) for text in known.pop("own", ())),
                headers=headers,
            )
            headers.table()
            if known:
                raise ValueError(f"unknown key {next(iter(known))}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"settings of the authorisation endpoint: {error}") from None
        return made


class Answer(NamedTuple):
    """`reason` is empty where the request passes."""

    reason: str
    key_id: str
    unknown: bool = False


class Decider:
    """Answers by the deny list `denied`."""

    def __init__(self, denied: DenyList, secret: bytes, settings: Settings) -> None:
        self._denied = denied
        self._secret = secret
        self._settings = settings
        self._proxies = settings.proxies
        self._addresses: dict[str, Address | None] = {}

    def decide(self, endpoint: str, said: Iterable[tuple[int, bytes]]) -> Answer:
        """`said`: the values of headers with what each says, in their order."""
        keys: list[str] = []
        subjects: list[str] = []
        certificates: list[str] = []
        chain: list[str] = []
        client: list[str] = []
        for what, value in said:
            if what in (KEY, AUTHORIZATION):
                api_key = _api_key(value, what == AUTHORIZATION)
                if api_key:
                    keys.append(key_id(self._secret, api_key))
                continue
            text = value.decode("utf-8", "replace").strip()
            if what == FORWARDED:
                chain += text.rsplit(",", _MOST_HOPS) if text else ()
            elif not text or text == "-":
                continue
            elif what == CLIENT:
                client.append(text)
            elif what == SUBJECT:
                subjects.append(text)
            else:
                certificates.append(text)
        clients = self._clients(client, chain)
        first = keys[0] if keys else NO_KEY
        denied = self._denied
        reason = ""
        if denied.killed(endpoint):
            reason = "kill-switch"
        elif (allowed := denied.restricted(endpoint)) is not None and not _within(
            clients, (*allowed, *self._settings.own)
        ):
            reason = "restricted"
        elif any(denied.denied_address(a) and not _within([a], self._settings.never) for a in clients):
            reason = "blocked-client"
        elif any(denied.denied_user("key", name) for name in keys):
            reason = "blocked-key"
        elif any(denied.denied_user("subject", name) for name in subjects):
            reason = "blocked-subject"
        elif any(denied.denied_user("certificate", name) for name in certificates):
            reason = "blocked-certificate"
        elif not denied.known:
            settings = self._settings
            if not settings.open_endpoints.get(endpoint, settings.open_by_default):
                reason = "unknown"
            return Answer(reason, first, True)
        return Answer(reason, first)

    def _clients(self, named: list[str], chain: list[str]) -> list[Address]:
        """Whom the request is from: each address that the gateway names, or where that is a trusted proxy, the first
        from the right of the forwarding chain that is none. Empty where nobody can tell."""
        if not named:
            named = chain[-1:]
            chain = chain[:-1]
        found = []
        for text in named:
            address = self._address(text)
            hops = iter(reversed(chain[-_MOST_HOPS:]))
            while address is not None and self._trusted(address):
                hop = next(hops, None)
                if hop is None:
                    break  # the proxy speaks for itself
                address = self._address(hop)
            if address is not None:
                found.append(address)
        return found

    def _trusted(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)

    def _address(self, text: str) -> Address | None:
        """The address of one hop, which may carry a port and brackets; None where it is none."""
        try:
            return self._addresses[text]
        except KeyError:
            pass
        if len(self._addresses) >= _MOST_NAMES:
            self._addresses.clear()
        found = self._addresses[text[:64]] = _parse(text[:64])
        return found


def _parse(text: str) -> Address | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _within(clients: list[Address], allowed: tuple[Network, ...]) -> bool:
    """Whether every client that is known, and there is one, is in one of the networks."""
    return bool(clients) and all(any(address in network for network in allowed) for address in clients)


def _api_key(value: bytes, has_scheme: bool) -> bytes:
    """The key in a header: all of it without the word `Bearer` (RFC 6750, 2.1). `has_scheme`: other schemes, such as
    `Basic`, hold no key."""
    value = value.strip()
    if not value:
        return b""
    scheme, *rest = value.split(None, 1)  # a server may take a tab for the space
    if scheme.lower() == b"bearer":
        return rest[0] if rest else b""
    return b"" if has_scheme and (rest or scheme.lower() == b"basic") else value


def _open(word: object) -> bool:
    if word not in ("open", "closed"):
        raise ValueError(f"when_unknown is open or closed, not {word!r}")
    return word == "open"
