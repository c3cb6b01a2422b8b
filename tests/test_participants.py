"""Who takes part in an attack of many sources: what is held of them, in what order, and within what bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import Outcome
from gatewatch.detectors.login.attempts import Attempts, AttemptStage
from gatewatch.detectors.login.participants import Participants
from test_detector_distributed_brute_force import DAY, stranger
from test_detectors_login import KEY, Event, batch_of, fail, hashed, login, numbered


class Held:
    """Participants with the stage before them, fed with events."""

    def __init__(self, capacity: int = 8192) -> None:
        self.stage, self.participants, self.last = AttemptStage(KEY), Participants(capacity), 0
        self.packed: dict[str, bytes] = {}
        self.attempts: Attempts | None = None

    def add(self, events: list[Event], size: int = 10**9) -> Held:
        rows = numbered(events)
        for start in range(0, len(rows), size):
            seen = self.stage.update(batch_of(rows[start : start + size]))
            attempts = seen.with_convicted(np.zeros(len(seen.row), np.bool_))
            first = self.participants.update(attempts, attempts.stranger, attempts.nameless)
            self.last, self.attempts = first + len(attempts.row), attempts
            names, spans = attempts.packed_sources(np.arange(len(attempts.row)))
            for at, (begin, end) in enumerate(spans.tolist()):
                self.packed[attempts.source_of(at)] = names[begin:end]
        return self

    def key(self, source: str) -> Any:
        assert self.attempts is not None
        return self.attempts.source_key(self.packed[source])

    def suspected(self, source: str, user: str, number: int | None = None) -> bool:
        return self.participants.suspected(
            self.key(source), np.uint64(hashed(user)), self.last if number is None else number
        )

    def let_off(self, source: str, number: int | None = None) -> bool:
        return self.participants.let_off(self.key(source), self.last if number is None else number)

    def named(self, sources: list[str], user: str = "", number: int | None = None) -> tuple[str, ...]:
        assert self.attempts is not None
        packed = [self.packed[source] for source in sources]
        whom = np.uint64(hashed(user)) if user else None
        return self.participants.named(self.attempts, packed, self.last if number is None else number, whom)


A, B, C = stranger(1), stranger(2), stranger(3)


def test_who_failed_for_another_is_suspected_of_a_success_and_who_failed_for_the_same_is_not() -> None:
    held = Held().add([fail(0, A, "ann"), fail(1, B, "bob")])
    assert held.suspected(A, "bob") and held.suspected(B, "ann")
    assert not held.suspected(A, "ann") and not held.suspected(B, "bob")


def test_it_counts_whom_a_source_had_tried_first() -> None:
    held = Held().add([fail(0, A, "ann"), fail(1, A, "bob")])
    assert held.suspected(A, "bob") and not held.suspected(A, "ann")


def test_a_name_that_does_not_exist_is_whom_nobody_had_tried() -> None:
    held = Held().add([fail(0, A, "anm", outcome=Outcome.INVALID_USER), fail(1, A, "ann")])
    assert not held.suspected(A, "ann") and not held.suspected(A, "bob")


def test_a_login_from_there_lets_off() -> None:
    held = Held().add([fail(0, A, "ann"), fail(1, B, "ann"), login(9, A, "ann")])
    assert held.let_off(A) and not held.let_off(B)
    assert held.named([A, B]) == (B,)
    assert not held.suspected(A, "bob")


def test_who_never_took_part_is_not_held() -> None:
    held = Held().add([login(0, A, "ann"), fail(1, "10.1.1.1", "ann"), login(2, B, "bob"), fail(9, C, "bob")])
    assert len(held.participants.save()["suspects"]) == 1
    assert len(held.participants.save()["let_off"]) == 0


def test_the_fifth_failure_for_one_user_lets_off_and_the_fourth_does_not() -> None:
    assert not Held().add([fail(n, A, "ann") for n in range(4)]).let_off(A)
    assert Held().add([fail(n, A, "ann") for n in range(5)]).let_off(A)
    assert not Held().add([fail(n, A, f"u{n}") for n in range(9)]).let_off(A)


def test_failures_that_one_line_tells_of_count_each() -> None:
    assert Held().add([fail(0, A, "ann"), fail(1, A, "ann", count=4)]).let_off(A)


def test_a_user_at_home_there_for_hours_lets_nobody_off() -> None:
    """From there nobody can be a stranger, so there is nothing to take back."""
    events = [login(-DAY, A, "ann"), login(-DAY // 2, A, "ann"), login(0, A, "ann")]
    assert len(Held().add(events).participants.save()["let_off"]) == 0


def test_what_comes_later_does_not_count_before() -> None:
    """Numbers 0 and 1 are the failures, 2 is the login."""
    held = Held().add([fail(0, A, "ann"), fail(1, B, "bob"), login(2, A, "ann")])
    assert not held.suspected(B, "ann", 1) and held.suspected(B, "ann", 2)
    assert not held.let_off(A, 2) and held.let_off(A, 3)
    assert held.named([A, B], number=2) == (A, B)
    assert held.named([A, B], number=3) == (B,)


def test_a_login_before_the_failure_lets_off_only_who_had_failed_before() -> None:
    assert not Held().add([login(0, A, "ann"), fail(1, A, "bob")]).let_off(A)
    assert Held().add([fail(0, A, "bob"), login(1, A, "ann"), fail(2, A, "bob")]).let_off(A)


def test_those_who_had_begun_with_another_account_are_not_named_unless_all_had() -> None:
    held = Held().add([fail(0, A, "bob"), fail(1, A, "ann"), fail(2, B, "ann"), fail(3, C, "ann")])
    assert held.named([A, B, C], "ann") == (B, C)
    assert held.named([A, B, C], "bob") == (A,)
    assert held.named([A], "ann") == (A,)
    assert held.named([A, B, C]) == (A, B, C)


def test_who_was_let_off_is_not_named_where_nobody_else_would_be_either() -> None:
    held = Held().add([fail(0, A, "ann"), fail(1, B, "ann"), login(9, A, "ann"), login(10, B, "ann")])
    assert held.named([A, B]) == held.named([A, B], "ann") == ()


def test_names_are_of_networks() -> None:
    held = Held().add([fail(0, "2a05:1:2:3::7", "ann"), fail(1, A, "ann")])
    assert held.named(["2a05:1:2:3::/64", A]) == ("2a05:1:2:3::/64", A)


def test_a_flood_takes_no_more_than_was_said_and_the_oldest_goes() -> None:
    held = Held(capacity=8).add([fail(n, stranger(n), "ann") for n in range(100)])
    assert len(held.participants.save()["suspects"]) == 8
    assert held.suspected(stranger(99), "bob") and held.suspected(stranger(92), "bob")
    assert not held.suspected(stranger(91), "bob")
    held = Held(capacity=8).add([fail(n, stranger(n // 5), "ann") for n in range(500)])
    assert len(held.participants.save()["let_off"]) == 8
    assert held.let_off(stranger(99)) and not held.let_off(stranger(91))


def story() -> list[Event]:
    """Strangers who go on, turn to others, slip and get in, in an order drawn once."""
    rng = np.random.default_rng(11)
    events = []
    for n in range(400):
        source, user = stranger(int(rng.integers(0, 40))), f"p{rng.integers(0, 6)}"
        drawn = rng.random()
        if drawn < 0.1:
            events.append(login(30 * n, source, user))
        else:
            outcome = Outcome.INVALID_USER if drawn < 0.2 else Outcome.FAILURE
            events.append(fail(30 * n, source, user, outcome=outcome))
    return events


@pytest.mark.parametrize("capacity", [16, 8192])
@pytest.mark.parametrize("size", [1, 7, 150])
def test_what_is_held_does_not_depend_on_batches(size: int, capacity: int) -> None:
    whole, parted = Held(capacity).add(story()), Held(capacity).add(story(), size)
    for name, value in whole.participants.save().items():
        assert np.array_equal(parted.participants.save()[name], value)


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    events = story()
    straight, resumed = Held(16).add(events[:200]), Held(16).add(events[:200])
    again = Participants(16)
    again.load(straight.participants.save())
    resumed.participants = again
    for held in (straight, resumed):
        held.add(events[200:])
    for name, value in straight.participants.save().items():
        assert np.array_equal(resumed.participants.save()[name], value)
    assert straight.named(list(straight.packed)) == resumed.named(list(resumed.packed))
