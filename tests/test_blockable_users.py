"""Whom a finding accuses: never anybody on failures alone, whoever guesses whose account; only principals whose login
succeeded where it was not theirs. And which sources only the authorisation endpoint could keep out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from detection_campaigns import PIECES, World, sites
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.daemon.documents import finding_document, finding_from_state, finding_state
from gatewatch.daemon.events import Outcome, Provenance
from gatewatch.daemon.incidents import Correlator
from gatewatch.daemon.masking import BLIND
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.login.principals import principal, principals
from gatewatch.detectors.registry import LoginDetection, login_detectors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_detectors_login import KEY, Event, batch_of, fail, login, numbered, only, run

DAY = 86_400
BENIGN = {"_people"}
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
some = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=_SLOW,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
disguises = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from((401, 403, 404)),
        "key": st.sampled_from(("", "k-0123456789abcdef", "k-aaaaaaaaaaaaaaaa")),
        "verified": st.booleans(),
        "provenance": st.sampled_from(list(Provenance)),
        "peer": st.sampled_from(("", "10.0.0.1", "203.0.113.7")),
        "method": st.sampled_from(("", "password", "publickey", "GET")),
    },
)


def accused(found: dict[str, Finding]) -> set[str]:
    return {name for finding in found.values() for name in finding.blockable_users}


@some
@given(sites(), st.lists(disguises, min_size=1, max_size=5), st.integers(1, 60))
def test_failures_alone_accuse_no_user_whatever_they_are(
    events: list[Event], worn: list[Event], size: int
) -> None:
    failures = [
        {**event, **worn[n % len(worn)]}
        for n, event in enumerate(events)
        if event["outcome"] != Outcome.SUCCESS and event.get("status", 401) in (401, 403)
    ]
    assert accused(run(failures, size, login_detectors({}, KEY, World()))) == set()


@st.composite
def besieged(draw: Any) -> list[Event]:
    """People who log in where they do, and others who never get in, who guess the accounts of just these people."""
    people = [piece for piece in PIECES if piece.__name__ in BENIGN]
    events = [event for piece in people for event in piece(draw, 0)]
    homes = {event["source"] for event in events}
    users = sorted({event["user"] for event in events})
    for piece in draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5)):
        for n, event in enumerate(piece(draw, draw(st.integers(0, 60 * 3600)))):
            if event["outcome"] != Outcome.SUCCESS and event["source"] not in homes:
                events.append(event | {"user": users[n % len(users)]} if event["user"] else event)
    return sorted(events, key=lambda event: event["at"])


@some
@given(besieged(), st.integers(1, 60))
def test_guessing_the_accounts_of_people_who_log_in_elsewhere_accuses_none_of_them(
    events: list[Event], size: int
) -> None:
    assert accused(run(events, size)) == set()


def test_a_thousand_failures_from_elsewhere_accuse_nobody_who_then_travels_and_mistypes() -> None:
    usual = [login(-5 * DAY + n * DAY / 4, "198.51.100.77", "ann", method="password") for n in range(20)]
    guesses = [fail(n * 3, f"{20 + n % 200}.{n % 7}.{n % 251}.9", "ann") for n in range(1000)]
    travel = [fail(2990 + n, "45.67.8.9", "ann", method="password") for n in range(3)]
    found = run([*usual, *guesses, *travel, login(3001, "45.67.8.9", "ann", method="password")])
    assert only(found, "account_compromise").users == ("ann",)  # it is told,
    assert accused(found) == set()  # and no machine acts on it


def guessed(tries: int = 12, source: str = "203.0.113.7", user: str = "ann", **more: Any) -> list[Event]:
    events = [fail(n, source, user, **more) for n in range(tries)]
    return [*events, login(tries, source, user, **{"method": "password"} | more)]


def test_an_account_that_was_guessed_is_accused() -> None:
    assert only(run(guessed()), "account_compromise").blockable_users == ("account:ann",)


def test_the_account_is_told_from_the_log_as_the_system_knows_it() -> None:
    written = {
        "CORP\\\\ann": "account:CORP\\ann",
        "j\\303\\266rg": "account:jörg",
        "ann smith": "account:ann smith",
    }
    for name, true in written.items():
        assert accused(run(guessed(user=name))) == {true}


def test_a_long_name_is_accused_whole_or_not_at_all() -> None:
    for name in ("a" * 62, "b" * 63, "c" * 64, "d" * 256):
        assert accused(run(guessed(user=name))) == {f"account:{name}"}
    assert accused(run(guessed(user="e" * 257))) == set()


@pytest.mark.parametrize("method", ["publickey", "hostbased", "gssapi-with-mic"])
def test_who_comes_in_by_a_key_after_others_guessed_from_there_is_not_accused(method: str) -> None:
    events = guessed()
    events[-1]["method"] = method
    found = run(events)
    assert only(found, "account_compromise").users == ("ann",)
    assert accused(found) == set()


def test_a_success_that_any_sender_of_datagrams_can_have_made_up_accuses_nobody() -> None:
    assert accused(run(guessed(provenance=Provenance.NETWORK))) == set()
    events = guessed()
    events[-1]["provenance"] = Provenance.NETWORK
    assert accused(run(events)) == set()


def test_a_success_of_a_text_file_is_marked_as_one_that_a_local_user_can_have_forged() -> None:
    finding = only(run(guessed()), "account_compromise")
    assert finding.blockable_users
    assert finding.provenance == Provenance.FILE


def test_users_behind_a_shared_address_are_left_to_a_person() -> None:
    office = "198.51.100.77"
    history = [login(-5 * DAY + 60 * n, office, f"u{n % 4}") for n in range(40)]
    found = run([*history, *guessed(40, office, "u1")])
    assert accused(found) == set()


def test_a_source_that_was_convicted_later_accuses_only_whom_it_had_guessed() -> None:
    events = [fail(n, user="ann") for n in range(6)]
    events += [login(6, user="ann", method="password"), login(7, user="bob", method="password")]
    events += [fail(10 + n, user="root") for n in range(12)]
    found = run(events)
    assert {name for f in found.values() if f.kind == "account_compromise" for name in f.users} >= {
        "ann",
        "bob",
    }
    assert accused(found) == {"account:ann"}


def request(at: float, status: int, key: str = "", user: str = "", **more: Any) -> Event:
    outcome = Outcome.SUCCESS if status < 400 else Outcome.FAILURE
    about = {"service": "nginx", "host": "", "method": "POST", "path": "/v1/chat/completions"}
    return {
        "at": at,
        "source": "203.0.113.7",
        "outcome": outcome,
        "status": status,
        "key": key,
        "user": user,
    } | (about | more)


def test_a_name_that_a_request_only_claims_accuses_nobody() -> None:
    """`curl -u ann:x` where no password is asked for is logged as ann's, and answered 200."""
    claimed = [request(n, 401, user="ann") for n in range(12)] + [request(12, 200, user="ann")]
    found = run(claimed)
    assert only(found, "account_compromise").users == ("ann",)
    assert accused(found) == set()
    assert accused(run([{**event, "verified": True} for event in claimed])) == {"subject:ann"}


