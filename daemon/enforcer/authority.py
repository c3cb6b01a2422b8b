"""Who may do what, and doing it: every request, from the enforcer's socket or from the command as root.

The order is always the same: authority, rails, journal, kernel. Nothing here waits for anybody: what takes
longer (the probe of a kill switch) is an answer to come.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from itertools import islice
from typing import Any, NamedTuple

from ..errors import EnforcerError
from . import signatures
from .journal import Journal
from .kernel import blocktable, conntrack, host, sockets
from .kernel.elements import MissingError
from .kernel.nft import Nft
from .killswitch import MOST_NAMED, KillSwitch, Later
from .protocol import MOST_BYTES, PAGE, MalformedError, encode
from .rails import PREFIXES, Network, Rails, Refusal, address_text, network_of, refusal
from .state import Approval, Block, Moment

_MOST_NOTES_A_MINUTE = 60
_MOST_WAITING = 50
_LONGEST_WAITING = 900  # bytes; the list of all that wait has to fit into an answer
_MOST_LISTED_BYTES = MOST_BYTES - 10_000  # one block more has its longest reason in JSON's escapes
_WAITING_S = 900
_SURROUNDINGS_S = 2.0
_NS = 1_000_000_000
_UNSET = 2**32 - 1  # pam_loginuid(8): nobody logged in


class Caller(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED) or as a signature proves."""

    role: str  # "operator", "analyser" or "stranger"
    uid: int
    pid: int
    signer: str = ""
    said: str = ""  # for the journal, where it took two people

    @property
    def login(self) -> int:
        """The uid; for root, of whoever became root (sudo keeps it). Others could lend a process to each other."""
        if self.uid != 0:
            return self.uid
        try:
            with open(f"/proc/{self.pid}/loginuid", encoding="ascii") as file:
                login = int(file.read())
        except (OSError, ValueError):
            return self.uid
        return self.uid if login == _UNSET else login

    @property
    def person(self) -> str:
        """Whom two different people have to differ in."""
        return f"signer {self.signer}" if self.signer and self.uid < 0 else f"uid {self.login}"

    @property
    def name(self) -> str:
        """For the journal."""
        if self.said or self.role == "analyser":
            return self.said or self.role
        if self.signer:
            return f"signer {self.signer}"
        login = self.login
        return f"uid {self.uid}" if login == self.uid else f"uid {self.uid} (logged in as uid {login})"


