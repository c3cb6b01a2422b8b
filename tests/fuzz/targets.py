"""What is fuzzed, and what has to hold whatever comes: each target takes bytes and raises where something does not.

`session` is the enforcer's life: messages from an analyser that lies and from operators, time that passes, restarts,
a firewall that flushes. `damage` is what happens to the files of its journal. `rails` and `answers` are the two other
texts that are read with privilege or in its name.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import generator
from gatewatch.daemon.enforcer import audit, client, signatures
from gatewatch.daemon.enforcer.authority import Authority
from gatewatch.daemon.enforcer.callers import Caller
from gatewatch.daemon.enforcer.chain import verify
from gatewatch.daemon.enforcer.deny_list import DenyList
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.kernel import killtable, restricttable
from gatewatch.daemon.enforcer.kernel.blocktable import TABLE, name_of
from gatewatch.daemon.enforcer.protocol import KINDS, MOST_BYTES, MalformedError, encode, parse
from gatewatch.daemon.enforcer.rails import PREFIXES, Rails, Refusal, address_text, network_of
from gatewatch.daemon.enforcer.rails import parse as parse_rails
from gatewatch.daemon.enforcer.state import NS_PER_S, Moment
from gatewatch.daemon.errors import ConfigError, EnforcerError
from generator import ADDRESSES, ENDPOINTS, SEED, Bytes, Provider, pick
from kernel_double import GATEWAY, NAME_SERVER, OWN, KernelDouble, replace_kernel

RAILS = f"""
management = ["10.1.0.0/24"]
never_block = ["203.0.113.70/32", "2001:db8:1:0:7::/80"]
proxies = ["198.51.100.10/32"]
sinks = ["198.51.100.20/32"]
never_block_users = ["breakglass", "key:k-0011223344556677"]
TWO_PEOPLE
[limits]
most_blocks = 16
most_users = 8
most_waiting = 5
most_new_per_minute = 6
longest_ttl_s = 3600
[[signer]]
name = "alice"
public_key = "{signatures.public_key(SEED)}"
[[endpoint]]
name = "models"
allowed = ["198.51.100.0/24", "2001:db8:2::/48"]
fronts = ["*:443/tcp", "*:443/udp"]
backs = ["127.0.0.1:8000/tcp", "10.0.0.2:8000/tcp", "[2001:db8:5::2]:8000/tcp"]
[[endpoint]]
name = "automatic"
fronts = ["192.0.2.1:8600/tcp"]
kill_without_person = true
restrict_without_person = true
allowed = ["0.0.0.0/0", "203.0.113.0/25", "203.0.113.128/25"]
[[endpoint]]
name = "mapped"
fronts = ["*:8443/tcp"]
kill_without_person = true
[[endpoint]]
name = "spared"
fronts = ["*:8700/tcp"]
kill_switch = false
[[endpoint]]
name = "door"
fronts = ["*:22/tcp"]
allowed = ["10.1.0.0/24"]
"""
EVERY_RAILS = tuple(
    parse_rails(RAILS.replace("TWO_PEOPLE", said))
    for said in (
        "",
        'two_people = ["release"]',
        'two_people = ["release", "unblock", "kill"]',
        'two_people = ["release", "unblock", "unblock_user", "lift", "kill", "block", "block_user"]',
    )
)
UNMANAGED = parse_rails(RAILS.replace("TWO_PEOPLE", "").replace('management = ["10.1.0.0/24"]', ""))
NEVER = [network_of(a) for a in (*OWN, GATEWAY, NAME_SERVER)]
CALLERS = (
    Caller("analyser", 61_234, 0), Caller("operator", 0, 0), Caller("operator", 1_000, 0), Caller("operator", 1_001, 0),
)  # fmt: skip
ADMINISTRATORS = {"alice", "bob"}
_MOST_STEPS = 24
FORGED = (
    "block", "import", "kill", "grow", "release", "restrict", "adjust", "lift", "state", "restore", "ask", "x",
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.wall_ns, self.boot_ns, self.boot = 10**18, 10**10, 0
        self.was_set = False

    def __call__(self) -> Moment:
        return Moment(self.wall_ns, self.boot_ns, f"boot {self.boot}")

    def passes(self, seconds: int) -> None:
        self.wall_ns += seconds * NS_PER_S
        self.boot_ns += seconds * NS_PER_S

    def reboot(self) -> None:
        self.boot_ns, self.boot = 10**9, self.boot + 1


class Session:
    """One enforcer with a real journal in `folder`, and a kernel that only records."""

    def __init__(self, folder: str, rails: Rails) -> None:
        self.folder, self.rails = folder, rails
        self.clock, self.kernel = Clock(), KernelDouble()
        self.never = [n for n, _ in rails.never()] + NEVER
        self.start()

    def start(self) -> None:
        """As `__main__` does."""
        self.journal = Journal(self.folder, self.clock)
        assert not self.journal.note, self.journal.note
        self.denied = DenyList(f"{self.folder}/run/denied", self.journal, self.clock)
        self.authority = Authority(self.journal, self.kernel, self.clock, self.denied)  # type: ignore[arg-type]
        self.authority.users._administrators = lambda operators: ADMINISTRATORS
        self.authority.killswitch.restore()
        self.authority.use(self.rails)
        self.authority.follow()
        self.authority.restore()
        self.authority.publish()
        self.authority.look_around()
        self.journal.append("start")

    def restart(self, *, reboot: bool = False) -> None:
        """What was in force is in force again; what the disk did not take is in the kernel, and is noted before."""
        self.authority.heal()
        if reboot:
            self.clock.reboot()
            self.kernel = KernelDouble()
        state = self.journal.state
        state.advance(self.clock())
        state.expire()
        before = (
            {**state.blocks, **state.users}, dict(state.kills), dict(state.approvals), dict(state.signed)
        )  # fmt: skip
        restrictions = dict(state.restrictions)
        base = (state.elapsed_ns, state.awake_ns)
        self.journal.close()
        self.denied.close()
        self.start()
        state = self.journal.state
        now = {**state.blocks, **state.users}
        blocks, kills, approvals, signed = before
        gone = (state.elapsed_ns - base[0], state.awake_ns - base[1])
        if reboot:  # a wall clock that was set shortens blocks then, and never lengthens one
            left = {a: b.ends_ns - base[0] for a, b in blocks.items()}
            assert all(b.ends_ns - state.elapsed_ns <= left[a] for a, b in now.items())
            assert self.clock.was_set or blocks.keys() == now.keys()
            assert all(
                r.ends_ns - state.elapsed_ns <= restrictions[n].ends_ns - base[0]
                for n, r in state.restrictions.items()
                if r.ends_ns
            )
            assert restrictions.keys() == state.restrictions.keys()  # until an entry says that it is over
        else:
            assert {a: b._replace(ends_ns=b.ends_ns + gone[0]) for a, b in blocks.items()} == now
            assert {
                n: r._replace(ends_ns=r.ends_ns and r.ends_ns + gone[0]) for n, r in restrictions.items()
            } == state.restrictions
        assert state.signed == signed
        assert {
            n: k._replace(ends_ns=k.ends_ns and k.ends_ns + gone[1]) for n, k in kills.items()
        } == state.kills
        assert self.clock.was_set or approvals.keys() == state.approvals.keys()
        assert all(
            state.approvals[n].granted == a.granted for n, a in approvals.items() if n in state.approvals
        )

    def said(self, data: bytes, caller: Caller) -> None:
        """As `Server._answer` does."""
        state = self.journal.state
        before = (
            {**state.blocks, **state.users},
            dict(state.kills),
            dict(state.approvals),
            dict(state.restrictions),
        )
        sequence = self.journal.sequence
        try:
            ask = parse(data)
        except MalformedError as error:
            self.answered(self.authority.refuse(Refusal(str(error), "protocol"), {}, caller))
            assert ({**state.blocks, **state.users}, state.kills) == before[:2]
            return
        assert len(data) <= MOST_BYTES, "a message beyond the limit was taken"
        if ask["request"] == "follow":
            return  # the server's own
        answer = self.authority.handle(ask, caller)
        if not isinstance(answer, dict):
            answer = answer.finish()
        self.answered(answer)
        if self.authority.unfinished:
            self.authority.finish()
        assert self.journal.sequence >= sequence
        if caller.role == "analyser" and ask["request"] != "signed":
            self.lied_in_vain(*before)
        self.in_force()

    @contextlib.contextmanager
    def full_disk(self, room_bytes: int) -> Iterator[None]:
        """No file grows beyond what the journal has and `room_bytes`: a real fault, setrlimit(2)."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Path(self.journal.path).stat().st_size + room_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def answered(self, answer: dict[str, Any]) -> None:
        assert type(answer["ok"]) is bool
        assert answer["ok"] or answer.get("refused") or answer.get("error"), answer
        encoded = json.dumps(answer, separators=(",", ":")).encode("ascii")
        assert len(encoded) <= MOST_BYTES, f"an answer of {len(encoded)} bytes"
        with contextlib.suppress(EnforcerError):
            client.judged(encoded)

    def lied_in_vain(
        self,
        blocks: dict[str, Any],
        kills: dict[str, Any],
        approvals: dict[str, Any],
        restrictions: dict[str, Any],
    ) -> None:
        """What the analyser asked for has not let anything go that is not its own."""
        state, now_ns = self.journal.state, self.journal.state.elapsed_ns
        for name, kill in kills.items():
            assert name in state.kills, "released"
            now = state.kills[name]
            assert set(now.services) >= set(kill.services)
            assert not now.ends_ns or now.ends_ns >= kill.ends_ns > 0
        for name in state.kills.keys() - kills.keys():
            endpoint = self.rails.endpoint(name)
            assert endpoint is not None
            assert endpoint.kill_without_person
        blocked = {**state.blocks, **state.users}
        for name, block in blocks.items():
            if block.owner != "analyser" and block.ends_ns > now_ns:
                assert blocked[name].owner == block.owner
                assert blocked[name].ends_ns >= block.ends_ns - NS_PER_S, "shortened"
                assert blocked[name].where in ("", block.where), "narrowed"
        assert all(b.owner == "analyser" for n, b in blocked.items() if n not in blocks)
        for name, waiting in approvals.items():  # what people asked for, and what they agreed to, stays
            assert waiting.ends_ns <= now_ns or state.approvals[name] == waiting
        assert all(a.owner == "analyser" for n, a in state.approvals.items() if n not in approvals)
        own = sum(a.owner == "analyser" for a in state.approvals.values())
        assert own <= self.rails.limits.most_waiting
        for name, restriction in restrictions.items():
            if restriction.owner != "analyser" and (not restriction.ends_ns or restriction.ends_ns > now_ns):
                now = state.restrictions[name]
                assert now.owner == restriction.owner
                assert now.allowed == restriction.allowed
                assert not now.ends_ns or now.ends_ns >= restriction.ends_ns - NS_PER_S > 0, "shortened"
        for name in state.restrictions.keys() - restrictions.keys():
            endpoint = self.rails.endpoint(name)
            assert endpoint is not None
            assert endpoint.restrict_without_person

    def in_force(self) -> None:
        """The rails hold, and the kernel has what the journal says."""
        state = self.journal.state
        limits = self.rails.limits
        assert len(state.blocks) <= limits.most_blocks
        if not self.rails.management:
            assert not state.blocks
        for address, block in state.blocks.items():
            network = network_of(address)
            assert address_text(network) == address
            assert network.prefixlen in PREFIXES[network.version]
            assert not any(n.version == network.version and network.subnet_of(n) for n in self.never)  # type: ignore[arg-type]
            assert block.ends_ns - state.elapsed_ns <= limits.longest_ttl_s * NS_PER_S
        assert not state.kills.keys() & {"spared", "door"}
        assert len(state.users) <= limits.most_users
        now_ns = state.elapsed_at(self.clock())
        alive = {n for n, b in state.users.items() if b.ends_ns > now_ns}
        assert not alive & {f"{k}:breakglass" for k in KINDS}
        assert not alive & {"account:root", "any:root", "key:k-0011223344556677", "any:k-0011223344556677"}
        assert any(alive.isdisjoint({f"account:{n}", f"any:{n}"}) for n in ADMINISTRATORS)
        self.published(now_ns)
        for name in (n for n, b in state.blocks.items() if b.where and b.ends_ns > now_ns):
            key = network_of(name).network_address.packed
            held_keys = self.kernel._sets.get((TABLE, name_of(network_of(name))), {})
            assert key not in held_keys, "a block at the gateway alone is in the kernel"
        assert not state.restrictions.keys() & {"spared", "door", "mapped"}
        with contextlib.suppress(EnforcerError):  # the disk may be full; in the kernel it is over
            self.authority.restrictions.end_due()
        assert self.authority.restrictions.differences() == []
        held = killtable.held(self.kernel, killtable.KILL)  # type: ignore[arg-type]
        known = self.authority.killswitch._engaged()  # with what the disk has not taken yet
        assert known.keys() >= state.kills.keys()
        engaged = {name: frozenset(kill.services) for name, kill in known.items()}
        assert (held.services if held else {}) == engaged
        assert not held or held.hooked
        if "release" in self.rails.two_people:
            self.two_people()

    def published(self, now_ns: int) -> None:
        """The deny list is right, or it is known not to be."""
        if self.denied.problem:
            return
        state, boot_ns = self.journal.state, self.clock.boot_ns
        said: dict[tuple[str, str], int] = {}
        for line in Path(self.denied.path).read_text("ascii").splitlines()[1:]:
            sign, kind, name, *ends = json.loads(line)
            said.pop((kind, name), None)
            if sign == "+":
                said[kind, name] = ends[0]
        in_force = {key for key, ends_ns in said.items() if not ends_ns or ends_ns > boot_ns}
        wanted = {("address", a) for a, b in state.blocks.items() if b.ends_ns > now_ns}
        wanted |= {tuple(u.split(":", 1)) for u, b in state.users.items() if b.ends_ns > now_ns}  # type: ignore[misc]
        wanted |= {
            ("restricted", n) for n, r in state.restrictions.items() if not r.ends_ns or r.ends_ns > now_ns
        }
        assert in_force - {k for k in said if k[0] == "killed"} == wanted
        ended = {("killed", n) for n, k in state.kills.items() if k.ends_ns}  # those may be over a moment ago
        assert {k for k in in_force if k[0] == "killed"} | ended == {("killed", n) for n in state.kills}

    def two_people(self) -> None:
        for entry, _ in self.journal.remembered:
            if entry["do"] == "release":
                first, granted, second = str(entry["by"]).partition(", granted by ")
                assert granted, "one person released"
                assert first != second


