"""An analyser that was taken over: whatever it asks of the enforcer with its own credentials, the rails hold.

Every attempt is refused and in the journal, as an entry or in a count, and people are served meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, FRONT, OTHER, RAILS, Rig, flows, stopped
from gatewatch.daemon.supervisor import identity
from lab.lab import HOSTS, Lab, unmet, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.lab

GATEWAY, MANAGEMENT, BALANCER = HOSTS["gateway"], HOSTS["management"], HOSTS["balancer"]
SINK, NAME_SERVER, NAME_SERVER_V6 = HOSTS["outside"].v4, "198.51.100.53", "2001:db8:0:3::53"
OPERATORS_BLOCK = "198.18.255.1"
OPERATORS_USER = "eve"
LIE_RAILS = RAILS.replace(
    f'management = ["{MANAGEMENT.v4}/32"]',
    f'management = ["{MANAGEMENT.v4}/32", "{MANAGEMENT.v6}/128"]\nsinks = ["{SINK}/32"]',
)
NEVER = {
    MANAGEMENT.v4: "management",
    MANAGEMENT.v6: "management",
    "203.0.113.70": "never_block",
    BALANCER.v4: "proxies",
    SINK: "sinks",
    GATEWAY.v4: "own_address",
    GATEWAY.v6: "own_address",
    GATEWAY.v4_router: "gateway",
    GATEWAY.v6_router: "gateway",
    NAME_SERVER: "name_server",
    NAME_SERVER_V6: "name_server",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "fe80::1": "link_local",
    "0.0.0.0": "unspecified",
    "::": "unspecified",
}
TOO_WIDE = {
    "0.0.0.0/0": "smallest_prefix_ipv4",
    "0.0.0.0/1": "smallest_prefix_ipv4",
    "128.0.0.0/1": "smallest_prefix_ipv4",
    "::/0": "smallest_prefix_ipv6",
    "2000::/3": "smallest_prefix_ipv6",
    "::ffff:0:0/96": "smallest_prefix_ipv4",
    "192.0.2.128/25": "prefixes",
    "192.0.2.128/31": "prefixes",
    f"{MANAGEMENT.v4}/0": "address",
}
MOST_GROWN_BYTES = 32 << 20
BLOCK = {"request": "block", "ttl_s": 600, "reason": "a lie"}
OTHERS = [
    ({"request": "block", "address": "203.0.113.66", "reason": "for ever"}, "ttl"),
    ({**BLOCK, "address": "203.0.113.66", "ttl_s": 0}, "ttl"),
    ({**BLOCK, "address": "203.0.113.66", "ttl_s": 3601}, "longest_ttl_s"),
    ({"request": "unblock", "address": OPERATORS_BLOCK, "reason": "a lie"}, "owner"),
    ({"request": "release", "reason": "a lie"}, "release"),
    ({"request": "release", "endpoints": ["models"], "reason": "a lie"}, "release"),
    ({"request": "drill_start", "seconds": 60}, "drill"),
    ({"request": "drill_stop"}, "drill"),
    ({"request": "kill", "reason": "a lie", "endpoints": ["spared"]}, "kill_switch"),
    ({"request": "kill", "reason": "a lie", "endpoints": ["nothing of the kind"]}, "endpoint"),
    ({"request": "import", "blocks": [["203.0.113.66", 600]], "reason": "a lie"}, "import"),
    ({**BLOCK, "address": HOSTS["management"].v4, "approval": 1, "hits": "nobody at all"}, "management"),
    ({**BLOCK, "address": "0.0.0.0/0", "where": "gateway"}, "smallest_prefix_ipv4"),
    ({"request": "block_user", "user": "mallory", "reason": "for ever"}, "ttl"),
    ({"request": "block_user", "user": "mallory", "ttl_s": 3601, "reason": "a lie"}, "longest_ttl_s"),
    ({"request": "block_user", "user": "root", "ttl_s": 60, "reason": "a lie"}, "never_block_users"),
    (
        {"request": "block_user", "user": "root", "kind": "account", "ttl_s": 60, "reason": "a lie"},
        "never_block_users",
    ),
    (
        {"request": "block_user", "user": "root", "ttl_s": 60, "reason": "a lie", "approval": 1},
        "never_block_users",
    ),
    ({"request": "unblock_user", "user": OPERATORS_USER, "reason": "a lie"}, "owner"),
    ({"request": "kill", "reason": "a lie", "endpoints": ["spared"], "approval": 2}, "kill_switch"),
    ({"request": "grant", "id": "1"}, "two_people"),
    ({"request": "deny", "id": "1"}, "two_people"),
    ({"request": "signed", "command": "release", "signer": "nobody", "signature": "AAAA"}, "signature"),
]


def mapped(address: str) -> list[str]:
    """An address as a liar may write it: the same in fewer or more signs, an IPv4 address inside IPv6."""
    if ":" in address:
        return [address, f"{address}/128", address.upper()]
    a, b, c, d = map(int, address.split("."))
    high, low = f"{a << 8 | b:x}", f"{c << 8 | d:x}"
    inside = [f"::ffff:{address}", f"::FFFF:{high}:{low}", f"0:0:0:0:0:ffff:{high}:{low}/128"]
    return [address, f"{address}/32", f"{address}/255.255.255.255", *inside]


LIES = [
    *(({**BLOCK, "address": form}, rail) for address, rail in NEVER.items() for form in mapped(address)),
    *(({**BLOCK, "address": address}, rail) for address, rail in TOO_WIDE.items()),
    *OTHERS,
]


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab:
        (lab.folder / "etc" / "resolv.conf").write_text(
            f"nameserver {NAME_SERVER}\nnameserver {NAME_SERVER_V6}\n"
        )
        yield lab


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare, LIE_RAILS) as rig:
        yield rig


def refusals(rig: Rig) -> int:
    """How many the journal knows of, one by one and counted, once the enforcer has ended."""
    entries = rig.journal()
    return sum(e["do"] == "refused" for e in entries) + sum(
        e["count"] for e in entries if e["do"] == "refusals"
    )


def memory(rig: Rig) -> int:
    """Bytes that the enforcer has in memory."""
    assert rig.process is not None
    line = next(
        x for x in Path(f"/proc/{rig.process.pid}/status").read_text().splitlines() if x.startswith("VmRSS:")
    )
    return int(line.split()[1]) * 1024


class Operator:
    """Somebody who asks, blocks and unblocks over new connections for as long as the block lasts."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.served = 0
        self.longest_s = 0.0
        self.failures: list[str] = []

    def __enter__(self) -> Operator:
        self._thread.start()
        wait_for("the operator's first answer", lambda: self.served or self.failures)
        return self

    def __exit__(self, *_: object) -> None:
        before = self.served
        with contextlib.suppress(TimeoutError):
            wait_for("one more answer", lambda: self.served > before or self.failures)
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.01):
            enforcer, begun = self._rig.enforcer(), time.monotonic()
            try:
                enforcer.block("198.18.254.1", ttl_s=60, reason="work")
                enforcer.unblock("198.18.254.1", "work")
                enforcer.status()
                self.served += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            finally:
                enforcer.close()
            self.longest_s = max(self.longest_s, time.monotonic() - begun)


