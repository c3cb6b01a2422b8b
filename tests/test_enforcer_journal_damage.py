"""Whatever happens to the journal's files is found and said, and no engaged kill switch is let go by it."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.cli import audit as command
from gatewatch.daemon.cli import main
from gatewatch.daemon.enforcer import audit, witness
from gatewatch.daemon.enforcer import journal as module
from gatewatch.daemon.enforcer.audit import check
from gatewatch.daemon.enforcer.chain import GENESIS, seal
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.errors import EnforcerError
from hypothesis import given, settings
from hypothesis import strategies as st
from test_enforcer_journal import BLOCK, KILL, Clock, opened

OTHER = {**KILL, "endpoints": {"other": ["192.0.2.1:80/tcp"]}}
RELEASE = {"endpoints": ["models"], "by": "uid 0", "reason": "test"}

Entries = list[tuple[str, dict[str, Any]]]
HISTORIES: dict[str, Entries] = {
    "engaged last": [
        ("block", {"address": "203.0.113.7", "ttl_s": 600, **BLOCK}),
        ("unblock", {"address": "203.0.113.7", "by": "uid 0", "reason": "test"}),
        ("kill", KILL),
    ],
    "engaged again": [
        ("kill", KILL),
        ("release", RELEASE),
        ("kill", OTHER),
        ("kill", KILL),
        ("block", {"address": "2001:db8::/64", "ttl_s": 600, **BLOCK}),
        ("refused", {"why": "test"}),
    ],
    "released": [("kill", KILL), ("kill", OTHER), ("release", RELEASE)],
    "for a time": [("kill", {**KILL, "ttl_s": 60}), ("kill", {**OTHER, "ttl_s": 60}), ("kill", KILL)],
}


class History:
    """A journal that was written and closed, and what was true at its last entry."""

    def __init__(self, folder: Path, entries: Entries) -> None:
        self.folder, self.clock = folder, Clock()
        folder.mkdir()
        self.path = folder / "journal"
        journal = opened(folder, self.clock)
        self.older = b""
        for do, fields in entries:
            self.older = self.path.read_bytes()
            self.clock.passes(1)
            journal.append(do, **fields)
        self.engaged = dict(journal.state.kills)
        self.remaining = remaining(journal)
        self.sequence = journal.sequence
        journal.close()
        self.whole = self.path.read_bytes()

    def reopened(self, *, quiet: bool = False) -> Journal:
        """The journal as whoever starts next finds it; what was engaged is engaged, and still after one more start."""
        looked = Journal(str(self.folder), self.clock, read_only=True)
        first = opened(self.folder, self.clock)
        assert looked.note == first.note
        first.append("start")
        first.close()
        again = opened(self.folder, self.clock)
        for journal in (looked, first, again):
            for name, kill in self.engaged.items():
                held = journal.state.kills[name]
                assert set(held.services) >= set(kill.services)
                assert remaining(journal)[name] >= self.remaining[name]
        assert quiet or first.note
        again.close()
        return first


def remaining(journal: Journal) -> dict[str, float]:
    """How long each kill switch is still engaged by itself, in nanoseconds."""
    kills = journal.state.kills
    return {n: k.ends_ns - journal.state.awake_ns if k.ends_ns else math.inf for n, k in kills.items()}


@pytest.fixture(params=HISTORIES)
def history(tmp_path: Path, request: pytest.FixtureRequest) -> History:
    return History(tmp_path / "enforcer", HISTORIES[request.param])


def problems(history: History) -> str:
    return "\n".join(check(str(history.folder)).problems)


def test_a_journal_that_nobody_touched_counts_alone_and_is_whole(history: History) -> None:
    assert problems(history) == ""
    first = history.reopened(quiet=True)
    assert first.note == ""
    assert first.state.kills == history.engaged
    assert problems(history) == ""


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_an_end_that_is_cut_off_anywhere_is_missed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    history = drawn(tmp_path_factory, data)
    left = data.draw(st.integers(0, len(history.whole) - 1))
    os.truncate(history.path, left)
    lines = history.whole[:left].count(b"\n")
    said = f"ends at entry {lines}, entry {history.sequence} was written" if lines else "nothing is left"
    assert said in problems(history)
    assert said in history.reopened().note
    assert said in problems(history), "it is in the chain for good"


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_bit_that_is_flipped_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    history = drawn(tmp_path_factory, data)
    damaged = bytearray(history.whole)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    history.path.write_bytes(damaged)
    assert problems(history)
    assert history.reopened().sequence > history.sequence, "no number is given twice"
    assert problems(history)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lines_that_are_removed_swapped_or_doubled_are_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    history = drawn(tmp_path_factory, data)
    lines = history.whole.splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    what = data.draw(st.sampled_from(["remove", "swap", "double", "garbage"]))
    if what == "remove":
        del lines[at]
    elif what == "swap":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda n: n != at))
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "double":
        lines.insert(at, lines[at])
    else:
        lines.insert(at, data.draw(st.binary(max_size=100)) + b"\n")
    history.path.write_bytes(b"".join(lines))
    assert problems(history)
    history.reopened()


def test_a_journal_that_was_replaced_by_an_older_copy_is_found(history: History) -> None:
    history.path.write_bytes(history.older)
    said = f"ends at entry {history.sequence - 1}, entry {history.sequence} was written: 1 entry is missing"
    assert said in problems(history)
    assert said in history.reopened().note


def test_a_journal_that_was_replaced_by_another_whole_one_is_found(history: History, tmp_path: Path) -> None:
    forged = History(tmp_path / "forged", [("tick", {}) for _ in range(history.sequence + 2)])
    history.path.write_bytes(forged.whole)
    said = f"entry {history.sequence} is not the one that was written: the journal was replaced"
    assert said in problems(history)
    assert said in history.reopened().note


@pytest.mark.parametrize("name", ["journal", "head", "engaged"])
@pytest.mark.parametrize("how", ["delete", "empty", "garbage", "bit", "longer"])
def test_a_file_that_is_gone_or_garbage_is_noticed(history: History, name: str, how: str) -> None:
    path = history.folder / name
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        path.write_bytes(
            {"empty": b"", "garbage": b"\xff{[" * 99, "bit": flipped, "longer": data + b"1 2\n"}[how]
        )
    if name != "engaged":
        assert problems(history)
    note = history.reopened().note
    if name == "head":
        assert "cannot tell whether the end is cut off" in note
        assert problems(history) == "", "said once, and made anew"
        assert history.reopened(quiet=True).note == ""
    if name == "engaged":
        assert "the second copy of the engaged kill switches is" in note
        assert history.reopened(quiet=True).note == ""


def test_journal_and_head_gone_together_leave_the_second_copy(history: History) -> None:
    history.path.unlink()
    (history.folder / "head").unlink()
    first = history.reopened(quiet=not history.engaged)
    assert set(first.state.kills) == set(history.engaged)
    for name in history.engaged:
        assert f"the kill switch of {name!r} is kept engaged from the second copy" in first.note


def test_a_release_that_was_cut_off_comes_back_engaged_and_it_is_said_why(tmp_path: Path) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["released"])
    history.path.write_bytes(history.older)
    first = history.reopened()
    assert set(first.state.kills) == {"models", "other"}
    assert "'models' is engaged: its release, if there was one, is not in what is left" in first.note


def test_the_damaged_file_is_kept_and_what_was_found_stays_in_the_log(history: History) -> None:
    os.truncate(history.path, len(history.older))
    first = opened(history.folder, history.clock)
    first.close()
    kept = list(history.folder.glob("journal.broken-*"))
    assert [p.read_bytes() for p in kept] == [history.older]
    entries = [json.loads(line) for line in history.path.read_text().splitlines()]
    assert [e["what"] for e in entries if e["do"] == "damaged"] == [first.note]
    assert first.first == history.sequence + 1, "no number is given twice"
    found = problems(history)
    assert f"entry {history.sequence} is missing between {kept[0].name} and journal" in found
    assert f"journal: entry {history.sequence + 1} notes a damage: the journal ends at entry" in found


def test_a_power_loss_may_leave_the_head_behind_and_nothing_is_said(history: History) -> None:
    head = history.folder / "head"
    now = head.read_bytes()
    journal = opened(history.folder, history.clock)
    for _ in range(5):
        journal.append("tick")
    journal.close()
    head.write_bytes(now)
    assert problems(history) == ""
    assert history.reopened(quiet=True).note == ""


CALLS = ("write", "pwrite", "fdatasync", "fsync", "replace", "link", "unlink", "ftruncate")
CRASHED = 9


def write_until(folder: Path, steps: int, said: int) -> None:
    """In a process of its own: kill and release, and end for good before the step after `steps`; what was done is
    said to the descriptor `said`."""
    tell, module.MOST_FILE_BYTES = os.write, 1_500

    def until(*words: Any, call: Callable[..., Any]) -> Any:
        nonlocal steps
        steps -= 1
        return call(*words) if steps >= 0 else os._exit(CRASHED)

    for name in CALLS:
        setattr(os, name, functools.partial(until, call=getattr(os, name)))
    journal = opened(folder, Clock())
    for what, whom in ((True, b"a"), (True, b"b"), (False, b"a"), (True, b"c")):
        name = whom.decode()
        if what:
            journal.append("kill", sync=False, **{**KILL, "endpoints": {name: ["*:443/tcp"]}})
            journal.sync()
            tell(said, whom)
        else:
            tell(said, whom.upper())  # from now on it may be let go
            journal.append("release", **{**RELEASE, "endpoints": [name]})
        for _ in range(4):
            journal.append("tick")
        journal.maintain()
    os._exit(0)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_crash_between_any_two_steps_is_no_damage_and_loses_no_kill(tmp_path: Path, damaged: bool) -> None:
    for steps in range(200):
        folder = tmp_path / str(steps)
        if damaged:
            history = History(folder, HISTORIES["engaged last"])
            os.truncate(history.path, len(history.older))
        heard, said = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write_until(folder, steps, said)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(said)
        done = os.read(heard, 100).decode()
        os.close(heard)
        engaged = {c for c in done if c.islower() and c.upper() not in done} | (
            {"models"} if damaged else set()
        )
        if not damaged and (folder / "journal").stat().st_size:
            assert check(str(folder)).problems == []
        again = opened(folder, Clock())
        assert engaged <= again.state.kills.keys()
        assert damaged or again.note == ""
        again.append("tick")
        again.close()
        last = opened(folder, Clock())
        assert last.state.kills == again.state.kills
        last.close()
        assert damaged or check(str(folder)).problems == []
        if code == 0:
            break
    assert code == 0
    assert steps > 40


def test_the_head_is_never_ahead_of_what_is_on_disk(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    journal = opened(tmp_path, clock)
    journal.append("tick")
    for name in ("write", "fdatasync", "pwrite", "fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, call=call, name=name: (done.append(name), call(*a))[1])
    journal.append("tick")
    assert done == ["write", "fdatasync", "pwrite"]
    done.clear()
    journal.append("kill", sync=False, **KILL)
    assert done == ["write"], "the kernel comes first"
    journal.sync()
    assert done == ["write", "fdatasync", "fsync", "replace", "fsync", "pwrite"]
    done.clear()
    journal.append("refused", sync=False)
    journal.append("tick")
    assert done == ["write", "write", "fdatasync", "pwrite"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_full_disk_that_refuses_the_second_copy_is_said_to_whoever_engages(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, clock)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(witness, "write_engaged", full)
    journal.append("kill", sync=False, **KILL)
    with pytest.raises(OSError, match="No space left"):
        journal.sync()
    journal.append("tick")
    monkeypatch.undo()
    journal.append("tick")
    assert b"models" in (tmp_path / "engaged").read_bytes(), "it follows as soon as there is room"


def test_a_damage_that_a_full_disk_lets_nobody_record_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["engaged last"])
    os.truncate(history.path, len(history.older) - 3)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    first = opened(history.folder, history.clock)
    assert "models" in first.state.kills
    assert "ends at entry" in first.note
    first.append("tick")
    with pytest.raises(EnforcerError, match="No space left"):
        first.maintain()
    first.close()
    second = opened(history.folder, history.clock)
    assert "models" in second.state.kills
    assert second.note
    monkeypatch.undo()
    second.maintain()
    second.close()
    third = opened(history.folder, history.clock)
    assert list(third.state.kills) == ["models"]
    assert "notes a damage" in problems(history)


def test_a_journal_that_the_disk_cannot_read_leaves_the_kill_switch_engaged(tmp_path: Path) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["engaged last"])
    history.path.unlink()
    history.path.mkdir()
    journal = Journal(str(history.folder), history.clock, read_only=True)
    assert list(journal.state.kills) == ["models"]
    assert "Is a directory" in journal.note
    assert "Is a directory" in problems(history)


FORGED: list[dict[str, Any]] = [
    {"do": "kill"},
    {"do": "kill", "endpoints": {"models": ["nonsense"]}},
    {"do": "block", "address": "203.0.113.9", "ttl_s": 10**18, **BLOCK},
    {"do": "block", "address": "203.0.113.0/25", "ttl_s": 60, **BLOCK},
    *(
        {"do": "block", "address": a, "ttl_s": 60, **BLOCK}
        for a in ("banana", "", "1", "203.0.113.9/32", "::/", "203.0.113.9/24", "2001:db8::1/64")
    ),
    *(
        {"do": "block", "address": a, "ttl_s": 60, **BLOCK}
        for a in ("2001:DB8::1", "2001:db8::/65", "::1\0", "0:0::1")
    ),
    {"do": "restore", "blocks": [["203.0.113.9", 1]]},
    {"do": "state", "broken": "", "kills": []},
    {"do": ["kill"]},
    {"do": "kill", **KILL, "endpoints": {'x"\n}': ["*:1/tcp"], "\u00e4" * 200: ["*:2/tcp"]}},
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("sealed", [True, False])
def test_an_entry_that_makes_no_sense_stops_nobody(
    tmp_path: Path, forged: dict[str, Any], sealed: bool
) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["engaged last"])
    head, _ = witness.read_head(str(history.folder))
    assert head is not None
    line, _ = seal(
        {"seq": head.sequence + 1, **history.clock().fields(), **forged}, head.seal if sealed else GENESIS
    )
    history.path.write_bytes(history.whole + line)
    first = history.reopened(quiet=sealed)
    for name in first.state.kills:
        assert name.isascii()
        assert name.isprintable()
        assert '"' not in name
    assert not first.state.blocks, "the kernel would take none of them, nor any other with them"


@pytest.mark.parametrize(
    "number", [b"1e999", b"NaN", b"-Infinity", b"9" * 4000, b"9" * 5000, b"[" * 9000, b"1" * 20]
)
def test_a_number_without_end_is_no_entry(tmp_path: Path, number: bytes) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["engaged last"])
    history.path.write_bytes(history.whole + history.whole.splitlines()[0].replace(b"600", number) + b"\n")
    history.reopened()


@pytest.fixture
def rotated(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal that continues four older files."""
    monkeypatch.setattr(module, "MOST_FILE_BYTES", 2_000)
    journal = opened(tmp_path, clock)
    journal.append("kill", **KILL)
    for _ in range(4):
        for _ in range(60):
            clock.passes(1)
            journal.append("tick", sync=False)
        journal.maintain()
    journal.append("tick")
    journal.close()
    assert len(list(tmp_path.glob("journal-*"))) == 4
    report = check(str(tmp_path))
    assert report.problems == []
    assert [f.first for f in report.files[1:]] == [f.last + 1 for f in report.files[:-1]]
    assert report.entries == report.sequence
    return tmp_path


