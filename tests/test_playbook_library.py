"""Each shipped playbook on input that is replayed through the real detection: what fires it, and what must not.

Some kinds have no detector yet: the tests with "stored" in their name take an incident in the form that is kept.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from frames import ethernet, ipv4, pcap, tcp
from gatewatch.daemon.cli import main
from gatewatch.daemon.incidents import Correlator
from gatewatch.detectors.finding import Finding, Kind
from gatewatch.playbooks.loader import SHIPPED, load_playbook

ATTACKER, HOME, OFFICE = "203.0.113.7", "198.51.100.9", "198.51.100.77"
GATEWAY = "198.51.100.5"
KEY = "k-0123456789abcdef"
DAY, HOUR = 86_400, 3600
START = datetime.datetime(2026, 11, 23, 9, tzinfo=datetime.UTC)
HOUR_S, FOUR_HOURS_S = 3600, 14_400

CONFIG = """
network: {local: [198.51.100.0/24], trusted_proxies: [10.0.0.0/8]}
allowlist:
  ingress: [{networks: [192.0.2.0/24], ports: [443]}]
  egress: [{networks: [192.0.2.0/24], ports: [443]}]
"""
QUIET_NETWORK = "network: {local: [198.51.100.0/24], trusted_proxies: [10.0.0.0/8]}\n"

Login = tuple[float, str, str, bool]


def sshd(*logins: Login, method: str = "password") -> bytes:
    """A log of sshd with (seconds from START, source, user, whether it succeeded) in the order of time."""
    lines = []
    for number, (at, source, user, good) in enumerate(sorted(logins)):
        when = (START + datetime.timedelta(seconds=at)).strftime("%b %d %H:%M:%S")
        said = "Accepted" if good else "Failed"
        how = method if good else "password"
        lines.append(
            f"{when} gw sshd[{1000 + number}]: {said} {how} for {user} from {source} port 4022 ssh2\n"
        )
    return "".join(lines).encode()


def fails(source: str, users: Sequence[str], count: int, gap: float = 3, at: float = 0) -> list[Login]:
    return [(at + gap * n, source, users[n % len(users)], False) for n in range(count)]


def habits(source: str, users: Sequence[str]) -> list[Login]:
    """Two weeks of logins from where these users always come from."""
    return [(-14 * DAY + n * 2 * HOUR, source, users[n % len(users)], True) for n in range(160)]


def nginx(*requests: tuple[str, int, str], peer: str = ATTACKER) -> bytes:
    """An access log in the shipped format, with (path, status, key id), one request a second."""
    return "".join(
        f'{peer} - - [24/Nov/2026:09:{n // 60:02d}:{n % 60:02d} +0000] "POST {path} HTTP/1.1" {status} 12 "-" '
        f'"curl/8" rt=0.01 key={key} model=- in=- out=- rid=-\n'
        for n, (path, status, key) in enumerate(requests)
    ).encode()


def behind_proxy(count: int) -> bytes:
    """Refused requests of one client that a trusted proxy names, in the shipped JSON format."""
    return "".join(
        json.dumps(
            {
                "time_iso8601": f"2026-11-24T09:00:{n:02d}+00:00",
                "remote_addr": "10.0.0.1",
                "http_x_forwarded_for": ATTACKER,
                "request_method": "POST",
                "request_uri": "/v1/chat/completions",
                "status": 401,
                "body_bytes_sent": 12,
                "request_id": f"r{n}",
            }
        )
        + "\n"
        for n in range(count)
    ).encode()


SYN, SYN_ACK, ACK, RESET = 0x02, 0x12, 0x10, 0x14


def refused(source: str, port: int) -> list[bytes]:
    return [
        ethernet(ipv4(source, GATEWAY, 6, tcp(40_000, port, SYN, sequence=5))),
        ethernet(ipv4(GATEWAY, source, 6, tcp(port, 40_000, RESET, acknowledgement=6))),
    ]


def handshake(source: str, destination: str, port: int) -> list[bytes]:
    return [
        ethernet(ipv4(source, destination, 6, tcp(41_000, port, SYN, sequence=5))),
        ethernet(ipv4(destination, source, 6, tcp(port, 41_000, SYN_ACK, sequence=9, acknowledgement=6))),
        ethernet(ipv4(source, destination, 6, tcp(41_000, port, ACK, sequence=6, acknowledgement=10))),
    ]


def scan(taken: int) -> bytes:
    """Forty ports that refuse, then `taken` that take the handshake."""
    frames = [frame for port in range(1000, 1040) for frame in refused(ATTACKER, port)]
    return pcap(frames + [f for port in range(taken) for f in handshake(ATTACKER, GATEWAY, 2000 + port)])


def stored(kind: Kind, severity: int, **more: Any) -> bytes:
    """An incident as it is kept, of a kind that no detector finds yet."""
    now_ns = int(START.timestamp()) * 10**9
    values: dict[str, Any] = {
        "sources": (ATTACKER,),
        "targets": ("chat",),
        "confidence": 0.9,
        "provenance": 4,
    }
    finding = Finding(
        "0123456789abcdef", kind, kind, "source", ATTACKER, now_ns, now_ns - 10**9, now_ns, severity,
        **(values | more),
    )  # fmt: skip
    incident = Correlator().apply([finding])[0].incident.document()
    return json.dumps(incident | {"status": "open", "revision": 1, "actions": []}).encode() + b"\n"


class Try(NamedTuple):
    """What a playbook decides on some input: (state, action, target, seconds) in order; none where none is found."""

    playbook: str
    about: str
    content: Callable[[], bytes]
    decided: list[tuple[str, str, str, int]]
    options: Sequence[str] = ()
    config: str = QUIET_NETWORK
    why: str = ""


ID = "an incident"
"""Stands for the incident's id, which evidence has as its target."""
NOTIFY = ("act", "notify", "sinks", 0)
EVIDENCE = ("act", "capture_evidence", ID, 0)
STAFF = [f"employee{n}" for n in range(9)]
CROWD = [f"{30 + n}.{n * 7 % 251}.{n}.1" for n in range(140)]