def test_a_key_is_accused_when_it_is_one_of_a_list_that_was_tried() -> None:
    tried = [request(n, 401, key=f"k-{n:016x}") for n in range(12)]
    found = run([*tried, request(20, 200, key="k-00000000000000aa", user="ann")])
    assert accused(found) == {"key:k-00000000000000aa"}


@pytest.mark.parametrize("before", ["k-0000000000000001", "", "k-00000000000000aa"])
def test_a_client_whose_key_was_out_of_date_is_not_accused_for_the_new_one(before: str) -> None:
    events = [request(n, 401, key=before) for n in range(40)] + [request(60, 200, key="k-00000000000000aa")]
    assert accused(run(events)) == set()


def prompts(times: int, source: str, at: float = 0) -> list[Event]:
    more = {"user": "ann", "method": "keyboard-interactive/pam", "outcome": Outcome.FACTOR_DENIED}
    return [fail(at + 30 * n, source, session=f"{source} {at} {n}", **more) for n in range(times)]


def test_a_push_that_was_let_through_where_it_was_denied_again_and_again_accuses_the_account() -> None:
    usual = [login(-3 * DAY, "198.51.100.77", "ann")]
    flood = prompts(8, "77.3.2.1")
    assert accused(run([*usual, *flood])) == set()
    let_in = login(300, "77.3.2.1", "ann", method="keyboard-interactive/pam", session="last")
    finding = [f for f in run([*usual, *flood, let_in]).values() if f.severity == 95]
    assert {name for f in finding for name in f.blockable_users} == {"account:ann"}


