"""What a log that others can write to says is believed only as far as the wire showed as many connections."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gatewatch.config.loader import load
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.corroboration import MOST_ASKED, SHORTLY_NS, Needed, Part, Seen, needs
from gatewatch.daemon.detection import Detection, DetectionSettings
from gatewatch.daemon.events import (
    NS_PER_S,
    AuthBatch,
    Direction,
    FlowBatch,
    FlowState,
    Provenance,
    address_columns,
    rfc3339,
)
from gatewatch.daemon.handshakes import Handshakes
from gatewatch.daemon.sshd_settings import SshdSettings, read_settings, sshd_settings
from hypothesis import given
from hypothesis import strategies as st

KEY = b"sixteen bytes at"
START = 1_700_000_000
CLIENT = "198.51.100.20"
SSH, WEB = 22, 443


def at(seconds: float) -> int:
    return int((START + seconds) * NS_PER_S)


def connections(
    *made: tuple[float, int], source: str = CLIENT, provenance: Provenance = Provenance.KERNEL
) -> FlowBatch:
    """Completed handshakes, each with the second at which it began and the port that it was made to."""
    batch = FlowBatch.blank(len(made))
    family, *number = address_columns(source)
    for row, (seconds, port) in enumerate(made):
        batch.family[row], batch.source[row] = family, number
        batch.first_ns[row] = batch.time_ns[row] = at(seconds)
        batch.destination_port[row] = port
    batch.protocol[:], batch.state[:] = 6, FlowState.ESTABLISHED
    batch.direction[:], batch.provenance[:] = Direction.INGRESS, provenance
    return batch


def lines(*said: str) -> AuthBatch:
    text = "".join(
        f"Nov 14 22:{13 + n // 60:02}:{20 + n % 40} gateway sshd[{n + 9}]: {line}\n"
        for n, line in enumerate(said)
    )
    options = ParserOptions(year=2023, timezone="UTC", hash_key=KEY)
    return make_parser("sshd", options).parse(text.encode()).events


def failed(source: str = CLIENT) -> str:
    return f"Failed password for root from {source} port 40000 ssh2"


def accepted(source: str = CLIENT) -> str:
    return f"Accepted publickey for alice from {source} port 40000 ssh2: ED25519 SHA256:abc"


def finding(**more: Any) -> dict[str, Any]:
    return {
        "kind": "brute_force", "sources": [CLIENT], "blockable": [CLIENT], "targets": ["sshd@gateway"],
        "figures": {"attempts": 12}, "start": rfc3339(at(0)), "provenance": int(Provenance.FILE), **more,
    }  # fmt: skip


def incident(*findings: dict[str, Any]) -> dict[str, Any]:
    return {"findings": list(findings or (finding(),))}


def detection(**settings: Any) -> Detection:
    return Detection(DetectionSettings(**settings), KEY)


def believed(made: Detection, about: dict[str, Any], source: str = CLIENT, accused: str = "") -> bool:
    return made.corroborated(source, at(60), needs(about, source, accused))


def test_failures_that_a_log_tells_of_need_as_many_connections_to_sshd_as_hold_them() -> None:
    made = detection()
    made.flows(connections((1, SSH)))
    assert not believed(made, incident()), "twelve failures do not fit into one connection"
    made.flows(connections((2, WEB), (3, WEB)))
    assert not believed(made, incident()), "those were to another service"
    made.flows(connections((4, SSH)))
    assert believed(made, incident())


def test_a_client_that_was_connected_before_proves_nothing_by_that() -> None:
    made = detection()
    made.flows(connections(*((-180 - n, SSH) for n in range(20))))
    assert made.corroborated(CLIENT, at(60)), "it was seen within the hour"
    assert not believed(made, incident())
    made.flows(connections((-100, SSH), (-90, SSH)))
    assert believed(made, incident()), "a connection may be open for two minutes before it fails"


def test_a_connection_that_stands_for_hours_counts_once_and_when_it_was_made() -> None:
    made = detection()
    for minute in range(40):
        again = connections((-500, SSH))
        again.time_ns[:] += minute * 60 * NS_PER_S
        made.flows(again)
    assert not believed(made, incident())
    assert made.corroborated(CLIENT, at(1800)), "and it is seen to stand"


def test_a_client_that_logs_in_time_and_again_is_not_taken_for_the_guesser_in_its_name() -> None:
    made = detection()
    made.packets_seen = 1
    made.flows(connections(*((n, SSH) for n in range(20))))
    made.auth(lines(*[accepted()] * 20))
    assert not believed(made, incident())
    made.flows(connections((30, SSH), (31, SSH)))
    assert believed(made, incident())


def test_of_a_compromise_one_login_is_the_attackers_and_only_one() -> None:
    figures = {"successes": 1, "failures_before": 10}
    taken = finding(kind="account_compromise", figures=figures, blockable_users=["account:alice"])
    made = detection()
    made.packets_seen = 1
    made.flows(connections((1, SSH)))
    made.auth(lines(*[failed()] * 10, accepted()))
    assert not believed(made, incident(taken))
    made.flows(connections((2, SSH)))
    assert believed(made, incident(taken))
    made.auth(lines(accepted(), accepted()))
    assert not believed(made, incident(taken)), "the user, who logs in, and failures that somebody forged"


def test_a_login_that_was_the_attackers_counts_as_that_for_the_guessing_as_well() -> None:
    figures = {"successes": 1, "failures_before": 10}
    taken = finding(kind="account_compromise", figures=figures, blockable_users=["account:alice"])
    made = detection()
    made.packets_seen = 1
    made.flows(connections((1, SSH), (2, SSH)))
    made.auth(lines(*[failed()] * 12, accepted()))
    assert not believed(made, incident()), "somebody who logs in, and failures that somebody forged"
    assert believed(made, incident(finding(), taken))


def test_requests_need_one_connection_to_another_port_for_each_thousand() -> None:
    def requests(count: int) -> dict[str, Any]:
        return incident(finding(targets=["nginx"], figures={"attempts": count}))

    made = detection()
    made.flows(connections(*((n, SSH) for n in range(9))))
    assert not believed(made, requests(10))
    made.flows(connections((10, WEB)))
    assert believed(made, requests(1000))
    assert not believed(made, requests(1001))


def test_a_campaign_against_both_services_needs_what_each_of_them_tells_of() -> None:
    """The tenth failure names the service of the finding; logs tell how many of all were sshd's."""
    made = detection()
    made.packets_seen = 1
    made.auth(lines(*[failed()] * 11))
    about = incident(finding(targets=["nginx"]))
    made.flows(connections((1, WEB)))
    assert not believed(made, about), "eleven forged failures and one of a client that mistyped its key"
    made.flows(connections((2, SSH), (3, SSH)))
    assert believed(made, about)
    one = detection()
    one.packets_seen = 1
    one.auth(lines(failed()))
    one.flows(connections((1, WEB), (2, SSH)))
    assert believed(one, incident(finding(figures={"attempts": 900}))), (
        "nor is a guesser let go for one at sshd"
    )


