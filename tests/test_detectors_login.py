"""The login detectors over attempts written out by hand: who is accused, when, with what evidence, and who is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.collectors.parsers.scan import keyed_hash
from gatewatch.daemon.events import AUTH_TEXTS, NS_PER_S, AuthBatch, Outcome, Provenance, address_columns
from gatewatch.detectors import sketches
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.registry import LoginDetection, login_detectors
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = b"a site's own key"
START = 1_700_000_000
Event = dict[str, Any]


def hashed(text: str) -> int:
    return keyed_hash(text.encode(), KEY)


def batch_of(events: Sequence[Event]) -> AuthBatch:
    """One row an event. `at` is in seconds from START; the rest are AuthBatch's words, with text as text."""
    text = bytearray()
    batch = AuthBatch.blank(len(events), b"")
    for row, event in enumerate(events):
        raw = event.get("raw", f"line {event['line']}")
        names = {"service": "sshd", "host": "gateway1", **event, "raw": raw}
        for column, name in enumerate(AUTH_TEXTS):
            said = str(names.get(name, "")).encode()
            if said:
                batch.spans[row, column] = len(text), len(text) + len(said)
                text += said
        batch.time_ns[row] = int((START + event["at"]) * NS_PER_S)
        batch.outcome[row] = event["outcome"]
        batch.count[row] = event.get("count", 1)
        family, *address = address_columns(event.get("source", ""))
        batch.client[row], batch.client_family[row] = address, family
        family, *address = address_columns(event.get("peer", event.get("source", "")))
        batch.peer[row], batch.peer_family[row] = address, family
        for name in ("user", "service", "key", "session"):
            if names.get(name):
                getattr(batch, name)[row] = hashed(str(names[name]))
        batch.line[row] = event["line"]
        batch.status[row] = event.get("status", 0)
        batch.verified[row] = event.get("verified", False)
        batch.provenance[row] = event.get("provenance", Provenance.FILE)
    return AuthBatch(**{n: getattr(batch, n) for n in AuthBatch._columns()}, text=bytes(text))


def numbered(events: Iterable[Event]) -> list[Event]:
    return [{"line": n, **e} for n, e in enumerate(sorted(events, key=lambda e: e["at"]), 1)]


def fail(at: float, source: str = "203.0.113.7", user: str = "root", **more: Any) -> Event:
    return {"at": at, "source": source, "user": user, "outcome": Outcome.FAILURE, **more}


def login(at: float, source: str = "203.0.113.7", user: str = "root", **more: Any) -> Event:
    return {"at": at, "source": source, "user": user, "outcome": Outcome.SUCCESS, **more}


def run(
    events: Iterable[Event], size: int = 10**9, detection: LoginDetection | None = None
) -> dict[str, Finding]:
    """The last version of every finding, by id, with the rows divided into batches of `size`."""
    detection = detection or login_detectors({}, KEY)
    rows = numbered(events)
    found: dict[str, Finding] = {}
    for start in range(0, len(rows), size):
        for finding in detection.update(batch_of(rows[start : start + size])):
            found[finding.id] = finding
    return found


def kinds(found: dict[str, Finding]) -> list[str]:
    return sorted(f.kind for f in found.values())


def only(found: dict[str, Finding], kind: str) -> Finding:
    (finding,) = [f for f in found.values() if f.kind == kind]
    return finding


def test_a_typist_with_two_mistakes_is_nobody() -> None:
    assert run([fail(0, user="ann"), fail(5, user="ann"), login(9, user="ann")]) == {}


def test_a_forgotten_password_with_eight_failures_is_no_attack() -> None:
    assert run([fail(20 * n, user="ann") for n in range(8)]) == {}
    assert run([*(fail(20 * n, user="ann") for n in range(8)), login(200, user="ann")]) == {}