@contextlib.contextmanager
def served(rig: Rig) -> Iterator[None]:
    """An operator is served all the time, and the enforcer's memory does not grow."""
    rig.enforcer().status()
    before = memory(rig)
    with Operator(rig) as operator:
        yield
    grown = memory(rig) - before
    print(
        f"served {operator.served} times, in {operator.longest_s:.3f} s at most; grown by {grown >> 10} KiB"
    )
    assert operator.failures == []
    assert grown < MOST_GROWN_BYTES


@contextlib.contextmanager
def liar(state: Path, program: str, *words: str, uid: int = ANALYSER_UID) -> Iterator[subprocess.Popen[str]]:
    """A process with the analyser's credentials; `connect()` in it makes a line to the enforcer."""
    arguments = [str(uid), str(state / "run" / "enforcer.sock"), *words]
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _LIAR + program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def done(process: subprocess.Popen[str]) -> Any:
    """What the liar printed when it was done."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_every_lie_is_refused_by_its_rail_and_written_down(rig: Rig) -> None:
    rig.enforcer().block(OPERATORS_BLOCK, ttl_s=600, reason="by a person")
    rig.enforcer().block_user(OPERATORS_USER, ttl_s=600, reason="by a person")
    rig.enforcer().kill(["models"], "by a person")
    answers = rig.ask_as(ANALYSER_UID, *(ask for ask, _ in LIES))
    wrong = [
        (ask, answer)
        for (ask, rail), answer in zip(LIES, answers, strict=True)
        if answer["ok"] or answer["rail"] != rail
    ]
    assert wrong == []
    assert [b["address"] for b in rig.enforcer().blocks()] == [OPERATORS_BLOCK]
    assert [u["user"] for u in rig.enforcer().users()] == [OPERATORS_USER]
    assert [k["endpoint"] for k in rig.enforcer().status()["kills"]] == ["models"]
    assert list(rig.enforcer().approvals()) == []
    written = [e for e in rig.journal() if e["do"] == "refused"]
    assert [(e["rail"], e["by"]) for e in written] == [(rail, "analyser") for _, rail in LIES[: len(written)]]
    rig.stop()
    assert refusals(rig) == len(LIES)


def test_it_takes_nothing_over_from_a_person(rig: Rig) -> None:
    ours, theirs = "198.18.0.1", "198.18.0.2"
    unblock = {"request": "unblock", "reason": "a lie"}
    rig.enforcer().block(ours, ttl_s=60, reason="by a person")
    rig.ask_as(ANALYSER_UID, {**BLOCK, "address": ours}, {**BLOCK, "address": theirs})
    rig.enforcer().block(theirs, ttl_s=900, reason="by a person, too")
    answers = rig.ask_as(ANALYSER_UID, {**unblock, "address": ours}, {**unblock, "address": theirs})
    assert [a.get("rail") for a in answers] == ["owner", "owner"]
    rig.enforcer().kill(["automatic"], "by a person")
    kill = {"request": "kill", "endpoints": ["automatic"], "reason": "a lie", "ttl_s": 1}
    assert rig.ask_as(ANALYSER_UID, kill)[0]["already"] == ["automatic"]
    threading.Event().wait(2.5)
    assert [k["endpoint"] for k in rig.enforcer().status()["kills"]] == ["automatic"]
    assert {b["address"]: b["owner"] for b in rig.enforcer().blocks()} == {
        ours: "operator",
        theirs: "operator",
    }


def test_a_stranger_who_knocks_without_end_hides_no_lie(rig: Rig) -> None:
    for _ in range(3):
        with liar(rig.state, _KNOCKS, uid=ANALYSER_UID + 1) as process:
            assert done(process) == 50
    rig.ask_as(ANALYSER_UID, {**BLOCK, "address": MANAGEMENT.v4})
    written = [e["by"] for e in rig.journal() if e["do"] == "refused"]
    assert 0 < written.count(f"uid {ANALYSER_UID + 1}") < 150
    assert written[-1] == "analyser"


def test_a_block_around_whom_it_may_not_block_lets_these_through(rig: Rig) -> None:
    rig.nft("add table inet theirs")
    rig.nft("add chain inet theirs c { type filter hook input priority 0; }")
    rig.nft("add rule inet theirs c ct state new counter")  # their firewall tracks connections
    with (
        rig.serving(OTHER),
        rig.connect(OTHER, MANAGEMENT.v4) as session,
        rig.connect(OTHER, HOSTS["attacker"].v4) as attack,
    ):
        for address in ("192.0.2.0/24", "203.0.113.0/24", "2001:db8:0:1::/64", "2001:db8::/48", "::/64"):
            answer = rig.ask_as(ANALYSER_UID, {**BLOCK, "address": address})[0]
            assert answer["ok"], answer
        for host in ("gateway", "router"):
            rig.lab.run_in(host, ["ip", "neigh", "flush", "all"])
        assert flows(session)
        assert stopped(attack)
        tracked = rig.lab.run_in("gateway", ["conntrack", "-L"]).stdout
        assert f"src={MANAGEMENT.v4} " in tracked
        assert f"src={HOSTS['attacker'].v4} " not in tracked
        for source in (MANAGEMENT.v4, MANAGEMENT.v6, "203.0.113.70"):
            assert rig.reaches(OTHER, source), source
        assert rig.unreachable(OTHER, HOSTS["attacker"].v4)
        assert rig.unreachable(OTHER, HOSTS["attacker"].v6)


def test_of_ten_thousand_blocks_only_so_many_a_minute_get_through(rig: Rig) -> None:
    with served(rig), liar(rig.state, _TEN_THOUSAND) as process:
        said = done(process)
    assert said["refused"] == {"most_new_per_minute": 10_000 - said["ok"]}
    assert 20 <= said["ok"] <= 20 * (1 + said["seconds"] // 60)
    mine = [b for b in rig.enforcer().blocks() if b["owner"] == "analyser"]
    assert len(mine) == said["ok"]
    rig.stop()
    assert refusals(rig) == 10_000 - said["ok"]


def test_what_is_no_request_is_refused_and_written_down(rig: Rig) -> None:
    with served(rig), liar(rig.state, _NONSENSE) as process:
        said = done(process)
    assert said["rails"] == {"protocol": said["sent"]}
    assert said["too_long_to_send"] == "EMSGSIZE"
    rig.stop()
    assert refusals(rig) == said["sent"]


@pytest.mark.parametrize("habit", ["idle", "deaf", "many", "hasty", "stranger", "follower"])
def test_whatever_it_does_with_connections_people_are_served(rig: Rig, habit: str) -> None:
    uid = ANALYSER_UID + (habit == "stranger")  # who is sent away at once, and comes again
    with liar(rig.state, _CONNECTIONS, habit, uid=uid) as process:
        assert done(process) == "begun"
        with served(rig):
            assert done(process) == "going on"
        with rig.serving(FRONT):
            assert rig.reaches(FRONT)
            assert rig.command("engage", "--endpoint", "models", "--reason", "test")[0] == 0
            assert rig.unreachable(FRONT)
        assert process.poll() is None


def counted(alert: dict[str, Any]) -> int:
    """For how many refusals it stands."""
    said = (what.removeprefix("count: ") for what in alert["what"] if what.startswith("count: "))
    return int(alert.get("count") or next(said, 1))


def test_every_lie_is_told_to_the_sinks(lab: Lab) -> None:
    lies = [
        ({**BLOCK, "address": MANAGEMENT.v4}, "management"),
        ({**BLOCK, "address": "0.0.0.0/0"}, "smallest_prefix_ipv4"),
        ({**BLOCK, "address": BALANCER.v4}, "proxies"),
        ({"request": "release", "reason": "a lie"}, "release"),
        ({"request": "block_user", "user": "root", "ttl_s": 60, "reason": "a lie"}, "never_block_users"),
        ({"request": "what?"}, "protocol"),
    ]
    more = 200
    with Gatewatch(lab) as watch:
        uid = identity("gatewatch", 0).uid
        asked = [ask for ask, _ in lies] + [lies[0][0]] * more
        with liar(watch.state, _ALL, json.dumps(asked), uid=uid) as process:
            answers = done(process)
        assert [a["rail"] for a in answers[: len(lies)]] == [rail for _, rail in lies]
        assert not any(a["ok"] for a in answers)

        def told() -> list[dict[str, Any]]:
            return [
                a
                for a in watch.alerts()
                if a["event"] == "audit" and a["outcome"] == "refused" and a["by"] in ("analyser", "")
            ]

        wait_for("every lie at the sink", lambda: {a["rail"] for a in told()} >= {rail for _, rail in lies})
        assert {a["priority"] for a in told() if a["rail"]} == {"high"}
        first = next(a for a in told() if a["rail"] == "management")
        assert (first["action"], first["target"], first["by"]) == ("block", MANAGEMENT.v4, "analyser")
        # Those that are too many to tell each are told as counts: some by now, the last once a minute or at the end.
        watch.stop()
        watch.start()
        wait_for("all of them", lambda: sum(map(counted, told())) >= len(lies) + more, 40)
        assert sum(map(counted, told())) == len(lies) + more


_LIAR = """
import collections, errno, json, os, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (6000, 6000))
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(*[int(sys.argv[1])] * 3)
def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20)
    s.connect(sys.argv[2])
    return s