class Authority:
    """Answers requests that `protocol.parse` has let through.

    `restore` has to be called first: it puts the kernel in the state that the journal says.
    """

    def __init__(self, journal: Journal, nft: Nft, now: Callable[[], Moment]) -> None:
        self.journal = journal
        self.rails = Rails()
        self.killswitch = KillSwitch(journal, nft)
        self._nft = nft
        self._now = now
        self._never: tuple[tuple[Network, str], ...] = ()
        self._never_read = float("-inf")
        self._shape: list[str] = []
        self._recent: deque[float] = deque()
        self._taken_back: deque[float] = deque()
        self._refusals: defaultdict[str, deque[float]] = defaultdict(deque)  # by role: none hides another's
        self._healings: deque[float] = deque()
        self._unwritten = 0
        self._to_cut: list[Network] = []

    def use(self, rails: Rails) -> None:
        """These rails hold from now on; `follow` then brings the kernel up to them."""
        self.rails = rails
        self._never_read = float("-inf")
        self.killswitch.use(rails)

    def follow(self) -> None:
        """After new rails: see to what is cut off and to what is never blocked. Raises EnforcerError."""
        self._fresh_never()
        self.killswitch.follow()

    def restore(self) -> None:
        """Make the kernel's blocks what the journal says, in one transaction. Raises EnforcerError."""
        moment = self._now()
        self.journal.state.advance(moment)
        self.journal.state.expire()
        never = self._fresh_never()
        state = self.journal.state
        now_ns = state.elapsed_at(moment)
        left = [(a, (b.ends_ns - now_ns) / _NS) for a, b in state.blocks.items()]
        blocktable.replace(self._nft, [n for n, _ in never], self.rails, left)
        self._shape = blocktable.shape(self._nft) or []

    def heal(self) -> list[str]:
        """Compare the kernel with the journal and mend what differs; what it was, in words."""
        differs = self.killswitch.heal()
        missing = self._block_differences()
        if missing:
            self.restore()
        what = differs + missing
        if what and _room(self._healings, _MOST_NOTES_A_MINUTE):
            self.journal.append("healed", sync=False, what=what)
        return what

    def tick(self) -> list[str]:
        """Once a minute: note the clocks, forget what has ended, follow this machine's own addresses, compare with
        the kernel; what was mended. Raises EnforcerError, after everything was tried that does not need the disk."""
        self._fresh_never()
        self.killswitch.look_around()
        mended = self.heal()
        state = self.journal.state
        if state.blocks or state.kills or state.approvals:
            self.journal.append("tick")
            state.expire()
        if self._unwritten:
            self.journal.append("refusals", count=self._unwritten)
            self._unwritten = 0
        self.journal.maintain()
        return mended

    def handle(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Later:
        """The answer to one request, or one to come; errors are answers too."""
        try:
            if ask["request"] in self.rails.two_people and caller.role == "operator":
                answer = self._ask_second(ask, caller)
            else:
                answer = self._perform(ask, caller)
        except EnforcerError as error:
            return {"ok": False, "error": error.message, "remedy": error.remedy}
        except OSError as error:
            return {"ok": False, "error": f"kernel: {error.strerror}", "remedy": "see the enforcer's log"}
        if isinstance(answer, Refusal):
            return self.refuse(answer, ask, caller)
        return answer if isinstance(answer, Later) else {"ok": True, **answer}

    def _perform(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal | Later:
        answer: dict[str, Any] | Refusal | Later = getattr(self, f"_do_{ask['request']}")(ask, caller)
        return answer

    def _ask_second(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal | Later:
        """Note that a second person has to agree; the same request by another one does."""
        state, moment = self.journal.state, self._now()
        state.advance(moment)
        state.expire()
        wanted = {k: v for k, v in ask.items() if k != "reason"}
        for name, waiting in state.approvals.items():
            if {k: v for k, v in waiting.asked.items() if k != "reason"} == wanted:
                if waiting.person != caller.person:
                    return self._grant(name, waiting, caller)
                return self._pending(name)
        if len(state.approvals) >= _MOST_WAITING:
            return Refusal(f"{_MOST_WAITING} requests wait for a second person already", "two_people")
        if len(encode(ask)) > _LONGEST_WAITING:
            return Refusal(
                f"what waits for a second person has {_LONGEST_WAITING} bytes at most", "two_people"
            )
        name = f"A{self.journal.sequence + 1}"
        self.journal.append("ask", id=name, asked=ask, by=caller.name, person=caller.person, ttl_s=_WAITING_S)
        return self._pending(name)

    def _pending(self, name: str) -> dict[str, Any]:
        left_ns = self.journal.state.approvals[name].ends_ns - self.journal.state.elapsed_at(self._now())
        return {
            "pending": name,
            "needs": f"another person: gatewatch approvals grant {name}",
            "expires_s": left_ns // _NS,
        }

    def _grant(self, name: str, waiting: Approval, caller: Caller) -> dict[str, Any] | Refusal | Later:
        if caller.person == waiting.person:
            return Refusal(f"{name} needs another person than {waiting.by}", "two_people")
        self.journal.append("grant", id=name, by=caller.name, person=caller.person)
        both = caller._replace(said=f"{waiting.by}, granted by {caller.name}")
        return self._perform(waiting.asked, both)

    def _do_block(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        analyser, limits = caller.role == "analyser", self.rails.limits
        if analyser and "ttl_s" not in ask:
            return Refusal("the analyser has to give a ttl_s", "ttl")
        ttl_s = ask.get("ttl_s", limits.longest_ttl_s)
        if ttl_s < 1:
            return Refusal("a block lasts at least 1 s", "ttl")
        forbidden = refusal(network, ttl_s, self.rails, self._fresh_never())
        if forbidden is not None:
            return forbidden
        moment, state = self._now(), self.journal.state
        address = address_text(network)
        former = state.in_force(address, moment)
        remains_s = state.remaining_s(former, moment) if former else 0.0
        owner = former.owner if former and analyser else caller.role
        if former and remains_s >= ttl_s and owner == former.owner:
            return {
                "address": address,
                "ttl_s": int(remains_s),
                "already": True,
                **self._cut(network, caller),
            }
        if analyser and not _room(self._recent, limits.most_new_per_minute):
            return Refusal(f"more than {limits.most_new_per_minute} blocks a minute", "most_new_per_minute")
        if not former and len(state.blocks) >= limits.most_blocks:
            state.advance(moment)
            state.expire()
            if len(state.blocks) >= limits.most_blocks:
                return Refusal(f"{limits.most_blocks} blocks are in force", "most_blocks")
        lasting = max(ttl_s, int(remains_s))
        said = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        self.journal.append(
            "block", address=address, ttl_s=lasting, owner=owner, by=caller.name, reason=ask["reason"], **said
        )
        self._tell(lambda: blocktable.add(self._nft, network, lasting))
        return {
            "address": address,
            "ttl_s": lasting,
            "already": former is not None,
            **self._cut(network, caller),
        }

    def _do_unblock(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        address = address_text(network)
        former = self.journal.state.in_force(address, self._now())
        if former is None:
            return {"address": address, "unblocked": False, "covered_by": self._covering(network)}
        if caller.role == "analyser" and former.owner != "analyser":
            return Refusal(f"{address} was blocked by {former.by}, not by the analyser", "owner")
        most = self.rails.limits.most_new_per_minute
        if caller.role == "analyser" and not _room(self._taken_back, most):
            return Refusal(f"more than {most} unblocks a minute", "most_new_per_minute")
        self.journal.append("unblock", address=address, by=caller.name, reason=ask["reason"])
        self._tell(lambda: blocktable.remove(self._nft, network))
        return {"address": address, "unblocked": True, "covered_by": self._covering(network)}

    def _do_blocks(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        first, moment, room = ask.get("page", 0), self._now(), _MOST_LISTED_BYTES
        blocks = self.journal.state.blocks
        listed: list[dict[str, Any]] = []
        for at, (address, block) in enumerate(islice(blocks.items(), first, first + PAGE), first):
            said = self._said(address, block, moment)
            room -= len(json.dumps(said))
            if room < 0 and listed:  # reasons may be long, an answer may not
                return {"blocks": listed, "next": at}
            if said["ttl_s"] > 0:
                listed.append(said)
        return {"blocks": listed, "next": first + PAGE if first + PAGE < len(blocks) else -1}

    def _do_check(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        moment, state = self._now(), self.journal.state
        blocked = [self._said(a, state.blocks[a], moment) for a in self._covering(network)]
        forbidden = refusal(network, 1, self.rails, self._fresh_never())
        answer: dict[str, Any] = {"address": address_text(network), "blocked": blocked, "would_refuse": ""}
        return (
            answer
            if forbidden is None
            else {**answer, "would_refuse": forbidden.reason, "rail": forbidden.rail}
        )

    def _do_import(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only an operator imports blocks", "import")
        moment, state, longest_s = self._now(), self.journal.state, self.rails.limits.longest_ttl_s
        state.advance(moment)
        state.expire()
        never, already, shortened = self._fresh_never(), 0, 0
        room = self.rails.limits.most_blocks - len(state.blocks)
        taken: dict[str, int] = {}
        refused: list[list[str]] = []
        for text, wanted_s in ask["blocks"]:
            ttl_s = min(wanted_s, longest_s)
            network = _network(text)
            why = network if isinstance(network, Refusal) else refusal(network, ttl_s, self.rails, never)
            address = "" if isinstance(network, Refusal) else address_text(network)
            former = state.blocks.get(address)
            if why is None and ttl_s < 1:
                why = Refusal("a block lasts at least 1 s", "ttl")
            if why is None and former is None and address not in taken and room < 1:
                why = Refusal(f"{self.rails.limits.most_blocks} blocks are in force", "most_blocks")
            if why is not None:
                refused.append([_brief(text), _brief(why.reason)])
            elif former is not None and state.remaining_s(former, moment) >= ttl_s:
                already += 1
            else:
                room -= former is None and address not in taken
                shortened += ttl_s < wanted_s
                taken[address] = max(ttl_s, taken.get(address, 0))
        if taken:
            self.journal.append(
                "import", blocks=list(taken.items()), owner="operator", by=caller.name, reason=ask["reason"]
            )
            self._tell(
                lambda: blocktable.add_many(self._nft, [(network_of(a), ttl_s) for a, ttl_s in taken.items()])
            )
            self._end([network_of(a) for a in taken])
        return {"imported": len(taken), "already": already, "shortened": shortened, "refused": refused}

    def _do_kill(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal | Later:
        ttl_s = ask.get("ttl_s", 0)
        if ttl_s and "release" in self.rails.two_people:
            return Refusal("a release needs two people, so it cannot come by itself", "two_people")
        return self.killswitch.engage(
            ask.get("endpoints", []), ask["reason"], caller.name,
            by_analyser=caller.role == "analyser", ttl_s=ttl_s, probe=bool(ask.get("probe", 1)),
        )  # fmt: skip

    def _do_release(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person releases the kill switch", "release")
        return self.killswitch.release(ask.get("endpoints", []), ask["reason"], caller.name)

    def _do_approvals(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        now_ns = self.journal.state.elapsed_at(self._now())
        return {
            "approvals": [
                {
                    "id": name, **a.asked, "by": a.by, "since_ns": a.since_ns,
                    "expires_s": (a.ends_ns - now_ns) // _NS,
                }
                for name, a in self.journal.state.approvals.items()
                if a.ends_ns > now_ns
            ]
        }  # fmt: skip

    def _do_grant(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal | Later:
        waiting = self._waiting(ask["id"], caller)
        return waiting if isinstance(waiting, Refusal) else self._grant(ask["id"], waiting, caller)

    def _do_deny(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        waiting = self._waiting(ask["id"], caller)
        if isinstance(waiting, Refusal):
            return waiting
        self.journal.append("deny", id=ask["id"], by=caller.name)
        return {"denied": ask["id"]}

    def _waiting(self, name: str, caller: Caller) -> Approval | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person grants or denies", "two_people")
        state = self.journal.state
        waiting = state.approvals.get(name)
        if waiting is None or waiting.ends_ns <= state.elapsed_at(self._now()):
            return Refusal(f"no request {name!r} waits for a second person", "approval")
        return waiting

    def _do_signed(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal | Later:
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

    def _do_drill_start(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person starts a drill", "drill")
        return self.killswitch.drill_start(ask.get("endpoints", []), ask["seconds"])

    def _do_drill_stop(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person ends a drill", "drill")
        return self.killswitch.drill_stop()

    def _do_status(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        journal, now_ns = self.journal, self.journal.state.elapsed_at(self._now())
        return {
            **self.killswitch.status(),
            "pid": os.getpid(),
            "blocks": sum(b.ends_ns > now_ns for b in journal.state.blocks.values()),
            "journal": {
                "sequence": journal.sequence, "head": journal.head, "intact": not journal.note, "note": journal.note,
            },
            "rails": {"path": self.rails.path, "management": [str(n) for n in self.rails.management]},
            "receipt_key": signatures.receipt_key(journal.folder),
            "waiting": len(journal.state.approvals),
        }  # fmt: skip

    def note(self, do: str, **fields: Any) -> None:
        """Say in the journal what happened, without an effect. Raises EnforcerError."""
        self.journal.append(do, sync=False, **fields)

    def refuse(self, why: Refusal, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """The answer that says no, once that is noted."""
        if _room(self._refusals[caller.role], _MOST_NOTES_A_MINUTE):
            kept = ("request", "address", "endpoints", "ttl_s", "incident", "id", "signer")
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

    def _fresh_never(self) -> tuple[tuple[Network, str], ...]:
        """What is never blocked as things stand now, told to the kernel where it changed."""
        now = time.monotonic()
        if now - self._never_read > _SURROUNDINGS_S:
            never = self.rails.never(host.surroundings())
            changed, self._never, self._never_read = never != self._never, never, now
            if changed and self._shape:
                blocktable.set_never(self._nft, [n for n, _ in never])
                self._shape = blocktable.shape(self._nft) or []
        return self._never

    def _tell(self, change: Callable[[], None]) -> None:
        """Let the kernel follow the journal; where somebody took the table away this moment, with all that is in it."""
        try:
            change()
        except MissingError:
            self.restore()

    def _block_differences(self) -> list[str]:
        there = blocktable.held(self._nft)
        if there is None:
            return [f"table inet {blocktable.TABLE} was missing"]
        if there.shape != self._shape:
            return [f"table inet {blocktable.TABLE} was changed"]
        state = self.journal.state
        # An element that ends within the second may be gone on one side only.
        soon_ns = state.elapsed_at(self._now()) + 3 * _NS // 2
        due = {a for a, b in state.blocks.items() if b.ends_ns > soon_ns}
        missing, foreign = due - there.blocked, len(there.blocked - state.blocks.keys())
        if missing:  # a block that ends while they are read may hide others, but hardly the same ones twice
            again = blocktable.held(self._nft)
            missing -= again.blocked if again else set()
        return (
            [f"{len(missing)} blocks were missing and {foreign} foreign in the kernel"]
            if missing or foreign
            else []
        )

    def _cut(self, network: Network, caller: Caller) -> dict[str, int]:
        """End the connections of a blocked network, whose packets are dropped already. A person is told how many
        sockets there were; the analyser does not wait for it (`finish`)."""
        if caller.role == "analyser":
            self._to_cut.append(network)
            return {}
        return {"cut": self._end([network])}

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do for which nobody waits."""
        return bool(self._to_cut)

    def finish(self) -> None:
        """Do it; many at once take hardly longer than one. Raises OSError."""
        networks, self._to_cut = self._to_cut, []
        self._end(networks)

    def _end(self, networks: list[Network]) -> int:
        """Their connections, but for those of whom a wider block lets through; how many."""
        spared = [n for n, _ in self._fresh_never()]
        found = sockets.from_networks(networks)
        cut = sockets.destroy([c for c in found if not any(c.remote in n for n in spared)])
        conntrack.forget_networks(networks, spared)
        return cut

    def _covering(self, network: Network) -> list[str]:
        moment, found = self._now(), []
        for length in PREFIXES[network.version]:
            if length <= network.prefixlen:
                wider = (
                    ip_network((int(network.network_address), length), strict=False)
                    if isinstance(network.network_address, IPv4Address)
                    else network.supernet(new_prefix=length)
                )
                address = address_text(wider)
                if self.journal.state.in_force(address, moment):
                    found.append(address)
        return found

    def _said(self, address: str, block: Block, moment: Moment) -> dict[str, Any]:
        return {
            "address": address,
            "ttl_s": int(self.journal.state.remaining_s(block, moment)),
            "since_ns": block.since_ns,
            "owner": block.owner,
            "by": block.by,
            "reason": block.reason,
            "incident": block.incident,
            "playbook": block.playbook,
        }


def _brief(text: str) -> str:
    """So short and plain that an answer has room for as many as one message can ask for."""
    return "".join(c if c.isascii() and c not in '"\\' else "?" for c in text[:100])


def _network(text: str) -> Network | Refusal:
    try:
        return network_of(text)
    except ValueError as error:
        return Refusal(f"address: {error}", "address")


def _room(recent: deque[float], most: int) -> bool:
    """Whether one more may happen within a minute of the last `most`; if so it is counted."""
    now = time.monotonic()
    while recent and recent[0] <= now - 60:
        recent.popleft()
    if len(recent) >= most:
        return False
    recent.append(now)
    return True
