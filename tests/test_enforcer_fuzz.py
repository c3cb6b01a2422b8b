"""A minute of fuzzing what the enforcer takes from others, and proof that the fuzzing would notice.

Each run is a process of its own: there the kernel is a recording double, which no other test may meet.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
SECONDS = 60

PLANTED = {
    "a rail that lets everything pass": (
        "from gatewatch.daemon.enforcer import authority; authority.refusal = lambda *_: None",
        '{"request": "block", "address": "10.1.0.9", "ttl_s": 60, "reason": "x"}',
    ),
    "a fault in a handler": (
        "from gatewatch.daemon.enforcer import blocktable; blocktable.add = lambda *_: 1 / 0",
        '{"request": "block", "address": "203.0.113.9", "ttl_s": 60, "reason": "x"}',
    ),
    "an analyser that may release": (
        "life.authority._do_release = lambda ask, by: life.authority.killswitch.release([], 'x', 'x')",
        '{"request": "release", "reason": "x"}',
    ),
    "a limit on messages that is none": (
        "import targets; from gatewatch.daemon.enforcer import protocol\nprotocol.MOST_BYTES = 1 << 30",
        '{"request": "status"' + " " * 70_000 + "}",
    ),
    "a kill that the kernel does not get": (
        "from gatewatch.daemon.enforcer.killswitch import KillSwitch; KillSwitch._apply = lambda self: None",
        '{"request": "kill", "endpoints": ["automatic"], "reason": "x", "probe": 0}',
    ),
}
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import targets
from gatewatch.daemon.enforcer.protocol import encode
with targets.tempfile.TemporaryDirectory() as folder:
    life = targets.Session(folder, targets.EVERY_RAILS[0])
    life.said(encode({"request": "kill", "endpoints": ["models"], "reason": "x"}), targets.CALLERS[1])
    if sys.argv[3]:
        exec(sys.argv[3])
    life.said(sys.argv[2].encode(), targets.CALLERS[0])
"""


def run(*words: str | Path, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=limit_s, check=False
    )


@pytest.mark.timeout(SECONDS + 240)
def test_a_minute_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    words = ["--seconds", str(SECONDS), "--folder", tmp_path]
    done = run(FUZZ / "fuzz_enforcer.py", *words, limit_s=SECONDS + 200)
    said = f"{done.stdout[-4_000:]}\n{done.stderr[-8_000:]}"
    assert done.returncode == 0, said
    assert "executions" in said or "number_of_executed_units" in said
    assert not list(tmp_path.glob("crash-*"))


def test_without_atheris_hypothesis_drives_the_same_targets(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError")
    paths = [str(tmp_path), str(FUZZ)]
    program = f"import sys; sys.path[:0] = {paths!r}; import fuzz_enforcer as f; f.main(sys.argv[1:])"
    done = run("-c", program, "--seconds", "3", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hypothesis drives the targets" in done.stdout
    assert "nothing failed" in done.stdout


@pytest.mark.parametrize("fault", PLANTED)
def test_the_fuzzing_would_notice(fault: str) -> None:
    plant, message = PLANTED[fault]
    whole = run("-c", PROGRAM, FUZZ, message, "")
    assert whole.returncode == 0, whole.stderr
    faulty = run("-c", PROGRAM, FUZZ, message, plant)
    assert faulty.returncode != 0
    assert "AssertionError" in faulty.stderr or "ZeroDivisionError" in faulty.stderr
