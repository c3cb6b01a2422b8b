"""What is in force: blocked addresses and users and killed endpoints, folded from the journal's entries, and how
their time runs.

Time is counted on the journal's own clock, which only its entries drive: within one boot it advances as
CLOCK_BOOTTIME does, whatever the wall clock is set to; from one boot to the next by the wall clock, and never
backwards. What remains of a block is thus never more than at the last entry before a crash or a reboot. A kill
switch that ends by itself errs the other way: its clock stands still while the machine is off.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from .rails import Network, Service, network_of, service_of

NS_PER_S = 1_000_000_000


class Moment(NamedTuple):
    """The clocks at one moment; `boot_ns` means something within `boot_id` alone."""

    wall_ns: int
    boot_ns: int
    boot_id: str

    def fields(self) -> dict[str, Any]:
        return {"wall": self.wall_ns, "boot": self.boot_ns, "boot_id": self.boot_id}


def clocks() -> Any:
    """A function that gives the present Moment."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    return lambda: Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id)


class Block(NamedTuple):
    """Of an address or of a user."""

    ends_ns: int  # on the journal's clock
    ttl_s: int
    since_ns: int  # wall clock, for people
    owner: str  # "operator" or "analyser"
    by: str
    reason: str
    incident: str
    playbook: str
    where: str = ""  # "gateway": not in the kernel; the authorisation endpoint alone refuses it


class Kill(NamedTuple):
    services: tuple[Service, ...]  # as they were cut off, whatever the rails say today
    since_ns: int
    by: str
    reason: str
    ends_ns: int = 0  # on the clock that stands still while the machine is off; 0: until released


class Restriction(NamedTuple):
    """An endpoint that only named networks reach."""

    services: tuple[Service, ...]
    allowed: tuple[Network, ...]  # as the rails name them for it
    always: tuple[Network, ...]  # management and proxies
    since_ns: int  # wall clock, for people
    owner: str  # "operator" or "analyser"
    by: str
    reason: str
    incident: str
    playbook: str
    ends_ns: int  # on the journal's clock, as of a block; 0: until lifted


class Approval(NamedTuple):
    """A request that waits until enough different persons agree."""

    asked: dict[str, Any]
    by: str
    person: str  # who that is, whatever account was used
    since_ns: int
    ends_ns: int  # on the journal's clock
    needs: int = 2  # persons; an operator who asks is one of them
    owner: str = "operator"  # "analyser": it asked, and may take back what comes of it
    granted: tuple[tuple[str, str], ...] = ()  # (by, person) of each who agreed


