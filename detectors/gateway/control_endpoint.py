"""Control endpoints: requests that no client has a reason to send, and what the model server answered."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...daemon.events import AUTH_TEXTS, I32, I64, AuthBatch, Bool, Provenance, address_text
from ..addressing import NetworkKeys, join_keys
from ..campaigns import Campaigns, Record, marks
from ..finding import EntityType, Finding, Kind, finding_id
from ..login.evidence import SHARED
from ..login.principals import principal
from ..standing import Standing
from ..tables import NS_PER_DAY
from . import paths
from .control_endpoints import CONTROL_ENDPOINTS, EFFECTS, ControlEndpoint

_EARLIEST_NS, _LATEST_NS = 10**17, 1 << 62
_USER, _KEY, _PATH = (AUTH_TEXTS.index(name) for name in ("user", "key", "path"))
_SOURCE, _BY_KEY, _BY_USER = 0, 1, 2
_PRINCIPALS = {_BY_KEY: "key", _BY_USER: "subject"}
_MOST_TOLD = 6
REFUSED, TRIED, HIGH, CRITICAL = 0, 1, 2, 3
_GRADES = ((30, 0.6), (50, 0.75), (80, 0.85), (95, 0.9))
"""Severity and confidence."""
_OF_EFFECT = {"run": CRITICAL, "alter": CRITICAL, "change": CRITICAL, "stop": HIGH, "store": HIGH}
_UNDECIDED = frozenset({400, 409, 422, 499, 502, 503, 504})
"""Answers after which nobody knows whether it was done: the server found fault with it, or the client or the gateway
did not wait (499 is nginx's own: the client was gone)."""
_THRESHOLDS = (
    "a request for a control endpoint, refused",
    "a request for a control endpoint that got to the server",
    "a request for a control endpoint that the server did",
    "a request for a control endpoint that the server did",
)
_TECHNIQUES = {
    "stop": ("T1190", "T1499", "AML.T0049", "AML.T0029"),
    "alter": ("T1190", "AML.T0049", "AML.T0018"),
    "manage": ("T1098",),
}


class _Call(NamedTuple):
    """One request for a control endpoint: its row, the number of the endpoint, and how bad it is."""

    row: int
    endpoint: int
    grade: int
    caller: int  # _SOURCE, _BY_KEY or _BY_USER


@dataclass(frozen=True, slots=True)
class Picked:
    """Requests for control endpoints: `row` (`int64[n]`) of the batch that they are in, and what they are."""

    batch: AuthBatch
    row: I64
    calls: Sequence[_Call]


class ControlEndpointAccess:
    """Requests for the control endpoints of model servers (ATT&CK T1190; ATLAS AML.T0049), by caller.

    The caller is the API key, else the user that the gateway verifies, else the source. How bad it is depends on what
    the endpoint does and on the answer: what was refused is low and accuses nobody; what the server did is high or
    critical, and accuses the key. One finding for each caller and each of these, until a day without another.

    Parameters: `allowed_keys`, `allowed_networks` (lists: who may), `prefixes` (list: base paths under which the
    gateway hands on to a server's root, such as `/llm`), `servers` (list: those of CONTROL_ENDPOINTS that there are;
    empty: all), `callers` (int, 4096: the most that are remembered at once). References: `control_endpoints.SOURCES`.
    """

    name: ClassVar[str] = "control_endpoint"
    kinds: ClassVar[tuple[Kind, ...]] = ("control_endpoint_access",)
    partition_key: ClassVar[EntityType] = "user"
    texts: ClassVar[tuple[str, ...]] = ("allowed_keys", "allowed_networks", "prefixes", "servers")

    def __init__(
        self,
        hash_key: bytes,
        allowed_keys: Sequence[str] = (),
        allowed_networks: Sequence[str] = (),
        prefixes: Sequence[str] = (),
        servers: Sequence[str] = (),
        callers: int = 4096,
    ) -> None:
        self._networks = NetworkKeys(hash_key)
        self._allowed_keys = frozenset(allowed_keys)
        self._allowed_networks = [_network(text) for text in allowed_networks]
        self._prefixes = [(), *(paths.canonical(text.encode()) for text in prefixes)]
        self._by_first: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for number in _chosen(servers):
            pattern = tuple(CONTROL_ENDPOINTS[number].path.strip("/").split("/"))
            self._by_first.setdefault(pattern[0], []).append((pattern, number))
        chosen = [pattern for patterns in self._by_first.values() for pattern, _ in patterns]
        self._table = paths.table_of(map(_telling, chosen))
        records = max(8, callers // 4)
        self._endpoints = Campaigns(NS_PER_DAY, callers, records, 1024, any_blockable=True)
        self._sources = Campaigns(NS_PER_DAY, callers, records, callers, any_blockable=True)

    def find(self, batch: AuthBatch) -> Picked:
        """The requests for control endpoints that nobody has allowed. Changes nothing."""
        calls: list[_Call] = []
        if batch.status.any():
            worth: Any = np.zeros(len(batch), np.uint8)
            spans = np.ascontiguousarray(batch.spans[:, _PATH])
            text = np.frombuffer(batch.text or b"\0", np.uint8)
            paths.pick(text, spans, np.ascontiguousarray(batch.status), self._table, worth)
            calls = [call for row in np.flatnonzero(worth).tolist() if (call := self._call(batch, row))]
        return Picked(batch, np.array([call.row for call in calls], np.int64), calls)

    def _call(self, batch: AuthBatch, row: int) -> _Call | None:
        start, end = batch.spans[row, _PATH].tolist()
        number = self._endpoint(paths.canonical(batch.text[start:end]), batch.text_of(row, "method"))
        if number is None:
            return None
        caller = _SOURCE
        if batch.key[row]:
            caller = _BY_KEY
        elif batch.user[row] and batch.verified[row]:
            caller = _BY_USER
        if caller == _SOURCE and not batch.client_family[row]:
            return None  # nobody can be named
        if batch.text_of(row, "key") in self._allowed_keys or self._is_allowed(batch.source_of(row)):
            return None
        return _Call(row, number, grade_of(CONTROL_ENDPOINTS[number], int(batch.status[row])), caller)

    def _endpoint(self, segments: tuple[str, ...], method: str) -> int | None:
        for prefix in self._prefixes:
            if segments[: len(prefix)] != prefix or len(segments) <= len(prefix):
                continue
            rest = segments[len(prefix) :]
            for pattern, number in self._by_first.get(rest[0], ()):
                if (
                    len(pattern) == len(rest)
                    and all(p in ("*", s) for p, s in zip(pattern, rest, strict=True))
                    and method in CONTROL_ENDPOINTS[number].methods
                ):
                    return number
        return None

    def _is_allowed(self, source: str) -> bool:
        if not self._allowed_networks or not source:
            return False
        address = ipaddress.ip_address(source)
        return any(address in network for network in self._allowed_networks)

    def judge(self, picked: Picked, credit: I64) -> list[Finding]:
        """`credit` (`int64[n]`): how many users had logged in from the source of each."""
        if not len(picked.row):
            return []
        batch, row, calls = picked.batch, picked.row, picked.calls
        n = len(row)
        time_ns = np.clip(batch.time_ns[row], _EARLIEST_NS, _LATEST_NS)
        grade, caller, endpoint = (
            np.array(column, np.int64)
            for column in zip(*((call.grade, call.caller, call.endpoint) for call in calls), strict=True)
        )
        client, family, provenance = batch.client[row], batch.client_family[row], batch.provenance[row]
        source = self._networks.keys(client, family)
        who = np.where(
            caller == _BY_KEY, batch.key[row], np.where(caller == _BY_USER, batch.user[row], source)
        )
        key = join_keys(who, (4 * caller + grade).astype(np.uint64))
        ours: Bool = (grade >= HIGH) & (caller == _SOURCE) & (credit < SHARED)
        peer, peer_family = batch.peer[row], batch.peer_family[row]
        told = provenance > Provenance.NETWORK
        direct = told & (family == peer_family) & (client == peer).all(axis=1)
        vouched = told & (peer_family != 0)
        marked = marks(batch.line[row], provenance, direct & ours, np.ones(n, np.int64), vouched & ours)
        accusing = (grade >= HIGH) & (caller != _SOURCE) & told
        amounts = np.stack((accusing, batch.status[row] < 400), axis=1).astype(np.int64)
        over = np.ones(n, np.bool_)
        items = join_keys(endpoint.astype(np.uint64), np.ones(n, np.uint64))
        followed = self._endpoints.update(
            key, time_ns, over, marked, items, _LABEL_SPANS[endpoint], _LABELS, time_ns, amounts
        )
        names, spans = self._names_of_sources(batch, row)
        named = self._sources.update(key, time_ns, over, marked, source, spans, names, time_ns)

        def story_of(at: int) -> dict[str, Any]:
            return self._story(batch, calls[at], int(credit[at]), int(named.serial[at]))

        def news_of(at: int) -> dict[str, Any]:
            return {"last": int(batch.status[row[at]])}

        return [self._finding(*grown) for grown in self._endpoints.grown(followed, story_of, news_of)]

    def _names_of_sources(self, batch: AuthBatch, row: I64) -> tuple[bytes, I32]:
        """Their networks as text, and the span `[n, 2]` of each row's in it."""
        names = [
            self._networks.text(int(batch.client_family[at]), *batch.client[at].tolist()).encode()
            for at in row.tolist()
        ]
        ends = np.cumsum([len(name) for name in names])
        starts = ends - [len(name) for name in names]
        return b"".join(names), np.stack((starts, ends), axis=1).astype(np.int32)

    def _story(self, batch: AuthBatch, call: _Call, credit: int, sources: int) -> dict[str, Any]:
        row, endpoint = call.row, CONTROL_ENDPOINTS[call.endpoint]
        source = self._networks.text(int(batch.client_family[row]), *batch.client[row].tolist())
        entity = source
        if call.caller != _SOURCE:
            entity = batch.text_of(row, "key" if call.caller == _BY_KEY else "user")
        service, host = batch.text_of(row, "service"), batch.text_of(row, "host")
        sample = batch.text_of(row, "raw")
        return {
            "id": finding_id(self.name, entity, call.grade, int(batch.time_ns[row]), int(batch.line[row])),
            "entity": entity,
            "caller": call.caller,
            "grade": call.grade,
            "source": source,
            "sources": sources,
            "effect": endpoint.effect,
            "server": ", ".join(endpoint.servers),
            "first": int(batch.status[row]),
            "credit": credit,
            "targets": (f"{service}@{host}" if service and host else service or host,),
            "samples": (sample,) if sample else (),
        }

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        entity, grade, caller = story["entity"], story["grade"], story["caller"]
        severity, confidence = _GRADES[grade]
        seen = self._sources.record(story["sources"])
        accused = principal(_PRINCIPALS[caller], entity) if record.amounts[0] else ""
        by_source = caller == _SOURCE
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="control_endpoint_access",
            entity_type="source" if by_source else "user",
            entity=entity,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=severity,
            confidence=confidence,
            sources=(seen.names if seen else ()) or ((story["source"],) if story["source"] else ()),
            users=() if by_source else (entity,),
            targets=tuple(target for target in story["targets"] if target),
            figures={
                "requests": record.attempts,
                "answered_below_400": record.amounts[1],
                "distinct_endpoints": record.distinct,
                "endpoints": _listed(record.names),
                "does": EFFECTS[story["effect"]],
                "servers": story["server"],
                "first_answer": str(story["first"]),
                "last_answer": str(story["last"]),
                "credit_users": story["credit"],
            },
            threshold=_THRESHOLDS[grade],
            baseline="no client has a reason to; neither this caller nor its network is among those that may",
            techniques=_TECHNIQUES.get(story["effect"], ("T1190", "AML.T0049")),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
            trigger_source="" if by_source else story["source"],
            blockable=(entity,) if by_source and record.blockable else (),
            refusable=(entity,) if by_source and record.refusable else (),
            blockable_users=(accused,) if accused else (),
        )

    def standing(self, family: int, high: int, low: int) -> list[Standing]:
        """What of it keeps an address free: that it may."""
        address = address_text(family, high, low)
        if self._is_allowed(address):
            return [Standing(self.name, "may call control endpoints: it is in `allowed_networks`")]
        return []

    def save(self) -> dict[str, Any]:
        return {"endpoints": self._endpoints.save(), "sources": self._sources.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._endpoints.load(state["endpoints"])
        self._sources.load(state["sources"])


def grade_of(endpoint: ControlEndpoint, status: int) -> int:
    """How bad a request for an endpoint is that got this answer."""
    bad = _OF_EFFECT.get(endpoint.effect, TRIED)
    if status in _UNDECIDED:
        return TRIED if bad > TRIED else REFUSED
    return bad if 200 <= status < 300 or status >= 500 else REFUSED


def _telling(pattern: tuple[str, ...]) -> str:
    """The segment of a pattern that is rarest in what clients send."""
    return next(segment for segment in (*_RARE, *reversed(pattern)) if segment in pattern and segment != "*")


_RARE = (
    "repository", "systemsharedmemory", "cudasharedmemory", "blobs", "keys", "trace", "key", "user", "team", "config",
    "global", "model",
)  # fmt: skip


def _chosen(servers: Sequence[str]) -> list[int]:
    """The numbers of the endpoints of these servers; of all where none is named."""
    known = {server.lower(): server for endpoint in CONTROL_ENDPOINTS for server in endpoint.servers}
    for name in servers:
        if name.lower() not in known:
            raise ValueError(
                f"control_endpoint.servers: {name!r} is not known; known are {', '.join(sorted(known.values()))}"
            )
    wanted = {known[name.lower()] for name in servers} or set(known.values())
    return [n for n, endpoint in enumerate(CONTROL_ENDPOINTS) if wanted & set(endpoint.servers)]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"control_endpoint.allowed_networks: {error}") from error


def _label(endpoint: ControlEndpoint) -> bytes:
    return f"{'/'.join(sorted(endpoint.methods))} {endpoint.path}".encode()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_TOLD
    return "; ".join(names[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


_LABELS = b"".join(map(_label, CONTROL_ENDPOINTS))
_ENDS = np.cumsum([len(_label(endpoint)) for endpoint in CONTROL_ENDPOINTS])
_LABEL_SPANS: I32 = np.stack(
    (_ENDS - [len(_label(endpoint)) for endpoint in CONTROL_ENDPOINTS], _ENDS), axis=1
).astype(np.int32)