def ask(s, data):
    s.send(data if isinstance(data, bytes) else json.dumps(data).encode())
    return json.loads(s.recv(65536))
def block(n):
    return {"request": "block", "address": f"198.19.{n >> 8}.{n & 255}", "ttl_s": 600, "reason": "x" * 400}
"""

_TEN_THOUSAND = """
s, ok, refused, begun = connect(), 0, collections.Counter(), time.monotonic()
for n in range(10000):
    answer = ask(s, block(n))
    ok += answer["ok"]
    if not answer["ok"]:
        refused[answer["rail"]] += 1
print(json.dumps({"ok": ok, "refused": refused, "seconds": time.monotonic() - begun}), flush=True)
sys.stdin.read()
"""

_ALL = """
s = connect()
print(json.dumps([ask(s, one) for one in json.loads(sys.argv[3])]), flush=True)
sys.stdin.read()
"""

_KNOCKS = """
refused = 0
for _ in range(50):
    refused += not json.loads(connect().recv(65536))["ok"]
print(refused, flush=True)
sys.stdin.read()
"""

_NONSENSE = """
s, rails = connect(), collections.Counter()
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
nonsense = [
    b"\\0", b"{", b"null", b"[]", b"7", b"\\xff\\xfe", b"{}" * 30000, b"[" * 65536, b'{"a":' * 13000, b"9" * 65536,
    b'{"request":"block"}', b'{"request":"block","address":"198.51.100.1","address":"198.51.100.2","reason":"x"}',
    b'{"request":"status","more":1}', b'{"request":"__class__"}', b'{"request":"_refused"}', b'{"request":["status"]}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":1e3,"reason":"x"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":-1,"reason":"x"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":true,"reason":"x"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":NaN,"reason":"x"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":' + b"9" * 5000 + b',"reason":"x"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":60,"reason":"a\\\\nb"}',
    b'{"request":"block","address":"198.51.100.1","ttl_s":60,"reason":"' + b"x" * 501 + b'"}',
    b'{"request":"kill","endpoints":["' + b'","'.join([b"x"] * 257) + b'"],"reason":"x"}',
    b"x" * 65537, b"x" * 150000,
]
for n in range(1000):
    data = nonsense[n % len(nonsense)]
    rails[ask(s, data).get("rail")] += 1