def test_where_sshd_listens_and_how_much_it_lets_a_connection_try_is_the_sites() -> None:
    made = detection(ssh_ports=(2222,))
    made.flows(connections((1, SSH), (2, SSH)))
    assert not believed(made, incident())
    made.flows(connections((3, 2222)))
    assert not believed(made, incident())
    assert made.corroborated(CLIENT, at(60), needs(incident(), CLIENT, tries=12))


def test_packets_that_were_lost_do_not_let_an_attacker_go() -> None:
    made = detection()
    many = incident(finding(figures={"attempts": 48}))  # eight connections, of which two were not seen
    made.flows(connections(*((n, SSH) for n in range(5))))
    assert not believed(made, many)
    made.flows(connections((6, SSH)))
    assert believed(made, many)


def test_who_goes_on_for_long_is_asked_for_no_more_than_is_remembered() -> None:
    about = incident(finding(figures={"attempts": 100_000}))
    made = detection()
    for n in range(MOST_ASKED):
        assert not believed(made, about)
        made.flows(connections((86_400 + n, SSH)))
    assert believed(made, about)
    made.flows(connections(*((90_000 + n, SSH) for n in range(500))))
    assert believed(made, about)


def test_what_passed_through_a_tunnel_is_no_handshake() -> None:
    made = detection()
    made.flows(connections((1, SSH), (2, SSH), provenance=Provenance.NETWORK))
    assert not believed(made, incident())
    assert not made.corroborated(CLIENT, at(60))


