"""The JSON-lines sink: what it leaves in the file, and how it mends it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gatewatch.daemon.sinks.contract import Row, SinkError
from gatewatch.daemon.sinks.jsonl import JsonlSink, encode
from hypothesis import given
from hypothesis import strategies as st


def row(number: int, document: bytes = b'{"a":1}') -> Row:
    return Row("out", number, f"key-{number}", msgspec.Raw(document))


def write(sink: JsonlSink, *numbers: int) -> None:
    asyncio.run(sink.write([row(n) for n in numbers]))


def lines(path: Path) -> list[int]:
    return [json.loads(line)["outbox"] for line in path.read_text().splitlines()]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.text())
def test_any_document_becomes_one_line_with_its_key(document: dict[str, Any], spread: bool, key: str) -> None:
    raw = json.dumps(document, indent=2 if spread else None).encode()
    line = encode(Row("out", 7, key, msgspec.Raw(raw)))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == document | {"outbox": 7, "key": key}


def test_the_file_is_readable_by_its_group_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(JsonlSink(tmp_path / "a.jsonl"), 1)
    finally:
        os.umask(before)
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "torn", [b'{"a":1,"outbox":3,"key":"key-3"}', b'{"a":1,"outb', b"x" * 200_000, b"\0\0"]
)
def test_a_torn_last_line_is_taken_away_and_written_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonlSink(path)
    write(sink, 1, 2)
    asyncio.run(sink.close())
    with path.open("ab") as file:
        file.write(torn)
    write(JsonlSink(path), 2, 3, 4)
    assert lines(path) == [1, 2, 3, 4]


def test_lines_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'not json\n{"outbox":"1","key":1}\n[]\n')
    write(JsonlSink(path), 1)
    assert path.read_bytes().startswith(b'not json\n{"outbox":"1","key":1}\n[]\n{"a":1')


def test_it_rotates_by_size_and_still_knows_what_it_wrote_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonlSink(path, rotate_bytes=1, keep=2)
    for number in range(1, 6):
        write(sink, number)
    asyncio.run(sink.close())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.1", "a.jsonl.2"]
    assert [lines(path), lines(tmp_path / "a.jsonl.1"), lines(tmp_path / "a.jsonl.2")] == [[5], [4], [3]]
    write(JsonlSink(path, keep=2), 4, 5, 6)
    assert lines(path) == [5, 6]


def test_a_file_that_another_program_renamed_is_left_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonlSink(path)
    write(sink, 1)
    path.rename(tmp_path / "a.jsonl.1")
    write(sink, 1, 2)
    assert lines(path) == [2]
    path.unlink()
    write(sink, 3)
    assert lines(path) == [3]


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "a.jsonl")
    write(sink, 1)
    with pytest.raises(SinkError, match="another process holds the file"):
        write(JsonlSink(tmp_path / "a.jsonl"), 2)
    asyncio.run(sink.close())


def test_what_cannot_be_written_to_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"missing/a\.jsonl: No such file or directory; make its directory"):
        write(JsonlSink(tmp_path / "missing" / "a.jsonl"), 1)
    with pytest.raises(SinkError, match="Is a directory"):
        write(JsonlSink(tmp_path), 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkError, match="not a regular file"):
        write(JsonlSink(tmp_path / "pipe"), 1)