def test_the_tenth_failure_raises_brute_force() -> None:
    assert run(fail(n) for n in range(9)) == {}
    finding = only(run(fail(n) for n in range(10)), "brute_force")
    assert finding.time_ns == (START + 9) * NS_PER_S
    assert finding.start_ns == START * NS_PER_S
    assert finding.lines == tuple(range(1, 11))
    assert finding.figures["attempts"] == 10
    assert finding.entity == "203.0.113.7"
    assert finding.users == ("root",)
    assert finding.targets == ("sshd@gateway1",)
    assert finding.samples == ("line 10",)
    assert finding.threshold == "10 failed attempts in 300 s"
    assert finding.techniques == ("T1110.001",)
    assert finding.blockable == ("203.0.113.7",)


def test_a_finding_grows_with_its_campaign_and_keeps_its_id() -> None:
    detection = login_detectors({}, KEY)
    rows = numbered(fail(n, user=f"user{n % 3}") for n in range(500))
    (first,) = [f for f in detection.update(batch_of(rows[:15])) if f.kind == "brute_force"]
    (grown,) = [f for f in detection.update(batch_of(rows[15:])) if f.kind == "brute_force"]
    assert grown.id == first.id
    assert grown.figures["attempts"] == 500
    assert grown.end_ns == (START + 499) * NS_PER_S
    assert grown.users == ("user0", "user1", "user2")
    assert len(grown.lines) == 32
    assert grown.samples == first.samples


def test_a_guess_a_minute_is_found() -> None:
    assert kinds(run(fail(60 * n) for n in range(10))) == ["brute_force"]


def test_a_guess_every_half_hour_is_found_within_the_day() -> None:
    finding = only(run(fail(1800 * n) for n in range(20)), "brute_force")
    assert finding.figures["window_s"] == 86400
    assert finding.figures["attempts"] == 20


def test_a_source_with_successes_needs_twenty_failures() -> None:
    before = [login(-90000, user="ann")]
    assert run(before + [fail(n) for n in range(19)]) == {}
    finding = only(run(before + [fail(n) for n in range(20)]), "brute_force")
    assert finding.time_ns == (START + 19) * NS_PER_S
    assert finding.baseline == "1 user has logged in from this source before"


def test_guessing_the_password_of_a_user_who_is_at_home_there_is_found_at_the_twentieth() -> None:
    before = [login(-90000, user="ann")]
    assert run(before + [fail(n, user="ann") for n in range(19)]) == {}
    finding = only(run(before + [fail(n, user="ann") for n in range(25)]), "brute_force")
    assert finding.confidence < 0.5
    assert "stale" in finding.baseline


def office(days: int, people: int = 60) -> list[Event]:
    """People behind one address, who log in twice a day; every fifth mistypes once or twice before, one in
    thirty mistypes the user name."""
    events = []
    for day in range(days):
        for person in range(people):
            for hour in (8, 13):
                at = day * 86400 + hour * 3600 + person * 37
                if (person + day + hour) % 5 == 0:
                    events += [fail(at - 9, user=f"p{person}"), fail(at - 5, user=f"p{person}")]
                if (person + day * 7) % 30 == 0:
                    events.append(fail(at - 12, user=f"p{person}x"))
                events.append(login(at, user=f"p{person}"))
    return events


def test_an_office_behind_one_address_that_mistypes_is_nobody() -> None:
    assert run(office(5)) == {}


def test_a_large_office_on_its_first_days_is_nobody() -> None:
    assert run(office(3, people=400)) == {}


def test_a_colleague_whose_password_is_guessed_from_inside_a_large_office_is_warned_of() -> None:
    at = 4 * 86400 + 15 * 3600
    attack = [*(fail(at + 2 * n, user="p3") for n in range(40)), login(at + 100, user="p3")]
    found = run(office(5) + attack)
    assert kinds(found) == ["account_compromise", "brute_force"]
    assert only(found, "account_compromise").users == ("p3",)
    assert only(found, "brute_force").time_ns == (START + at + 38) * NS_PER_S


