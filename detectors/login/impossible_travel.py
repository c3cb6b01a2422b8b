"""Impossible travel: one user at two places between which nobody gets that fast."""

from __future__ import annotations

from collections.abc import Mapping
from math import asin, cos, radians, sin, sqrt
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ...daemon.events import I64, NS_PER_S, U64, Bool
from ..addressing import join_keys
from ..campaigns import Campaigns, Followed, Record, marks
from ..finding import EntityType, Finding, Kind, finding_id
from ..profiles import FAMILIAR, Place, unpacked
from ..standing import Standing
from ..tables import NS_PER_DAY, DistinctCounter
from .attempts import Attempts
from .evidence import SHARED
from .principals import accused, is_keyed, principals

_EARTH_KM = 6371.0  # mean radius (IUGG)
_HOUR_NS = 3600 * NS_PER_S
_MONTH_NS = 30 * NS_PER_DAY
_KNOWN = 4


class _Jump(NamedTuple):
    """From the place before to that of `row`. `stranger`: the network of the two that is not usual."""

    row: int
    stranger: U64
    text: str
    distance_km: int
    minutes: int


class ImpossibleTravel:
    """Two successes of a user (ATT&CK T1078) farther apart than anybody travels in the time between.

    A login from a stranger's network is held against the last one from a familiar network, where there is one, and
    never against that of a guesser who got in.

    The distance is that of a great circle less the accuracy of both places. It is raised from `least_km` on where
    `speed` kilometres an hour do not reach, and where one of the two networks is not usual: neither its range
    for the user or the site, nor its autonomous system for the user (a phone's carrier has one place for a whole
    country). Where that one came first, the user's own login raises it only within `look_back_s`: later it tells
    what `NewAccess` has told. From the fourth such network of a user within a month on, who then uses a VPN, it
    is low; so is that of a user of fewer than four logins, of whom nobody can say what is usual. Without a database of
    places nothing is raised.

    Parameters: `speed` (int, 1000: airliners cruise at 900), `least_km` (int, 500), `look_back_s` (int,
    3600), `users` (int, 4096).
    """

    name: ClassVar[str] = "impossible_travel"
    kinds: ClassVar[tuple[Kind, ...]] = ("impossible_travel",)
    partition_key: ClassVar[EntityType] = "user"

    def __init__(
        self, speed: int = 1000, least_km: int = 500, look_back_s: int = 3600, users: int = 4096
    ) -> None:
        self._speed, self._least_km = speed, least_km
        self._look_back_ns = look_back_s * NS_PER_S
        self._strangers = DistinctCounter(users, 8, (_MONTH_NS,))
        self._guessers: dict[
            int, int
        ] = {}  # the source, and the number of the attempt that was its first hit
        self._seen = 0
        self._most_guessers = users
        self._campaigns = Campaigns(
            NS_PER_DAY, capacity=users, records=max(8, users // 4), names=users, any_blockable=True
        )

    def update(self, attempts: Attempts, convictions: Mapping[str, Followed] | None = None) -> list[Finding]:
        """`convictions`: by detector, what each that follows failures says of the same attempts."""
        self._note_guessers(attempts, convictions or {})
        before, place = attempts.recalled.places[:, 0], attempts.place[:, 0]
        moved = np.flatnonzero((before != 0) & (place != 0) & (before != place))
        jumps = [jump for row in moved.tolist() if (jump := self._jump(attempts, row))]
        self._seen += len(attempts.row)
        if not jumps:
            return []
        rows: I64 = np.array([jump.row for jump in jumps], np.int64)
        strangers: U64 = np.array([jump.stranger for jump in jumps], np.uint64)
        users, time_ns = attempts.user[rows], attempts.time_ns[rows]
        ones = np.ones(len(rows), np.int64)
        seen = self._strangers.update(users, strangers, time_ns, ones.astype(np.int8))[:, 0]
        here, known = strangers == attempts.source[rows], attempts.logins[rows] >= _KNOWN
        clear = here & (seen <= 3) & known & (attempts.credit[rows] < SHARED)
        followed = self._campaigns.update(
            join_keys(users, strangers),
            time_ns,
            np.ones(len(rows), np.bool_),
            marks(
                attempts.line[rows],
                attempts.batch.provenance[attempts.row[rows]],
                attempts.proven[rows] & clear,
                ones,
                attempts.vouched[rows] & clear,
            ),
            accused(attempts, rows, attempts.vouched[rows] & clear & ~is_keyed(attempts, rows)),
            attempts.spans[rows],
            attempts.batch.text,
            time_ns,
        )

        def story_of(at: int) -> dict[str, Any]:
            jump = jumps[at]
            story = attempts.story_of(jump.row, self.name)
            trigger = int(time_ns[at]), int(attempts.line[jump.row])
            return {
                **story,
                "id": finding_id(self.name, jump.text, *trigger),
                "entity": jump.text,
                "user": attempts.user_of(jump.row),
                "distance_km": jump.distance_km,
                "minutes": jump.minutes,
                "networks": int(seen[at]),
                "logins": int(attempts.logins[jump.row]),
            }

        return [self._finding(*grown) for grown in self._campaigns.grown(followed, story_of)]

    def _note_guessers(self, attempts: Attempts, convictions: Mapping[str, Followed]) -> None:
        """A guesser who got in was no journey of the user's: compromise tells of it, and nothing is held against it."""
        guessed: Bool = np.zeros(len(attempts.row), np.bool_)
        for conviction in convictions.values():
            guessed |= conviction.serial > 0
        for row in np.flatnonzero(guessed & attempts.success & (attempts.credit == 0)).tolist():
            self._guessers.setdefault(int(attempts.source[row]), self._seen + row)
            if len(self._guessers) > self._most_guessers:
                del self._guessers[next(iter(self._guessers))]

    def _jump(self, attempts: Attempts, row: int) -> _Jump | None:
        recalled = attempts.recalled
        last, familiar = recalled.last_place(row), recalled.last_familiar_place(row)
        if last is None:
            return None
        networks = attempts.networks
        address = (last.network & (1 << 64) - 1, 0) if last.family == 6 else (0, last.network & 0xFFFF_FFFF)
        key = networks.key(last.family, *address)
        guessed = self._guessers.get(int(key), self._seen + row) < self._seen + row
        if not int(attempts.facts[row]) & FAMILIAR:
            # A stranger who was there in between says nothing of this one.
            before = familiar or (None if guessed else last)
            reach = self._too_far(attempts, row, before) if before else None
            return _Jump(row, attempts.source[row], attempts.source_of(row), *reach) if reach else None
        late = attempts.time_ns[row] - last.time_ns > self._look_back_ns
        if last.facts & FAMILIAR or late or guessed:
            return None
        reach = self._too_far(attempts, row, last)
        if reach is None:
            return None
        return _Jump(row, key, networks.text(last.family, *address), *reach)

    def _too_far(self, attempts: Attempts, row: int, before: Place) -> tuple[int, int] | None:
        """(kilometres, minutes) of a journey that nobody makes; else None."""
        packed, accuracy, _, _ = attempts.place[row].tolist()
        distance = int(great_circle_km(before, *unpacked(packed))) - before.accuracy - accuracy
        elapsed_ns = max(0, int(attempts.time_ns[row]) - before.time_ns)
        if distance < self._least_km or distance * _HOUR_NS <= self._speed * elapsed_ns:
            return None
        return distance, elapsed_ns // (60 * NS_PER_S)

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        source, user = story["entity"], story["user"]
        alone = story["networks"] <= 3 and story["logins"] >= _KNOWN
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="impossible_travel",
            entity_type="user" if user else "source",
            entity=user or source,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=60 if alone else 30,
            confidence=0.75 if alone else 0.6,
            sources=(source,),
            users=record.names or ((user,) if user else ()),
            targets=story["targets"],
            figures={
                "jumps": record.attempts,
                "distance": f"{story['distance_km']} km",
                "time": f"{story['minutes']} min",
                "credit_users": story["credit"],
            },
            threshold=f"farther than {self._speed} km/h reach, and at least {self._least_km} km",
            baseline="neither this user nor the site is known for this network"
            if alone
            else f"network {story['networks']} of this kind for this user within a month: a VPN looks like this"
            if story["networks"] > 3
            else "this user has logged in fewer than four times: nothing is usual yet",
            techniques=("T1078",),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
            blockable=(source,) if record.blockable else (),
            refusable=(source,) if record.refusable else (),
            blockable_users=principals(record.items, self._campaigns.items(record.serial), user),
        )

    def standing(self, convicted: bool) -> list[Standing]:
        """Nothing of one address: it takes a user and two of them."""
        return []

    def save(self) -> dict[str, Any]:
        return {
            "journeys": self._campaigns.save(),
            "strangers": self._strangers.save(),
            "guessers": np.array(list(self._guessers.items()), np.uint64).reshape(-1, 2),
            "seen": self._seen,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._campaigns.load(state["journeys"])
        self._strangers.load(state["strangers"])
        guessers: U64 = state["guessers"]
        self._guessers = dict(guessers.tolist())
        self._seen = state["seen"]


def great_circle_km(place: Place, latitude: int, longitude: int) -> float:
    """The distance of a place from another, in 1e-4 degrees (haversine; Sinnott, Sky and Telescope 68, 1984)."""
    first, second = radians(place.latitude / 10_000), radians(latitude / 10_000)
    across = radians((longitude - place.longitude) / 10_000)
    half = sin((second - first) / 2) ** 2 + cos(first) * cos(second) * sin(across / 2) ** 2
    return 2 * _EARTH_KM * asin(min(1.0, sqrt(half)))
