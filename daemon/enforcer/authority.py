"""Who may do what, and having it done: every request, from the enforcer's socket or from the command as root.

The order is always the same: authority, rails, journal, kernel. Nothing here waits for anybody: what takes
longer (the probe of a kill switch) is an answer to come. What a request means is in `blocks`, `users`,
`killswitch`, `restriction`, `ending` and `approvals`; here stands who may ask for it alone, and for what other people
have to agree.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from ..errors import EnforcerError
from . import signatures
from .approvals import Answer, Approvals
from .blocks import MOST_LISTED_BYTES, Blocks, brief
from .callers import Caller
from .deny_list import DenyList
from .ending import Ending
from .journal import Journal
from .kernel.nft import Nft
from .killswitch import MOST_NAMED, KillSwitch, Later
from .pace import room
from .protocol import MalformedError
from .rails import Rails, Refusal
from .restriction import Restrictions
from .state import Moment
from .users import Users

_MOST_NOTES_A_MINUTE = 60

Work = Callable[[dict[str, Any], Caller], Answer]
"""Does one kind of request, for a caller who has the authority."""


class Authority:
    """Answers requests that `protocol.parse` has let through.

    `restore` has to be called first: it puts the kernel in the state that the journal says; and `publish`, which
    does that to the `deny_list`, where there is one.
    """

    def __init__(
        self, journal: Journal, nft: Nft, now: Callable[[], Moment], deny_list: DenyList | None = None
    ) -> None:
        self.journal = journal
        self.rails = Rails()
        self.killswitch = KillSwitch(journal, nft)
        self._now = now
        made: deque[float] = deque()  # one measure for addresses and users
        taken_back: deque[float] = deque()
        self.blocks = Blocks(journal, nft, now, made, taken_back)
        self.users = Users(journal, now, made, taken_back)
        self.approvals = Approvals(journal, now, self._perform)
        self.restrictions = Restrictions(journal, nft, now, self.killswitch)
        self.ending = Ending(journal, nft, self.blocks)
        self._deny_list = deny_list
        self._refusals: defaultdict[str, deque[float]] = defaultdict(deque)  # by role: none hides another's
        self._healings: deque[float] = deque()
        self._unwritten = 0
        self.work: dict[str, Work] = {
            "block": self.blocks.block,
            "unblock": self.blocks.unblock,
            "blocks": self.blocks.blocks,
            "check": self.blocks.check,
            "import": self.blocks.import_blocks,
            "block_user": self.users.block_user,
            "unblock_user": self.users.unblock_user,
            "users": self.users.users,
            "check_user": self.users.check_user,
            "kill": self._kill,
            "release": self._release,
            "restrict": self.restrictions.restrict,
            "lift": self.restrictions.lift,
            "cut": self.ending.cut,
            "drill_start": self._drill_start,
            "drill_stop": self._drill_stop,
            "approvals": self.approvals.approvals,
            "grant": self.approvals.grant,
            "deny": self.approvals.deny,
            "signed": self._signed,
            "status": self._status,
        }
        self.forbidden: dict[str, Callable[[dict[str, Any], Caller], Refusal | None]] = {
            "block": self.blocks.forbidden,
            "block_user": self.users.forbidden,
            "kill": self._kill_forbidden,
            "restrict": self.restrictions.forbidden,
            "cut": self.ending.forbidden,
        }
        """Why a request would be refused whoever agrees to it: then nobody is asked."""

    def use(self, rails: Rails) -> None:
        """These rails hold from now on; `follow` then brings the kernel up to them."""
        self.rails = rails
        for part in (
            self.blocks,
            self.users,
            self.approvals,
            self.killswitch,
            self.restrictions,
            self.ending,
        ):
            part.use(rails)

    def follow(self) -> None:
        """After new rails: see to what is cut off and to what is never blocked. Raises EnforcerError."""
        self.blocks.fresh_never()
        self.killswitch.follow()
        self.restrictions.look_around()

    def look_around(self) -> None:
        """Find out where the endpoints lead now; what is closed follows. Raises EnforcerError, OSError."""
        self.killswitch.look_around()
        self.restrictions.look_around()

    def end_due(self) -> list[str]:
        """End what was engaged or restricted for a time that is over; in words. Raises EnforcerError. A deny list
        that could not be written is tried again."""
        if self._deny_list is not None and self._deny_list.next_try_s() <= 0:
            self._deny_list.mend()
        over = [f"released {name}" for name in self.killswitch.end_due()]
        return over + [f"lifted the restriction of {name}" for name in self.restrictions.end_due()]

    def next_end_s(self) -> float:
        """Seconds until `end_due` has something to do."""
        ends_s = min(self.killswitch.next_end_s(), self.restrictions.next_end_s())
        return min(ends_s, self._deny_list.next_try_s()) if self._deny_list is not None else ends_s

    def restore(self) -> None:
        """Make the kernel's blocks what the journal says, in one transaction. Raises EnforcerError."""
        self.blocks.restore()

    def publish(self) -> None:
        """Write the deny list anew; from then on it follows the journal. What fails is said by `status`."""
        if self._deny_list is not None:
            self._deny_list.write()

    def heal(self) -> list[str]:
        """Compare the kernel with the journal and mend what differs; what it was, in words."""
        differs = self.killswitch.heal() + self.restrictions.heal()
        missing = self.blocks.differences()
        if missing:
            self.restore()
        what = differs + missing
        if what and room(self._healings, _MOST_NOTES_A_MINUTE):
            self.journal.append("healed", sync=False, what=what)
        return what

    def tick(self) -> list[str]:
        """Once a minute: note the clocks, forget what has ended, follow this machine's own addresses, compare with
        the kernel and the published deny list; what was mended. Raises EnforcerError, after everything was tried
        that does not need the disk."""
        mended = self._deny_list.mend() if self._deny_list is not None else []
        self.blocks.fresh_never()
        self.look_around()
        mended += self.heal()
        state = self.journal.state
        if state.blocks or state.users or state.kills or state.restrictions or state.approvals:
            self.journal.append("tick")
            state.expire()
            self.approvals.expire()
        if self._unwritten:
            self.journal.append("refusals", count=self._unwritten)
            self._unwritten = 0
        self.journal.maintain()
        return mended

    def handle(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Later:
        """The answer to one request, or one to come; errors are answers too."""
        try:
            answer = self._answer(ask, caller)
        except EnforcerError as error:
            return {"ok": False, "error": error.message, "remedy": error.remedy}
        except OSError as error:
            return {"ok": False, "error": f"kernel: {error.strerror}", "remedy": "see the enforcer's log"}
        if isinstance(answer, Refusal):
            return self.refuse(answer, ask, caller)
        return answer if isinstance(answer, Later) else {"ok": True, **answer}

    def _answer(self, ask: dict[str, Any], caller: Caller) -> Answer:
        if caller.role == "analyser":
            needs = ask.get("approval", 0) or self._needs_person(ask)
        elif "approval" in ask:
            return Refusal("only what the analyser asks for waits for an approval of its own", "approval")
        else:
            needs = 2 if ask["request"] in self.rails.two_people else 0
        if not needs:
            return self._perform(ask, caller)
        look = self.forbidden.get(ask["request"])
        why = look(ask, caller) if look is not None else None
        return why or self.approvals.file(ask, caller, needs)

    def _needs_person(self, ask: dict[str, Any]) -> int:
        """How many persons have to agree to what the analyser asks for, as the rails do not grant it beforehand."""
        if ask["request"] == "restrict":
            return int(not self.restrictions.without_person(ask["endpoints"]))
        return int(ask["request"] == "kill" and not self.killswitch.without_person(ask.get("endpoints", [])))

    def _perform(self, ask: dict[str, Any], caller: Caller) -> Answer:
        work = self.work.get(ask.get("request", ""))
        return work(ask, caller) if work is not None else Refusal("there is no such request", "protocol")

    def _kill_forbidden(self, ask: dict[str, Any], caller: Caller) -> Refusal | None:
        if ask.get("ttl_s", 0) and "release" in self.rails.two_people:
            return Refusal("a release needs two people, so it cannot come by itself", "two_people")
        return self.killswitch.forbidden(ask.get("endpoints", []))

    def _kill(self, ask: dict[str, Any], caller: Caller) -> Answer:
        ttl_s = ask.get("ttl_s", 0)
        if ttl_s and "release" in self.rails.two_people:
            return Refusal("a release needs two people, so it cannot come by itself", "two_people")
        return self.killswitch.engage(
            ask.get("endpoints", []), ask["reason"], caller.name, approval=caller.approval,
            by_analyser=caller.role == "analyser", ttl_s=ttl_s, probe=bool(ask.get("probe", 1)),
        )  # fmt: skip

    def _release(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person releases the kill switch", "release")
        return self.killswitch.release(ask.get("endpoints", []), ask["reason"], caller.name)

    def _signed(self, ask: dict[str, Any], caller: Caller) -> Answer:
        """A request that a person signed elsewhere; whoever brings it has no say in it."""
        signer = next((s for s in self.rails.signers if s.name == ask["signer"]), None)
        if signer is None:
            return Refusal(f"the rails name no signer {ask['signer']!r}", "signature")
        last = self.journal.state.signed.get(signer.name, 0)
        try:
            command = signatures.opened(ask["command"], ask["signature"], signer.public_key, last)
        except MalformedError as error:
            return Refusal(f"signed by {signer.name}: {error}", "signature")
        self.journal.append("signed", signer=signer.name, sequence=command.sequence, nonce=command.nonce)
        person = Caller("operator", signer.uid, 0, signer=signer.name)
        return self.handle(command.request, person)

    def _drill_start(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person starts a drill", "drill")
        return self.killswitch.drill_start(ask.get("endpoints", []), ask["seconds"])

    def _drill_stop(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person ends a drill", "drill")
        return self.killswitch.drill_stop()

    def _status(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        journal, state = self.journal, self.journal.state
        now_ns = state.elapsed_at(self._now())
        answer = {
            **(status := self.killswitch.status()),
            "restrictions": self.restrictions.status(),
            "differs": [*status["differs"], *self.restrictions.differences()],
            "pid": os.getpid(),
            "blocks": sum(b.ends_ns > now_ns for b in state.blocks.values()),
            "users": sum(b.ends_ns > now_ns for b in state.users.values()),
            "journal": {
                "sequence": journal.sequence, "head": journal.head, "intact": not journal.note, "note": journal.note,
            },
            "rails": {"path": self.rails.path, "management": [str(n) for n in self.rails.management]},
            "receipt_key": signatures.receipt_key(journal.folder),
            "waiting": sum(a.ends_ns > now_ns for a in state.approvals.values()),
            "deny_list": self._deny_list.problem if self._deny_list is not None else "",
        }  # fmt: skip
        return _fitting(answer, [*answer["kills"], *answer["restrictions"]])

    def note(self, do: str, **fields: Any) -> None:
        """Say in the journal what happened, without an effect. Raises EnforcerError."""
        self.journal.append(do, sync=False, **fields)

    def refuse(self, why: Refusal, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """The answer that says no, once that is noted."""
        if room(self._refusals[caller.role], _MOST_NOTES_A_MINUTE):
            kept = (
                "request", "address", "where", "user", "kind", "endpoints", "ttl_s", "approval", "incident", "id",
                "signer",
            )  # fmt: skip
            try:
                self.journal.append(
                    "refused", sync=False,
                    asked={k: v[:MOST_NAMED] if type(v) is list else v for k, v in ask.items() if k in kept},
                    by=caller.name, rail=why.rail, why=why.reason,
                )  # fmt: skip
            except EnforcerError:
                self._unwritten += 1
        else:
            self._unwritten += 1  # whoever floods us does not fill the disk; the count is written by `tick`
        return {"ok": False, "refused": why.reason, "rail": why.rail}

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do for which nobody waits."""
        return self.blocks.unfinished or (self._deny_list is not None and self._deny_list.grown)

    def finish(self) -> None:
        """Do it. Raises OSError."""
        if self._deny_list is not None and self._deny_list.grown:
            self._deny_list.write()
        if self.blocks.unfinished:
            self.blocks.finish()


def _fitting(answer: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`answer` as one message takes it: where it is too long, with less in its `rows` of what may be long."""
    for most_text, most_items in ((100, 3), (20, 0)):
        if len(json.dumps(answer)) <= MOST_LISTED_BYTES:
            break
        for row in rows:
            row["reason"] = brief(row["reason"], most_text)
            row |= {key: row[key][:most_items] for key in ("services", "allowed") if key in row}
    return answer