def test_an_attacker_inside_the_office_is_found() -> None:
    attack = [fail(4 * 86400 + 9 * 3600 + n, user="root") for n in range(100)]
    assert kinds(run(office(5) + attack)) == ["brute_force"]


def test_a_spray_from_inside_the_office_over_its_own_people_is_found() -> None:
    attack = [fail(4 * 86400 + 11 * 3600 + 5 * n, user=f"p{n}") for n in range(40)]
    assert "password_spray" in kinds(run(office(5) + attack))


def test_the_eighth_user_raises_password_spray() -> None:
    assert run(fail(n, user=f"u{n}") for n in range(7)) == {}
    finding = only(run(fail(100 * n, user=f"u{n}") for n in range(8)), "password_spray")
    assert finding.time_ns == (START + 700) * NS_PER_S
    assert finding.users == tuple(f"u{n}" for n in range(8))
    assert finding.techniques == ("T1110.003",)
    assert finding.figures["distinct_users"] == 8


def test_a_spray_of_one_user_an_hour_is_found() -> None:
    assert kinds(run(fail(3600 * n, user=f"u{n}") for n in range(9))) == ["password_spray"]


def test_many_tries_for_few_users_are_no_spray() -> None:
    assert kinds(run(fail(n, user=f"u{n % 3}") for n in range(300))) == ["brute_force"]


def test_a_spray_counts_its_users_beyond_those_it_names() -> None:
    finding = only(run(fail(n, user=f"u{n}") for n in range(400)), "password_spray")
    assert len(finding.users) == 32
    assert 340 < int(finding.figures["distinct_users"]) < 460


def test_a_guesser_who_gets_in_is_raised_on_that_very_event() -> None:
    found = run([*(fail(n) for n in range(12)), login(12)])
    finding = only(found, "account_compromise")
    assert finding.time_ns == (START + 12) * NS_PER_S
    assert (finding.entity_type, finding.entity, finding.sources) == ("user", "root", ("203.0.113.7",))
    assert finding.severity >= 90
    assert finding.figures["failures_of_user"] == 12
    assert finding.lines == (13,)
    assert "T1078" in finding.techniques


def test_a_login_by_key_is_its_users_and_not_its_keys() -> None:
    found = run([*(fail(n) for n in range(12)), login(12, method="publickey", key="SHA256:abc")])
    assert only(found, "account_compromise").users == ("root",)


def test_a_spray_that_hits_at_the_first_try_for_a_user_is_a_compromise() -> None:
    found = run([*(fail(n, user=f"u{n}") for n in range(9)), login(9, user="u9")])
    assert only(found, "account_compromise").users == ("u9",)


def test_a_hit_before_the_conviction_is_raised_with_it() -> None:
    found = run([*(fail(n, user=f"u{n}") for n in range(9)), login(2.5, user="u2"), fail(9), fail(10)])
    finding = only(found, "account_compromise")
    assert (finding.entity, finding.users) == ("u2", ("u2",))
    assert 4 in finding.lines


def test_a_login_before_the_attack_is_no_hit() -> None:
    assert "account_compromise" not in kinds(run([login(-9, user="ann"), *(fail(n) for n in range(30))]))


def test_a_second_hit_hours_after_the_first_is_found() -> None:
    spray = [fail(120 * n, user=f"u{n}") for n in range(90)]
    found = run([*spray, login(1201, user="u10"), login(7201, user="u60"), login(9001, user="unseen")])
    hit = {f.users for f in found.values() if f.kind == "account_compromise"}
    assert hit == {("u10",), ("u60",), ("unseen",)}


def test_what_is_out_of_all_bounds_is_borne() -> None:
    wild = [fail(n, line=2**63 - 1 - n, count=2**32 - 1, session="s") for n in range(3)]
    batch = batch_of([*wild, fail(4, line=-5), fail(5, line=0)])
    batch.time_ns[:] = [2**63 - 1, -(2**63), 0, 5, -5]
    assert kinds({f.id: f for f in login_detectors({}, KEY).update(batch)}) == ["brute_force"]