def test_a_login_elsewhere_during_a_flood_of_prompts_is_told_and_accuses_nobody() -> None:
    flood = prompts(8, "77.3.2.1") + prompts(1, "45.67.8.9", 250)
    travels = login(300, "45.67.8.9", "ann", method="keyboard-interactive/pam", session="last")
    found = run([login(-3 * DAY, "198.51.100.77", "ann"), *flood, travels])
    assert any(f.severity == 95 for f in found.values())
    assert accused(found) == set()


def test_the_later_login_of_an_impossible_journey_accuses_its_account_and_no_key() -> None:
    usual = [login(-5 * DAY + n * DAY / 4, "91.0.0.1", "ann", method="password") for n in range(20)]
    for more, expected in (({}, {"account:ann"}), ({"status": 200, "key": "k-1"}, set())):
        events = [event | more for event in [*usual, login(600, "14.160.0.1", "ann", method="password")]]
        found = run(events, detection=login_detectors({}, KEY, World()))
        assert only(found, "impossible_travel").sources == ("14.160.0.1",)
        assert {
            n for f in found.values() if f.kind == "impossible_travel" for n in f.blockable_users
        } == expected


def test_a_login_unlike_earlier_ones_accuses_nobody_by_itself() -> None:
    usual = [login(-9 * DAY + n * DAY / 4, "91.0.0.1", "ann", method="publickey") for n in range(30)]
    found = run([*usual, login(600, "14.160.0.1", "ann", method="password")])
    assert only(found, "new_access").blockable == ("14.160.0.1",)
    assert accused(found) == set()


def test_no_detector_of_failures_names_users_to_block() -> None:
    """Of all in the registry only these do."""
    detection: Any = login_detectors({}, KEY)
    accusing = {
        name
        for name, detector in detection._detectors.items()
        if "blockable_users" in inspect.getsource(inspect.getmodule(type(detector)) or detector)
    }
    assert accusing <= {"compromise", "mfa_fatigue", "impossible_travel", "control_endpoint"}


@some
@given(sites(), st.integers(1, 60), st.floats(0, 1))
def test_who_is_accused_depends_neither_on_batches_nor_on_a_restart(
    events: list[Event], size: int, moment: float
) -> None:
    rows = batch_of(numbered(events))
    whole = {f.id: f.blockable_users for f in login_detectors({}, KEY, World()).update(rows)}
    detection: LoginDetection = login_detectors({}, KEY, World())
    found: dict[str, tuple[str, ...]] = {}
    stop = int(moment * len(rows))
    for begin in range(0, len(rows), size):
        if begin <= stop < begin + size:
            other = login_detectors({}, KEY, World())
            other.load(detection.save())
            detection = other
        chosen = rows.take(np.arange(begin, min(begin + size, len(rows))))
        found |= {f.id: f.blockable_users for f in detection.update(chosen)}
    assert found == whole
    logged_in = {event["user"] for event in events if event["outcome"] == Outcome.SUCCESS}
    logged_in |= {event.get("key", "") for event in events}  # a request by a key is no login
    assert {name.partition(":")[2] for names in whole.values() for name in names} <= logged_in


@given(st.binary(min_size=0, max_size=63), st.integers(-(2**63), 2**63 - 1), st.text(max_size=300))
def test_whatever_a_name_holds_a_principal_is_printable_and_short(name: bytes, item: int, whole: str) -> None:
    for said in principals((name,), (item,), whole):
        kind, _, text = said.partition(":")
        assert kind in ("account", "key", "subject")
        assert 1 <= len(text) <= 256
        assert text.isprintable()


def test_a_name_that_nginx_escaped_is_not_told() -> None:
    assert principal("subject", "ann\\x22") == ""
    assert principal("subject", "CORP\\ann") == "subject:CORP\\ann"
    assert principal("account", "ann\\x22") == "account:ann\\x22"
    assert principal("account", "an\\033n") == ""