class State:
    """`apply` the entries in order; `elapsed_ns` is the journal's clock at the last one."""

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.users: dict[str, Block] = {}  # by KIND:NAME
        self.kills: dict[str, Kill] = {}
        self.restrictions: dict[str, Restriction] = {}  # one that is over stays until it is lifted
        self.approvals: dict[str, Approval] = {}
        self.signed: dict[str, int] = {}  # by signer: the last sequence that was accepted
        self.broken = ""
        self.elapsed_ns = 0
        self.awake_ns = 0
        self._last: Moment | None = None

    def elapsed_at(self, moment: Moment) -> int:
        """The journal's clock at `moment`, nanoseconds."""
        last = self._last
        if last is None:
            return self.elapsed_ns
        if last.boot_id == moment.boot_id:
            return self.elapsed_ns + max(0, moment.boot_ns - last.boot_ns)
        return self.elapsed_ns + max(0, moment.wall_ns - last.wall_ns)

    def awake_at(self, moment: Moment) -> int:
        """The clock of kill switches that end by themselves, nanoseconds."""
        last = self._last
        if last is None or last.boot_id != moment.boot_id:
            return self.awake_ns
        return self.awake_ns + max(0, moment.boot_ns - last.boot_ns)

    def advance(self, moment: Moment) -> None:
        self.elapsed_ns, self.awake_ns = self.elapsed_at(moment), self.awake_at(moment)
        self._last = moment

    def expire(self) -> None:
        """Forget the blocks that have ended. What waited too long stays until an entry says so."""
        for blocks in (self.blocks, self.users):
            for name in [n for n, b in blocks.items() if b.ends_ns <= self.elapsed_ns]:
                del blocks[name]

    def remaining_s(self, block: Block, moment: Moment) -> float:
        return (block.ends_ns - self.elapsed_at(moment)) / NS_PER_S

    def in_force(self, address: str, moment: Moment) -> Block | None:
        block = self.blocks.get(address)
        return block if block is not None and block.ends_ns > self.elapsed_at(moment) else None

    def user_in_force(self, principal: str, moment: Moment) -> Block | None:
        """`principal`: KIND:NAME, exactly; whether `any` of that name is blocked is another question."""
        block = self.users.get(principal)
        return block if block is not None and block.ends_ns > self.elapsed_at(moment) else None

    def apply(self, entry: dict[str, Any], *, trusted: bool = True) -> None:
        """Let one entry take effect. From an entry that is not `trusted` (it comes after a break of the chain)
        nothing is released or unblocked, and whatever makes no sense in it is passed over."""
        try:
            if trusted:
                self.advance(Moment(int(entry["wall"]), int(entry["boot"]), str(entry["boot_id"])))
            effect = _EFFECTS.get(entry["do"])
            if effect is not None:
                effect(self, entry, trusted)
        except (KeyError, ValueError, TypeError, AttributeError):
            if trusted:
                raise

    def said(self) -> dict[str, Any]:
        """All but blocks and users as a `state` entry holds it; ends as the time that remains."""
        return {
            "kills": {
                name: [
                    list(map(str, k.services)), k.since_ns, k.by, k.reason,
                    max(1, k.ends_ns - self.awake_ns) if k.ends_ns else 0,
                ]
                for name, k in self.kills.items()
            },
            "restrictions": {
                name: [
                    list(map(str, r.services)), list(map(str, r.allowed)), list(map(str, r.always)), *r[3:9],
                    max(1, r.ends_ns - self.elapsed_ns) if r.ends_ns else 0,
                ]
                for name, r in self.restrictions.items()
            },
            "approvals": {
                name: [
                    a.asked, a.by, a.person, a.since_ns, a.ends_ns - self.elapsed_ns,
                    a.needs, a.owner, [list(who) for who in a.granted],
                ]
                for name, a in self.approvals.items()
            },
            "signed": self.signed,
        }  # fmt: skip

    def blocks_said(self) -> list[list[Any]]:
        """The blocks as a `restore` entry holds them: the time that remains instead of the end."""
        return [[address, b.ends_ns - self.elapsed_ns, *b[1:]] for address, b in self.blocks.items()]

    def users_said(self) -> list[list[Any]]:
        """The blocked users, in the same way."""
        return [[principal, b.ends_ns - self.elapsed_ns, *b[1:]] for principal, b in self.users.items()]

    def _block(self, entry: dict[str, Any], trusted: bool) -> None:
        _put(self.blocks, str(entry["address"]), self._blocked(entry), trusted)

    def _block_user(self, entry: dict[str, Any], trusted: bool) -> None:
        _put(self.users, f"{entry['kind']}:{entry['user']}", self._blocked(entry), trusted)

    def _blocked(self, entry: dict[str, Any]) -> Block:
        return Block(
            ends_ns=self.elapsed_ns + int(entry["ttl_s"]) * NS_PER_S,
            ttl_s=int(entry["ttl_s"]),
            since_ns=int(entry["wall"]),
            owner=str(entry["owner"]),
            by=str(entry["by"]),
            reason=str(entry["reason"]),
            incident=str(entry.get("incident", "")),
            playbook=str(entry.get("playbook", "")),
            where=str(entry.get("where", "")),
        )

    def _unblock(self, entry: dict[str, Any], trusted: bool) -> None:
        if trusted:
            self.blocks.pop(str(entry["address"]), None)

    def _unblock_user(self, entry: dict[str, Any], trusted: bool) -> None:
        if trusted:
            self.users.pop(f"{entry['kind']}:{entry['user']}", None)

    def _import(self, entry: dict[str, Any], trusted: bool) -> None:
        for address, ttl_s in entry["blocks"]:
            self._block({**entry, "address": address, "ttl_s": ttl_s}, trusted)

    def _kill(self, entry: dict[str, Any], trusted: bool) -> None:
        ttl_s = int(entry.get("ttl_s", 0))
        ends_ns = self.awake_ns + ttl_s * NS_PER_S if ttl_s and trusted else 0
        for name, services in dict(entry["endpoints"]).items():
            former = self.kills.get(name)
            cut = tuple(service_of(s) for s in services)
            if former is None:
                self.kills[name] = Kill(
                    cut, int(entry["wall"]), str(entry["by"]), str(entry["reason"]), ends_ns
                )
            else:  # it never ends sooner than it would have
                both = bool(former.ends_ns and ends_ns)
                self.kills[name] = former._replace(
                    services=tuple(dict.fromkeys((*former.services, *cut))),
                    ends_ns=max(former.ends_ns, ends_ns) if both else 0,
                )

    def _grow(self, entry: dict[str, Any], trusted: bool) -> None:
        for name, services in dict(entry["endpoints"]).items():
            former = self.kills[name]
            more = tuple(service_of(s) for s in services)
            self.kills[name] = former._replace(services=tuple(dict.fromkeys((*former.services, *more))))

    def _release(self, entry: dict[str, Any], trusted: bool) -> None:
        if trusted:
            for name in entry["endpoints"]:
                self.kills.pop(name, None)

    def _restrict(self, entry: dict[str, Any], trusted: bool) -> None:
        ttl_s = int(entry.get("ttl_s", 0))
        for name, door in dict(entry["endpoints"]).items():
            former = self.restrictions.get(name)
            if former is not None and 0 < former.ends_ns <= self.elapsed_ns:
                former = None
            if former is not None and not trusted:
                continue  # it could let more pass
            self.restrictions[name] = Restriction(
                *_door(door),
                since_ns=former.since_ns if former else int(entry["wall"]),
                owner=str(entry["owner"]),
                by=str(entry["by"]),
                reason=str(entry["reason"]),
                incident=str(entry.get("incident", "")),
                playbook=str(entry.get("playbook", "")),
                ends_ns=self.elapsed_ns + ttl_s * NS_PER_S if ttl_s else 0,
            )

    def _adjust(self, entry: dict[str, Any], trusted: bool) -> None:
        if not trusted:
            return
        for name, door in dict(entry["endpoints"]).items():
            services, allowed, always = _door(door)
            self.restrictions[name] = self.restrictions[name]._replace(
                services=services, allowed=allowed, always=always
            )

    def _lift(self, entry: dict[str, Any], trusted: bool) -> None:
        if trusted:
            for name in entry["endpoints"]:
                self.restrictions.pop(name, None)

    def _ask(self, entry: dict[str, Any], trusted: bool) -> None:
        if not trusted:
            return
        owner = str(entry.get("owner", "operator"))
        asker = (str(entry["by"]), str(entry["person"]))
        self.approvals[str(entry["id"])] = Approval(
            asked=dict(entry["asked"]),
            by=asker[0],
            person=asker[1],
            since_ns=int(entry["wall"]),
            ends_ns=self.elapsed_ns + int(entry["ttl_s"]) * NS_PER_S,
            needs=int(entry.get("needs", 2)),
            owner=owner,
            granted=(asker,) if owner == "operator" else (),
        )

    def _agree(self, entry: dict[str, Any], trusted: bool) -> None:
        if trusted:
            waiting = self.approvals[str(entry["id"])]
            more = (*waiting.granted, (str(entry["by"]), str(entry["person"])))
            self.approvals[str(entry["id"])] = waiting._replace(granted=more)

    def _answered(self, entry: dict[str, Any], trusted: bool) -> None:
        self.approvals.pop(str(entry["id"]), None)

    def _signed(self, entry: dict[str, Any], trusted: bool) -> None:
        name = str(entry["signer"])
        self.signed[name] = max(self.signed.get(name, 0), int(entry["sequence"]))

    def _state(self, entry: dict[str, Any], trusted: bool) -> None:
        self.broken = str(entry["broken"])
        for name, (services, since_ns, by, reason, *remains_ns) in dict(entry["kills"]).items():
            ends_ns = self.awake_ns + int(remains_ns[0]) if remains_ns and remains_ns[0] and trusted else 0
            self.kills[name] = Kill(
                tuple(map(service_of, services)), int(since_ns), str(by), str(reason), ends_ns
            )
        for name, (*door, since_ns, owner, by, reason, incident, playbook, remains_ns) in dict(
            entry.get("restrictions", {})
        ).items():
            ends_ns = self.elapsed_ns + int(remains_ns) if remains_ns else 0
            said = (str(owner), str(by), str(reason), str(incident), str(playbook))
            made = Restriction(*_door(door), int(since_ns), *said, ends_ns)
            if trusted or name not in self.restrictions:
                self.restrictions[name] = made
        if trusted:
            for name, (asked, by, person, since_ns, left_ns, *rest) in dict(
                entry.get("approvals", {})
            ).items():
                needs, owner, granted = rest or (2, "operator", [[by, person]])
                ends_ns, agreed = self.elapsed_ns + left_ns, tuple((str(b), str(p)) for b, p in granted)
                self.approvals[name] = Approval(
                    dict(asked), by, person, since_ns, ends_ns, int(needs), owner, agreed
                )
            self.signed.update(entry.get("signed", {}))

    def _restore(self, entry: dict[str, Any], trusted: bool) -> None:
        for address, remains_ns, *rest in entry["blocks"]:
            _put(self.blocks, str(address), Block(self.elapsed_ns + int(remains_ns), *rest), trusted)
        for principal, remains_ns, *rest in entry.get("users", ()):
            _put(self.users, str(principal), Block(self.elapsed_ns + int(remains_ns), *rest), trusted)