def test_a_colleague_at_home_behind_an_attacked_address_is_not_accused() -> None:
    attack = [fail(4 * 86400 + 13 * 3600 + n, user="root") for n in range(900)]
    assert kinds(run(office(5) + attack)) == ["brute_force"]


def test_rotation_inside_a_64_is_one_source() -> None:
    finding = only(run(fail(n, source=f"2001:db8:1:2::{n + 1:x}") for n in range(10)), "brute_force")
    assert finding.entity == "2001:db8:1:2::/64"
    assert run(fail(n, source=f"2001:db8:1:{n}::1") for n in range(9)) == {}


def test_one_attempt_that_writes_several_lines_counts_once() -> None:
    def attempt(n: int) -> list[Event]:
        session = {"session": f"gateway1 {n}"}
        return [
            fail(n, user="x", outcome=Outcome.INVALID_USER, **session),
            fail(n + 0.1, user="", outcome=Outcome.PAM_FAILURE, **session),
            fail(n + 0.2, user="x", **session),
            fail(n + 0.3, user="x", outcome=Outcome.DISCONNECT, **session),
        ]

    assert run(e for n in range(9) for e in attempt(n)) == {}
    finding = only(run(e for n in range(10) for e in attempt(n)), "brute_force")
    assert finding.figures["attempts"] == 10


def test_what_pam_tells_without_an_address_joins_the_line_that_has_one() -> None:
    events = [
        e
        for n in range(10)
        for e in (
            fail(n, source="", outcome=Outcome.PAM_FAILURE, session=f"s{n}"),
            fail(n + 0.5, session=f"s{n}"),
        )
    ]
    assert only(run(events), "brute_force").figures["attempts"] == 10


def test_a_line_that_tells_of_repeats_counts_them() -> None:
    assert kinds(run([fail(0, session="s"), fail(1, count=9, session="s")])) == ["brute_force"]


def test_a_client_that_offers_several_keys_is_no_guesser() -> None:
    events = [fail(n, method="publickey", session=f"s{n // 6}") for n in range(60)]
    assert run(events + [login(60 + n, method="publickey", session=f"t{n}") for n in range(10)]) == {}


def test_sessions_that_end_with_refused_keys_alone_weigh_one_each() -> None:
    events = [fail(n, method="publickey", session=f"s{n // 6}") for n in range(60)]
    ends = [fail(60 + n, outcome=Outcome.DISCONNECT, session=f"s{n}") for n in range(10)]
    assert only(run(events + ends), "brute_force").figures["attempts"] == 10


def test_attempts_without_an_address_accuse_nobody() -> None:
    assert run(fail(n, source="") for n in range(100)) == {}


def test_a_client_behind_a_proxy_is_raised_but_cannot_be_blocked_by_address() -> None:
    finding = only(run(fail(n, peer="10.0.0.1") for n in range(10)), "brute_force")
    assert finding.blockable == ()


def test_one_failure_through_a_proxy_is_no_shelter_for_guessing_directly() -> None:
    events = [fail(0, peer="10.0.0.1"), *(fail(n) for n in range(1, 12))]
    assert only(run(events), "brute_force").blockable == ("203.0.113.7",)


def test_what_came_over_the_network_blocks_nobody() -> None:
    finding = only(run(fail(n, provenance=Provenance.NETWORK) for n in range(10)), "brute_force")
    assert finding.blockable == ()
    assert finding.provenance == Provenance.NETWORK


def test_keys_of_a_gateway_stand_for_users() -> None:
    finding = only(
        run(fail(n, user="", key=f"k{n}", service="nginx", status=401) for n in range(10)), "password_spray"
    )
    assert finding.users[0] == "k0"


def test_a_client_that_waits_for_the_challenge_is_no_guesser() -> None:
    events = []
    for n in range(100):
        events += [fail(9 * n, user="", status=401), login(9 * n + 1, user="ann", status=200)]
    assert run(events) == {}
    assert kinds(run(fail(9 * n, user="", status=401) for n in range(10))) == ["brute_force"]


