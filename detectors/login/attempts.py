"""From lines to attempts: what all login detectors look at, computed once for each batch.

One attempt writes several lines, and a failure of somebody who usually gets in says less than a stranger's;
both are settled here. Failures and successes whose client is unknown are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

import numpy as np

from ...daemon.events import AUTH_TEXTS, I32, I64, U8, U64, AuthBatch, Bool, Outcome, Provenance
from ..addressing import NetworkKeys, join_keys
from ..campaigns import ASK, MOST_WEIGHT, marks
from ..finding import finding_id
from ..profiles import METHODS, NETWORK, WIDER, Locator, Profiles, Recalled
from ..standing import Standing
from ..tables import REFUSED_KEY, History, Rhythm, Sessions
from .guessed_names import guessed_names

_EARLIEST_NS, _LATEST_NS = 10**17, 1 << 62  # 1973 to 2116: what tables can hold
_RAW, _METHOD, _USER, _KEY = (AUTH_TEXTS.index(name) for name in ("raw", "method", "user", "key"))
_PARTS_OF_SSHD = frozenset(("pam_duo", "login_duo"))
_NOBODY = (b"id user ", b"al user ")
"""What stands before a name that sshd calls invalid (or, of old, illegal), and no other."""
_ADDRESS = Struct("=2Q")
_NONE: I64 = np.zeros(0, np.int64)


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
    wider: U64  # key of the IPv4 /24 or IPv6 /48 that the source is in
    exists: Bool  # nothing says that the account does not
    popular: Bool  # its name is one that strangers guess everywhere
    rhythm: U8  # bits of `Rhythm`: what the failures of the source have in common
    job: Bool  # the failures of the source are those of a job that nobody looks after, see `_job`
    private: Bool  # the source is of a private network (RFC 1918, RFC 4193), this machine or its link
    proven: Bool  # the client is its own peer, and no datagram told of it
    vouched: Bool  # that, or it was named by a trusted proxy
    marked: I64  # what campaigns keep of the event; of a success they are only asked
    spans: I32  # [n, 2], the name of `user` in the batch's text
    logins: I64  # successes of this user at the site before this event, halved with age
    known_user: Bool  # whether there was any; failures are told as well
    user_first_ns: I64  # the first and the last of them; 0 = none
    user_last_ns: I64
    facts: I64  # what was usual for this user before: NETWORK and the like of `profiles`
    method: U8  # of a success, a number of `profiles.METHODS`
    country: I64  # of a success, where a database knows it: both letters as one number, else 0
    system: I64  # of a success: the number of its autonomous system, else 0
    stranger: Bool  # see `with_convicted`, before which there are none
    nameless: Bool
    place: I64  # [n, 4] of a success: latitude and longitude packed, accuracy (km), network, family; else 0
    recalled: Recalled  # the rest of what was usual
    asked_credit: I64  # [rows that `update` was asked of] as `credit`, of each one's source before it

    def with_convicted(self, convicted: Bool) -> Attempts:
        """The same once the detectors of single sources have spoken: with those left whom nobody knows.

        `stranger` are failures for an account that exists, of sources that nobody logs in from, that this user does
        not come from, and that are not under conviction by themselves; `nameless` those for accounts that do not.
        """
        foreign = (self.failures > 0) & (self.user != 0) & (self.credit == 0)
        foreign &= ~self.private & ~self.job & ~convicted
        unknown = (self.first_success_ns == 0) & (self.facts & (WIDER | NETWORK) == 0)
        return replace(self, stranger=foreign & self.exists & unknown, nameless=foreign & ~self.exists)

    def packed_sources(self, rows: I64) -> tuple[bytes, I32]:
        """The clients of these rows as names for `Campaigns`: bytes for `source_text`, and spans `int32[n, 2]`."""
        size = 17
        packed: U8 = np.zeros((len(rows), size), np.uint8)
        of_batch = self.row[rows]
        packed[:, 0] = self.batch.client_family[of_batch]
        packed[:, 1:] = np.ascontiguousarray(self.batch.client[of_batch]).view(np.uint8).reshape(-1, 16)
        starts = np.arange(len(rows), dtype=np.int32)[:, None] * np.int32(size)
        return packed.tobytes(), starts + np.array([0, size], np.int32)

    def news(self, rows: I64 | None = None) -> Callable[[int], dict[str, Any]]:
        """What the last event of a campaign says of its source: is it a job, and who has logged in from it. `rows`:
        those of the attempts that the campaign was told of, where not all."""
        job, credit = (self.job, self.credit) if rows is None else (self.job[rows], self.credit[rows])
        return lambda at: {"job": bool(job[at]), "credit_now": int(credit[at])}

    def source_text(self, name: bytes) -> str:
        """The network of one of `packed_sources`."""
        return self.networks.text(name[0], *_ADDRESS.unpack(name[1:]))

    def source_key(self, name: bytes) -> Any:
        """The key of the network of one of `packed_sources`, as `source` has it."""
        return self.networks.key(name[0], *_ADDRESS.unpack(name[1:]))

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
        if service in _PARTS_OF_SSHD:
            service = "sshd"
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
    """Turns batches of lines into attempts. State: open sessions, who has succeeded from where, what is usual.

    `geography` is asked where successes come from; it may be replaced at any time.
    """

    def __init__(
        self,
        hash_key: bytes,
        tolerance: int = 10,
        pairs: int = 65536,
        sessions: int = 16384,
        users: int = 16384,
        geography: Locator | None = None,
    ) -> None:
        self._networks = NetworkKeys(hash_key)
        self._wider, self._ranges = NetworkKeys(hash_key, 24, 48), NetworkKeys(hash_key, 16, 32)
        self._popular = guessed_names(hash_key)
        self._rhythm = Rhythm()
        self._profiles = Profiles(users)
        self.geography = geography
        self._sessions = Sessions(sessions)
        self._history = History(pairs, tolerance)

    def update(self, batch: AuthBatch, asked: I64 = _NONE) -> Attempts:
        """`asked`: rows of which, whether attempts or not, it is to be said who had logged in from their source."""
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
        waits = (batch.status[row] != 0) & (success | (user == 0))
        nameless = np.where(waits, source, np.uint64(0))
        history, asked_credit = self._recall(
            batch, asked, row, pair, nameless, source, time_ns, failures, success
        )
        weight, pending, first_success_ns, credit = np.ascontiguousarray(history.T)
        exists = success | ~_absent(batch, row)
        by_key = (batch.outcome[row] == Outcome.DISCONNECT) & exists
        rhythm = self._rhythm.update(source, user, time_ns, failures, by_key, ~exists)
        likely = np.minimum(np.searchsorted(self._popular, user), len(self._popular) - 1)
        popular = self._popular[likely] == user
        wider, private = self._wider.keys(client, family), _private(client, family)
        provenance = batch.provenance[row]
        peer = batch.peer.take(row, axis=0)
        proven = (client[:, 1] == peer[:, 1]) & (client[:, 0] == peer[:, 0])
        proven &= family == batch.peer_family[row]
        # A parser names another client than the peer only where the peer is a trusted proxy.
        vouched = (proven | (batch.peer_family[row] != 0)) & (provenance > Provenance.NETWORK)
        proven &= vouched
        spans = batch.spans[:, _USER].take(row, axis=0)
        if keyed.any():
            spans = np.where(keyed[:, None], batch.spans[:, _KEY].take(row, axis=0), spans)
        method: U8 = np.zeros(len(row), np.uint8)
        country, system = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
        place = np.zeros((len(row), 4), np.int64)
        came = np.flatnonzero(success)
        if len(came):
            method[came] = _methods(batch, row[came])
            if self.geography is not None:
                country[came], system[came], place[came] = self.geography.columns(client[came], family[came])
        recalled = self._profiles.update(
            user,
            time_ns,
            success.view(np.uint8),
            source,
            wider,
            self._ranges.keys(client, family),
            country,
            system,
            method,
            place,
        )
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
            wider=wider,
            exists=exists,
            popular=popular,
            rhythm=rhythm,
            job=_job(rhythm, private | (first_success_ns > 0), popular),
            private=private,
            proven=proven,
            vouched=vouched,
            marked=np.where(success, ASK, marks(batch.line[row], provenance, proven, failures, vouched)),
            spans=spans,
            logins=recalled.logins,
            known_user=recalled.first_ns > 0,
            user_first_ns=recalled.first_ns,
            user_last_ns=recalled.last_ns,
            facts=recalled.facts,
            method=method,
            stranger=np.zeros(len(row), np.bool_),
            nameless=np.zeros(len(row), np.bool_),
            country=country,
            system=system,
            place=place,
            recalled=recalled,
            asked_credit=asked_credit,
        )

    def _recall(
        self, batch: AuthBatch, asked: I64, row: I64, pair: U64, nameless: U64, source: U64, time_ns: I64,
        failures: I64, success: Bool,
    ) -> tuple[I64, I64]:  # fmt: skip
        """What `History` says of the attempts, and the credit of the source of each row that is `asked` of."""
        if not len(asked):
            told = self._history.update(pair, nameless, source, time_ns, failures, success.view(np.uint8))
            return told, np.zeros(0, np.int64)
        # A row without a user that weighs nothing changes nothing, and is told what holds when it comes.
        order = np.argsort(np.concatenate((asked, row)), kind="stable")
        of = self._networks.keys(batch.client.take(asked, axis=0), batch.client_family[asked])
        times = np.clip(batch.time_ns[asked], _EARLIEST_NS, _LATEST_NS)
        no = np.zeros(len(asked), np.uint64)

        def merged(one: Any, other: Any) -> Any:
            return np.concatenate((other.astype(one.dtype), one))[order]

        said: I64 = np.empty((len(order), 4), np.int64)
        said[order] = self._history.update(
            merged(pair, no), merged(nameless, no), merged(source, of), merged(time_ns, times),
            merged(failures, no), merged(success.view(np.uint8), no),
        )  # fmt: skip
        return said[len(asked) :], said[: len(asked), 3]

    def standing(self, family: int, high: int, low: int, now_ns: int) -> tuple[U64, int, list[Standing]]:
        """Of one address: the key of its source, its users of credit, and what they mean. Changes nothing."""
        source: U64 = self._networks.key(family, high, low)
        credit = self._history.credit(source, now_ns)
        if not credit:
            return source, 0, []
        text = f"{_baseline(credit)}; failures of a user who has count from {self._history.tolerance} in a row on"
        return source, credit, [Standing("credit", text, figure=credit, unit="users")]

    def save(self) -> dict[str, Any]:
        return {
            "sessions": self._sessions.save(),
            "history": self._history.save(),
            "rhythm": self._rhythm.save(),
            "profiles": self._profiles.save(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._sessions.load(state["sessions"])
        self._history.load(state["history"])
        self._rhythm.load(state["rhythm"])
        self._profiles.load(state["profiles"])


def _absent(batch: AuthBatch, row: I64) -> Bool:
    """Rows that say that there is no such account."""
    found: Bool = batch.outcome[row] == Outcome.INVALID_USER
    start = batch.spans[:, _USER, 0].take(row)
    likely = np.flatnonzero(~found & (start - batch.spans[:, _RAW, 0].take(row) >= 8))
    if len(likely):
        words = _words(batch.text, start[likely] - 8)
        found[likely] = (words == _word(_NOBODY[0])) | (words == _word(_NOBODY[1]))
    return found


def _words(text: bytes, at: I32) -> U64:
    """The eight bytes of the text from each of these places on, as one number. There must be as many."""
    every = np.ndarray(max(0, len(text) - 7), np.dtype("<u8"), text, 0, (1,))
    found: U64 = every[at].astype(np.uint64)
    return found


def _word(letters: bytes) -> Any:
    return np.uint64(int.from_bytes(letters, "little"))


def _job(rhythm: U8, at_home: Bool, popular: Bool) -> Bool:
    """Failures like those of a job that nobody looks after: of one user, and by a refused key alone; or at a fixed
    period, from inside or where that user has logged in before, or for an account that there is not, and whose
    name only somebody can know who had it.
    """
    fixed = rhythm & Rhythm.PERIODIC > 0
    harmless = ((rhythm & Rhythm.NOBODY > 0) & ~popular) | at_home
    alone = rhythm & Rhythm.KEY_ALONE > 0
    made: Bool = (rhythm & Rhythm.ONE_USER > 0) & (alone | (fixed & harmless))
    return made


def _private(client: U64, family: U8) -> Bool:
    """Addresses of private networks (RFC 1918, RFC 4193), of this machine, and of its link."""
    high, low = client[:, 0], client[:, 1]
    four: Bool = (low >> np.uint64(24) == 10) | (low >> np.uint64(24) == 127)
    four |= (low >> np.uint64(20) == 0xAC1) | (low >> np.uint64(16) == 0xC0A8)
    four |= low >> np.uint64(16) == 0xA9FE
    six: Bool = (high >> np.uint64(57) == 0xFC >> 1) | (high >> np.uint64(54) == 0xFE80 >> 6)
    six |= (high == 0) & (low == 1)
    return np.where(family == 4, four, np.where(family == 6, six, False))


def _offered_key(batch: AuthBatch, row: I64, kind: Any) -> Bool:
    """Rows that tell of a refused public key. A client offers every key that it has: that is no guessing."""
    found: Bool = np.zeros(len(row), np.bool_)
    start = batch.spans[:, _METHOD, 0].take(row)
    length = batch.spans[:, _METHOD, 1].take(row) - start
    likely = np.flatnonzero((kind == Outcome.FAILURE) & (length == 9) & (start >= 0))
    if len(likely):
        first, last = (_words(batch.text, start[likely] + off) for off in (0, 1))
        found[likely] = (first == _word(b"publicke")) & (last == _word(b"ublickey"))
    return found


def _methods(batch: AuthBatch, row: I64) -> U8:
    """Numbers of METHODS, told by the first letter and the length of what the service wrote."""
    start = batch.spans[:, _METHOD, 0].take(row)
    length = batch.spans[:, _METHOD, 1].take(row) - start
    first = np.frombuffer(batch.text or b"\0", np.uint8)[np.maximum(start, 0)]
    found = _BY_LETTER[first]
    for name in ("publickey", "password"):
        found = np.where((first == ord("p")) & (length == len(name)), METHODS.index(name), found)
    made: U8 = np.where((start < 0) | (length <= 0), 0, found).astype(np.uint8)
    return made


_BY_LETTER: U8 = np.full(256, METHODS.index("other"), np.uint8)
for _name in METHODS[3:-1]:
    _BY_LETTER[ord(_name[0])] = METHODS.index(_name)