def behind(
    proxy: str, client: str, lines: int, trusted: tuple[str, ...] = ("10.0.0.0/8",)
) -> dict[str, Finding]:
    text = "".join(
        f'{proxy} - - [10/Oct/2025:13:55:{n:02d} +0000] "POST /v1/chat HTTP/1.1" 401 0 "-" "-" rt=0.1 key=- '
        f'model=- in=- out=- rid=- fwd="{client}"\n'
        for n in range(lines)
    )
    parser = make_parser("nginx", ParserOptions(hash_key=KEY, trusted_proxies=trusted))
    return {f.id: f for f in login_detectors({}, KEY).update(parser.parse(text.encode()).events)}


def test_a_client_that_a_trusted_proxy_names_is_refusable_and_not_blockable() -> None:
    finding = only(behind("10.0.0.1", "203.0.113.7", 15), "brute_force")
    assert (finding.sources, finding.blockable, finding.refusable) == (("203.0.113.7",), (), ("203.0.113.7",))


def test_a_chain_that_nobody_vouches_for_names_nobody() -> None:
    finding = only(behind("192.0.2.9", "203.0.113.7", 15), "brute_force")
    assert (finding.sources, finding.blockable, finding.refusable) == (("192.0.2.9",), ("192.0.2.9",), ())


def test_who_comes_directly_as_well_is_blockable() -> None:
    events = [fail(n, peer="10.0.0.1") for n in range(12)]
    finding = only(run(events), "brute_force")
    assert (finding.blockable, finding.refusable) == ((), ("203.0.113.7",))
    finding = only(run([*events, fail(20)]), "brute_force")
    assert (finding.blockable, finding.refusable) == (("203.0.113.7",), ())


def test_a_shared_source_and_one_that_a_datagram_names_are_not_refusable_either() -> None:
    history = [login(-5 * DAY + 60 * n, user=f"u{n % 4}", peer="10.0.0.1") for n in range(40)]
    found = run([*history, *(fail(n, peer="10.0.0.1") for n in range(60))])
    assert only(found, "brute_force").refusable == ()
    told = [fail(n, peer="10.0.0.1", provenance=Provenance.NETWORK) for n in range(12)]
    assert only(run(told), "brute_force").refusable == ()


def test_rotation_behind_a_proxy_is_refusable_when_every_member_is_vouched_for() -> None:
    events = [
        fail(n, f"2001:db8:7:{n:x}::5", peer="10.0.0.1" if n % 2 else f"2001:db8:7:{n:x}::5")
        for n in range(20)
    ]
    finding = next(f for f in run(events).values() if f.detector == "rotation")
    assert (finding.blockable, finding.refusable) == ((), ("2001:db8:7::/48",))


def test_an_incident_lists_the_users_and_what_only_the_endpoint_can_refuse() -> None:
    compromise = only(run(guessed(peer="10.0.0.1")), "account_compromise")
    assert finding_from_state(finding_state(compromise)) == compromise
    correlator = Correlator()
    first = dataclasses.replace(compromise, blockable_users=(), refusable=())
    correlator.apply([first])
    change = correlator.apply([compromise])[0]
    assert change.telling  # whom one can act against by now is told
    document = change.incident.document()
    assert document["blockable_users"] == ["account:ann"]
    assert (document["blockable"], document["refusable"]) == ([], ["203.0.113.7"])
    direct = dataclasses.replace(compromise, id="f" * 16, blockable=("203.0.113.7",), refusable=())
    document = correlator.apply([direct])[0].incident.document()
    assert (document["blockable"], document["refusable"]) == (["203.0.113.7"], [])


def test_a_name_that_is_shown_masked_is_kept_and_never_offered_for_a_block() -> None:
    compromise = only(run(guessed(user="Sommer#2024x")), "account_compromise")
    assert compromise.blockable_users == ("account:Sommer#2024x",)
    assert finding_document(compromise, BLIND)["blockable_users"] == []
    incident = Correlator().apply([compromise])[0].incident
    assert incident.document()["blockable_users"] == []
    assert incident.state()["findings"][0]["blockable_users"] == ["account:Sommer#2024x"]