FIRING = [
    Try("login-burst", "one source guesses", lambda: sshd(*fails(ATTACKER, ["root"], 20)),
        [("act", "block_source", ATTACKER, HOUR_S)]),
    Try("login-burst", "one that came back twice is blocked longer",
        lambda: sshd(*fails(ATTACKER, ["root"], 20)),
        [("act", "block_source", ATTACKER, 4 * HOUR_S)], ("--earlier", "2"), why="2 blocks came before"),
    Try("login-burst", "a client that guesses keys through nginx",
        lambda: nginx(*[("/v1/chat/completions", 401, "-")] * 40), [("act", "block_source", ATTACKER, HOUR_S)]),
    Try("login-burst", "a guesser who takes another address each time, by their network",
        lambda: sshd(*[(5.0 * n, f"2001:db8:7:9::{n:x}", f"u{n % 5}", False) for n in range(30)]),
        [("act", "block_source", "2001:db8:7:9::/64", HOUR_S)]),
    Try("account-compromise", "the password was guessed",
        lambda: sshd(*fails(ATTACKER, ["bob"], 20), (90, ATTACKER, "bob", True)),
        [("act", "block_source", ATTACKER, DAY), ("act", "block_user", "account:bob", HOUR_S), EVIDENCE, NOTIFY]),
    Try("password-spray", "one source tries many accounts",
        lambda: sshd(*fails(ATTACKER, [f"user{n}" for n in range(24)], 24, gap=30)),
        [("act", "block_source", ATTACKER, FOUR_HOURS_S)]),
    Try("credential-stuffing", "many sources try many accounts once",
        lambda: sshd(*[(5.0 * n, source, f"p{n}", False) for n, source in enumerate(CROWD)]), [NOTIFY, EVIDENCE]),
    Try("credential-stuffing", "many sources guess one account",
        lambda: sshd(*[(20.0 * n, source, "ceo", False) for n, source in enumerate(CROWD[:80])]),
        [NOTIFY, EVIDENCE]),
    Try("control-endpoint", "the key that did it, and not the address that others share",
        lambda: nginx(*[("/v1/chat/completions", 200, KEY)] * 5, ("/collective_rpc", 200, KEY)),
        [("act", "block_user", f"key:{KEY}", FOUR_HOURS_S), ("skip", "block_source", ATTACKER, 0), EVIDENCE, NOTIFY]),
    Try("control-endpoint", "a client without a key",
        lambda: nginx(*[("/v1/chat/completions", 200, "-")] * 5, ("/collective_rpc", 200, "-")),
        [("act", "block_source", ATTACKER, FOUR_HOURS_S), EVIDENCE, NOTIFY]),
    Try("control-endpoint", "a key that is abused, stored",
        lambda: stored("api_key_abuse", 75, users=(KEY,), blockable_users=(f"key:{KEY}",)),
        [("act", "block_user", f"key:{KEY}", FOUR_HOURS_S), ("skip", "block_source", ATTACKER, 0), EVIDENCE, NOTIFY]),
    Try("scan", "a scanner whose handshake many ports took", lambda: scan(25),
        [("act", "block_source", ATTACKER, HOUR_S)]),
    Try("off-allowlist-egress", "the gateway connects elsewhere",
        lambda: pcap(handshake(GATEWAY, "203.0.113.99", 443)), [NOTIFY, EVIDENCE], config=CONFIG),
    Try("off-allowlist-ingress", "a stranger connects, and could be blocked",
        lambda: pcap(handshake(ATTACKER, GATEWAY, 443)), [NOTIFY, NOTIFY], config=CONFIG),  # the SYN, the handshake
    *[
        Try("exfiltration", f"{kind}, stored", lambda kind=kind: stored(kind, 75),
            [NOTIFY, EVIDENCE, ("wait", "kill_switch", "all", 0)], why="a kill switch needs the approval of one")
        for kind in ("exfiltration", "dns_tunnel", "beacon")
    ],
    Try("flood", "syn_flood, stored, whose sources are forged", lambda: stored("syn_flood", 65),
        [NOTIFY, EVIDENCE]),
]  # fmt: skip

