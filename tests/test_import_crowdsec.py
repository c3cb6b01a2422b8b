"""Reading what CrowdSec blocks and ignores: its own formats, and whatever else may lie there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config import import_crowdsec as crowdsec
from gatewatch.config.imports import Found
from gatewatch.daemon.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h59m56.39s", 14396.39),
        ("59.536565791s", 59.536565791),
        ("-1m0.5s", -60.5),
        ("167h59m59s", 604799),
        ("1.5h", 5400),
        ("350ms", 0.35),
        ("12µs", 1.2e-5),
        ("12us7ns", 1.2007e-5),
        ("0s", 0),
        ("0", 0),
    ],
)
def test_durations_are_go_durations(text: str, seconds: float) -> None:
    assert crowdsec.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "-", "4", "h", "4 h", "4h ", "forever", "1d", "1e9s", "٣h", "4hh", "h4", "nan"]
)
def test_what_is_no_duration_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        crowdsec.parse_duration(text)


def decision(value: str, **other: Any) -> dict[str, Any]:
    """As CrowdSec 1.4.6 writes it."""
    made = {
        "duration": "3h59m56.5s",
        "id": 1,
        "origin": "cscli",
        "scenario": "manual",
        "scope": "Ip",
        "type": "ban",
    }
    return {**made, "simulated": False, "value": value, **other}


def alert(*decisions: Any) -> dict[str, Any]:
    return {"id": 1, "capacity": 0, "events": None, "decisions": list(decisions), "source": {"scope": "Ip"}}


SHAPES = {
    "cscli": lambda ds: [alert(*ds[:1]), alert(*ds[1:]), {"id": 3, "decisions": None}],
    "local API": lambda ds: ds,
    "stream": lambda ds: {"deleted": [decision("198.51.100.99")], "new": ds},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_bans_of_addresses_and_ranges_are_taken_of_decisions(shape: Any) -> None:
    given = [
        decision("198.51.100.7"),
        decision("198.51.100.0/25", scope="Range", duration="1h"),
        decision("2001:db8::7", scope="ip", duration="168h"),
        decision("198.51.100.7", duration="5m"),
        decision("198.51.100.8", duration="-10s"),
        decision("198.51.100.9", type="captcha"),
        decision("198.51.100.10", simulated=True),
        decision("CN", scope="Country"),
        decision("64496", scope="AS"),
        decision("198.51.100.11", duration="soon"),
        decision("198.51.100.12", duration=None),
        decision("198.51.100.13", type="(simul)ban"),
        decision("example.org"),
        "ban",
    ]
    found = Found()
    crowdsec.read_decisions(shape(given), "said", 0.0, found)
    taken = {str(n): b.ttl_s for n, b in found.bans.items()}
    assert taken == {"198.51.100.7/32": 14396, "198.51.100.0/25": 3600, "2001:db8::7/128": 604800}
    assert found.ended == 1
    assert len(found.remarks) == 9
    assert all(r.where.startswith("said[") or "decisions[" in r.where for r in found.remarks)


def test_no_decisions_are_none() -> None:
    for said in (None, [], {"new": None, "deleted": None}, [{"decisions": []}]):
        found = Found()
        crowdsec.read_decisions(said, "said", 0.0, found)
        assert (found.bans, found.remarks) == ({}, [])


def test_a_duration_ran_on_since_the_file_was_written() -> None:
    found = Found()
    crowdsec.read_decisions(
        [decision("198.51.100.7"), decision("198.51.100.8", duration="59m")], "f", 3600.0, found
    )
    assert [b.ttl_s for b in found.bans.values()] == [10796]
    assert found.ended == 1


def test_an_end_that_is_earlier_than_the_duration_counts() -> None:
    found = Found()
    crowdsec.read_decisions(
        [decision("198.51.100.7", until="2001-01-01T00:00:00.123456789Z")], "f", 0.0, found
    )
    assert found.ended == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "new",
                    "decisions",
                    "value",
                    "scope",
                    "type",
                    "duration",
                    "until",
                    "name",
                    "items",
                    "expiration",
                ]
            ),
            inner | st.sampled_from(["ip", "Range", "ban", "198.51.100.0/25", "1h", "2030-01-01T00:00:00Z"]),
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_values)
def test_any_json_is_read_or_one_error(said: Any) -> None:
    with contextlib.suppress(InputError):
        crowdsec.read_decisions(said, "f", 0.0, Found())
    with contextlib.suppress(InputError):
        crowdsec.read_allowlists(said, "f", Found())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "f:1: no JSON"),
        (b"[\n\n{]", "f:3: no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"1" * 10_000, "no JSON"),
        (b'"text"', "list of decisions"),
        (b"{}", "list of decisions"),
    ],
)
def test_what_is_no_json_of_decisions_is_one_error(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        crowdsec.read_decisions(crowdsec.read_json(path)[0], str(path), 0.0, Found())


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match="at most"):
        crowdsec.read_json(path)


WHITELISTS = """name: mine
whitelist:
  reason: "ours"
  ip:
    - "198.51.100.1"
    - 2001:db8::1
  cidr: [198.51.100.0/24, office.example.org]
  expression:
    - evt.Meta.source_ip == 'x'
