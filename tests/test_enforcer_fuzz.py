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
        "from gatewatch.daemon.enforcer import blocks; blocks.refusal = lambda *_: None",
        '{"request": "block", "address": "10.1.0.9", "ttl_s": 60, "reason": "x"}',
    ),
    "a fault in a handler": (
        "from gatewatch.daemon.enforcer.kernel import blocktable; blocktable.add = lambda *_: 1 / 0",
        '{"request": "block", "address": "203.0.113.9", "ttl_s": 60, "reason": "x"}',
    ),
    "an analyser that may release": (
        "life.authority.work['release'] = lambda ask, by: life.authority.killswitch.release([], 'x', 'x')",
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
    "a restriction that the kernel does not get": (
        "from gatewatch.daemon.enforcer.restriction import Restrictions; Restrictions.restore = lambda self: None",
        '{"request": "restrict", "endpoints": ["automatic"], "reason": "x"}',
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

LONG = r"""
import json, sys
sys.path.insert(0, sys.argv[1])
import targets
from gatewatch.daemon.enforcer.protocol import MOST_BYTES, encode
analyser, root, one, other = targets.CALLERS
reason = "\U0001f600" * 500
rails = targets.EVERY_RAILS[1]
rails = rails._replace(limits=rails.limits._replace(most_blocks=1000, most_new_per_minute=1000))
with targets.tempfile.TemporaryDirectory() as folder:
    life = targets.Session(folder, rails)

    def asked(by, **ask):
        data = json.dumps(ask, ensure_ascii=False).encode()
        life.said(data, by)
        answer = life.authority.handle(targets.parse(data), by)
        assert len(json.dumps(answer)) <= MOST_BYTES, len(json.dumps(answer))
        return answer

    for n in range(300):
        address = f"203.0.{n // 200}.{n % 200}"
        life.said(encode({"request": "block", "address": address, "ttl_s": 60, "reason": reason}), analyser)
    page, seen = 0, set()
    while page >= 0:
        answer = asked(root, request="blocks", page=page)
        seen |= {b["address"] for b in answer["blocks"]}
        page = answer["next"]
    assert len(seen) == 300, len(seen)
    refused = asked(root, request="import", blocks=[["\U0001f600\"" * 32, 60]] * 300, reason="x")["refused"]
    assert len(refused) == 300
    for n in range(60):
        asked((one, other)[n % 2], request="release", endpoints=[f"e{n}"] * 5, reason="x" * 500)
    assert len(asked(root, request="approvals")["approvals"]) > 30
    names = [f"{n:03}" + "\U0001f600" * 60 for n in range(250)]
    receipt = asked(root, request="kill", endpoints=["automatic"] * 5 + names, reason=reason, probe=0)
    assert receipt["engaged"] == ["automatic"]
    assert "240 more that were named are left out" in receipt["not_proven"]
    asked(root, request="status")
    before = life.journal._bytes
    assert asked(analyser, request="release", endpoints=names, reason=reason)["rail"] == "release"
    assert life.journal._bytes - before < 20_000, "a refusal must not push the rest out of the journal"
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


def test_no_answer_and_no_refusal_grows_beyond_its_limit_whatever_is_asked() -> None:
    done = run("-c", LONG, FUZZ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", PLANTED)
def test_the_fuzzing_would_notice(fault: str) -> None:
    plant, message = PLANTED[fault]
    whole = run("-c", PROGRAM, FUZZ, message, "")
    assert whole.returncode == 0, whole.stderr
    faulty = run("-c", PROGRAM, FUZZ, message, plant)
    assert faulty.returncode != 0
    assert "AssertionError" in faulty.stderr or "ZeroDivisionError" in faulty.stderr