QUIET = [
    Try("login-burst", "a colleague in an office forgot the password",
        lambda: sshd(*habits(OFFICE, STAFF), *fails(OFFICE, STAFF[:1], 40)), [], why="priority low is below medium"),
    Try("login-burst", "the owner forgot the password",
        lambda: sshd(*habits(HOME, ["alice"]), *fails(HOME, ["alice"], 25)), [], why="priority low is below medium"),
    Try("login-burst", "a log that any local user can write to, before the wire proves it",
        lambda: sshd(*fails(ATTACKER, ["root"], 20)), [("wait", "block_source", ATTACKER, HOUR_S)],
        ("--uncorroborated",), why="could be forged"),
    Try("login-burst", "it was an hour ago", lambda: sshd(*fails(ATTACKER, ["root"], 20)),
        [("skip", "block_source", ATTACKER, HOUR_S)], ("--age", "1h"), why="3600 s old, more than 600 s"),
    Try("account-compromise", "a thousand failures as bob, and no more",
        lambda: sshd(*fails(ATTACKER, ["bob"], 1000)), [], why="kind brute_force is not among account_compromise"),
    Try("account-compromise", "failures from elsewhere, and bob logs in from where he always does",
        lambda: sshd(*habits(HOME, ["bob"]), *fails(ATTACKER, ["bob"], 40), (200, HOME, "bob", True)), [],
        why="kind brute_force is not among account_compromise"),
    Try("password-spray", "an office where everybody mistypes and gets in",
        lambda: sshd(*habits(OFFICE, STAFF), *fails(OFFICE, STAFF, 27),
                     *[(200.0 + n, OFFICE, user, True) for n, user in enumerate(STAFF)]), []),
    Try("credential-stuffing", "a morning on which a hundred people who are known mistype once and get in",
        lambda: sshd(*[(5.0 * n - DAY, source, f"p{n}", True) for n, source in enumerate(CROWD)],
                     *[(5.0 * n, source, f"p{n}", False) for n, source in enumerate(CROWD)],
                     *[(5.0 * n + 4, source, f"p{n}", True) for n, source in enumerate(CROWD)]), []),
    Try("control-endpoint", "the server refused it",
        lambda: nginx(*[("/v1/chat/completions", 200, KEY)] * 5, ("/collective_rpc", 403, KEY)), [],
        why="priority low is below high"),
    Try("scan", "refused SYNs alone, which anybody can forge", lambda: scan(0),
        [("skip", "block_source", ATTACKER, 0)], why="not blockable"),
    Try("scan", "forged SYNs in the name of a client that is connected", lambda: scan(6),
        [("skip", "block_source", ATTACKER, 0)], why="not blockable"),
    Try("off-allowlist-egress", "a destination on the list",
        lambda: pcap(handshake(GATEWAY, "192.0.2.9", 443)), [], config=CONFIG),
    Try("off-allowlist-ingress", "a client on the list",
        lambda: pcap(handshake("192.0.2.9", GATEWAY, 443)), [], config=CONFIG),
    Try("exfiltration", "an upload that is not grave, stored", lambda: stored("exfiltration", 50), [],
        why="below high"),
    Try("flood", "a small one, stored", lambda: stored("syn_flood", 20), [], why="below medium"),
]  # fmt: skip