---
name: second
filter: "evt.Meta.service == 'http'"
whitelist:
  ip: &a [198.51.100.2, *a, {b: c}, null]
---
[no, mapping]
---
whitelist: none
"""


def test_addresses_of_whitelists_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "parsers" / "s02-enrich" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(WHITELISTS)
    (path.parent / "broken.yaml").write_text("whitelist:\n  ip: [\n")
    (path.parent / "bytes.yaml").write_bytes(b"whitelist: \x00\xff")
    (path.parent / "dangling.yaml").symlink_to("nowhere")
    late = tmp_path / "postoverflows" / "s01-whitelist" / "late.yml"
    late.parent.mkdir(parents=True)
    late.write_text("whitelist:\n  cidr:\n    - 203.0.113.0/24\n")
    found = Found()
    crowdsec.read_whitelists(tmp_path, found)
    lines = {str(n): i.where.removeprefix(f"{path}:") for n, i in found.ignored.items()}
    assert lines == {
        "198.51.100.1/32": "5",
        "2001:db8::1/128": "6",
        "198.51.100.0/24": "7",
        "198.51.100.2/32": "14 (where its filter holds)",
        "203.0.113.0/24": f"{late}:3",
    }
    remarks = {r.where.removeprefix(f"{path.parent}/"): r.why for r in found.remarks}
    assert remarks["mine.yaml:7"] == "a host name: the rails take literal addresses"
    assert remarks["mine.yaml:9"] == "an expression: the rails take addresses alone"
    assert any(w.startswith("broken.yaml:") and "no YAML" in why for w, why in remarks.items())
    assert any(w.startswith("bytes.yaml") and "no YAML" in why for w, why in remarks.items())
    assert "dangling.yaml" in remarks


def test_allowlists_are_read_and_what_ends_by_itself_is_not_made_endless() -> None:
    items = [
        {"value": "198.51.100.1", "expiration": "0001-01-01T00:00:00.000Z", "description": ""},
        {"value": "198.51.100.0/24"},
        {"value": "198.51.100.2", "expiration": "2030-01-01T00:00:00.000Z"},
        {"value": "x y"},
    ]
    found = Found()
    said = [{"name": "mine", "items": items}, {"name": "bare", "items": None}]
    assert crowdsec.read_allowlists(said, "said", found) == ["bare"]
    assert {str(n) for n in found.ignored} == {"198.51.100.1/32", "198.51.100.0/24"}
    assert [r.value for r in found.remarks] == ["198.51.100.2", "x y"]
    assert crowdsec.read_allowlists({"name": "mine", "items": items[:1]}, "said", found) == []


@pytest.fixture
def cscli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `cscli` that says what lies in a file named after its first word."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "cscli"
    program.write_text(f'#!/bin/sh\ncat "{folder}/$1-$2" 2>&1 || {{ cat "{folder}/$1-$2" >&2; exit 3; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder


def test_cscli_is_asked_and_its_failure_is_one_error(cscli: Path) -> None:
    (cscli / "decisions-list").write_text(json.dumps([alert(decision("198.51.100.7"))]))
    (cscli / "allowlists-list").write_text(json.dumps([{"name": "mine"}, {"name": "--config=/x"}]))
    (cscli / "allowlists-inspect").write_text(
        json.dumps({"name": "mine", "items": [{"value": "198.51.100.9"}]})
    )
    found = Found()
    said, name = crowdsec.ask(["decisions", "list", "-a", "-l", "0"])
    crowdsec.read_decisions(said, name, 0.0, found)
    crowdsec.ask_allowlists(found)
    assert len(found.bans) == len(found.ignored) == 1
    with pytest.raises(InputError, match="cscli machines list: cat: "):
        crowdsec.ask(["machines", "list"])
