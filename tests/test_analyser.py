"""The analyser as a process: a log followed live, killed and started again, gives what replay gives."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config.loader import load
from gatewatch.daemon.analyser import run_analyser
from gatewatch.daemon.control import ask
from gatewatch.daemon.errors import GatewatchError
from gatewatch.daemon.parts import LogSource, Parts
from gatewatch.daemon.replay import Replay
from gatewatch.daemon.store import Store
from gatewatch.daemon.supervisor import listen
from gatewatch.playbooks.loader import load_playbooks

LIMIT_S = 60.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives once it is true; fails after LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {LIMIT_S} s: {what}")


class Running:
    """An analyser in a process of its own, following one log."""

    def __init__(self, state: Path, log: Path, year: int | None = None) -> None:
        self.state, self.log, self.year = state, log, year
        (state / "run").mkdir(parents=True, exist_ok=True)
        self.commands = state / "run" / "analyser.sock"
        self.pid = 0

    def start(self) -> None:
        read, write = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        parts = Parts(
            config=load(),
            rails=None,
            state=self.state,
            mode="observe",
            playbooks=tuple(load_playbooks()),
            logs=(LogSource(self.log, "sshd", year=self.year),),
            journal_units=(),
            local=(),
            control=theirs,
            commands=listen(self.commands, 0o600),
            outbox=listen(self.state / "run" / "outbox.sock", 0o600),
            shipper_uid=os.geteuid(),
            watches_packets=False,
            enforces=False,
            say=lambda text: None,
        )
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ours.close()
                status = run_analyser(parts, lambda: os.write(write, b"x") and None)
            except BaseException as error:
                print(f"analyser: {error!r}", file=sys.stderr)
            finally:
                os._exit(status)
        os.close(write)
        self._control = ours
        theirs.close()
        parts.commands.close()
        parts.outbox.close()
        assert os.read(read, 1) == b"x"
        os.close(read)

    def end(self, number: int) -> int:
        os.kill(self.pid, number)
        _, status = os.waitpid(self.pid, 0)
        self._control.close()
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def lines(self) -> int:
        """How many lines the running analyser has taken, since its start."""
        with contextlib.suppress(GatewatchError):
            return int(ask(self.commands, {"do": "health"})["logs"][0]["lines"])
        return 0

    def took_all(self) -> bool:
        """Whether the log was read to its end, and that was committed."""
        end = self.log.stat().st_size
        store = Store.open_readonly(self.state / "analyser" / "gatewatch.db")
        noted = [b.range["end"] for b in store.batches()]
        reached = [c["offset"] for c in store.checkpoints().values()]
        store.close()
        return end in (*noted, *reached)

    def incidents(self) -> list[dict[str, Any]]:
        return comparable(Store.open_readonly(self.state / "analyser" / "gatewatch.db").incidents())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    log = tmp_path / "auth.log"
    log.touch()
    made = Running(tmp_path / "state", log, 2023)
    yield made
    if made.pid:
        made.end(signal.SIGKILL)


def comparable(incidents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    plain = [{k: v for k, v in i.items() if k not in ("revision", "status", "actions")} for i in incidents]
    return sorted(plain, key=lambda i: i["id"])


def replayed(path: Path) -> list[dict[str, Any]]:
    run = Replay(load(), year=2023)
    run.read(str(path))
    return comparable(json.loads(json.dumps(run.incidents())))


def append(path: Path, data: bytes, seed: int) -> None:
    """Writes in pieces of random size, in the middle of lines too."""
    sizes = random.Random(seed)
    with path.open("ab", buffering=0) as stream:
        while data:
            size = sizes.randint(1, 20_000)
            stream.write(data[:size])
            data = data[size:]


def test_a_log_followed_live_gives_the_incidents_of_its_replay(running: Running, data: Path) -> None:
    whole = (data / "logs" / "loghub-openssh-2k.log").read_bytes()
    running.start()
    append(running.log, whole + b"\n", 1)
    until(lambda: running.lines() == 2000, "2,000 lines taken")
    assert running.end(signal.SIGTERM) == 0
    assert running.incidents() == replayed(running.log)
    assert running.incidents()


@pytest.mark.parametrize("seed", range(4))
def test_an_attack_under_way_is_remembered_after_a_kill(running: Running, data: Path, seed: int) -> None:
    lines = (data / "logs" / "loghub-openssh-2k.log").read_bytes().splitlines(keepends=True)
    cut = random.Random(seed).randint(100, 1900)
    running.start()
    append(running.log, b"".join(lines[:cut]), seed)
    until(lambda: running.lines() == cut, f"{cut} lines taken")
    running.end(signal.SIGKILL)
    append(running.log, b"".join(lines[cut:]) + b"\n", seed + 100)
    running.start()
    until(running.took_all, "the rest taken")
    assert running.end(signal.SIGTERM) == 0
    assert running.incidents() == replayed(running.log)


def test_no_alert_is_lost_or_doubled_by_kills_at_random_moments(running: Running, data: Path) -> None:
    whole = (data / "logs" / "loghub-openssh-2k.log").read_bytes() + b"\n"
    moments = random.Random(5)
    size = len(whole) // 8
    for start in range(0, len(whole), size):
        running.start()
        append(running.log, whole[start : start + size], start)
        time.sleep(moments.random() * 0.05)
        running.end(signal.SIGKILL)
    running.start()
    until(running.took_all, "the whole log taken")
    assert running.end(signal.SIGTERM) == 0
    expected = replayed(running.log)
    assert running.incidents() == expected
    store = Store.open_readonly(running.state / "analyser" / "gatewatch.db")
    told = [json.loads(row.document) for row in store.pending("nobody", 10_000)]
    revisions = [(d["id"], d["revision"]) for d in told if d["event"] == "incident"]
    assert len(set(revisions)) == len(revisions)
    assert {i for i, _ in revisions} == {i["id"] for i in expected}


def test_an_operator_acknowledges_and_closes_an_incident(running: Running, data: Path) -> None:
    running.log.write_bytes((data / "logs" / "loghub-openssh-2k.log").read_bytes())
    running.start()
    path = running.state / "analyser" / "gatewatch.db"
    [first, *_] = until(lambda: Store.open_readonly(path).incidents(), "an incident")
    assert ask(running.commands, {"do": "acknowledge", "incident": first["id"], "note": "ours"})["ok"]
    [found] = Store.open_readonly(path).incidents(incident=first["id"])
    assert (found["status"], found["note"]) == ("acknowledged", "ours")
    with pytest.raises(GatewatchError, match="no incident"):
        ask(running.commands, {"do": "close", "incident": "none"})


@pytest.mark.parametrize(
    "request_", [b"", b"\n", b"{", b"[]\n", b'{"do": 7}\n', b"x" * 70_000 + b"\n", b"[" * 60_000 + b"\n"]
)
def test_a_bad_command_harms_nothing(running: Running, request_: bytes) -> None:
    running.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(running.commands))
        with contextlib.suppress(OSError):
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)
    assert ask(running.commands, {"do": "health"})["mode"] == "observe"


def test_what_an_incident_grew_by_is_told_once_it_rests(running: Running) -> None:
    line = "Dec 10 06:55:{:02} gw sshd[{}]: Failed password for root from 203.0.113.7 port 4711 ssh2\n"
    running.start()
    append(running.log, "".join(line.format(n, n) for n in range(10)).encode(), 1)
    until(lambda: running.lines() == 10, "ten lines taken")
    append(running.log, "".join(line.format(n, n) for n in range(10, 13)).encode(), 1)
    store = Store.open_readonly(running.state / "analyser" / "gatewatch.db")

    def told() -> list[int]:
        rows = [json.loads(row.document) for row in store.pending("nobody", 100)]
        return [d["findings"][0]["figures"]["attempts"] for d in rows if d["event"] == "incident"]

    until(lambda: told()[-1:] == [13], "the last figure told")
    assert len(told()) == 2