@pytest.fixture
def decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Try], list[dict[str, Any]]]:
    def decide(tried: Try) -> list[dict[str, Any]]:
        (tmp_path / "gatewatch.yaml").write_text(f"rails: none.toml\n{tried.config}")
        (tmp_path / "input").write_bytes(tried.content())
        playbook = SHIPPED / f"{tried.playbook}.yaml"
        command = ["playbook", "test", str(playbook), str(tmp_path / "input"), "--json", *tried.options]
        assert main([*command, "--config", str(tmp_path / "gatewatch.yaml")]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return decide


def summed_up(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    return [
        (
            row["state"],
            row["action"],
            ID if row["action"] == "capture_evidence" else row["target"],
            row["ttl_s"],
        )
        for row in rows
        if row["state"] != "none"
    ]


def named(tried: Try) -> str:
    return f"{tried.playbook}: {tried.about}"


def test_every_shipped_playbook_is_tried_with_what_fires_it_and_what_must_not() -> None:
    shipped = {path.stem for path in SHIPPED.glob("*.yaml")}
    assert {tried.playbook for tried in FIRING} == shipped
    assert {tried.playbook for tried in QUIET} == shipped


def test_no_two_shipped_playbooks_are_for_the_same_kind() -> None:
    kinds = [kind for path in SHIPPED.glob("*.yaml") for kind in load_playbook(path).when.kinds]
    assert len(kinds) == len(set(kinds)) > len(list(SHIPPED.glob("*.yaml")))


def test_behind_a_trusted_proxy_only_the_authorisation_endpoint_refuses_the_client(
    decide: Callable[[Try], list[dict[str, Any]]],
) -> None:
    (row,) = decide(Try("login-burst", "", lambda: behind_proxy(40), []))
    assert (row["state"], row["target"], row["detail"]) == ("act", ATTACKER, {"where": "gateway"})


@pytest.mark.parametrize("tried", FIRING, ids=named)
def test_what_it_is_for_fires_it(tried: Try, decide: Callable[[Try], list[dict[str, Any]]]) -> None:
    rows = decide(tried)
    assert summed_up(rows) == tried.decided
    assert tried.why in " ".join(row["why"] for row in rows)


@pytest.mark.parametrize("tried", QUIET, ids=named)
def test_what_it_is_not_for_does_not(tried: Try, decide: Callable[[Try], list[dict[str, Any]]]) -> None:
    rows = decide(tried)
    assert summed_up(rows) == tried.decided
    assert not any(row["state"] in ("act", "would") for row in rows)
    assert tried.why in " ".join(row["why"] for row in rows)
