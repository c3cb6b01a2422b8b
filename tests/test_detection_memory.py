"""Millions of sources that fail once hide no ordinary brute force and take no memory: the benchmark in small."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gatewatch.detectors import sketches

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from detection_memory import FLOODS, GUESSER, NS_PER_S, START_NS, Flood, measured  # noqa: E402

COMPILED = not str(sketches.__file__).endswith(".py")
ROWS = 300_000 if COMPILED else 6_000
SIX_HOURS_NS = 6 * 3600 * NS_PER_S
MOST_MIB = 300
GROWTH_MIB = 24


@pytest.mark.parametrize("name", FLOODS)
def test_an_ordinary_brute_force_is_raised_within_a_flood_as_soon_as_alone(name: str) -> None:
    made = measured(Flood(name, ROWS, SIX_HOURS_NS))
    assert made.alone_ns is not None
    assert made.raised_ns == made.alone_ns


@pytest.mark.skipif(
    not COMPILED, reason="without the compiled loops the flood is too small to fill the tables"
)
@pytest.mark.parametrize("name", FLOODS)
def test_memory_stays_flat_however_many_sources_and_users_fail(name: str) -> None:
    before, tenth, end = measured(Flood(name, ROWS, SIX_HOURS_NS)).memory
    assert end - before < MOST_MIB
    assert end - tenth < GROWTH_MIB


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_has_the_rows_that_it_says_and_the_guesser_in_the_order_of_time(name: str) -> None:
    flood = Flood(name, 20_000, SIX_HOURS_NS)
    rows, clients, guesses = 0, set(), 0
    last = START_NS
    for batch in flood.batches(3_000):
        assert int(batch.time_ns[0]) >= last
        assert (batch.time_ns[1:] >= batch.time_ns[:-1]).all()
        last = int(batch.time_ns[-1])
        clients |= {tuple(pair) for pair in batch.client.tolist()}
        mine = [row for row in range(len(batch)) if batch.user[row] == 1]
        assert {batch.source_of(row) for row in mine} <= {GUESSER}
        guesses += len(mine)
        rows += len(batch)
    assert guesses == 60
    assert rows == 20_000 + guesses
    assert len(clients) == (101 if name == "users" else 20_001)