def session(bytes_: Bytes) -> None:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        life = Session(folder, pick(bytes_, (*EVERY_RAILS, UNMANAGED)))
        for _ in range(bytes_.ConsumeIntInRange(1, _MOST_STEPS)):
            step = bytes_.ConsumeIntInRange(0, 16)
            if step < 10:
                life.said(generator.message(bytes_), pick(bytes_, CALLERS))
            elif step == 10:
                life.clock.passes(pick(bytes_, (1, 59, 100, 1_000, 4_000)))
            elif step == 11:
                life.clock.wall_ns += pick(bytes_, (-(10**13), 10**13))
                life.clock.was_set = True
            elif step == 12:
                life.restart(reboot=bool(bytes_.ConsumeIntInRange(0, 1)))
            elif step == 13:
                life.authority.tick()
                life.authority.end_due()
                life.in_force()
            elif step == 14:
                life.kernel.lose(
                    pick(bytes_, (TABLE, killtable.KILL, killtable.DRILL, restricttable.RESTRICT))
                )
                life.authority.heal()
                life.in_force()
            elif step == 15:
                life.authority.use(life.rails)
                life.authority.follow()
            else:
                with life.full_disk(bytes_.ConsumeIntInRange(0, 300)):
                    life.said(generator.message(bytes_), pick(bytes_, CALLERS))
            if not bytes_.remaining_bytes():
                break
        life.restart()
        life.journal.close()
        assert audit.check(folder).problems == []


