"""What is usual for each user: exact against plain dictionaries, aged, saved in the middle, safe from a flood."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import NS_PER_S
from gatewatch.detectors import profiles
from gatewatch.detectors.addressing import join_keys
from gatewatch.detectors.login.attempts import AttemptStage
from gatewatch.detectors.profiles import (
    ASN,
    COUNTRY,
    HOUR,
    METHOD,
    METHODS,
    NETWORK,
    PASSWORD,
    PUBLICKEY,
    RANGE,
    SEEN,
    SITE_RANGE,
    WIDER,
    Profiles,
    Recalled,
    packed,
    unpacked,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_detectors_login import batch_of, fail, login, numbered

START = 1_700_000_000 // 86400 * 86400 * NS_PER_S
HOUR_NS = 3600 * NS_PER_S
DAY_NS = 24 * HOUR_NS
Event = dict[str, Any]


def spread(numbers: Any) -> Any:
    """Small numbers as keys; 0 stays 0."""
    numbers = np.asarray(numbers, np.uint64)
    return np.where(numbers == 0, np.uint64(0), join_keys(np.array([77], np.uint64), numbers))


def ask(made: Profiles, events: list[Event]) -> Recalled:
    """Events by hand: `at` in hours; user, network, country, asn as small numbers; `wider`, `range` as `network`."""

    def column(name: str, missing: int = 0, kind: Any = np.int64) -> Any:
        return np.array([event.get(name, missing) for event in events], kind)

    network = column("network", 1)
    return made.update(
        spread(column("user", 1)),
        START + (np.array([e["at"] for e in events]) * HOUR_NS).astype(np.int64),
        column("success", 1, np.uint8),
        spread(network),
        spread(column("wider") + np.where(column("wider") == 0, network, 0)),
        spread(column("range") + np.where(column("range") == 0, network, 0)),
        column("country"),
        column("asn"),
        column("method", PUBLICKEY, np.uint8),
        np.array([event.get("place", (0, 0, 0, 0)) for event in events], np.int64),
    )


def test_what_is_told_is_what_was_known_before_the_event() -> None:
    told = ask(Profiles(), [{"at": at, "country": 5, "asn": 7} for at in (9, 10, 11)])
    assert told.logins.tolist() == [0, 1, 2]
    assert told.first_ns.tolist() == [0, START + 9 * HOUR_NS, START + 9 * HOUR_NS]
    assert told.facts[0] == 0
    assert told.facts[2] & 0x7F == NETWORK | WIDER | RANGE | COUNTRY | ASN | METHOD | HOUR


def test_a_first_login_makes_nothing_usual_within_the_hour() -> None:
    told = ask(Profiles(), [{"at": 9}, {"at": 9.9}, {"at": 10}])
    assert told.facts[1] & (NETWORK | WIDER | RANGE) == 0
    assert told.facts[1] & (NETWORK << SEEN)
    assert told.facts[2] & (NETWORK | WIDER | RANGE) == NETWORK | WIDER | RANGE


def test_failures_ask_and_write_nothing() -> None:
    made = Profiles()
    before = made.save()
    told = ask(made, [{"at": n, "user": n % 7 + 1, "success": 0} for n in range(50)])
    assert told.first_ns.sum() == 0
    after = made.save()
    assert len(after["users"]["at"]) == len(before["users"]["at"]) == 0
    assert len(after["site"]["at"]) == 0
    told = ask(made, [{"at": 60}, {"at": 62, "success": 0}, {"at": 62, "success": 0, "network": 9}])
    assert told.logins.tolist() == [0, 1, 1]
    assert [int(f) & (NETWORK | WIDER | RANGE) for f in told.facts] == [0, NETWORK | WIDER | RANGE, 0]


def test_a_million_invented_names_push_no_user_out() -> None:
    made = Profiles(users=256)
    ask(made, [{"at": 0, "user": user} for user in range(1, 101)])
    n = 1_000_000
    zeros = np.zeros(n, np.int64)
    made.update(
        spread(np.arange(10_000, 10_000 + n)),
        START + np.arange(n) * 1000,
        np.zeros(n, np.uint8),
        spread(np.full(n, 9)),
        spread(np.full(n, 9)),
        spread(np.full(n, 9)),
        zeros,
        zeros,
        np.zeros(n, np.uint8),
        np.zeros((n, 4), np.int64),
    )
    told = ask(made, [{"at": 5, "user": user, "success": 0} for user in range(1, 101)])
    assert told.logins.tolist() == [1] * 100


def test_a_flood_of_users_who_log_in_once_spares_those_who_log_in_often() -> None:
    made = Profiles(users=64)
    ask(made, [{"at": n, "user": 1} for n in range(40)])
    ask(made, [{"at": 41 + n / 1000, "user": 100 + n} for n in range(2000)])
    assert len(made.save()["users"]["at"]) <= 64
    assert ask(made, [{"at": 60, "user": 1, "success": 0}]).logins.tolist() == [40]


def test_a_network_is_forgotten_after_thirty_days_without_a_success() -> None:
    made = Profiles()
    ask(made, [{"at": 0, "network": 1}, {"at": 1, "network": 2}])
    ask(made, [{"at": 24 * day, "network": 2} for day in range(1, 32)])
    told = ask(made, [{"at": 24 * 31, "network": n, "success": 0} for n in (1, 2)])
    assert [int(f) & NETWORK for f in told.facts] == [0, NETWORK]


def test_a_user_is_forgotten_after_thirty_days_without_a_success() -> None:
    made = Profiles()
    ask(made, [{"at": 0}])
    assert ask(made, [{"at": 24 * 30, "success": 0}]).logins.tolist() == [1]
    assert ask(made, [{"at": 24 * 30 + 1, "success": 0}]).first_ns.tolist() == [0]
    told = ask(made, [{"at": 24 * 31}, {"at": 24 * 31 + 2}])
    assert told.first_ns.tolist() == [0, START + 31 * DAY_NS]
    assert told.logins.tolist() == [0, 1]


def test_counts_are_halved_with_every_month() -> None:
    made = Profiles()
    ask(made, [{"at": n / 10} for n in range(100)])
    told = ask(made, [{"at": 24 * 29}, {"at": 24 * 58}])
    assert told.logins.tolist()[1] in (25, 26, 50, 51)


def test_the_network_that_was_longest_unused_goes_first() -> None:
    made = Profiles()
    ask(made, [{"at": n, "network": n + 1} for n in range(16)])
    ask(made, [{"at": 20, "network": 1}, {"at": 21, "network": 17}])
    told = ask(made, [{"at": 30, "network": n, "success": 0} for n in (1, 2, 3, 17)])
    assert [bool(f & NETWORK) for f in told.facts] == [True, False, True, True]


def test_time_that_goes_back_makes_nothing_usual_sooner() -> None:
    told = ask(Profiles(), [{"at": 9}, {"at": 2}, {"at": 9.5}])
    assert [int(f) & NETWORK for f in told.facts] == [0, 0, 0]
    assert told.last_ns.tolist() == [0, START + 9 * HOUR_NS, START + 9 * HOUR_NS]


@pytest.mark.parametrize("users", [1, 6])
def test_one_login_of_a_clock_far_ahead_does_not_stop_learning(users: int) -> None:
    made = Profiles()
    ask(made, [{"at": at} for at in (0, 2, 14)])
    ask(made, [{"at": 24 * 900, "user": user} for user in range(1, users + 1)])
    ask(made, [{"at": at, "network": n} for at in (20, 21.5) for n in (1, 7)])
    told = ask(made, [{"at": 34.6, "network": n} for n in (1, 7)])
    assert [bool(f & NETWORK) for f in told.facts] == [True, True]
    assert told.site_first_ns.tolist() == [START] * 2
    assert (told.first_ns <= START + 20 * HOUR_NS).all()
    assert all(
        bool(f & SITE_RANGE) for f in ask(made, [{"at": 48, "user": 99, "network": n} for n in (1, 7)]).facts
    )


def test_a_users_hours_are_those_about_which_logins_were() -> None:
    made = Profiles()
    ask(made, [{"at": at} for at in (9, 11, 12, 14)])
    told = ask(made, [{"at": 24 + at, "success": 1} for at in (3, 8)])
    assert [bool(f & HOUR) for f in told.facts] == [False, True]
    ask(made, [{"at": 48 + at} for at in (9, 11, 12, 14)])
    told = ask(made, [{"at": at} for at in (72 + 17, 96 + 16)])
    assert [bool(f & HOUR) for f in told.facts] == [False, True]


def test_one_night_of_many_days_is_not_yet_a_users_hour() -> None:
    made = Profiles()
    working = [{"at": 24 * day + hour} for day in range(8) for hour in (9, 10, 13, 15, 16)]
    ask(made, working)
    told = ask(made, [{"at": 24 * 8 + 2}, {"at": 24 * 9 + 2}, {"at": 24 * 10 + 2}])
    assert [bool(f & HOUR) for f in told.facts] == [False, False, True]


def test_an_hour_of_the_sites_people_is_usual_and_a_jobs_hours_are_nobodys() -> None:
    made = Profiles()
    jobs = [{"at": n / 2, "user": 900 + u} for n in range(480) for u in range(5)]
    people = [
        {"at": 24 * day + hour, "user": user}
        for day in range(10)
        for user in range(1, 30)
        for hour in ((9, 12, 15, 21) if user < 6 else (9, 12, 15, 16))
    ]
    ask(made, sorted(jobs + people, key=lambda e: e["at"]))
    told = ask(made, [{"at": 240 + 2.5, "user": 20}, {"at": 240 + 21.5, "user": 20}])
    assert [bool(f & HOUR) for f in told.facts] == [False, True]


def test_a_range_is_usual_at_the_site_once_it_is_settled_for_five_or_one_stays() -> None:
    made = Profiles()
    once = [{"at": n / 60, "user": n, "network": 4} for n in range(1, 21)]
    told = ask(made, once)
    assert not (told.facts & SITE_RANGE).any()
    told = ask(made, [{"at": 2 + n / 60, "user": n, "network": 4} for n in range(1, 8)])
    assert [bool(f & SITE_RANGE) for f in told.facts] == [False] * 5 + [True] * 2
    told = ask(made, [{"at": at, "user": 1, "network": 5} for at in (1, 5, 13, 17, 18)])
    assert [bool(f & SITE_RANGE) for f in told.facts] == [False, False, False, False, True]
    assert ask(made, [{"at": 20, "user": 99, "network": 5}]).facts[0] & SITE_RANGE
    assert not ask(made, [{"at": 20 + 24 * 31, "user": 99, "network": 5}]).facts[0] & SITE_RANGE


def test_a_method_is_usual_for_one_in_twenty_logins() -> None:
    made = Profiles()
    ask(made, [{"at": n / 10} for n in range(39)])
    ask(made, [{"at": 5, "method": PASSWORD}])
    told = ask(made, [{"at": 6, "method": PASSWORD}, {"at": 7, "method": PASSWORD}])
    assert [bool(f & METHOD) for f in told.facts] == [False, False]
    assert told.by_method.tolist() == [1, 2]
    assert told.by_key.tolist() == [39, 39]
    assert ask(made, [{"at": 8, "method": PASSWORD}]).facts[0] & METHOD


def test_a_user_who_comes_from_a_new_network_each_time_is_known_for_it() -> None:
    events = [{"at": n, "network": n + 1, "range": 3} for n in range(30)]
    told = ask(Profiles(), events)
    assert told.strayed.tolist() == list(range(30))
    assert told.roamed.tolist() == [0] + [1] * 29


def test_the_last_place_is_told_with_what_was_usual_there() -> None:
    berlin = (packed(525200, 134000), 20, 0x5B21_0001, 4)
    lagos = (packed(-331234, -1512100), 50, 0x2A0A_A540_0000_0001, 6)
    told = ask(
        Profiles(),
        [{"at": 1, "place": berlin}, {"at": 2}, {"at": 3, "place": lagos}, {"at": 4, "place": berlin}],
    )
    assert told.last_place(0) is None
    assert told.last_place(1) is None
    first, second = told.last_place(2), told.last_place(3)
    assert first is not None and second is not None
    assert (first.latitude, first.longitude, first.accuracy, first.family) == (525200, 134000, 20, 4)
    assert (first.network, first.time_ns) == (0x5B21_0001, START + HOUR_NS)
    assert first.facts & NETWORK == 0
    assert (second.latitude, second.longitude, second.family) == (-331234, -1512100, 6)
    assert second.network == 0x2A0A_A540_0000_0001
    assert second.facts & NETWORK
    assert [told.last_familiar_place(at) for at in range(4)] == [None, None, None, second]


@given(st.integers(-900_000, 900_000), st.integers(-1_800_000, 1_800_000))
def test_a_place_is_packed_without_loss(latitude: int, longitude: int) -> None:
    place = packed(latitude, longitude)
    assert place != 0
    assert unpacked(place) == (latitude, longitude)


drawn_events = st.lists(
    st.fixed_dictionaries(
        {
            "gap": st.sampled_from([0.0, 0.1, 0.7, 3.0, 11.0, 30.0, 200.0]),
            "user": st.integers(0, 4),
            "network": st.integers(1, 20),
            "range": st.integers(1, 4),
            "country": st.integers(0, 3),
            "asn": st.integers(0, 3),
            "method": st.integers(0, 7),
            "success": st.sampled_from([0, 1, 1]),
        }
    ),
    min_size=1,
    max_size=60,
)


def timed(drawn: list[Event]) -> list[Event]:
    at, made = 0.0, []
    for event in drawn:
        at += event["gap"]
        made.append({**event, "at": at})
    return made


class Model:
    """The networks and logins of `Profiles` in dictionaries, with all the room in the world."""

    def __init__(self) -> None:
        self.users: dict[int, dict[str, Any]] = {}

    def see(self, event: Event) -> tuple[int, bool]:
        user, network = event["user"], event["network"]
        now = START + int(event["at"] * HOUR_NS)
        known = self.users.get(user)
        if known and now - known["last"] > 30 * DAY_NS:
            known = None
        if user == 0 or (known is None and not event["success"]):
            return 0, False
        known = known or {"networks": {}, "first": 0, "last": 0}
        first, last = known["networks"].get(network, (now, now))
        if now - last > 30 * DAY_NS:
            first = now
        usual = now - first >= HOUR_NS
        answer = known["first"], usual
        if event["success"]:
            known["networks"][network] = first, now
            known["first"], known["last"] = known["first"] or now, now
            self.users[user] = known
            while len(known["networks"]) > 16:
                del known["networks"][min(known["networks"], key=lambda n: known["networks"][n][1])]
        return answer


@given(drawn_events)
def test_networks_and_first_logins_are_those_of_a_plain_model(drawn: list[Event]) -> None:
    events, model = timed(drawn), Model()
    told = ask(Profiles(), events)
    expected = [model.see(event) for event in events]
    assert told.first_ns.tolist() == [first for first, _ in expected]
    assert [bool(f & NETWORK) for f in told.facts] == [usual for _, usual in expected]


def flat(told: Recalled) -> list[list[Any]]:
    columns = (
        "logins",
        "first_ns",
        "last_ns",
        "facts",
        "strayed",
        "roamed",
        "by_method",
        "by_key",
        "site_first_ns",
        "places",
    )
    return [getattr(told, name).tolist() for name in columns]


@settings(max_examples=50)
@given(drawn_events, st.integers(1, 7), st.integers(0, 60))
def test_batches_and_a_restart_change_nothing(drawn: list[Event], size: int, stop: int) -> None:
    events = timed(drawn)
    straight = flat(ask(Profiles(users=8, site=8), events))
    made, parts = Profiles(users=8, site=8), []
    for start in range(0, len(events), size):
        if start >= stop:
            resumed = Profiles(users=8, site=8)
            resumed.load(made.save())
            made = resumed
        parts.append(flat(ask(made, events[start : start + size])))
    assert [list(chain(*columns)) for columns in zip(*parts, strict=True)] == straight


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="another size"):
        Profiles(users=64).load(Profiles(users=128).save())


def uncompiled() -> ModuleType:
    path = Path(profiles.__file__).with_name("profiles_loop.py")
    loader = SourceFileLoader("gatewatch.detectors.plain_profiles_loop", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_uncompiled_loop_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        {
            "at": n * 0.7,
            "user": n % 5,
            "network": n % 19 + 1,
            "range": n % 3 + 1,
            "country": n % 2,
            "method": n % 3,
        }
        for n in range(300)
    ]
    compiled = flat(ask(Profiles(users=8, site=8), events))
    monkeypatch.setattr(profiles, "profiles_loop", uncompiled())
    assert flat(ask(Profiles(users=8, site=8), events)) == compiled


def test_attempts_carry_what_was_usual_for_their_user() -> None:
    stage = AttemptStage(b"a site's own key")
    rows = [
        login(0, user="ann", source="192.0.2.1", method="publickey"),
        login(7200, user="ann", source="192.0.2.9", method="keyboard-interactive/pam"),
        fail(7300, user="ann", source="192.0.2.77"),
        fail(7400, user="eve", source="192.0.2.77"),
        login(9000, user="ann", source="2001:db8::1", method="password"),
    ]
    attempts = stage.update(batch_of(numbered(rows)))
    assert attempts.logins.tolist() == [0, 1, 2, 0, 2]
    assert attempts.known_user.tolist() == [False, True, True, False, True]
    assert [int(f) & (NETWORK | WIDER | RANGE) for f in attempts.facts] == [
        0,
        WIDER | RANGE,
        WIDER | RANGE,
        0,
        0,
    ]
    assert [METHODS[m] for m in attempts.method] == ["publickey", "keyboard-interactive", "", "", "password"]
    assert attempts.user_first_ns[2] == attempts.time_ns[0]


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ("", ""),
        ("publickey", "publickey"),
        ("publickez8", "other"),
        ("password", "password"),
        ("gssapi-with-mic", "gssapi"),
        ("hostbased", "hostbased"),
        ("none", "none"),
        ("Zzz", "other"),
        ("\x1b", "other"),
    ],
)
def test_any_method_has_a_number(said: str, method: str) -> None:
    attempts = AttemptStage(b"a site's own key").update(
        batch_of(numbered([login(0, user="ann", method=said)]))
    )
    assert METHODS[attempts.method[0]] == method