@pytest.mark.parametrize(
    ("judged", "address", "stranger"),
    [
        ("2001:db8:7:8::/64", "2001:db8:7:8::9", "2001:db8:7:9::9"),
        ("2001:db8:7::/48", "2001:db8:7:8::9", "2001:db8:8:8::9"),
        ("198.51.100.0/24", "198.51.100.77", "198.51.101.77"),
    ],
)
def test_one_address_speaks_for_the_network_that_is_judged_in_its_place(
    judged: str, address: str, stranger: str
) -> None:
    about = incident(finding(blockable=[judged], sources=[judged]))
    made = detection()
    made.flows(connections((1, SSH), (2, SSH), source=stranger))
    assert not believed(made, about, judged)
    made.flows(connections((1, SSH), (2, SSH), source=address))
    assert believed(made, about, judged)
    assert made.corroborated(judged, at(60))


def test_every_finding_that_accuses_needs_its_own_unless_root_wrote_it() -> None:
    made = detection()
    made.flows(connections((1, SSH), (2, SSH)))
    requests = finding(targets=["nginx"])
    assert not believed(made, incident(finding(), requests))
    proven = finding(targets=["nginx"], provenance=int(Provenance.JOURNAL))
    assert believed(made, incident(finding(), proven))
    assert not needs(incident(proven), CLIENT).parts
    assert not needs(incident(finding(blockable=[])), CLIENT).parts
    assert not believed(made, incident(finding(blockable=[])))
    assert needs(incident(finding(blockable=[], refusable=[CLIENT])), CLIENT).parts


def test_a_user_is_accused_by_what_names_the_user_alone() -> None:
    accusing = finding(
        kind="account_compromise", blockable=[], blockable_users=["account:alice"], targets=["nginx"]
    )
    made = detection()
    made.flows(connections((1, SSH), (2, SSH)))
    about = incident(finding(), accusing)
    assert believed(made, about, accused=CLIENT)
    assert not believed(made, about, accused="account:alice")
    assert not believed(made, about, accused="account:bob")
    assert not believed(made, about)
    made.flows(connections((3, WEB)))
    assert believed(made, about, accused="account:alice")
    assert not believed(made, about, accused="account:bob")


def test_what_was_seen_survives_a_restart() -> None:
    before, after = detection(), detection()
    before.packets_seen = 1
    before.flows(connections((1, SSH), (2, SSH), (3, SSH)))
    before.auth(lines(accepted(), failed()))
    after.load(before.save())
    for about in (incident(), incident(finding(targets=["nginx"]))):
        assert believed(after, about) == believed(before, about)
    assert after.lacking(CLIENT, needs(incident(finding(targets=["nginx"])), CLIENT)) == before.lacking(
        CLIENT, needs(incident(finding(targets=["nginx"])), CLIENT)
    )
    assert believed(after, incident())
    older = {name: value for name, value in before.save().items() if name != "handshakes"}
    fresh = detection()
    fresh.load(older)
    assert not believed(fresh, incident())


def test_memory_is_bounded_and_the_source_that_was_silent_longest_makes_room() -> None:
    made = Handshakes(KEY, sources=64)
    for n in range(1000):
        made.flows(connections((n, SSH), source=f"203.0.{113 + n // 250}.{n % 250}"))
        made.flows(connections((n, WEB)))
    made.lines(lines(*(failed(f"203.0.113.{n}") for n in range(200))))
    assert len(made.seen(CLIENT).handshakes) == 32
    assert made.seen("203.0.113.0").handshakes == []
    assert len(made.seen("203.0.116.249").handshakes) == 1
    saved = made.save()
    assert all(len(memory["keys"]) <= 64 for name in ("handshakes", "failures") for memory in saved[name])


def test_lines_about_invented_sources_push_no_handshake_out() -> None:
    made = Handshakes(KEY, sources=16)
    made.flows(connections((1, SSH), (2, SSH)))
    for n in range(40):
        made.lines(lines(*(line(f"203.0.{n}.{m}") for m in range(40) for line in (failed, accepted))))
    assert len(made.seen(CLIENT).handshakes) == 2


def test_a_damaged_memory_is_refused() -> None:
    made = Handshakes(KEY)
    made.flows(connections((1, SSH)))
    state = made.save()
    state["handshakes"][0]["counts"] = np.array([33], np.uint8)
    with pytest.raises(ValueError, match="another shape"):
        Handshakes(KEY).load(state)


