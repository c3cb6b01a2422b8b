"""New access: a login that succeeds and is unlike this user's, though nobody has guessed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, Bool, rfc3339
from ..addressing import join_keys
from ..campaigns import Campaigns, Record, marks
from ..finding import EntityType, Finding, Kind
from ..profiles import (
    ASN,
    COUNTRY,
    HOUR,
    KEYBOARD,
    METHODS,
    NETWORK,
    PASSWORD,
    RANGE,
    SITE_ASN,
    SITE_COUNTRY,
    SITE_RANGE,
    WIDER,
)
from ..standing import Standing
from ..tables import NS_PER_DAY
from .attempts import Attempts

_WEEK_NS = 7 * NS_PER_DAY
_HALF_DAY_NS = 12 * 3600 * NS_PER_S
_ENOUGH = 20
"""Logins after which a user's own countries say more than those of the site."""
_SHARED = 2
"""Users of one source who make it one that the site knows."""
_QUIET, _METHOD_TOO, _HOUR_TOO, _NEW_METHOD = 1, 2, 4, 8


class NewAccess:
    """A success from a network that is new for its user (ATT&CK T1078), weighed by what else is new.

    New is what the user's own successes of the last 30 days do not know (`Profiles`). *Strange* is a new network,
    not shared by two users, in a country that is new for a user of twenty logins or more, or in a range that nobody
    at the site is known for and, where a database knows them, of a country or autonomous system likewise. In its first
    week a site has not met all providers of its country: then the country alone counts.

    Strange alone is low: a traveller looks the same. It is medium at an hour at which neither the user nor the
    people of the site log in, by a method that the user has never used, or by a password where the user's
    logins are by public key, all but one, and one more for each twenty. That last one is low where the network
    is new and not strange, and nobody else comes from it. Not judged: users of fewer than `logins` logins, or
    known for less than half a day; anybody within a day of the site's first login; and, but for the method,
    users of five new ranges or more, where a quarter of their logins brought one.

    Parameters: `logins` (int, 4), `users` (int, 4096: pairs of user and source that are remembered at once).
    """

    name: ClassVar[str] = "new_access"
    kinds: ClassVar[tuple[Kind, ...]] = ("new_access",)
    partition_key: ClassVar[EntityType] = "user"

    def __init__(self, logins: int = 4, users: int = 4096) -> None:
        self._logins = logins
        self._campaigns = Campaigns(
            NS_PER_DAY, capacity=users, records=max(8, users // 4), names=users, any_blockable=True
        )

    def update(self, attempts: Attempts, convictions: object = None) -> list[Finding]:
        rows = self._rows(attempts)
        if not len(rows):
            return []
        signs = self._signs(attempts, rows)
        rows, signs = rows[signs > 0], signs[signs > 0]
        if not len(rows):
            return []
        medium = _is_medium(signs)
        clear = medium & (attempts.credit[rows] == 0)
        time_ns, ones = attempts.time_ns[rows], np.ones(len(rows), np.int64)
        followed = self._campaigns.update(
            join_keys(attempts.pair[rows], medium.astype(np.uint64)),
            time_ns,
            np.ones(len(rows), np.bool_),
            marks(
                attempts.line[rows],
                attempts.batch.provenance[attempts.row[rows]],
                attempts.proven[rows] & clear,
                ones,
                attempts.vouched[rows] & clear,
            ),
            attempts.user[rows],
            attempts.spans[rows],
            attempts.batch.text,
            time_ns,
        )

        def story_of(at: int) -> dict[str, Any]:
            row = int(rows[at])
            return {
                **attempts.story_of(row, f"{self.name} {int(medium[at])}"),
                "user": attempts.user_of(row),
                "signs": int(signs[at]),
                "new": _news(attempts, row, int(signs[at])),
                "baseline": _usual(attempts, row),
            }

        return [self._finding(*grown) for grown in self._campaigns.grown(followed, story_of)]

    def _rows(self, attempts: Attempts) -> I64:
        """Successes from a new network, of users of whom enough is known."""
        known = attempts.success & (attempts.logins >= self._logins) & (attempts.pair != 0)
        known &= attempts.time_ns - attempts.user_first_ns >= _HALF_DAY_NS
        known &= attempts.time_ns - attempts.recalled.site_first_ns >= NS_PER_DAY
        return np.flatnonzero(known & (attempts.facts & (NETWORK | WIDER) == 0))

    def _signs(self, attempts: Attempts, rows: I64) -> I64:
        """What there is to say of each, 0 = nothing."""
        facts, logins = attempts.facts[rows], attempts.logins[rows]
        country, system = attempts.country[rows], attempts.system[rows]
        placed = (country != 0) | (system != 0)
        young = attempts.time_ns[rows] - attempts.recalled.site_first_ns[rows] < _WEEK_NS
        known_system = (system == 0) | (young & (country != 0))

        def knows(ranges: int, countries: int, systems: int) -> Bool:
            there: Bool = placed & ((country == 0) | (facts & countries > 0))
            there &= known_system | (facts & systems > 0)
            return there | (facts & ranges > 0)

        # Before there was a database, no country was learnt.
        abroad = (country != 0) & (attempts.recalled.places[rows, 0] != 0) & (facts & COUNTRY == 0)
        abroad &= logins >= _ENOUGH
        strange = ~knows(RANGE, COUNTRY, ASN) & (~knows(SITE_RANGE, SITE_COUNTRY, SITE_ASN) | abroad)
        strange &= attempts.credit[rows] < _SHARED
        method, by_method = attempts.method[rows], attempts.recalled.by_method[rows]
        by_key = attempts.recalled.by_key[rows]
        weak = (method == PASSWORD) | (method == KEYBOARD)
        weak &= (by_key >= self._logins - 1) & (logins - by_key <= 1 + logins // 20)
        weak &= attempts.credit[rows] == 0
        roamed = attempts.recalled.roamed[rows]
        wanders = (roamed >= 5) & (4 * (roamed - 1) > logins)
        signs = np.where(strange & ~wanders, _QUIET, 0)
        signs |= np.where(signs > 0, np.where(facts & HOUR == 0, _HOUR_TOO, 0), 0)
        signs |= np.where(strange & (method != 0) & (by_method == 0), _QUIET | _NEW_METHOD, 0)
        signs |= np.where(weak, _METHOD_TOO | np.where(strange, _QUIET, 0), 0)
        return signs

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        medium = bool(_is_medium(np.array([story["signs"]]))[0])
        source, user = story["entity"], story["user"]
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="new_access",
            entity_type="user" if user else "source",
            entity=user or source,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=60 if medium else 30,
            confidence=0.7 if medium else 0.6,
            sources=(source,),
            users=record.names or ((user,) if user else ()),
            targets=story["targets"],
            figures={"successes": record.attempts, "new": story["new"], "credit_users": story["credit"]},
            threshold="a login from a new network"
            + (" and one thing more that is unusual" if medium else ""),
            baseline=story["baseline"],
            techniques=("T1078",),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
            blockable=(source,) if record.blockable else (),
            refusable=(source,) if record.refusable else (),
        )

    def standing(self, convicted: bool) -> list[Standing]:
        """Nothing of one address: what a login from it would be depends on whose it is."""
        return []

    def save(self) -> dict[str, Any]:
        return {"campaigns": self._campaigns.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._campaigns.load(state["campaigns"])


def _is_medium(signs: I64) -> Bool:
    """Something strange, and one thing more."""
    both: Bool = (signs & _QUIET > 0) & (signs & (_METHOD_TOO | _HOUR_TOO | _NEW_METHOD) > 0)
    return both


def _news(attempts: Attempts, row: int, signs: int) -> str:
    """What is new, in words."""
    facts = int(attempts.facts[row])
    country = int(attempts.country[row])
    said = ["network"]
    if signs & _QUIET and facts & SITE_RANGE == 0:
        said.append("range, for everybody here")
    if country and facts & COUNTRY == 0:
        code = chr(country >> 8) + chr(country & 0xFF)
        said.append(f"country {code}" + (", for everybody here" if facts & SITE_COUNTRY == 0 else ""))
    if attempts.system[row] and facts & SITE_ASN == 0:
        said.append(f"AS{int(attempts.system[row])}, for everybody here")
    if signs & (_METHOD_TOO | _NEW_METHOD):
        said.append(f"method {METHODS[attempts.method[row]]}")
    if signs & _HOUR_TOO:
        said.append(f"hour {int(attempts.time_ns[row]) // (3600 * NS_PER_S) % 24:02d} UTC")
    return "; ".join(said)


def _usual(attempts: Attempts, row: int) -> str:
    """What was usual for the user, in words."""
    logins, by_key = int(attempts.logins[row]), int(attempts.recalled.by_key[row])
    since = rfc3339(int(attempts.user_first_ns[row]))[:10]
    return f"{logins} logins of this user since {since}, {by_key} of them by public key"
