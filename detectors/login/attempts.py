"""From lines to attempts: what all login detectors look at, computed once for each batch.

One attempt writes several lines, and a failure of somebody who usually gets in says less than a stranger's;
both are settled here. Failures and successes whose client is unknown are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...daemon.events import AUTH_TEXTS, I32, I64, U64, AuthBatch, Bool, Outcome, Provenance
from ..addressing import NetworkKeys, join_keys
from ..campaigns import ASK, MOST_WEIGHT, marks
from ..finding import finding_id
from ..standing import Standing
from ..tables import REFUSED_KEY, History, Sessions

_EARLIEST_NS, _LATEST_NS = 10**17, 1 << 62  # 1973 to 2116: what tables can hold
_METHOD, _USER, _KEY = (AUTH_TEXTS.index(name) for name in ("method", "user", "key"))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Failed and successful logins in order, as columns of n attempts; `row` leads back to the batch."""

    batch: AuthBatch
    networks: NetworkKeys
    row: I64
    time_ns: I64
    line: I64
    source: U64  # key of the client's network
    user: U64  # of a request its key id, if known; else the user; 0 = unknown
    pair: U64  # key of user and source; 0 where the user is unknown
    success: Bool
    failures: I64  # failed attempts that the line adds; 0 for a success
    denied: I64  # how many of these were a second factor that was denied, was wrong or ran out
    weight: I64  # the same once history is known; below 0 a success takes failures back (see `History`)
    pending: I64  # failures of this user from this source since its last success, before this event
    first_success_ns: I64  # of this user from this source, before this event; 0 = none
    credit: I64  # users who have logged in from this source before
    proven: Bool  # the client is its own peer, and no datagram told of it
    marked: I64  # what campaigns keep of the event; of a success they are only asked
    spans: I32  # [n, 2], the name of `user` in the batch's text

    def source_of(self, at: int) -> str:
        row = self.row[at]
        return self.networks.text(int(self.batch.client_family[row]), *self.batch.client[row].tolist())

    def user_of(self, at: int) -> str:
        start, end = self.spans[at].tolist()
        return "" if start < 0 else self.batch.text[start:end].decode("utf-8", "backslashreplace")

    def target_of(self, at: int) -> str:
        """What was tried: `sshd@gateway1`, or the service alone where no host is known."""
        row = int(self.row[at])
        service, host = self.batch.text_of(row, "service"), self.batch.text_of(row, "host")
        return f"{service}@{host}" if service and host else service or host

    def story_of(self, at: int, detector: str) -> dict[str, Any]:
        """What a campaign that opens here is to remember of this attempt."""
        source, target = self.source_of(at), self.target_of(at)
        sample = self.batch.text_of(int(self.row[at]), "raw")
        credit = int(self.credit[at])
        return {
            "id": finding_id(detector, source, int(self.time_ns[at]), int(self.line[at])),
            "entity": source,
            "targets": (target,) if target else (),
            "samples": (sample,) if sample else (),
            "credit": credit,
            "baseline": _baseline(credit),
            "at_home": bool(self.first_success_ns[at]),
        }


def _baseline(credit: int) -> str:
    """What is usual for a source, in words."""
    if not credit:
        return "nobody has logged in from this source before"
    return f"{credit} user{'s have' if credit > 1 else ' has'} logged in from this source before"