def test_what_is_lacking_is_said_in_words() -> None:
    made = detection()
    said = made.lacking(CLIENT, needs(incident(), CLIENT))
    assert said == f"2 connections to sshd since {rfc3339(at(0) - SHORTLY_NS)}"
    made.flows(connections((1, SSH), (2, SSH)))
    assert made.lacking(CLIENT, needs(incident(), CLIENT)) == ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(finding())), inner),
    max_leaves=9,
)


@given(st.lists(st.dictionaries(st.sampled_from([*finding(), "blockable_users"]), json_values), max_size=3))
def test_no_document_makes_the_question_fail(findings: list[dict[str, Any]]) -> None:
    wrong = [finding(), *({**finding(), **f, "blockable": [CLIENT]} for f in findings)]
    needed = needs({"findings": wrong}, CLIENT)
    needed.met_by(Seen(), (SSH,))
    needed.told(Seen())
    needs({"findings": findings}, CLIENT, "account:alice")


@given(st.integers(1, 10**6), st.integers(0, 32), st.integers(1, 100))
def test_one_connection_more_never_makes_a_source_less_believed(attempts: int, made: int, tries: int) -> None:
    part = Part(attempts, ssh=True, since_ns=0, tries=tries)
    seen = Seen([(1, SSH)] * made)
    if Needed((part,)).met_by(seen, (SSH,)):
        assert Needed((part,)).met_by(
            dataclasses.replace(seen, handshakes=[*seen.handshakes, (2, SSH)]), (SSH,)
        )
        assert made > 0


def test_the_settings_of_sshd_are_read_with_what_they_include(tmp_path: Path) -> None:
    folder = tmp_path / "sshd_config.d"
    folder.mkdir()
    (folder / "own.conf").write_text("Port 2222\nMatch User sftp\n  MaxAuthTries=20\n")
    main = tmp_path / "sshd_config"
    main.write_text(
        "Include sshd_config.d/*.conf\nInclude sshd_config\n#Port 7\n  port 22 # usual\nMaxAuthTries 4\n"
        'ListenAddress [2001:db8::1]:8022\nListenAddress 192.0.2.1\nPort no\nPort 99999\nInclude "/"\n'
    )
    assert read_settings(main) == SshdSettings((2222, 22, 8022), 20)
    assert read_settings(tmp_path / "none") == SshdSettings((22,), 6)
    assert sshd_settings(load(), main) == SshdSettings((2222, 22, 8022), 20)
    own = tmp_path / "gatewatch.yaml"
    own.write_text("network: {ssh_ports: [2022], ssh_tries: 3}\n")
    assert sshd_settings(load(own), main) == SshdSettings((2022,), 3)


PROXY, FORGER = "198.51.100.140", "203.0.113.66"


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        (FORGER, CLIENT, FORGER),
        (FORGER, f"{CLIENT}, {PROXY}", FORGER),
        (PROXY, f"{CLIENT}, {FORGER}", FORGER),
        (PROXY, f"{CLIENT}, {PROXY}, {FORGER}", FORGER),
        (PROXY, f"{CLIENT},,{FORGER}", FORGER),
        (PROXY, f"{CLIENT}, unknown", ""),
        (PROXY, "", ""),
    ],
)
def test_a_forged_forwarding_header_accuses_its_sender_or_nobody(peer: str, chain: str, client: str) -> None:
    """A proxy appends who asked it (nginx: `$proxy_add_x_forwarded_for`); what stands before that is the client's."""
    line = (
        '{{"time_iso8601":"2023-11-14T22:13:{:02}+00:00","remote_addr":"{}","http_x_forwarded_for":"{}",'
        '"request_method":"GET","request_uri":"/v1/models","status":"401"}}\n'
    )
    text = "".join(line.format(n, peer, chain) for n in range(40)).encode()
    options = ParserOptions(hash_key=KEY, trusted_proxies=(PROXY,))
    found = detection().auth(make_parser("nginx", options).parse(text).events)
    accused = {s for f in found for s in f.sources}
    assert accused == ({client} if client else set())
    blockable = {s for f in found for s in f.blockable}
    assert blockable == ({client} if client == peer else set())