def _put(blocks: dict[str, Block], name: str, block: Block, trusted: bool) -> None:
    """What is blocked already neither ends sooner, nor is refused in fewer places, nor may be taken back by others,
    for an entry that is not trusted."""
    former = blocks.get(name)
    if former is not None and not trusted:
        longer = former if former.ends_ns >= block.ends_ns else block
        owners = former.owner, block.owner
        block = longer._replace(
            where=former.where and block.where,
            owner="operator" if "operator" in owners else longer.owner,
        )
    blocks[name] = block


def _door(said: Any) -> tuple[tuple[Service, ...], tuple[Network, ...], tuple[Network, ...]]:
    """Services, allowed and always allowed networks, as an entry holds them. Raises ValueError, TypeError."""
    services, allowed, always = said
    return (
        tuple(map(service_of, services)),
        tuple(map(network_of, allowed)),
        tuple(map(network_of, always)),
    )


_EFFECTS = {
    "agree": State._agree,
    "adjust": State._adjust,
    "ask": State._ask,
    "block": State._block,
    "block_user": State._block_user,
    "deny": State._answered,
    "expired": State._answered,
    "grant": State._answered,
    "grow": State._grow,
    "import": State._import,
    "lift": State._lift,
    "unblock": State._unblock,
    "unblock_user": State._unblock_user,
    "kill": State._kill,
    "release": State._release,
    "restrict": State._restrict,
    "state": State._state,
    "restore": State._restore,
    "signed": State._signed,
}
"""Other entries (ticks, refusals, starts) say what happened and change nothing."""