def test_a_campaign_ends_after_a_quiet_day() -> None:
    events = [fail(n) for n in range(10)] + [fail(90000 + n) for n in range(10)]
    assert kinds(run(events)) == ["brute_force", "brute_force"]


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"brute_force\.falures"):
        login_detectors({"brute_force": {"falures": 3}}, KEY)
    with pytest.raises(ValueError, match="brute_forse"):
        login_detectors({"brute_forse": {}}, KEY)
    with pytest.raises(ValueError, match=r"brute_force\.failures"):
        login_detectors({"brute_force": {"failures": 0}}, KEY)


def test_options_move_thresholds() -> None:
    assert kinds(
        run([fail(n) for n in range(3)], detection=login_detectors({"brute_force": {"failures": 3}}, KEY))
    )


steps = st.tuples(
    st.integers(0, 4000),
    st.sampled_from(["203.0.113.7", "203.0.113.8", "2001:db8::1", "2001:db8::2", ""]),
    st.sampled_from(["root", "ann", "bob", "", *(f"u{n}" for n in range(12))]),
    st.sampled_from([*Outcome, *[Outcome.FAILURE] * 9]),
    st.integers(0, 6),
    st.integers(1, 4),
)


def events_of(drawn: list[tuple[int, str, str, Outcome, int, int]]) -> list[Event]:
    events, at = [], 0
    for gap, source, user, outcome, session, count in drawn:
        at += gap * gap // 4000
        events.append(
            {"at": at, "source": source, "user": user, "outcome": outcome, "session": session, "count": count}
        )
    return events


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=20, max_size=160), st.integers(1, 40))
def test_batch_boundaries_do_not_matter(drawn: list[Any], size: int) -> None:
    events = events_of(drawn)
    whole = run(events)
    assert run(events, size) == whole
    assert run(events, 1) == whole


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, min_size=20, max_size=160), st.integers(0, 160))
def test_a_saved_state_goes_on_as_if_nothing_had_happened(drawn: list[Any], middle: int) -> None:
    rows = numbered(events_of(drawn))
    straight, interrupted = login_detectors({}, KEY), login_detectors({}, KEY)
    straight.update(batch_of(rows[:middle]))
    interrupted.update(batch_of(rows[:middle]))
    resumed = login_detectors({}, KEY)
    resumed.load(interrupted.save())
    rest = batch_of(rows[middle:])
    assert resumed.update(rest) == straight.update(rest)


def test_one_try_each_from_many_sources_hides_no_attack_and_takes_no_memory() -> None:
    detection = login_detectors({}, KEY)
    rng = np.random.default_rng(1)
    found: dict[str, Finding] = {}
    size = 0
    n = 2_000 if str(sketches.__file__).endswith(".py") else 100_000
    for part in range(10):
        flood = batch_of([fail(0, line=1)]).take(np.zeros(n, np.int64))
        address = rng.integers(0, 1 << 32, n).astype(np.uint64)
        address[:: n // 4] = address_columns("203.0.113.7")[2]
        flood.client[:, 1] = flood.peer[:, 1] = address
        flood.time_ns[:] += (part * n + np.arange(n)) * 1_000_000
        flood.user[:] = rng.integers(1, 1 << 60, n).astype(np.uint64)
        found.update({f.id: f for f in detection.update(flood)})
        before, size = size, sum(a.nbytes for a in arrays_of(detection.save()))
    assert "203.0.113.7" in {f.entity for f in found.values() if f.kind == "brute_force"}
    assert size < 200_000_000
    assert size - before < size // (20 if n == 100_000 else 5)


def arrays_of(state: Any) -> Iterable[Any]:
    if isinstance(state, dict):
        for value in state.values():
            yield from arrays_of(value)
    elif isinstance(state, np.ndarray):
        yield state
