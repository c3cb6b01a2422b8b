"""MFA fatigue: one user is asked for the second factor again and again, until somebody lets it through."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I32, I64, NS_PER_S, U64, Bool
from ..addressing import join_keys
from ..campaigns import ASK, Campaigns, Followed, Record, marks
from ..finding import EntityType, Finding, Kind, finding_id
from ..standing import Standing
from ..tables import NS_PER_DAY, WindowCounter
from .attempts import Attempts
from .evidence import NO_SLIP
from .principals import ACCOUNT, SUBJECT, accused, is_guessable, principal

_CELLS = 12
_CLUMSY = 2  # denied prompts that a person comes to in one visit
_KEYS = frozenset(("publickey", "hostbased"))


class MfaFatigue:
    """Push bombing (ATT&CK T1621): denied second factors of one user, and the one that was accepted then.

    Counted are prompts that were denied, ran out, or were answered wrongly. Where the user has logged in before, or
    not, is counted apart. From where not, a user is raised at the `prompts`-th within an hour, or at the
    `slow_prompts`-th within a day: a traveller whose push does not come through tries once or twice and then uses
    something else, and a login from there takes that source's denials back. From where the user has logged
    in, at the `known_prompts`-th within an hour, or at twice as many within a day: there it can be the user's
    own telephone with a wrong clock, or a client that goes on asking by itself. A bombing ends after three hours
    without a prompt, one that was slow after a day; what belongs to the first does not count for the second.

    A login of the user during a bombing, from where the user had not been before, is the prompt that was let
    through, on that very event: if that source was denied three times, or others were within the hour. A login by a
    key from a source that was not denied anything is not. Nobody is accused of logging in from a network of
    their own, nor, after a bombing, of a slip at a new one.

    Parameters: `prompts` (int, 6), `slow_prompts` (int, 10), `known_prompts` (int, 20), `users` (int, 4096).
    References: CISA, "Implementing Phishing-Resistant MFA" and "Implementing Number Matching in MFA Applications"
    (fact sheets, October 2022); MITRE ATT&CK T1621.
    """

    name: ClassVar[str] = "mfa_fatigue"
    kinds: ClassVar[tuple[Kind, ...]] = ("mfa_fatigue",)
    partition_key: ClassVar[EntityType] = "user"

    def __init__(
        self, prompts: int = 6, slow_prompts: int = 10, known_prompts: int = 20, users: int = 4096
    ) -> None:
        self._paces = (
            _Pace(3600, 3 * 3600, prompts, known_prompts, users),
            _Pace(86400, 86400, slow_prompts, 2 * known_prompts, users),
        )
        self._accepted = Campaigns(NS_PER_DAY, capacity=1024, records=256, names=1024)
        self._prompted = False  # whether any second factor was ever denied; many sites ask for none

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What denied prompts, and logins from where their user is new, belong to; and the findings."""
        whole: I64 = np.zeros((6, len(attempts.row)), np.int64)
        self._prompted = self._prompted or bool(attempts.denied.any())
        if not self._prompted:
            return Followed.of(whole), []
        new = (attempts.first_success_ns == 0) | _let_in_before(attempts)
        asked = attempts.success & (new | (attempts.pending > 0))
        rows = np.flatnonzero((attempts.user != 0) & ((attempts.denied > 0) | asked))
        if not len(rows):
            return Followed.of(whole), []
        strange, success, denied = new[rows], attempts.success[rows], attempts.denied[rows]
        user, time_ns = attempts.user[rows], attempts.time_ns[rows]
        # A line can lack the name that its session knows; then the next one that has it raises its user.
        named = (attempts.spans[rows, 0] >= 0) & (attempts.spans[rows, 1] > attempts.spans[rows, 0])
        key = np.where(strange, user, join_keys(user, np.ones(len(rows), np.uint64)))
        change = np.where(success, -attempts.pending[rows], denied)
        marked = np.where(
            success,
            ASK,
            marks(
                attempts.line[rows],
                attempts.batch.provenance[attempts.row[rows]],
                attempts.proven[rows] & (attempts.credit[rows] == 0),
                denied,
                attempts.vouched[rows] & (attempts.credit[rows] == 0),
            ),
        )
        found: list[Finding] = []
        for pace in self._paces:
            # Prompts of a bombing that is open are not the beginning of a slow one.
            free = success | (whole[0, rows] == 0)
            keys = np.where(free, key, np.uint64(0))
            counts = pace.counter.update(keys, time_ns, change)[:, 0]
            if pace is self._paces[0]:
                # A source that was denied once or twice, hours after the others, may be the user's own.
                takes_part = strange & ((counts > _CLUMSY) | (attempts.pending[rows] + denied > _CLUMSY))
                text, spans = _names_of_sources(attempts, rows, takes_part & ~success)
            limit = np.where(strange, pace.strange, pace.known)
            items = np.where(takes_part, attempts.source[rows], np.uint64(0))
            over, since_ns = (counts >= limit) & named, time_ns - pace.window_s * NS_PER_S
            said = pace.campaigns.update(keys, time_ns, over, marked, items, spans, text, since_ns)
            followed = np.stack(
                (said.serial, said.start_ns, said.before_ns, said.marks, said.attempts, said.kept)
            )
            whole[:, rows] = np.where(whole[0, rows] > 0, whole[:, rows], followed)

            def story_of(at: int, pace: _Pace = pace) -> dict[str, Any]:
                return self._opened(attempts, int(rows[at]), pace, bool(strange[at]))

            found += [self._bombing(*grown) for grown in pace.campaigns.grown(said, story_of)]
        chosen = rows[takes_part & success & named & (whole[0, rows] > 0)]
        return Followed.of(whole), found + self._let_through(attempts, chosen, whole[4])

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def _let_through(self, attempts: Attempts, rows: I64, prompts: I64) -> list[Finding]:
        """Of the logins in `rows`, those that a bombing of so many `prompts` led to."""
        rows = np.array(
            [
                row
                for row in rows.tolist()
                if attempts.pending[row]
                or attempts.batch.text_of(int(attempts.row[row]), "method") not in _KEYS
            ],
            np.int64,
        )
        if not len(rows):
            return []
        text, spans = _names_of_sources(attempts, rows, np.ones(len(rows), np.bool_))
        followed = self._accepted.update(
            attempts.user[rows],
            attempts.time_ns[rows],
            np.ones(len(rows), np.bool_),
            marks(
                attempts.line[rows],
                attempts.batch.provenance[attempts.row[rows]],
                attempts.proven[rows] & (attempts.credit[rows] == 0),
                np.ones(len(rows), np.int64),
                attempts.vouched[rows] & (attempts.credit[rows] == 0),
            ),
            attempts.source[rows],
            spans,
            text,
            attempts.time_ns[rows],
            self._accused(attempts, rows),
        )

        def story_of(at: int) -> dict[str, Any]:
            row = int(rows[at])
            return {
                **self._told(attempts, row, " accepted"),
                "denied": int(prompts[row]),
                "own": int(attempts.pending[row]),
            }

        return [self._acceptance(*grown) for grown in self._accepted.grown(followed, story_of)]

    @staticmethod
    def _accused(attempts: Attempts, rows: I64) -> I64:
        """Which logins accuse an account, and which a subject (`int64[n, 2]`): those from where nobody had logged in
        and this user had failed too often for a slip. Others may be the user's own, who travels meanwhile.
        """
        sure = (attempts.pending[rows] >= NO_SLIP) & (attempts.credit[rows] == 0)
        kind = accused(attempts, rows, sure & is_guessable(attempts, rows)) & np.uint64(3)
        return np.stack((kind == ACCOUNT, kind == SUBJECT), axis=1).astype(np.int64)

    def _opened(self, attempts: Attempts, row: int, pace: _Pace, strange: bool) -> dict[str, Any]:
        limit = pace.strange if strange else pace.known
        where = "where the user had never logged in" if strange else "where the user logs in"
        return {
            **self._told(attempts, row, ""),
            "limit": limit,
            "window_s": pace.window_s,
            "known": not strange,
            "threshold": f"{limit} denied prompts of one user in {pace.window_s} s, from {where}",
        }

    def _told(self, attempts: Attempts, row: int, what: str) -> dict[str, Any]:
        user = attempts.user_of(row)
        story = attempts.story_of(row, self.name)
        name = finding_id(self.name + what, user, int(attempts.time_ns[row]), int(attempts.line[row]))
        return {**story, "id": name, "user": user}

    def _bombing(self, record: Record, story: dict[str, Any]) -> Finding:
        many, known = record.attempts >= 2 * story["limit"], story["known"]
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="mfa_fatigue",
            entity_type="user",
            entity=story["user"],
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=70 if many else 60,
            confidence=0.65 if known else 0.9 if many else 0.75,
            sources=record.names,
            users=(story["user"],),
            targets=story["targets"],
            figures={
                "denied_prompts": record.attempts,
                "distinct_sources": record.distinct,
                "threshold": story["limit"],
                "window_s": story["window_s"],
            },
            threshold=story["threshold"],
            baseline="this user has logged in from there before: a telephone with a wrong clock, or a client that "
            "goes on asking, looks the same"
            if known
            else "this user had never logged in from these sources before",
            techniques=("T1621",),
            lines=record.lines,
            samples=story["samples"],
            trigger_line=record.trigger_line,
            provenance=record.provenance,
            trigger_source="" if story["credit"] else story["entity"],
            blockable=record.names if record.blockable else (),
            refusable=record.names if record.refusable else (),
        )

    def _acceptance(self, record: Record, story: dict[str, Any]) -> Finding:
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="mfa_fatigue",
            entity_type="user",
            entity=story["user"],
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=95,
            confidence=0.9 if story["own"] else 0.7,
            sources=record.names,
            users=(story["user"],),
            targets=story["targets"],
            figures={
                "successes": record.attempts,
                "denied_before": story["denied"],
                "failures_from_there": story["own"],
            },
            threshold="a login that succeeds after many denied prompts, from where the user is new",
            baseline="this user had never logged in from there before the bombing began",
            techniques=("T1621", "T1078"),
            lines=record.lines,
            samples=story["samples"],
            trigger_line=record.trigger_line,
            provenance=record.provenance,
            trigger_source="" if story["credit"] else story["entity"],
            blockable=record.names if record.blockable else (),
            refusable=record.names if record.refusable else (),
            blockable_users=tuple(
                name
                for kind, times in zip(("account", "subject"), record.amounts, strict=True)
                if times and (name := principal(kind, story["user"]))
            ),
        )

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """Nothing: users are raised here, never a source."""
        return []

    def save(self) -> dict[str, Any]:
        return {
            "prompted": self._prompted,
            "accepted": self._accepted.save(),
            "counters": [pace.counter.save() for pace in self._paces],
            "campaigns": [pace.campaigns.save() for pace in self._paces],
        }

    def load(self, state: dict[str, Any]) -> None:
        self._prompted = state["prompted"]
        self._accepted.load(state["accepted"])
        for pace, counter, campaigns in zip(self._paces, state["counters"], state["campaigns"], strict=True):
            pace.counter.load(counter)
            pace.campaigns.load(campaigns)


