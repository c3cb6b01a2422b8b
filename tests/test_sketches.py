"""The bounded tables: exact against plain dictionaries, bounded under a flood, the same compiled and uncompiled."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import NS_PER_S
from gatewatch.detectors import campaigns, tables
from gatewatch.detectors.addressing import NetworkKeys, join_keys
from gatewatch.detectors.campaigns import ASK, Campaigns, marks
from gatewatch.detectors.tables import DistinctCounter, FlowGrowth, History, Sessions, WindowCounter
from hypothesis import given, settings
from hypothesis import strategies as st

START = 1_700_000_000 * NS_PER_S


def spread(keys: Any) -> Any:
    """Small numbers as keys that fall into different buckets."""
    return np.asarray(keys, np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)


def times(seconds: Any) -> Any:
    return START + np.asarray(seconds, np.int64) * NS_PER_S


events = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=120
)


@given(events)
def test_windows_hold_the_sum_of_their_cells(drawn: list[tuple[int, int, int]]) -> None:
    gaps, keys, weights = (np.array(column) for column in zip(*drawn, strict=True))
    seconds = np.cumsum(gaps)
    counter = WindowCounter(64, ((30 * NS_PER_S, 10), (300 * NS_PER_S, 12)))
    counts = counter.update(spread(keys), times(seconds), weights.astype(np.int64))
    for at in range(len(drawn)):
        for scale, (cell, cells) in enumerate(((30, 10), (300, 12))):
            head = times(seconds)[at] // (cell * NS_PER_S)
            inside = times(seconds)[: at + 1] // (cell * NS_PER_S) > head - cells
            expected = weights[: at + 1][inside & (keys[: at + 1] == keys[at])].sum()
            assert counts[at, scale] == expected


def test_a_negative_weight_takes_back_and_never_below_nothing() -> None:
    counter = WindowCounter(64, ((30 * NS_PER_S, 10),))
    weights = np.array([3, 2, -4, -9, 1], np.int64)
    counts = counter.update(spread([1] * 5), times([0, 31, 62, 63, 64]), weights)
    assert counts[:, 0].tolist() == [3, 5, 1, 0, 1]


def test_time_that_goes_back_counts_as_the_latest_of_its_key() -> None:
    counter = WindowCounter(64, ((30 * NS_PER_S, 10),))
    counts = counter.update(spread([1, 1, 1]), times([1000, 10, 1001]), np.ones(3, np.int64))
    assert counts[:, 0].tolist() == [1, 2, 3]


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=150)
)
def test_distinct_items_are_exact_while_they_fit(drawn: list[tuple[int, int, int]]) -> None:
    gaps, keys, items = (np.array(column) for column in zip(*drawn, strict=True))
    seconds = np.cumsum(gaps)
    counter = DistinctCounter(64, 16, (300 * NS_PER_S, 900 * NS_PER_S), few=3)
    counts = counter.update(spread(keys), spread(items), times(seconds), np.ones(len(keys), np.int8))
    for at in range(len(drawn)):
        for number, window in enumerate((300, 900)):
            expected = 0
            for item in set(items[: at + 1][keys[: at + 1] == keys[at]].tolist()):
                seen = seconds[: at + 1][(keys[: at + 1] == keys[at]) & (items[: at + 1] == item)]
                run = 1
                while run < len(seen) and seen[-run] - seen[-run - 1] < 900:
                    run += 1
                expected += bool(seconds[at] - seen[-1] < window and run <= 3)
            assert counts[at, number] == expected


def test_distinct_items_saturate_and_go_on() -> None:
    counter = DistinctCounter(64, 16, (300 * NS_PER_S,))
    counts = counter.update(spread([1] * 99), spread(range(1, 100)), times(range(99)), np.ones(99, np.int8))
    assert counts[-1, 0] == 16


def test_items_can_be_lesser_against_and_taken_off() -> None:
    counter = DistinctCounter(64, 16, (60 * NS_PER_S, 600 * NS_PER_S))
    kinds = DistinctCounter
    change = [
        kinds.ADD,
        kinds.ADD_LESSER,
        kinds.ADD_AGAINST,
        kinds.ADD_UNLESS_AGAINST,
        kinds.REMOVE,
        kinds.ASK,
    ]
    counts = counter.update(
        spread([1] * 6), spread([1, 2, 3, 3, 1, 1]), times(range(6)), np.array(change, np.int8)
    )
    assert counts.tolist() == [[1, 1, 0], [2, 1, 0], [1, 0, 1], [1, 0, 1], [0, -1, 1], [0, -1, 1]]


def test_items_alike_are_counted_beside() -> None:
    counter = DistinctCounter(64, 16, (600 * NS_PER_S,), alike=True)
    items = np.array([0x10016, 0x20016, 0x30050, 0x40016], np.uint64)
    counts = counter.update(spread([1] * 4), items, times(range(4)), np.array([1, 1, 1, 3], np.int8))
    assert counts.tolist() == [[1, 0, 1], [2, 0, 2], [3, 0, 1], [2, 1, 1]]


def test_a_flood_of_keys_of_one_event_each_leaves_the_strong_one() -> None:
    counter = WindowCounter(1024, ((3600 * NS_PER_S, 25),))
    counter.update(spread([1] * 5), times(range(5)), np.ones(5, np.int64))
    n = 2_000 if str(tables.sketches.__file__).endswith(".py") else 100_000
    for part in range(10):
        flood = spread(np.arange(n) + 2 + part * n)
        counter.update(flood, times(np.full(n, 10 + part)), np.ones(n, np.int64))
    counts = counter.update(spread([1]), times([30]), np.ones(1, np.int64))
    assert counts[0, 0] == 6
    assert len(counter.save()["keys"]) == 1024


def test_key_nothing_is_skipped() -> None:
    nothing = np.zeros(3, np.uint64)
    assert (
        WindowCounter(8, ((NS_PER_S, 4),)).update(nothing, times(range(3)), np.ones(3, np.int64)).sum() == 0
    )
    history = History().update(
        nothing, nothing, nothing, times(range(3)), np.ones(3, np.int64), np.zeros(3, np.uint8)
    )
    assert history.sum() == 0


def test_a_session_that_is_silent_for_long_is_another_one() -> None:
    sessions = Sessions(64, idle_ns=600 * NS_PER_S)
    weights, *_ = sessions.update(
        spread([1, 1, 1]), times([0, 1, 1000]), np.array([2, 4, 4], np.uint8), np.ones(3, np.int64),
        np.ones(3, np.uint8), spread([0, 0, 0]),
    )  # fmt: skip
    assert weights.tolist() == [1, 0, 1]


def test_a_line_without_a_user_has_that_of_its_session() -> None:
    _, users, _ = Sessions(64).update(
        spread([1, 1]), times([0, 1]), np.array([3, 4], np.uint8), np.ones(2, np.int64), np.ones(2, np.uint8),
        np.array([7, 0], np.uint64),
    )  # fmt: skip
    assert users.tolist() == [7, 7]


def test_bytes_of_a_flow_never_count_twice_or_backwards() -> None:
    grown = FlowGrowth(64).update(
        spread([1, 1, 1, 2]), times(range(4)), np.array([5, 9, 7, 1]), np.array([0, 2, 2, 0])
    )
    assert grown.tolist() == [[5, 0, 1], [4, 2, 0], [0, 0, 0], [1, 0, 1]]


def test_more_open_campaigns_than_records_stop_the_oldest_and_nothing_else() -> None:
    followed = Campaigns(86400 * NS_PER_S, capacity=1024, records=8)
    n = 40
    said = followed.update(
        spread(range(1, n + 1)), times(range(n)), np.ones(n, np.bool_),
        marks(np.arange(n), np.ones(n, np.uint8), np.ones(n, np.bool_), np.ones(n, np.int64)),
        spread([0] * n), np.full((n, 2), -1, np.int32), b"", times(range(n)),
    )  # fmt: skip
    assert said.serial.tolist() == list(range(1, n + 1))
    assert followed.record(1) is None
    last = followed.record(n)
    assert last is not None and last.lines == (n - 1,)


def test_who_only_asks_opens_nothing() -> None:
    said = Campaigns(NS_PER_S).update(
        spread([1]), times([0]), np.ones(1, np.bool_), np.array([ASK]), spread([0]), np.full((1, 2), -1, np.int32),
        b"", times([0]),
    )  # fmt: skip
    assert said.serial.tolist() == [0]


def test_a_saved_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="another size"):
        WindowCounter(64, ((NS_PER_S, 4),)).load(WindowCounter(128, ((NS_PER_S, 4),)).save())


def test_network_keys_follow_the_prefix_and_the_secret() -> None:
    keys = NetworkKeys(b"one")
    high = 0x2001_0DB8_0000_0001
    address = np.array([[high, 1], [high, 2], [high + 1, 1], [0, 1], [0, 2], [0, 1]], np.uint64)
    family = np.array([6, 6, 6, 4, 4, 0], np.uint8)
    made = keys.keys(address, family).tolist()
    assert made[0] == made[1] != made[2]
    assert made[3] != made[4]
    assert made[5] == 0
    assert made != NetworkKeys(b"two").keys(address, family).tolist()
    assert keys.text(6, high, 1) == "2001:db8:0:1::/64"
    assert NetworkKeys(b"", prefix4=24).text(4, 0, 0xC0000207) == "192.0.2.0/24"


def test_joined_keys_depend_on_both_and_on_their_order() -> None:
    one, two = spread([1]), spread([2])
    assert join_keys(one, two) != join_keys(two, one)
    assert join_keys(np.zeros(1, np.uint64), np.zeros(1, np.uint64))[0] != 0


def uncompiled() -> ModuleType:
    """`sketches.py` as plain Python, beside the compiled one."""
    path = Path(tables.__file__).with_name("sketches.py")
    name = "gatewatch.detectors.sketches_uncompiled"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def everything(seed: int) -> list[Any]:
    """What each kind of table says of the same few hundred events, and the state that it ends in."""
    rng = np.random.default_rng(seed)
    n = 300
    keys, items = spread(rng.integers(0, 30, n)), spread(rng.integers(0, 50, n))
    when = times(np.sort(rng.integers(0, 9000, n)))
    weights = rng.integers(-2, 4, n)
    flags = rng.integers(0, 2, n).astype(np.uint8)
    windows = WindowCounter(16, ((30 * NS_PER_S, 10), (300 * NS_PER_S, 12)))
    distinct = DistinctCounter(16, 8, (300 * NS_PER_S, 900 * NS_PER_S), few=3, alike=True)
    sessions, history, growth = Sessions(16), History(16, tolerance=4), FlowGrowth(16)
    followed = Campaigns(900 * NS_PER_S, capacity=16, records=8, names=16)
    text = b"alice bob carol"
    spans = np.array([[0, 5], [6, 9], [-1, -1]], np.int32)[rng.integers(0, 3, n)]
    marked = np.where(weights < 0, ASK, marks(np.arange(n), flags, flags, np.maximum(weights, 0)))
    said = followed.update(
        keys,
        when,
        rng.random(n) < 0.3,
        marked,
        items,
        spans,
        text,
        when - 300 * NS_PER_S,
        np.stack([weights] * 2, 1),
    )
    kinds = rng.choice(np.array([1, 2, 3, 4, 5, 8, 32], np.uint8), n)
    return [
        windows.update(keys, when, weights),
        distinct.update(keys, items, when, rng.integers(-1, 5, n).astype(np.int8)),
        *sessions.update(keys, when, kinds, np.maximum(weights, 1), flags, items),
        history.update(
            join_keys(keys, items),
            np.where(flags, keys, np.uint64(0)),
            keys,
            when,
            np.maximum(weights, 0),
            flags,
        ),
        growth.update(keys, when, weights * 1000, weights * 10),
        [said.serial, said.start_ns, said.before_ns, said.marks, said.attempts],
        [repr(followed.record(serial)) for serial in range(1, int(said.serial.max()) + 1)],
        [made.save() for made in (windows, distinct, sessions, history, growth, followed)],
    ]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_compiled_and_uncompiled_loops_agree(seed: int) -> None:
    compiled = plain(everything(seed))
    with pytest.MonkeyPatch.context() as patch:
        loops = uncompiled()
        patch.setattr(tables, "sketches", loops)
        patch.setattr(campaigns, "sketches", loops)
        assert plain(everything(seed)) == compiled
