"""Credential stuffing: very many sources, one or two tries each, at the accounts of the whole site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, U64, Bool
from ..addressing import join_keys
from ..campaigns import ASK, Campaigns, Followed, Record
from ..finding import EntityType, Finding, Kind, finding_id
from ..profiles import RANGE, SITE_RANGE
from ..standing import Standing
from ..tables import NS_PER_DAY, Rates, WindowCounter
from .attempts import Attempts
from .cusum import CHUNK, Cusum, Verdict
from .evidence import spread
from .participants import Participants

SITE = "site"
_HOUR_NS = 3600 * 10**9
_KNOWN = 3
_RIGHT, _LIKELIER = 0.01, 5


class CredentialStuffing:
    """Stuffing and low, slow guessing of a whole site (ATT&CK T1110.004), whoever it comes from.

    Counted is the first failure of a stranger for an account that exists and that is not guessed everywhere
    (`guessed_names`), at most `few` an hour for one account and from one IPv4 /24 or IPv6 /48: what is aimed at
    one account, or comes from one network, is for other detectors. A beta-binomial CUSUM over all attempts that
    concern users of the site (`cusum`) says when there are more than usual, by `excess` at least.

    Those who take part are the strangers who fail while it goes on, for unknown accounts as well, less those who
    fail again and again for one user, and those from whom somebody logs in.

    Parameters: `excess` (int, 8), `few` (int, 3), `sources` (int, 8192: the most that are remembered at once).
    """

    name: ClassVar[str] = "credential_stuffing"
    kinds: ClassVar[tuple[Kind, ...]] = ("credential_stuffing",)
    partition_key: ClassVar[EntityType] = "site"

    def __init__(self, excess: int = 8, few: int = 3, sources: int = 8192) -> None:
        self._few = few
        self._of_account = WindowCounter(sources, ((_HOUR_NS // 12, 13),))
        self._of_network = WindowCounter(sources, ((_HOUR_NS // 12, 13),))
        self._of_site = WindowCounter(1, ((_HOUR_NS // 12, 13),))
        self._elsewhere = Rates(1)
        self._cusum = Cusum(excess)
        self._participants = Participants(sources)
        self._campaigns = Campaigns(NS_PER_DAY, capacity=64, records=64)
        self._users = Campaigns(NS_PER_DAY, capacity=64, records=64)

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What each failure belongs to, and each success that those who take part may have had; the findings."""
        stranger = attempts.stranger & ~attempts.popular
        nobody = attempts.nameless & ~attempts.popular
        first = self._participants.update(attempts, stranger, nobody)
        counted = self._count(attempts, stranger & (attempts.pending == 0))
        familiar = (attempts.failures > 0) & (attempts.first_success_ns > 0)
        rows = np.flatnonzero(attempts.success | counted | familiar | stranger | nobody)
        time_ns = attempts.time_ns[rows]
        judged = (attempts.success | counted | familiar)[rows]
        verdict = self._cusum.update(judged, counted[rows], time_ns)
        member = (stranger | nobody)[rows] & verdict.dense
        key = join_keys(np.ones(len(rows), np.uint64), verdict.episode.view(np.uint64))
        names, spans = attempts.packed_sources(rows)
        marked = np.where(member, attempts.marked[rows], ASK)
        followed = self._campaigns.update(
            key, time_ns, verdict.alarm, marked, attempts.source[rows], spans, names, verdict.since_ns
        )
        named = self._users.update(
            key, time_ns, verdict.alarm, marked, attempts.user[rows], attempts.spans[rows], attempts.batch.text,
            verdict.since_ns,
        )  # fmt: skip

        def story_of(at: int) -> dict[str, Any]:
            return self._story(attempts, int(rows[at]), float(verdict.usual[at]), int(named.serial[at]))

        def news_of(at: int) -> dict[str, Any]:
            return {"number": first + int(rows[at])}

        found = [
            self._finding(*grown, attempts) for grown in self._campaigns.grown(followed, story_of, news_of)
        ]
        hits = self._hits(attempts, rows, followed, verdict, counted, first)
        return spread(hits, rows, len(attempts.row)), found

    def _count(self, attempts: Attempts, rows_of: Bool) -> Bool:
        """Which of these failures are counted: the first few of an hour, by account and by network."""
        counted: Bool = np.zeros(len(rows_of), np.bool_)
        rows = np.flatnonzero(rows_of)
        time_ns, one = attempts.time_ns[rows], np.ones(len(rows), np.int64)
        of_account = self._of_account.update(attempts.user[rows], time_ns, one)[:, 0]
        of_network = self._of_network.update(attempts.wider[rows], time_ns, one)[:, 0]
        counted[rows] = (of_account <= self._few) & (of_network <= self._few)
        return counted

    def _hits(
        self, attempts: Attempts, rows: I64, followed: Followed, verdict: Verdict, counted: Bool, first: int
    ) -> Followed:
        """The successes that may be of those who take part: from a source that had failed for somebody else; or,
        while the attack is intense, of a user known from elsewhere, where hits are likelier than such logins are.
        """
        success, new = attempts.success[rows], attempts.first_success_ns[rows] == 0
        likely = np.flatnonzero(success & (followed.serial > 0) & new)
        live: Bool = np.zeros(len(rows), np.bool_)
        for at in likely.tolist():
            row = int(rows[at])
            live[at] = self._participants.suspected(attempts.source[row], attempts.user[row], first + row)
        elsewhere = success & new & (attempts.logins[rows] >= _KNOWN)
        elsewhere &= attempts.facts[rows] & (RANGE | SITE_RANGE) == 0
        elsewhere &= attempts.time_ns[rows] - attempts.user_first_ns[rows] >= NS_PER_DAY // 2
        asked = np.flatnonzero(counted[rows] | elsewhere)
        live[asked] |= (elsewhere & verdict.intense)[asked] & self._likelier(
            attempts, rows[asked], counted[rows[asked]], elsewhere[asked] & (followed.serial[asked] == 0)
        )
        return replace(followed, live=live, serial=np.where(success & ~live, 0, followed.serial))

    def _likelier(self, attempts: Attempts, rows: I64, counted: Bool, benign: Bool) -> Bool:
        """Whether a hit of the attack is likelier by far than a login that was nobody's but its user's, were one in
        a hundred pairs right: by the strangers' failures of the last hour, and by how often users come from
        somewhere new when there is no attack (`benign`). Not before a day of logins is known.
        """
        time_ns, site = attempts.time_ns[rows], np.ones(len(rows), np.uint64)
        tries = self._of_site.update(site, time_ns, counted.astype(np.int64))[:, 0]
        known = time_ns - attempts.recalled.site_first_ns[rows] >= NS_PER_DAY
        rates = self._elsewhere.update(site, time_ns, (benign & known).astype(np.int64))
        hours = (time_ns - attempts.recalled.site_first_ns[rows]) // _HOUR_NS - 24
        usual = (rates[:, 0] * rates[:, 1] / 1024 + 1) / np.clip(hours, 1, Rates.MEMORY)
        likelier: Bool = (hours >= 0) & (tries * _RIGHT >= _LIKELIER * usual)
        return likelier

    def _story(self, attempts: Attempts, at: int, usual: float, users: int) -> dict[str, Any]:
        time_ns, line = int(attempts.time_ns[at]), int(attempts.line[at])
        return attempts.story_of(at, self.name) | {
            "id": finding_id(self.name, SITE, time_ns, line),
            "usual": usual,
            "users": users,
        }

    def _finding(self, record: Record, story: dict[str, Any], attempts: Attempts) -> Finding:
        tried = self._users.record(story["users"])
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="credential_stuffing",
            entity_type="site",
            entity=SITE,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=60 + 10 * (record.attempts >= 300),
            confidence=0.9,
            sources=self._participants.named(attempts, record.items, story["number"]),
            users=tried.names if tried else (),
            targets=story["targets"],
            figures={
                "attempts": record.attempts,
                "distinct_sources": record.distinct,
                "distinct_users": tried.distinct if tried else 0,
                "usual_in_100": round(story["usual"], 2),
            },
            threshold="more failures of strangers than chance explains (beta-binomial CUSUM)",
            baseline=f"{story['usual']:.2f} of {CHUNK} attempts are usually a stranger's first failure",
            techniques=("T1110.004",),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
        )

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """Nothing: no source is judged here by itself."""
        return []

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def save(self) -> dict[str, Any]:
        return {name.lstrip("_"): getattr(self, name).save() for name in self._parts}

    def load(self, state: dict[str, Any]) -> None:
        for name in self._parts:
            getattr(self, name).load(state[name.lstrip("_")])

    _parts: ClassVar[tuple[str, ...]] = (
        "_of_account", "_of_network", "_of_site", "_elsewhere", "_cusum", "_participants", "_campaigns", "_users",
    )  # fmt: skip
