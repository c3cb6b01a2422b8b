"""Account compromise: a guesser who gets in. The one finding that cannot wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, Bool
from ..campaigns import OPENED, Campaigns, Followed, Record, marks
from ..finding import EntityType, Finding, Kind
from ..profiles import NETWORK, PUBLICKEY, RANGE, SITE_RANGE, WIDER
from ..standing import Standing
from ..tables import NS_PER_DAY
from .attempts import Attempts
from .evidence import NO_SLIP, SHARED
from .principals import accused, is_guessable, is_keyed, principals

_BY_SOURCE = "a login that succeeds from a source that has been guessing passwords"
_BY_ACCOUNT = (
    "a login by a password from a network never seen for this user, while strangers guess the account"
)

_WENT_ON = 3
_KNOWN = 3
_USUAL = NETWORK | WIDER | RANGE | SITE_RANGE


class Compromise:
    """A login of a guesser (ATT&CK T1078 after T1110), on that very event.

    Under conviction is a source with an open campaign of brute force, spray or rotation: since its last failure
    less than a day has passed. Where several users log in, somebody among them attacks, and the others go on:
    accused is who has failed there `typist` times in a row while the attack is live (and that at low priority once
    the guessing goes on afterwards, of who is at home there). Elsewhere everybody is accused who had not logged in
    from there before the attack, is no job, and does not come at the first try by a key, as before from elsewhere;
    when it is no longer live, only who has failed there `newcomer` times. Users who
    first logged in from a source without credit after its attack had begun, but before it was
    convicted, are accused when it is.

    While many sources guess the account, or the site and this login may be one of theirs, and their last failure
    is no older than `memory_s`, accused is a login without a key, from a network and range that are not usual, of a
    user who is known and does not come from new networks all the time.

    Parameters: `typist` (int, 20), `newcomer` (int, 5), `memory_s` (int, 21600).
    """

    name: ClassVar[str] = "compromise"
    kinds: ClassVar[tuple[Kind, ...]] = ("account_compromise",)
    partition_key: ClassVar[EntityType] = "source"
    _of_sources: ClassVar[tuple[str, ...]] = ("brute_force", "password_spray", "rotation")
    _of_accounts: ClassVar[tuple[str, ...]] = ("distributed_brute_force", "credential_stuffing")

    def __init__(self, typist: int = 20, newcomer: int = NO_SLIP, memory_s: int = 21600) -> None:
        self._typist, self._newcomer = typist, newcomer
        self._memory_ns = memory_s * NS_PER_S
        self._campaigns = Campaigns(NS_PER_DAY, capacity=4096, records=1024, names=4096, any_blockable=True)
        self._early = Campaigns(NS_PER_DAY, capacity=4096, records=1024, names=4096, any_blockable=True)

    def update(self, attempts: Attempts, followed: Mapping[str, Followed]) -> list[Finding]:
        """`followed`: by its name, what each detector that follows failures says of the same attempts."""
        convictions = [followed[name] for name in self._of_sources]
        convicted: Bool = np.zeros(len(attempts.row), np.bool_)
        for conviction in convictions:
            convicted |= conviction.serial > 0
        early = self._early_hits(attempts, convictions, convicted)
        attacked: Bool = np.zeros(len(attempts.row), np.bool_)
        for name in self._of_accounts:
            attacked |= followed[name].serial > 0
        rows = np.flatnonzero((convicted | attacked) & attempts.success)
        by_source, sprayed = self._guessed(attempts, convictions, rows)
        attacks = {name: followed[name] for name in self._of_accounts}
        by_account = self._taken(attempts, list(attacks.values()), rows)
        # Others who guess the account do not accuse its user of a slip at a new place, nor is a key guessed by
        # requests that name no key, or it: only a list of many is tried.
        sure = (by_source > 0) | (attempts.pending[rows] >= self._newcomer)
        sure &= np.where(is_keyed(attempts, rows), sprayed, is_guessable(attempts, rows))
        return early + self._hits(attempts, rows, by_source, by_account, convicted, attacks, sure)

    def _guessed(self, attempts: Attempts, convictions: Sequence[Followed], rows: I64) -> tuple[I64, Bool]:
        """Of the successes in `rows`: how often a guesser whose success it is had failed, 0 = it is none's; and
        whether it is that of one who tried many users.
        """
        guessed, sprayed = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        pending, first, job = attempts.pending[rows], attempts.first_success_ns[rows], attempts.job[rows]
        # Whoever guesses passwords does not come in by the key of a user who has one, at the first try.
        by_key = (attempts.method[rows] == PUBLICKEY) & (attempts.recalled.by_key[rows] > 0) & (pending == 0)
        for name, conviction in zip(self._of_sources, convictions, strict=True):
            # A guesser's own hits make no office: it takes three users to be shared from then on.
            shared = (conviction.kept[rows] >= SHARED) | (attempts.credit[rows] > SHARED)
            home = (first > 0) & (first < conviction.start_ns[rows])
            live = conviction.live[rows]
            own = ~home & ~job & ~by_key & (live | (pending >= self._newcomer))
            hit = (conviction.serial[rows] > 0) & np.where(shared, live & (pending >= self._typist), own)
            guessed = np.maximum(guessed, np.where(hit, conviction.attempts[rows], 0))
            if name == "password_spray":
                sprayed |= hit
        return guessed, sprayed

    def _taken(self, attempts: Attempts, attacks: Sequence[Followed], rows: I64) -> I64:
        """Of the successes in `rows`: the failures of those who guess this account, where it is one of them who
        got in; 0 = it is none.
        """
        logins, strayed = attempts.logins[rows], attempts.recalled.strayed[rows]
        known = (logins >= _KNOWN) & ((strayed - 1) * 3 <= logins)
        stranger = (attempts.first_success_ns[rows] == 0) & (attempts.facts[rows] & _USUAL == 0)
        stranger &= (
            ~attempts.private[rows] & (attempts.credit[rows] < SHARED) & (attempts.method[rows] != PUBLICKEY)
        )
        taken = np.zeros(len(rows), np.int64)
        for attack in attacks:
            recent = attempts.time_ns[rows] - attack.before_ns[rows] <= self._memory_ns
            going_on = (attack.serial[rows] > 0) & attack.live[rows] & recent
            hit = going_on & stranger & known
            taken = np.maximum(taken, np.where(hit, attack.attempts[rows], 0))
        return taken

    def _hits(
        self,
        attempts: Attempts,
        rows: I64,
        by_source: I64,
        by_account: I64,
        convicted: Bool,
        attacks: Mapping[str, Followed],
        sure: Bool,
    ) -> list[Finding]:
        """`sure`: of the successes in `rows`, those that would accuse their user."""
        failures = np.maximum(by_source, by_account)
        hit = failures > 0
        rows, by_source, failures = rows[hit], by_source[hit], failures[hit]
        # Who is guessed from inside an office logs in there as well: then the guessing goes on afterwards.
        at_home = (attempts.credit >= SHARED) & (attempts.first_success_ns > 0) & convicted
        later = np.flatnonzero(at_home & (attempts.failures > 0))
        if not len(rows) + len(later):
            return []
        order = np.argsort(np.concatenate((rows, later)), kind="stable")
        rows = np.concatenate((rows, later))[order]
        success = attempts.success[rows]
        by_source, failures, sure = (
            np.concatenate((c, np.zeros(len(later), c.dtype)))[order]
            for c in (by_source, failures, sure[hit])
        )
        time_ns = attempts.time_ns[rows]
        provenance = attempts.batch.provenance[attempts.row[rows]]
        after = np.where(success, 0, attempts.failures[rows])
        followed = self._campaigns.update(
            np.where(attempts.pair[rows] == 0, attempts.source[rows], attempts.pair[rows]),
            time_ns,
            success,
            marks(
                attempts.line[rows],
                provenance,
                attempts.proven[rows],
                success.astype(np.int64),
                attempts.vouched[rows],
            ),
            np.where(success, accused(attempts, rows, sure), np.uint64(0)),
            attempts.spans[rows],
            attempts.batch.text,
            time_ns,
            np.stack((after, np.zeros_like(after)), axis=1),
        )

        def story_of(at: int) -> dict[str, Any]:
            row = int(rows[at])
            return {
                **attempts.story_of(row, self.name),
                "user": attempts.user_of(row),
                "failures": int(failures[at]),
                "own_failures": int(attempts.pending[row]),
                "threshold": _BY_SOURCE if by_source[at] else _BY_ACCOUNT,
                "part_of": () if by_source[at] else [n for n, a in attacks.items() if a.serial[row] > 0],
            }

        return [
            self._finding(*grown, self._campaigns.items(grown[0].serial))
            for grown in self._campaigns.grown(followed, story_of, attempts.news(rows))
        ]

    def _early_hits(
        self, attempts: Attempts, convictions: Sequence[Followed], convicted: Bool
    ) -> list[Finding]:
        """Where a source without credit is convicted: the users who had come in since its attack began."""
        opened: Bool = np.zeros(len(convicted), np.bool_)
        start_ns = attempts.time_ns.copy()
        for conviction in convictions:
            opening = (conviction.marks & OPENED > 0) & (conviction.kept == 0) & ~attempts.job
            start_ns = np.where(opening, np.minimum(start_ns, conviction.start_ns), start_ns)
            opened |= opening
        came_in = attempts.success & (attempts.first_success_ns == 0) & (attempts.credit == 0) & ~convicted
        rows = np.flatnonzero(opened | came_in)
        if not len(rows):
            return []
        # That others fail from there afterwards, or that user, accuses nobody but who had failed there before.
        sure = (attempts.pending[rows] >= self._newcomer) & is_guessable(attempts, rows)
        sure &= ~is_keyed(attempts, rows)
        # Only what came in carries an item, so a campaign without items is one of which nothing need be said.
        followed = self._early.update(
            attempts.source[rows],
            attempts.time_ns[rows],
            opened[rows],
            marks(
                attempts.line[rows],
                attempts.batch.provenance[attempts.row[rows]],
                attempts.proven[rows],
                came_in[rows].astype(np.int64),
                attempts.vouched[rows],
            ),
            np.where(came_in[rows], accused(attempts, rows, sure), np.uint64(0)),
            attempts.spans[rows],
            attempts.batch.text,
            start_ns[rows],
        )

        def story_of(at: int) -> dict[str, Any]:
            row = int(rows[at])
            failures = max(int(conviction.attempts[row]) for conviction in convictions)
            told = attempts.story_of(row, f"{self.name} before")
            return told | {"failures": failures, "threshold": _BY_SOURCE, "part_of": ()}

        return [
            self._finding(
                record,
                {**story, "user": record.names[0] if len(record.names) == 1 else ""},
                self._early.items(record.serial),
            )
            for record, story in self._early.grown(followed, story_of, attempts.news(rows))
            if record.items
        ]

    def _finding(self, record: Record, story: dict[str, Any], items: tuple[int, ...]) -> Finding:
        source, user = story["entity"], story["user"]
        shared = max(story["credit"], story["credit_now"])
        # Anybody can have an account guessed by others while its user travels.
        bystander = story["threshold"] == _BY_ACCOUNT and not story["own_failures"]
        own = story["at_home"] and record.amounts[0] >= _WENT_ON
        alone = shared < SHARED
        whole = user if "own_failures" in story else ""
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="account_compromise",
            entity_type="user" if user else "source",
            entity=user or source,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=95,
            confidence=0.35 if own else 0.8 if story["credit"] else 0.85 if bystander else 0.95,
            sources=(source,),
            users=record.names or ((user,) if user else ()),
            targets=story["targets"],
            figures={
                "successes": record.attempts,
                "failures_before": story["failures"],
                **({"failures_of_user": story["own_failures"]} if "own_failures" in story else {}),
                "credit_users": story["credit"],
            },
            threshold=story["threshold"],
            baseline=story["baseline"]
            + ("; the guessing went on afterwards: it was the user" if own else ""),
            techniques=("T1078", "T1110"),
            lines=record.lines,
            samples=story["samples"],
            trigger_line=record.trigger_line,
            part_of=tuple(story.get("part_of", ())),
            provenance=record.provenance,
            blockable=(source,) if record.blockable and alone and not bystander else (),
            refusable=(source,) if record.refusable and alone and not bystander else (),
            blockable_users=principals(record.items, items, whole) if alone and not own else (),
        )

    def standing(self, convicted: bool) -> list[Standing]:
        """What a login from a source would be, which a detector has raised for guessing or has not."""
        text = "a login from there is an incident only while it is raised for guessing passwords"
        said = f"{text}; it is" if convicted else f"{text}; it is not"
        return [Standing(self.name, said, figure=int(convicted), threshold=1, unit="convictions")]

    def save(self) -> dict[str, Any]:
        return {"logins": self._campaigns.save(), "early": self._early.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._campaigns.load(state["logins"])
        self._early.load(state["early"])