try:
    s.send(b"x" * 10_000_000)
    too_long = "sent"
except OSError as error:
    too_long = errno.errorcode[error.errno]
print(json.dumps({"sent": 1000, "rails": rails, "too_long_to_send": too_long}), flush=True)
sys.stdin.read()
"""

_CONNECTIONS = """
habit, kept, told = sys.argv[3], [], False
def more(s):
    s.setblocking(False)
    try:
        while True:
            s.send(json.dumps(block(1)).encode())
    except OSError:
        pass
if habit == "follower":
    for _ in range(12):
        kept.append(connect())
        ask(kept[-1], {"request": "follow", "after": 0})
    nagging = connect()
print('"begun"', flush=True)
until = time.monotonic() + 1.5
while True:
    try:
        if habit in ("hasty", "stranger"):
            connect().close()
        elif habit == "follower":
            ask(nagging, block(1) | {"address": "127.0.0.1"})
        elif len(kept) < (3000 if habit == "many" else 40):
            kept.append(connect())
            if habit == "deaf":
                more(kept[-1])
        else:
            time.sleep(0.01)
            if habit == "deaf":
                kept = [s for s in kept if not more(s)]
    except OSError:
        time.sleep(0.001)
    if not told and time.monotonic() > until:
        told = True
        print('"going on"', flush=True)
"""