def older(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"), key=lambda p: int(p.name[8:]))


def test_an_older_file_that_is_missing_is_named(rotated: Path) -> None:
    files = older(rotated)
    report = check(str(rotated))
    files[2].unlink()
    missing = report.files[2]
    expected = (
        f"entries {missing.first} to {missing.last} are missing between {files[1].name} and {files[3].name}"
    )
    assert check(str(rotated)).problems == [expected]
    files[3].unlink()
    assert f"are missing between {files[1].name} and journal" in check(str(rotated)).problems[0]
    files[0].unlink()
    files[1].unlink()
    last = report.files[3].last
    assert check(str(rotated)).problems == [f"entries 1 to {last} are missing before journal"]


def test_every_older_file_that_was_changed_is_named_with_the_entry(rotated: Path) -> None:
    files = older(rotated)
    for path, at in ((files[0], 3), (files[2], 10)):
        lines = path.read_bytes().splitlines(keepends=True)
        lines[at] = lines[at].replace(b"tick", b"tock")
        path.write_bytes(b"".join(lines))
    os.truncate(files[3], files[3].stat().st_size - 400)
    found = check(str(rotated))
    first = found.files[2].first
    assert found.problems[0] == f"{files[0].name}: the chain is broken after entry 3"
    assert found.problems[1] == f"{files[2].name}: the chain is broken after entry {first + 9}"
    assert any(files[3].name in p and "not whole" in p for p in found.problems)
    assert any(f"missing between {files[3].name} and journal" in p for p in found.problems)


def test_an_older_file_that_was_replaced_by_a_whole_one_is_named(rotated: Path) -> None:
    files = older(rotated)
    shorter = b"".join(files[0].read_bytes().splitlines(keepends=True)[:-1])
    body = json.loads(files[0].read_bytes().splitlines()[-1])
    previous = json.loads(shorter.splitlines()[-1])["hash"]
    body.pop("hash")
    files[0].write_bytes(shorter + seal({**body, "do": "tock"}, previous)[0])
    found = check(str(rotated)).problems
    assert [p for p in found if "does not continue" in p] == [
        f"{files[1].name}: entry {body['seq'] + 1} does not continue {files[0].name}, which ends at entry {body['seq']}"
    ]


def test_files_that_were_removed_for_room_are_not_missed(
    rotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = older(rotated)
    files[0].unlink()
    assert check(str(rotated)).problems
    monkeypatch.setattr(audit, "KEPT_FILES", 3)
    assert check(str(rotated)).problems == []


def test_strange_files_beside_the_journal_disturb_nobody(rotated: Path, clock: Clock) -> None:
    for name in ("journal-old", "journal-5.gz", "journal.broken-x", "journal-"):
        (rotated / name).write_bytes(b"garbage")
    os.link(rotated / "journal", rotated / "journal-9999")  # a crash between two steps
    assert check(str(rotated)).problems == []
    journal = opened(rotated, clock)
    for _ in range(120):
        journal.append("tick", sync=False)
    journal.maintain()
    journal.close()
    assert not (rotated / "journal-9999").exists()
    assert check(str(rotated)).problems == []


def test_the_audit_of_a_journal_that_is_being_written_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILE_BYTES", 4_000)
    monkeypatch.setattr(module, "KEPT_FILES", 3)
    monkeypatch.setattr(audit, "KEPT_FILES", 3)
    first = opened(tmp_path, Clock())
    first.append("tick")
    first.close()
    child = os.fork()
    if child == 0:
        try:
            journal = opened(tmp_path, Clock())
            for _ in range(1_500):
                journal.append("tick")
                journal.maintain()
        finally:
            os._exit(0)
    looked = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        looked += 1
        assert check(str(tmp_path)).problems == []
    assert looked
    assert check(str(tmp_path)).sequence > 1_500


Verified = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verified:
    def run(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["audit", "verify", "--json", "--state", str(tmp_path), *words])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_the_command_lists_every_problem_and_ends_with_1(
    tmp_path: Path, verified: Verified, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(tmp_path / "enforcer", HISTORIES["engaged last"])
    code, whole = verified()
    assert code == 0
    assert whole["intact"] is True
    assert (whole["entries"], whole["sequence"], whole["problems"]) == (3, 3, [])
    assert whole["files"] == [{"file": "journal", "first": 1, "last": 3, "entries": 3}]
    lines = history.whole.splitlines(keepends=True)
    history.path.write_bytes(b"".join([lines[0], lines[1].replace(b"test", b"tset")]))
    code, cut = verified()
    assert code == 1
    assert cut["intact"] is False
    assert cut["problems"] == [
        "journal: the chain is broken after entry 1",
        "journal: the journal ends at entry 2, entry 3 was written: 1 entry is missing",
    ]
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert all(problem in said for problem in cut["problems"])
    assert "2 problems" in said
    history.path.write_bytes(lines[0])
    assert verified(str(history.path)) == (0, verified(str(history.path))[1]), "one file alone may be whole"


def test_the_command_says_where_there_is_no_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 1
    assert "journal" in capsys.readouterr().err
    (tmp_path / "enforcer").mkdir()
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 1
    assert "there is none" in capsys.readouterr().err


def test_the_command_shows_how_far_it_is_on_a_terminal_where_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    History(tmp_path / "enforcer", HISTORIES["engaged last"])
    monkeypatch.setattr(command, "_PATIENCE_S", -1.0)
    words = ["audit", "verify", "--state", str(tmp_path)]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(words) == 0
    said = capsys.readouterr()
    assert "checking journal: 0 entries" in said.err
    assert "intact" in said.out


def drawn(factory: pytest.TempPathFactory, data: st.DataObject) -> History:
    return History(
        factory.mktemp("damage") / "enforcer", HISTORIES[data.draw(st.sampled_from(list(HISTORIES)))]
    )
