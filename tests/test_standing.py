"""How near an address is to a threshold: the figures are those that detectors act by, and asking changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gatewatch.config.loader import load
from gatewatch.daemon.detection import Detection, DetectionSettings
from gatewatch.daemon.events import NS_PER_S, Direction, FlowState
from gatewatch.daemon.parts import LogSource, Parts
from gatewatch.daemon.standing import standing_of
from gatewatch.daemon.store import Store, pack
from gatewatch.detectors.campaigns import ASK, Campaigns
from gatewatch.detectors.network.allowlist import AllowRule
from gatewatch.detectors.standing import Standing, short
from gatewatch.detectors.tables import DistinctCounter, History, WindowCounter
from gatewatch.playbooks.engine import Engine
from gatewatch.playbooks.loader import load_playbooks
from hypothesis import given
from hypothesis import strategies as st
from test_detectors_login import batch_of, fail, login, numbered
from test_detectors_network import OURS, came
from test_detectors_network import batch_of as flows_of
from test_detectors_network import numbered as numbered_flows
from test_sketches import spread, times

KEY = b"k" * 16
START = 1_700_000_000
SOURCE = "203.0.113.7"

drawn_events = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 3), st.integers(0, 6)), min_size=1, max_size=80
)
later_s = st.integers(-500, 5000)  # a clock may be behind the log's


def columns(drawn: list[tuple[int, int, int]]) -> tuple[Any, Any, Any]:
    gaps, keys, third = (np.array(column, np.int64) for column in zip(*drawn, strict=True))
    return times(np.cumsum(gaps)), spread(keys), third


@given(drawn_events, later_s)
def test_sums_of_windows_are_those_of_an_event_that_only_asks(drawn: Any, later: int) -> None:
    when, keys, weights = columns(drawn)
    counter = WindowCounter(64, ((30 * NS_PER_S, 10), (300 * NS_PER_S, 12)))
    counter.update(keys, when, weights - 2)
    before = pack(counter.save())
    now = int(when[-1]) + later * NS_PER_S
    said = [counter.sums(key, now) for key in spread([1, 2, 3])]
    assert pack(counter.save()) == before
    asked = counter.update(spread([1, 2, 3]), np.full(3, now), np.zeros(3, np.int64))
    assert said == asked.tolist()


@given(drawn_events, later_s, st.sampled_from([0, 2]))
def test_counts_of_distinct_items_are_those_of_an_event_that_only_asks(
    drawn: Any, later: int, few: int
) -> None:
    when, keys, third = columns(drawn)
    change = np.array([1, 2, 3, 4, -1, 0, 1], np.int8)[third]
    items = spread(third * 7 + np.arange(len(third)) % 3)
    counter = DistinctCounter(64, 5, (600 * NS_PER_S, 3600 * NS_PER_S), few, alike=True)
    counter.update(keys, items, when, change)
    before = pack(counter.save())
    now = int(when[-1]) + later * NS_PER_S
    said = [counter.counts(key, now) for key in spread([1, 2, 3])]
    assert pack(counter.save()) == before
    for key, (total, groups) in zip(spread([1, 2, 3]), said, strict=True):
        for group in [*groups, 1]:
            asked = counter.update(
                np.array([key]), np.array([group], np.uint64), np.array([now]), np.zeros(1, np.int8)
            )[0].tolist()
            assert (total, groups.get(group, [0, 0])) == (asked[:2], asked[3:])


@given(drawn_events, later_s)
def test_credit_is_that_of_the_next_event(drawn: Any, later: int) -> None:
    when, sources, third = columns(drawn)
    success = (third > 3).astype(np.uint8)
    options = {"settle_ns": 600 * NS_PER_S, "memory_ns": 4000 * NS_PER_S}
    history = History(64, **options)
    none = np.zeros(len(when), np.uint64)
    weights = (third <= 3).astype(np.int64)
    history.update(spread(third + 10), none, sources, when, weights, success)
    before = pack(history.save())
    now = int(when[-1]) + later * NS_PER_S
    three = spread([1, 2, 3])
    said = [history.credit(key, now) for key in three]
    assert pack(history.save()) == before
    nothing = np.zeros(3, np.int64)
    asked = history.update(nothing.view(np.uint64), nothing.view(np.uint64), three, np.full(3, now), nothing,
                           nothing.astype(np.uint8))  # fmt: skip
    assert said == asked[:, 3].tolist()


@given(drawn_events, later_s)
def test_a_campaign_is_open_where_an_event_that_asks_finds_one(drawn: Any, later: int) -> None:
    when, keys, third = columns(drawn)
    campaigns = Campaigns(1000 * NS_PER_S, capacity=64, records=2)
    n = len(when)
    spans = np.full((n, 2), -1, np.int32)
    campaigns.update(keys, when, third > 3, third, spread(third + 1), spans, b"", when)
    before = pack(campaigns.save())
    now = int(when[-1]) + later * NS_PER_S
    three = spread([1, 2, 3])
    said = [campaigns.attempts(key, now) for key in three]
    assert pack(campaigns.save()) == before
    asking = np.full(3, ASK, np.int64)
    at, over, nameless = np.full(3, now), np.zeros(3, np.bool_), spans[:1].repeat(3, 0)
    followed = campaigns.update(three, at, over, asking, three, nameless, b"", at)
    expected = [int(a) if s else None for s, a in zip(followed.serial, followed.attempts, strict=True)]
    assert said == expected


def detection(**more: Any) -> Detection:
    return Detection(DetectionSettings(**more), KEY)


def at(found: list[Standing], detector: str, scale: str = "", unit: str = "") -> Standing:
    (one,) = [s for s in found if s.detector == detector and s.scale == scale and s.unit.startswith(unit)]
    return one


def standing(
    made: Detection, source: str = SOURCE, at_s: float = 60, *, packets: bool = False
) -> list[Standing]:
    before = pack(made.save())
    found = made.standing(source, int((START + at_s) * NS_PER_S), packets=packets)
    assert pack(made.save()) == before
    return found


def test_nine_failures_of_ten_keep_a_source_free_and_the_tenth_raises_it() -> None:
    made = detection()
    assert made.auth(batch_of(numbered(fail(n) for n in range(9)))) == []
    found = standing(made)
    assert at(found, "brute_force", "5m")[1:] == (
        "9 failed attempts in 5m, 10 are needed", "5m", 9, 10, "failed attempts",
    )  # fmt: skip
    assert at(found, "brute_force", "1d")[3:5] == (9, 10)
    assert at(found, "password_spray", "1h")[3:5] == (0, 8)  # nine tries of one user are no spray
    assert at(found, "compromise").text.endswith("it is not")
    # An event's time is the grid's: after five and a half minutes nothing of it is left in the shortest window.
    assert at(standing(made, at_s=400), "brute_force", "5m").figure == 0
    assert at(standing(made, at_s=400), "brute_force", "1h").figure == 9
    (finding,) = made.auth(batch_of(numbered([fail(10)])))
    assert finding.kind == "brute_force"
    assert at(standing(made), "brute_force").text == "raised, with 10 failed attempts"
    assert at(standing(made), "compromise").text.endswith("it is")
    assert at(standing(made, at_s=90_000), "brute_force", "5m").figure == 0


def test_another_address_has_nothing_against_it() -> None:
    made = detection()
    made.auth(batch_of(numbered(fail(n) for n in range(9))))
    assert {s.figure for s in standing(made, "203.0.113.8")} == {0}


@pytest.mark.parametrize("asked", ["2001:db8::9", "2001:db8::/64", "2001:db8::1"])
def test_an_ipv6_address_stands_as_its_64_does(asked: str) -> None:
    made = detection()
    made.auth(batch_of(numbered(fail(n, f"2001:db8::{n + 1}") for n in range(7))))
    assert at(standing(made, asked), "brute_force", "5m").figure == 7
    assert at(standing(made, "2001:db8:0:1::9"), "brute_force", "5m").figure == 0


def test_credit_says_how_many_have_logged_in_and_how_much_more_it_takes() -> None:
    made = detection()
    made.auth(batch_of(numbered(login(n, user=f"user{n}") for n in range(3))))
    made.auth(batch_of(numbered(fail(n, user="stranger") for n in range(10, 13))))
    found = standing(made)
    assert at(found, "credit", unit="users").figure == 3
    assert "3 users have logged in from this source before" in at(found, "credit", unit="users").text
    assert at(found, "brute_force", "5m")[3:5] == (3, 20)
    assert "(10 more for its credit)" in at(found, "brute_force", "5m").text
    assert at(found, "password_spray", "10m")[3:5] == (1, 16)


def test_a_spray_is_counted_in_users() -> None:
    made = detection()
    made.auth(batch_of(numbered(fail(n, user=f"user{n}") for n in range(7))))
    assert at(standing(made), "password_spray", "1h")[3:5] == (7, 8)
    assert made.auth(batch_of(numbered([fail(8, user="user8")])))[0].kind == "password_spray"
    assert at(standing(made), "password_spray").text.startswith("raised")


def test_a_scan_and_a_sweep_are_counted_in_what_was_not_answered() -> None:
    made = detection()
    refused = {"state": FlowState.REFUSED}
    made.flows(flows_of(numbered_flows(came(n, SOURCE, 1000 + n, **refused) for n in range(12))))
    made.flows(
        flows_of(numbered_flows(came(20 + n, SOURCE, 22, f"198.51.100.{n}", **refused) for n in range(5)))
    )
    found = standing(made, packets=True)
    assert at(found, "port_scan", "5m", "targets")[3:5] == (17, 20)
    assert at(found, "port_scan", "5m", "addresses at port 22")[3:5] == (5, 20)
    assert [s for s in standing(made) if s.detector == "port_scan"] == []
    made.flows(flows_of(numbered_flows(came(30 + n, SOURCE, 2000 + n, **refused) for n in range(5))))
    raised = at(standing(made, packets=True), "port_scan", "", "targets")
    assert raised.text.startswith("raised")
    answered = detection()
    answered.flows(flows_of(numbered_flows(came(n, SOURCE, 1000 + n) for n in range(3))))
    assert at(standing(answered, packets=True), "port_scan", "5m", "targets").figure == 0


def test_a_client_that_opens_many_at_once_is_counted_against_three_times_as_many() -> None:
    made = detection()
    syn = {"state": FlowState.SYN, "direction": Direction.EGRESS}
    made.flows(flows_of(numbered_flows(came(n, OURS, 1000 + n, SOURCE, **syn) for n in range(30))))
    found = at(standing(made, OURS, packets=True), "port_scan", "5m", "targets")
    assert found[3:5] == (30, 60)
    assert "did not answer" in found.text


def test_the_allow_list_says_which_rules_are_for_an_address() -> None:
    rule = AllowRule(
        networks=("192.0.2.0/24", "2001:db8:1::/48"), ports=(443, (8000, 8010)), protocols=("tcp",)
    )
    made = detection(ingress=[rule], egress=[])
    found = standing(made, "192.0.2.9", packets=True)
    assert (
        at(found, "allowlist_ingress", unit="rules").text
        == "rules allow flows from it: tcp, port 443, 8000-8010"
    )
    assert at(found, "allowlist_egress", unit="rules").text == "any flow to it would be raised"
    assert at(standing(made, "2001:db8:1::5", packets=True), "allowlist_ingress", unit="rules").figure == 1
    assert at(standing(made, SOURCE, packets=True), "allowlist_ingress", unit="rules").figure == 0
    assert (
        "no matter of the allow-list" in at(standing(made, "fe80::1", packets=True), "allowlist_ingress").text
    )


def test_a_detector_that_is_off_says_so_and_no_figure() -> None:
    found = standing(detection(disabled=frozenset({"brute_force"})))
    assert at(found, "brute_force").text == "off: what it finds is dropped"
    assert at(found, "password_spray", "1h").threshold == 8


@pytest.mark.parametrize(
    "wide", ["203.0.113.0/24", "2001:db8::/48", "0.0.0.0/0", "root", "", "192.0.2.1/x", "1.2.3.4/-1"]
)
def test_what_is_wider_than_what_is_judged_is_no_address(wide: str) -> None:
    with pytest.raises(ValueError, match="by itself"):
        detection().standing(wide, 0, packets=True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (300, "5m"), (3600, "1h"), (86400, "1d"), (172800, "2d")]
)
def test_scales_are_short(seconds: int, text: str) -> None:
    assert short(seconds) == text


INCIDENT = {
    "id": "0123456789abcdef", "kind": "beacon", "priority": "low", "severity": 40, "confidence": 0.85,
    "title": "Beacon", "start": "2026-11-24T08:00:00Z", "end": "2026-11-24T08:01:00Z", "sources": [SOURCE],
    "users": [], "targets": [], "blockable": [], "findings": [],
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "gatewatch.db")
    yield opened
    opened.close()


def parts(tmp_path: Path, **more: Any) -> Parts:
    values: dict[str, Any] = {
        "config": load(), "rails": None, "state": tmp_path, "mode": "enforce", "playbooks": tuple(load_playbooks()),
        "logs": (LogSource(tmp_path / "auth.log", "sshd"),), "journal_units": (), "local": (), "control": None,
        "commands": None, "outbox": None, "shipper_uid": 0, "watches_packets": True, "enforces": True,
        "say": lambda text: None,
    }  # fmt: skip
    return Parts(**(values | more))


def said(given: Parts, store: Store, *incidents: str, made: Detection | None = None) -> dict[str, str]:
    """The words of what has no figure of its own, by name."""
    found = standing_of(
        SOURCE, incidents, time.time_ns(), parts=given, detection=made or detection(), store=store,
        engine=Engine(given.playbooks),
    )  # fmt: skip
    return {
        s.detector: s.text for s in found if s.detector not in ("brute_force", "password_spray", "port_scan")
    }


def test_a_log_that_others_may_write_to_waits_for_a_handshake(tmp_path: Path, store: Store) -> None:
    assert "waits for a handshake" in said(parts(tmp_path), store)["handshake"]
    trusted = (LogSource(tmp_path / "auth.log", "sshd", trusted=True),)
    assert "handshake" not in said(parts(tmp_path, logs=trusted), store)
    assert "handshake" not in said(parts(tmp_path, watches_packets=False), store)
    seen = detection()
    flow = came(0, SOURCE)
    batch = flows_of(numbered_flows([flow]))
    batch.time_ns[:] = time.time_ns()
    seen.flows(batch)
    assert "handshake" not in said(parts(tmp_path), store, made=seen)


def test_what_does_not_run_is_said(tmp_path: Path, store: Store) -> None:
    found = said(parts(tmp_path, mode="observe", logs=(), watches_packets=False, enforces=False), store)
    assert found["mode"] == "observe mode: nothing is blocked, whatever is found"
    assert "no log is followed" in found["logs"]
    assert "packets are not watched" in found["packets"]
    assert "there is no enforcer" in said(parts(tmp_path, enforces=False), store)["mode"]
    assert "mode" not in said(parts(tmp_path), store)


def test_a_proxy_is_called_one(tmp_path: Path, store: Store) -> None:
    config = load()
    network = config.network.model_copy(update={"trusted_proxies": ["203.0.113.0/28"]})
    behind = config.model_copy(update={"network": network})
    assert "counts for the client" in said(parts(tmp_path, config=behind), store)["proxy"]
    assert "proxy" not in said(parts(tmp_path), store)


def test_an_incident_that_no_playbook_blocks_for_says_why(tmp_path: Path, store: Store) -> None:
    with store.transaction():
        store.save_incident(INCIDENT, {}, 1, 2, 3)
    text = said(parts(tmp_path), store, INCIDENT["id"])["playbooks"]
    assert text.startswith(f"incident {INCIDENT['id']}: no playbook blocks beacon at priority low")
    assert "login-burst: kind beacon is not among" in text
    grave = INCIDENT | {"id": "f" * 16, "kind": "brute_force", "priority": "high"}
    with store.transaction():
        store.save_incident(grave, {}, 1, 2, 3)
    assert "playbooks" not in said(parts(tmp_path), store, grave["id"], "unknown")
    with store.transaction():
        store.set_status(grave["id"], "closed", "")
    assert "closed by a person" in said(parts(tmp_path), store, grave["id"])["playbooks"]
