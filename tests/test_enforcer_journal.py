"""The enforcer's journal and what is folded from it: chain, torn and changed lines, rotation, the running of time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.enforcer import journal as module
from gatewatch.daemon.enforcer.audit import check
from gatewatch.daemon.enforcer.chain import verify
from gatewatch.daemon.enforcer.journal import Journal, LockedError
from gatewatch.daemon.enforcer.state import NS_PER_S, Moment, State
from gatewatch.daemon.errors import EnforcerError
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK: dict[str, Any] = {"owner": "operator", "by": "uid 0", "reason": "test"}
KILL: dict[str, Any] = {"endpoints": {"models": ["*:443/tcp"]}, "by": "uid 0", "reason": "test"}


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.wall_s, self.boot_s, self.boot = 1_000_000.0, 10.0, "first"

    def __call__(self) -> Moment:
        return Moment(int(self.wall_s * NS_PER_S), int(self.boot_s * NS_PER_S), self.boot)

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.boot_s += seconds

    def reboot(self, down_s: float) -> None:
        self.wall_s += down_s
        self.boot_s, self.boot = 1.0, self.boot + "+"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder: Path, clock: Clock) -> Journal:
    return Journal(str(folder), clock)


def remaining(folder: Path, clock: Clock, address: str = "203.0.113.7") -> float:
    journal = Journal(str(folder), clock, read_only=True)
    return journal.state.remaining_s(journal.state.blocks[address], clock())


def test_what_was_written_is_in_force_when_it_is_read_again(tmp_path: Path, clock: Clock) -> None:
    journal = opened(tmp_path, clock)
    journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    journal.append("block", address="203.0.113.8", ttl_s=600, **BLOCK)
    journal.append("unblock", address="203.0.113.8", by="uid 0", reason="test")
    journal.append("kill", **KILL)
    journal.append("kill", **{**KILL, "endpoints": {"other": ["192.0.2.1:80/tcp"]}})
    journal.append("release", endpoints=["other"], by="uid 0", reason="test")
    head = journal.head
    journal.close()
    again = opened(tmp_path, clock)
    assert list(again.state.blocks) == ["203.0.113.7"]
    assert list(again.state.kills) == ["models"]
    assert again.head == head
    assert again.note == ""
    verdict = verify(tmp_path / "journal")
    assert verdict == (6, head, 6, True, 0, "")


def test_only_one_process_writes_at_a_time(tmp_path: Path, clock: Clock) -> None:
    journal = opened(tmp_path, clock)
    with pytest.raises(LockedError):
        opened(tmp_path, clock)
    reader = Journal(str(tmp_path), clock, read_only=True)
    with pytest.raises(LockedError):
        reader.append("tick")
    journal.close()
    opened(tmp_path, clock).close()


@pytest.mark.parametrize("torn", [b'{"boot":1', b"\0" * 4096])
def test_a_last_line_that_was_never_finished_is_cut_off_and_noted(
    tmp_path: Path, clock: Clock, torn: bytes
) -> None:
    journal = opened(tmp_path, clock)
    journal.append("kill", **KILL)
    journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    journal.close()
    path = tmp_path / "journal"
    with open(path, "ab") as file:
        file.write(torn)
    assert verify(path).torn_bytes == len(torn)
    assert check(str(tmp_path)).problems == []
    again = opened(tmp_path, clock)
    assert again.note == ""
    assert list(again.state.kills) == ["models"]
    assert list(again.state.blocks) == ["203.0.113.7"]
    again.close()
    assert verify(path).intact
    assert verify(path).entries == 3
    assert b'"do":"torn"' in path.read_bytes()


def test_a_removed_line_breaks_the_chain(tmp_path: Path, clock: Clock) -> None:
    journal = opened(tmp_path, clock)
    for n in range(5):
        journal.append("block", address=f"203.0.113.{n}", ttl_s=600, **BLOCK)
    journal.close()
    path = tmp_path / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert verify(path).note == "the chain is broken after entry 2"


@settings(max_examples=100, deadline=None)
@given(garbage=st.binary(max_size=400))
def test_garbage_in_place_of_a_journal_never_raises(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "journal").write_bytes(garbage)
    verify(folder / "journal")
    journal = opened(folder, Clock())
    journal.append("tick")
    journal.close()
    assert verify(folder / "journal").intact


def test_a_grown_journal_begins_anew_with_its_state_and_the_old_head(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILE_BYTES", 20_000)
    monkeypatch.setattr(module, "KEPT_FILES", 2)
    journal = opened(tmp_path, clock)
    journal.append("kill", **KILL)
    journal.append("block", address="203.0.113.7", ttl_s=1000, **BLOCK)
    for _ in range(8):
        for _ in range(120):
            clock.passes(1)
            journal.append("tick", sync=False)
        journal.maintain()
    sequence = journal.sequence
    journal.close()
    assert (tmp_path / "journal").stat().st_size < 40_000
    assert len(list(tmp_path.glob("journal-*"))) == 2
    assert remaining(tmp_path, clock) == pytest.approx(1000 - 960)
    again = opened(tmp_path, clock)
    assert again.sequence == sequence
    assert list(again.state.kills) == ["models"]
    assert again.state.blocks["203.0.113.7"].reason == "test"
    again.close()
    newest = max(tmp_path.glob("journal-*"), key=lambda p: int(p.name[8:]))
    assert verify(newest).intact
    first_line = (tmp_path / "journal").read_text().splitlines()[0]
    assert f'"previous":"{verify(newest).head}"' in first_line
    assert verify(tmp_path / "journal").intact


def test_a_full_disk_refuses_and_leaves_the_chain_whole(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, clock)
    journal.append("kill", **KILL)
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(EnforcerError, match="No space left"):
        journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    monkeypatch.undo()
    assert not journal.state.blocks
    journal.append("block", address="203.0.113.8", ttl_s=600, **BLOCK)
    journal.close()
    assert verify(tmp_path / "journal").intact
    assert list(opened(tmp_path, clock).state.blocks) == ["203.0.113.8"]


def test_an_entry_is_on_disk_before_it_counts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, clock)

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(EnforcerError, match="Input/output error"):
        journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    assert not journal.state.blocks


def _hours_ahead(clock: Clock) -> None:
    clock.wall_s += 36_000


def _hours_back(clock: Clock) -> None:
    clock.wall_s -= 36_000


@pytest.mark.parametrize("change", [_hours_ahead, _hours_back])
def test_a_clock_that_is_set_changes_no_remaining_time(
    tmp_path: Path, clock: Clock, change: Callable[[Clock], None]
) -> None:
    journal = opened(tmp_path, clock)
    journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    clock.passes(100)
    change(clock)
    journal.append("tick")
    clock.passes(100)
    journal.close()
    assert remaining(tmp_path, clock) == pytest.approx(400)


def test_time_while_the_machine_is_off_counts(tmp_path: Path, clock: Clock) -> None:
    journal = opened(tmp_path, clock)
    journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    journal.close()
    clock.reboot(200)
    assert remaining(tmp_path, clock) == pytest.approx(400)


def test_a_reboot_with_a_wrong_clock_does_not_lengthen_a_block(tmp_path: Path, clock: Clock) -> None:
    journal = opened(tmp_path, clock)
    journal.append("block", address="203.0.113.7", ttl_s=600, **BLOCK)
    clock.passes(300)
    journal.append("tick")
    journal.close()
    clock.reboot(-1_000_000)
    assert remaining(tmp_path, clock) == pytest.approx(300)
    clock.passes(50)
    opened(tmp_path, clock).append("tick")
    clock.wall_s += 1_000_000
    assert remaining(tmp_path, clock) == pytest.approx(300), "and the clock is put right: still no longer"


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["passes", "set", "reboot", "note"]), st.floats(-1e5, 1e5)), max_size=30
    )
)
def test_whatever_the_clocks_do_what_remains_never_grows(steps: list[tuple[str, float]]) -> None:
    clock, state = Clock(), State()
    stamp = clock().fields()
    state.apply({"do": "block", "address": "203.0.113.7", "ttl_s": 100_000, **BLOCK, **stamp})
    block = state.blocks["203.0.113.7"]
    noted = 100_000.0
    for what, amount in steps:
        if what == "passes":
            clock.passes(abs(amount))
        elif what == "set":
            clock.wall_s = max(1.0, clock.wall_s + amount)
        elif what == "reboot":
            clock.wall_s = max(1.0, clock.wall_s)
            clock.reboot(amount)
        assert state.remaining_s(block, clock()) <= noted + 1e-6
        if what == "note":
            state.apply({"do": "tick", **clock().fields()})
            noted = state.remaining_s(block, clock())
