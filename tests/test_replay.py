"""Replay: what is found in real logs and captures, whatever the size of the pieces that they are read in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config.loader import load
from gatewatch.daemon.assembly import detection_settings
from gatewatch.daemon.errors import InputError
from gatewatch.daemon.incidents import DEFAULT_GAP_S
from gatewatch.daemon.replay import Replay
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXPECTATIONS = json.loads((Path(__file__).parent / "expectations" / "shared_data.json").read_text())


def replayed(path: Path, **options: Any) -> list[dict[str, Any]]:
    run = Replay(load(), **options)
    run.read(str(path))
    return run.incidents()


@pytest.mark.parametrize("expected", EXPECTATIONS, ids=lambda e: Path(e["file"]).name)
def test_exactly_the_expected_incidents_are_found_in_the_data_of_others(
    data: Path, expected: dict[str, Any]
) -> None:
    found = replayed(data / expected["file"], year=expected.get("year"))
    seen = {
        tuple(i["sources"]): (
            sorted({f["kind"] for f in i["findings"]}),
            min(max(f["lines"][:10]) for f in i["findings"]),
        )
        for i in found
    }
    wanted = {tuple(i["sources"]): (sorted(i["findings"]), i["line"]) for i in expected["incidents"]}
    assert {s: k for s, (k, _) in seen.items()} == {s: k for s, (k, _) in wanted.items()}
    assert len(found) == len(expected["incidents"])
    for incident in found:
        [wanted_line] = [i["line"] for i in expected["incidents"] if i["sources"] == incident["sources"]]
        cited = {line for f in incident["findings"] for line in f["lines"]}
        assert wanted_line in cited


def pieces(path: Path, year: int, sizes: list[int]) -> list[dict[str, Any]]:
    """Incidents of a log that comes in pieces of so many lines."""
    from gatewatch.daemon.assembly import build_correlator, build_detection, parser_options
    from gatewatch.daemon.collectors.parsers.registry import make_parser
    from gatewatch.daemon.replay import HASH_KEY

    config = load()
    detection = build_detection(config, [], HASH_KEY)
    correlator = build_correlator(config, None)
    parser = make_parser("sshd", parser_options(config, None, HASH_KEY, year=year))
    lines = path.read_bytes().splitlines(keepends=True)
    at, turn = 0, 0
    while at < len(lines):
        size = sizes[turn % len(sizes)]
        parsed = parser.parse(b"".join(lines[at : at + size]), at + 1)
        correlator.apply(detection.auth(parsed.events))
        at, turn = at + size, turn + 1
    found = sorted(correlator.open_incidents, key=lambda i: (i.start_ns, i.id))
    return [i.document() | {"revision": 1} for i in found]


@pytest.mark.parametrize("lines", [1, 7, 10_000])
def test_the_same_log_in_pieces_of_any_size_gives_identical_incidents(data: Path, lines: int) -> None:
    log = data / "logs" / "loghub-openssh-2k.log"
    whole = [{k: v for k, v in i.items() if k not in ("status", "actions")} for i in replayed(log, year=2023)]
    assert whole
    assert pieces(log, 2023, [lines]) == whole


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_division_of_a_log_changes_its_incidents(data: Path, sizes: list[int]) -> None:
    log = data / "logs" / "loghub-openssh-2k.log"
    assert pieces(log, 2023, sizes) == pieces(log, 2023, [2000])


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.log"):
        replayed(tmp_path / "nothing.log")


def test_a_binary_file_is_said_to_be_no_log(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(InputError, match="no known log format"):
        replayed(path)


def test_no_configuration_is_the_same_as_the_defaults(data: Path) -> None:
    log = data / "logs" / "loghub-openssh-2k.log"
    bare = Replay(None, year=2023)
    bare.read(str(log))
    assert bare.incidents() == replayed(log, year=2023)
    assert detection_settings(None, ()) == detection_settings(load(), ())
    assert load().detection.incident_gap_s == DEFAULT_GAP_S


UNCOMPILED = """
import importlib.machinery, importlib.util, pkgutil, sys
import gatewatch
class Source:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("gatewatch.") or path is None:
            return None
        finder = importlib.machinery.FileFinder(
            next(iter(path)), (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES))
        return finder.find_spec(name)
sys.meta_path.insert(0, Source())
from gatewatch.daemon.cli import main
status = main(sys.argv[1:])
import gatewatch.detectors.sketches as sketches
assert sketches.__file__.endswith(".py"), sketches.__file__
sys.exit(status)
"""


def test_the_loops_find_the_same_uncompiled(data: Path) -> None:
    log = data / "logs" / "loghub-openssh-2k.log"
    command = [sys.executable, "-c", UNCOMPILED, "replay", "--json", "--year", "2023", str(log)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line) for line in said.splitlines()] == replayed(log, year=2023)


def test_a_pipe_that_has_a_name_is_read_from_its_first_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = b"Nov 23 09:00:00 gw sshd[1]: Failed password for root from 203.0.113.7 port 4 ssh2\n"
    writer = threading.Thread(target=pipe.write_bytes, args=(line * 100,), daemon=True)
    writer.start()
    run = Replay(None)
    run.read(str(pipe))
    assert run.summary.lines == 100