class _Pace:
    """Prompts within a window: how many it takes from where the user is new, and from where not."""

    def __init__(self, window_s: int, gap_s: int, strange: int, known: int, users: int) -> None:
        self.window_s, self.strange, self.known = window_s, strange, known
        # One cell more than the window has: a window never looks back less far than it says.
        self.counter = WindowCounter(2 * users, ((window_s // _CELLS * NS_PER_S, _CELLS + 1),))
        self.campaigns = Campaigns(gap_s * NS_PER_S, capacity=2 * users, records=512, names=2048)


def _let_in_before(attempts: Attempts) -> Bool:
    """Denials from where the user first logged in within the hour before, by login_duo: it asks after sshd has let
    the user in, so that a login of this kind says nothing of the second factor.
    """
    found: Bool = np.zeros(len(attempts.row), np.bool_)
    lately = attempts.time_ns - attempts.first_success_ns < 3600 * NS_PER_S
    for at in np.flatnonzero((attempts.denied > 0) & lately).tolist():
        found[at] = attempts.batch.text_of(int(attempts.row[at]), "service") == "login_duo"
    return found


def _names_of_sources(attempts: Attempts, rows: I64, wanted: Bool) -> tuple[bytes, I32]:
    """The sources of the `wanted` of these rows as text, and the span `[n, 2]` of each row's in it."""
    spans: I32 = np.full((len(rows), 2), -1, np.int32)
    parts: list[bytes] = []
    end = 0
    at: dict[int, tuple[int, int]] = {}
    for place in np.flatnonzero(wanted).tolist():
        row = int(rows[place])
        source = int(attempts.source[row])
        if source not in at:
            parts.append(attempts.source_of(row).encode())
            at[source] = end, end + len(parts[-1])
            end += len(parts[-1])
        spans[place] = at[source]
    return b"".join(parts), spans
