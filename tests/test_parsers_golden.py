"""Every line shape against what a person says that it means (`tests/data/parsers/*.jsonl`, written by hand)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.collectors.parsers.registry import Parsed, ParserOptions, make_parser
from gatewatch.daemon.events import Outcome

DATA = Path(__file__).parent / "data" / "parsers"
NOW_NS = int(datetime(2026, 3, 5, tzinfo=UTC).timestamp()) * 10**9
OPTIONS = ParserOptions(now_ns=NOW_NS, timezone="UTC", trusted_proxies=("10.0.0.0/8",))
GOLDEN = [
    (path.stem, "nginx" if path.stem.startswith("nginx") else "sshd") for path in sorted(DATA.glob("*.log"))
]


def nanoseconds(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0"))


def said(parsed: Parsed, row: int) -> dict[str, Any]:
    """A row in the words of the golden files: what is unknown is left out."""
    events = parsed.events
    found: dict[str, Any] = {"time": int(events.time_ns[row])}
    if events.outcome[row] != Outcome.OTHER:
        found["outcome"] = Outcome(events.outcome[row]).name.lower()
    if events.count[row] != 1:
        found["count"] = int(events.count[row])
    if events.status[row]:
        found["status"] = int(events.status[row])
    if events.source_of(row):
        found["source"] = events.source_of(row)
    for column in ("user", "service", "method", "key", "host", "path"):
        if events.text_of(row, column):
            found[column] = events.text_of(row, column)
    return found


@pytest.mark.parametrize(("stem", "name"), GOLDEN)
def test_a_line_means_what_a_person_says_it_means(stem: str, name: str) -> None:
    chunk = (DATA / f"{stem}.log").read_bytes()
    expected = [json.loads(line) for line in (DATA / f"{stem}.jsonl").read_text("utf-8").splitlines()]
    lines = chunk.decode().splitlines()
    parsed = make_parser(name, OPTIONS).parse(chunk)
    rows = {int(line): row for row, line in enumerate(parsed.events.line)}
    assert parsed.lines == len(lines) == len(expected)
    assert sorted([*rows, *parsed.unparsed.tolist()]) == list(range(1, len(lines) + 1))
    for number, meaning in enumerate(expected, 1):
        where = f"{stem}.log line {number}: {lines[number - 1]}"
        if meaning.get("unparsed"):
            assert number not in rows, where
            continue
        assert number in rows, where
        found = said(parsed, rows[number])
        if "time" in meaning:
            meaning["time"] = nanoseconds(meaning["time"])
        optional = {"time", "service", "host"} - meaning.keys()
        assert {k: v for k, v in found.items() if k not in optional} == meaning, where
