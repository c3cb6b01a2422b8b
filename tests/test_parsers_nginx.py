"""Nobody forges a field of an access log, hides a line of it, or passes for another client."""

from __future__ import annotations

import ipaddress
import json

from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.events import AuthBatch, Outcome
from hypothesis import example, given, settings
from hypothesis import strategies as st

PROXIES = ("10.0.0.0/8", "fd00::/8")
OPTIONS = ParserOptions(now_ns=1_770_000_000 * 10**9, trusted_proxies=PROXIES)
NO_KEY = b"rt=0 key=- model=- in=- out=- rid=-"
few = settings(max_examples=150, deadline=None)
forging = st.sampled_from(
    [
        b'"',
        b"\\",
        b" - - ",
        b"[10/Oct/2025:13:55:36 +0000] ",
        b'" 200 1 "-" "-"',
        b" key=forged",
        b' fwd="192.0.2.1"',
        b"{",
        b" 403 ",
    ]
)
words = st.lists(forging | st.binary(max_size=6), max_size=8).map(b"".join)


def escaped(text: bytes) -> bytes:
    """As nginx writes a variable (ngx_http_log_module.c): quotes, backslashes and what is not printable as \\xHH."""
    return b"".join(b"\\x%02X" % c if c in b'"\\' or not 32 <= c <= 126 else bytes((c,)) for c in text)


def events_of(line: bytes) -> AuthBatch:
    parsed = make_parser("nginx", OPTIONS).parse(line + b"\n")
    assert len(parsed.events) == 1
    return parsed.events


def with_chain(chain: str, peer: str = "10.0.0.1") -> str:
    text = b'%s - - [10/Oct/2025:13:55:36 +0000] "GET / HTTP/1.1" 401 0 "-" "-" ' + NO_KEY + b' fwd="%s"'
    written = events_of(text % (peer.encode(), escaped(chain.encode()) or b"-")).source_of(0)
    of_json = {"remote_addr": peer, "status": "401", "http_x_forwarded_for": chain}
    assert events_of(json.dumps(of_json).encode()).source_of(0) == written
    return written


@few
@given(user=words, uri=words, referrer=words, agent=words, model=words)
@example(user=b"", uri=b"", referrer=b"", agent=b"", model=b"")
def test_nothing_that_a_client_sends_forges_a_field(
    user: bytes, uri: bytes, referrer: bytes, agent: bytes, model: bytes
) -> None:
    line = b'203.0.113.7 - %s [10/Oct/2025:13:55:36 +0000] "GET /%s HTTP/1.1" 401 5 "%s" "%s"'
    line += b" rt=0.1 key=k1 model=%s in=1 out=2 rid=r"
    events = events_of(line % tuple(map(escaped, (user, uri, referrer, agent, model))))
    assert events.source_of(0) == "203.0.113.7"
    assert (int(events.outcome[0]), int(events.status[0])) == (Outcome.FAILURE, 401)
    assert int(events.time_ns[0]) == 1_760_104_536 * 10**9
    assert events.text_of(0, "key") == "k1"
    assert events.text_of(0, "method") == "GET"
    assert events.text_of(0, "path") == "/" + escaped(uri).partition(b"?")[0].decode()
    assert events.text_of(0, "user") == ("" if user == b"-" else escaped(user).decode())


@few
@given(st.binary(max_size=40))
def test_bytes_that_are_no_utf8_do_not_hide_a_line_of_json(agent: bytes) -> None:
    quoted = b"".join(b"\\u%04X" % c if c < 32 or c in b'"\\' else bytes((c,)) for c in agent)
    line = b'{"remote_addr":"203.0.113.7","status":"401","request_uri":"/v1/%s","http_user_agent":"%s"}'
    events = events_of(line % (quoted.replace(b"?", b""), quoted))
    assert events.source_of(0) == "203.0.113.7"
    assert int(events.outcome[0]) == Outcome.FAILURE


@few
@given(st.text(max_size=60) | st.lists(st.ip_addresses().map(str), max_size=5).map(", ".join))
def test_who_is_no_trusted_proxy_is_the_client_whatever_he_claims(chain: str) -> None:
    assert with_chain(chain, "203.0.113.7") == "203.0.113.7"


@few
@given(
    st.lists(
        st.ip_addresses()
        | st.sampled_from([ipaddress.ip_address("10.1.2.3"), ipaddress.ip_address("fd00::1")])
    )
)
def test_behind_proxies_the_client_is_the_first_from_the_right_that_is_none(
    hops: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    chain = [getattr(hop, "ipv4_mapped", None) or hop for hop in hops]
    outside = [str(hop) for hop in chain if not any(hop in ipaddress.ip_network(proxy) for proxy in PROXIES)]
    assert with_chain(", ".join(map(str, hops))) == (outside[-1] if outside else "")


def test_a_chain_that_is_broken_or_too_long_accuses_nobody() -> None:
    assert with_chain("203.0.113.7, unknown") == ""
    assert with_chain("203.0.113.7, _hidden, 10.0.0.2") == ""
    assert with_chain("203.0.113.7" + ", 10.0.0.2" * 40) == ""
    assert with_chain("203.0.113.7" + ", 10.0.0.2" * 20) == "203.0.113.7"


def test_a_chain_may_carry_ports() -> None:
    assert with_chain("203.0.113.7:4711, 10.0.0.2:80") == "203.0.113.7"
    assert with_chain("[2001:db8::7]:4711") == "2001:db8::7"


def test_a_key_and_a_user_are_the_same_in_text_and_in_json() -> None:
    text = b'203.0.113.7 - bob [10/Oct/2025:13:55:36 +0000] "GET /a HTTP/1.1" 200 0 "-" "-" '
    text += NO_KEY.replace(b"key=-", b"key=k1")
    of_json = {
        "time_iso8601": "2025-10-10T13:55:36+00:00",
        "remote_addr": "203.0.113.7",
        "remote_user": "bob",
        "status": 200,
    }
    of_json |= {"request_method": "GET", "request_uri": "/a", "api_key_id": "k1"}
    one, other = events_of(text), events_of(json.dumps(of_json).encode())
    for column in ("time_ns", "outcome", "status", "peer", "peer_family", "client", "user", "service", "key"):
        assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