class AttemptStage:
    """Turns batches of lines into attempts. State: open sessions, and who has succeeded from where."""

    def __init__(
        self, hash_key: bytes, tolerance: int = 10, pairs: int = 65536, sessions: int = 16384
    ) -> None:
        self._networks = NetworkKeys(hash_key)
        self._sessions = Sessions(sessions)
        self._history = History(pairs, tolerance)

    def update(self, batch: AuthBatch) -> Attempts:
        said = (batch.outcome >= Outcome.SUCCESS) & (batch.outcome <= Outcome.DISCONNECT)
        said |= batch.outcome == Outcome.FACTOR_DENIED
        row = np.flatnonzero(said)
        kind = batch.outcome[row]
        time_ns = np.clip(batch.time_ns[row], _EARLIEST_NS, _LATEST_NS)
        count = np.minimum(batch.count[row], MOST_WEIGHT).astype(np.int64)
        placed = batch.client_family[row] != 0
        # A gateway's request is its key's; a login is its user's, whatever key was shown.
        keyed = (batch.key[row] != 0) & (batch.status[row] != 0)
        user = np.where(keyed, batch.key[row], batch.user[row])
        failures, user, denied = self._sessions.update(
            batch.session[row],
            time_ns,
            np.where(_offered_key(batch, row, kind), np.uint8(REFUSED_KEY), kind),
            count,
            placed.view(np.uint8),
            user,
        )
        success = kind == Outcome.SUCCESS
        kept = np.flatnonzero(placed & (success | (failures > 0)))
        row, time_ns, user, success, keyed = row[kept], time_ns[kept], user[kept], success[kept], keyed[kept]
        failures, denied = np.minimum(failures[kept], MOST_WEIGHT), np.minimum(denied[kept], MOST_WEIGHT)
        client, family = batch.client.take(row, axis=0), batch.client_family[row]
        source = self._networks.keys(client, family)
        pair = np.where(user == 0, np.uint64(0), join_keys(source, user))
        # A request that names nobody may only have waited to be asked who it is from.
        asked = (batch.status[row] != 0) & (success | (user == 0))
        nameless = np.where(asked, source, np.uint64(0))
        history = self._history.update(pair, nameless, source, time_ns, failures, success.view(np.uint8))
        weight, pending, first_success_ns, credit = np.ascontiguousarray(history.T)
        provenance = batch.provenance[row]
        peer = batch.peer.take(row, axis=0)
        proven = (client[:, 1] == peer[:, 1]) & (client[:, 0] == peer[:, 0])
        proven &= (family == batch.peer_family[row]) & (provenance > Provenance.NETWORK)
        spans = batch.spans[:, _USER].take(row, axis=0)
        if keyed.any():
            spans = np.where(keyed[:, None], batch.spans[:, _KEY].take(row, axis=0), spans)
        return Attempts(
            batch=batch,
            networks=self._networks,
            row=row,
            time_ns=time_ns,
            line=batch.line[row],
            source=source,
            user=user,
            pair=pair,
            success=success,
            failures=failures,
            denied=denied,
            weight=weight,
            pending=pending,
            first_success_ns=first_success_ns,
            credit=credit,
            proven=proven,
            marked=np.where(success, ASK, marks(batch.line[row], provenance, proven, failures)),
            spans=spans,
        )

    def standing(self, family: int, high: int, low: int, now_ns: int) -> tuple[U64, int, list[Standing]]:
        """Of one address: the key of its source, its users of credit, and what they mean. Changes nothing."""
        source: U64 = self._networks.key(family, high, low)
        credit = self._history.credit(source, now_ns)
        if not credit:
            return source, 0, []
        text = f"{_baseline(credit)}; failures of a user who has count from {self._history.tolerance} in a row on"
        return source, credit, [Standing("credit", text, figure=credit, unit="users")]

    def save(self) -> dict[str, Any]:
        return {"sessions": self._sessions.save(), "history": self._history.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._sessions.load(state["sessions"])
        self._history.load(state["history"])


def _offered_key(batch: AuthBatch, row: I64, kind: Any) -> Bool:
    """Rows that tell of a refused public key. A client offers every key that it has: that is no guessing."""
    found: Bool = np.zeros(len(row), np.bool_)
    start = batch.spans[:, _METHOD, 0].take(row)
    length = batch.spans[:, _METHOD, 1].take(row) - start
    likely = np.flatnonzero((kind == Outcome.FAILURE) & (length == 9) & (start >= 0))
    if len(likely):
        text = np.frombuffer(batch.text, np.uint8)
        word = np.frombuffer(b"publickey", np.uint8)
        letters = text[start[likely][:, None] + np.arange(9)]
        found[likely] = (letters == word).all(axis=1)
    return found