def damage(bytes_: Bytes) -> None:
    """Files that were changed behind the enforcer's back: it starts, says so, and lets nothing go."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        history, engaged = pick(bytes_, HISTORIES)
        shutil.copytree(history, folder, dirs_exist_ok=True)
        names = ("journal", "journal", "head", "engaged")
        name = pick(bytes_, names)
        path = Path(folder, name)
        whole = path.read_bytes()
        how = bytes_.ConsumeIntInRange(0, 4)
        if how == 0:
            path.write_bytes(bytes_.ConsumeBytes(bytes_.ConsumeIntInRange(0, 400)))
        elif how == 1:
            path.write_bytes(generator.damaged(bytes_, whole))
        elif how == 2:
            path.write_bytes(generator.lines_changed(bytes_, whole))
        elif how == 3:
            path.unlink()
        else:
            path.write_bytes(whole + _forged(bytes_, whole))
        changed = not path.exists() or path.read_bytes() != whole
        clock = Clock()
        clock.passes(1_000)
        torn_only = name == "journal" and changed and path.exists() and path.read_bytes().startswith(whole)
        problems = _problems(folder)
        assert problems or torn_only or not changed or name == "engaged" or how == 4
        kernel = KernelDouble()
        for _ in range(2):
            journal = Journal(folder, clock)
            if how != 4:
                assert engaged <= journal.state.kills.keys()
            authority = Authority(journal, kernel, clock)  # type: ignore[arg-type]
            authority.killswitch.restore()
            authority.use(EVERY_RAILS[0])
            authority.follow()
            authority.restore()
            assert {"ok": True}.items() <= authority.handle({"request": "status"}, CALLERS[1]).items()  # type: ignore[union-attr]
            journal.append("start")
            journal.close()
            assert verify(f"{folder}/journal").intact
        Journal(folder, clock, read_only=True)


def rails(bytes_: Bytes) -> None:
    """A wrong file is refused with the reason; one that is taken can be put into force."""
    how = bytes_.ConsumeIntInRange(0, 7)
    if how == 0:
        said = bytes_.ConsumeUnicode(400)
    elif how < 4:
        change = generator.damaged if how == 1 else generator.lines_changed
        said = change(bytes_, RAILS.replace("TWO_PEOPLE", "cut_helper = true").encode()).decode(
            "utf-8", "replace"
        )
    else:
        said = generator.rails(bytes_)
    try:
        made = parse_rails(said)
    except ConfigError as error:
        assert error.message
        return
    killtable.render(killtable.KILL, {e.name: e.services for e in made.endpoints}).encode("ascii")
    killtable.break_glass({e.name: e.services for e in made.endpoints}, "/x").encode("ascii")
    assert all(len(e.name) <= 64 and e.services for e in made.endpoints)
    assert made.limits.smallest_prefix_ipv4 >= 24
    made.never()


def answers(bytes_: Bytes) -> None:
    """The client takes whatever comes as an answer or as an error."""
    data = bytes_.ConsumeBytes(400) if bytes_.ConsumeIntInRange(0, 3) == 0 else generator.answer(bytes_)
    if bytes_.ConsumeIntInRange(0, 31) == 0:
        data = b"[" * 60_000
    try:
        assert client.judged(data)["ok"]
    except EnforcerError as error:
        str(error)
    reason = client.plain(bytes_.ConsumeUnicode(600))
    if reason:
        assert parse(encode({"request": "unblock", "address": "1", "reason": reason}))["reason"] == reason


TARGETS: tuple[Callable[[Bytes], None], ...] = (session, session, session, damage, damage, rails, answers)


def run(data: bytes, provider: Callable[[bytes], Bytes] = Provider) -> None:
    """One execution: the first byte chooses the target."""
    if data:
        TARGETS[data[0] % len(TARGETS)](provider(data[1:]))


def _problems(folder: str) -> list[str]:
    try:
        return audit.check(folder).problems
    except EnforcerError as error:
        return [error.message]


def _forged(bytes_: Bytes, whole: bytes) -> bytes:
    """A further entry that is sealed as it must be and says anything."""
    from gatewatch.daemon.enforcer.chain import seal

    lines = whole.splitlines()
    try:
        last = json.loads(lines[-1])
        entry = {
            "seq": last["seq"] + 1, "wall": last["wall"], "boot": last["boot"], "boot_id": last["boot_id"],
            "do": pick(bytes_, FORGED),
            "by": "uid 0", "reason": "x", "owner": "operator", "broken": "",
            "address": generator.text(bytes_, ADDRESSES), "ttl_s": generator.number(bytes_),
            "endpoints": {generator.text(bytes_, ENDPOINTS): [generator.text(bytes_, generator.SERVICES)]},
            "blocks": [[generator.text(bytes_, ADDRESSES), generator.number(bytes_), 1, 1, "x", "x", "x", "x", "x"]],
            "kills": {generator.text(bytes_, ENDPOINTS): [["*:1/tcp"], generator.number(bytes_), "x", "x"]},
        }  # fmt: skip
        if not bytes_.ConsumeIntInRange(0, 3):
            entry[pick(bytes_, tuple(entry))] = generator.value(bytes_, "text", "")
        return seal(entry, last["hash"])[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return b""


def _histories() -> list[tuple[str, set[str]]]:
    """Folders of journals that were written as they should be, and what was engaged at their end."""
    made = []
    for number, steps in enumerate(
        (
            [("kill", "models")],
            [
                ("block", "203.0.113.7"),
                ("kill", "models"),
                ("block", "2001:db8:1::/64"),
                ("release", "models"),
            ],
            [
                ("kill", "models"),
                ("kill", "mapped"),
                ("release", "models"),
                ("block", "203.0.113.8"),
                ("kill", "models"),
            ],
        )
    ):
        folder = f"{SCRATCH}/history-{number}"
        life = Session(folder, EVERY_RAILS[0])
        for what, whom in steps:
            field: dict[str, Any] = {"address": whom} if what == "block" else {"endpoints": [whom]}
            life.said(encode({"request": what, "reason": "test", **field}), CALLERS[1])
        made.append((folder, set(life.journal.state.kills)))
        life.journal.close()
    return made


replace_kernel()
_scratch = tempfile.TemporaryDirectory(
    prefix="gatewatch-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)
SCRATCH = _scratch.name
HISTORIES = _histories()
