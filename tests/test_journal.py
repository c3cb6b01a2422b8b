"""The journal collector against a real journald in a namespace of its own, with a real journalctl."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.collectors import journal
from gatewatch.daemon.collectors.journal import JournalChunk, JournalFollower, probe
from hypothesis import given
from hypothesis import strategies as st

LIMIT_S = 30.0
JOURNALD = "/lib/systemd/systemd-journald"

needs_journald = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not Path(JOURNALD).exists(), reason="needs systemd-journald"),
]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Journald:
    """A journald of a namespace that no one else uses."""

    def __init__(self) -> None:
        self.name = f"gw{secrets.token_hex(4)}"
        self.options = [f"--namespace={self.name}"]
        self.socket = Path(f"/run/systemd/journal.{self.name}/socket")
        self._process: subprocess.Popen[bytes] | None = None
        self._senders: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._process = subprocess.Popen([JOURNALD, self.name], stderr=subprocess.DEVNULL)
        until(
            lambda: (
                self.socket.exists() and bool(list(Path("/var/log/journal").glob(f"*.{self.name}/*.journal")))
            )
        )

    def send(
        self, message: bytes | str, command: str = "sshd", user: int = 0, identifier: str = "sshd"
    ) -> None:
        """Sends by the native protocol from a process that is called `command` and belongs to `user`.

        The process lives until `stop`: journald asks /proc about it some time after it has read the message.
        """
        code = (
            "import ctypes, os, socket, struct, sys\n"
            "name, user, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]\n"
            "os.setgid(user); os.setuid(user)\n"
            "ctypes.CDLL(None).prctl(15, name.encode())\n"  # PR_SET_NAME
            "data = sys.stdin.buffer.read(int(sys.argv[5]))\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "s.connect(path)\n"
            "s.send(b'SYSLOG_IDENTIFIER=' + sys.argv[4].encode() + b'\\nMESSAGE\\n' + "
            "struct.pack('<Q', len(data)) + data + b'\\n')\n"
            "print('sent', flush=True)\n"
            "sys.stdin.buffer.read()\n"
        )
        data = message.encode() if isinstance(message, str) else message
        words = [command, str(user), str(self.socket), identifier, str(len(data))]
        sender = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._senders.append(sender)
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdin.write(data)
        sender.stdin.flush()
        assert sender.stdout.readline() == b"sent\n"

    def send_many(self, count: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(self.socket))
            for number in range(count):
                sender.send(b"SYSLOG_IDENTIFIER=sshd\nMESSAGE=number %d\n" % number)

    def stop(self) -> None:
        for sender in self._senders:
            sender.communicate()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        for left in Path("/run/systemd").glob(f"journal.{self.name}"):
            shutil.rmtree(left)
        for folder in ("/run/log/journal", "/var/log/journal"):
            for left in Path(folder).glob(f"*.{self.name}"):
                shutil.rmtree(left)


@pytest.fixture
def journald() -> Iterator[Journald]:
    made = Journald()
    made.start()
    yield made
    made.stop()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < ends, "it took too long"
        select.select([], [], [], 0.01)


class Reader:
    def __init__(self, follower: JournalFollower) -> None:
        self.follower = follower
        self.chunks: list[JournalChunk] = []

    @property
    def lines(self) -> list[bytes]:
        return b"".join(c.data for c in self.chunks).splitlines()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 - other processes bring it about
                await asyncio.sleep(0.005)

    async def run(self) -> None:
        async for chunk in self.follower.chunks():
            self.chunks.append(chunk)


@asynccontextmanager
async def following(follower: JournalFollower) -> AsyncIterator[Reader]:
    reader = Reader(follower)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestWithJournald:
    pytestmark = needs_journald

    @in_loop
    async def test_entries_become_syslog_lines_and_only_root_as_sshd_is_trusted(
        self, journald: Journald
    ) -> None:
        follower = JournalFollower(["ssh.service"], options=journald.options)
        async with following(follower) as reader:
            forged = "Failed password for root from 203.0.113.9 port 22 ssh2"
            await asyncio.to_thread(journald.send, "Accepted password for anna from 192.0.2.1 port 5 ssh2")
            await asyncio.to_thread(journald.send, forged, user=65534)
            await asyncio.to_thread(journald.send, forged, command="logger")
            await asyncio.to_thread(journald.send, "two\nlines\0")
            await asyncio.to_thread(journald.send, b"\xff\xfe")
            await reader.until(lambda: len(reader.lines) == 5)
        trusted = [line for c in reader.chunks if c.trusted for line in c.data.splitlines()]
        assert [line.split(b": ", 1)[1] for line in trusted] == [
            b"Accepted password for anna from 192.0.2.1 port 5 ssh2",
            b"two#012lines#000",
            b"\xff\xfe",
        ]
        stamp, host, tag = reader.lines[0].split(b" ")[:3]
        assert stamp.endswith(b"+00:00")
        assert len(stamp) == len("2026-11-24T08:00:00.123456+00:00")
        assert host == socket.gethostname().encode()
        assert tag.startswith(b"sshd[")
        assert not any(c.existing for c in reader.chunks)

    @in_loop
    async def test_an_identifier_cannot_forge_the_fields_before_the_message(self, journald: Journald) -> None:
        follower = JournalFollower([], commands=["evil"], options=journald.options)
        async with following(follower) as reader:
            await asyncio.to_thread(
                journald.send, "x", command="evil", identifier="sshd[1]: Accepted password for root"
            )
            await reader.until(lambda: len(reader.lines) == 1)
        assert b" sshd_1___Accepted_password_for_root[" in reader.lines[0]
        assert reader.lines[0].endswith(b"]: x")

    @in_loop
    async def test_it_goes_on_after_the_cursor_and_reads_a_range_again(self, journald: Journald) -> None:
        async with following(JournalFollower(["ssh.service"], options=journald.options)) as reader:
            await asyncio.to_thread(journald.send, "one")
            await reader.until(lambda: len(reader.lines) == 1)
        await asyncio.to_thread(journald.send_many, 500)
        again = JournalFollower(["ssh.service"], reader.follower.cursor, options=journald.options)
        async with following(again) as rest:
            await rest.until(lambda: len(rest.lines) >= 500)
        assert [line.rpartition(b" ")[2] for line in rest.lines] == [b"%d" % n for n in range(500)]
        # journald stamps an entry when it reads it, which may be after the second follower was made.
        assert rest.chunks[0].existing
        for chunk in [*reader.chunks, *rest.chunks]:
            assert again.read_range(chunk.first_cursor, chunk.cursor) == chunk.data
        assert again.read_range(reader.chunks[0].cursor + "0", rest.chunks[0].cursor) is None

    @in_loop
    async def test_a_journalctl_that_is_killed_is_started_again_and_nothing_is_lost(
        self, journald: Journald
    ) -> None:
        notices: list[str] = []
        follower = JournalFollower(["ssh.service"], options=journald.options, notice=notices.append)
        async with following(follower) as reader:
            await asyncio.to_thread(journald.send, "one")
            await reader.until(lambda: len(reader.lines) == 1)
            await asyncio.to_thread(kill_child, journald.name)
            await asyncio.to_thread(journald.send, "two")
            await reader.until(lambda: len(reader.lines) == 2)
        assert follower.counters.restarts == 1
        assert "started again" in notices[0]

    @in_loop
    async def test_a_cursor_that_is_no_cursor_goes_on_by_its_time(self, journald: Journald) -> None:
        now = f"t={time.time_ns() // 1000:x}"
        await asyncio.to_thread(journald.send, "one")
        follower = JournalFollower(["ssh.service"], f"nonsense;{now};", options=journald.options)
        async with following(follower) as reader:
            await reader.until(lambda: len(reader.lines) == 1)

    def test_a_journal_that_works_has_nothing_against_it(self, journald: Journald) -> None:
        until(lambda: probe(journald.options) is None)

    def test_a_user_without_the_right_to_read_it_is_told_the_group(self, journald: Journald) -> None:
        code = (
            "import os, sys; from gatewatch.daemon.collectors.journal import probe\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); print(probe(sys.argv[1:]))"
        )
        done = subprocess.run([sys.executable, "-c", code, *journald.options], capture_output=True, text=True)
        assert "add the user to the group systemd-journal" in done.stdout, done.stderr


def kill_child(namespace: str) -> None:
    """Kills the journalctl that this process has started for the namespace."""

    def children() -> list[int]:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return [p for p in map(int, text.split()) if namespace in Path(f"/proc/{p}/cmdline").read_text()
                and "journalctl" in Path(f"/proc/{p}/cmdline").read_text()]  # fmt: skip

    until(lambda: bool(children()))
    os.kill(children()[0], 9)


def test_a_machine_without_journalctl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert (probe() or "").startswith("there is no journalctl; install")


def test_a_journal_without_entries_says_so() -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("needs journalctl")
    with tempfile.TemporaryDirectory() as folder:
        assert "the journal is empty" in (probe([f"--directory={folder}"]) or "")


def test_a_machine_without_journald_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("needs journalctl")
    monkeypatch.setattr(journal, "_SOCKET", str(tmp_path / "nobody"))
    assert (probe() or "").startswith("systemd-journald is not running; name log files")


ENTRY = st.fixed_dictionaries(
    {"__CURSOR": st.text(max_size=8), "__REALTIME_TIMESTAMP": st.integers(0, 1 << 64).map(str)},
    optional={
        name: st.one_of(st.none(), st.text(max_size=20), st.lists(st.integers(0, 300)), st.integers(),
                        st.lists(st.one_of(st.text(), st.lists(st.integers(0, 255)))))
        for name in ("MESSAGE", "_UID", "_PID", "_COMM", "_SYSTEMD_UNIT", "_HOSTNAME", "SYSLOG_IDENTIFIER")
    },
)  # fmt: skip


@given(st.lists(st.one_of(st.binary(max_size=60), ENTRY.map(lambda e: json.dumps(e).encode())), max_size=20))
def test_whatever_journalctl_prints_gives_whole_lines_and_nothing_raises(printed: list[bytes]) -> None:
    follower = JournalFollower(["ssh.service"])
    chunks = list(follower._take(b"".join(line + b"\n" for line in printed)))
    for chunk in chunks:
        assert chunk.data.count(b"\n") == chunk.entries
        assert chunk.data.endswith(b"\n")
        assert journal._FORGING.sub(b"", chunk.data) == chunk.data.replace(b"\n", b"")
    assert follower.counters.entries == sum(c.entries for c in chunks)


def entry(**fields: str) -> bytes:
    known = {
        "__CURSOR": "c",
        "__REALTIME_TIMESTAMP": "1795507975302811",
        "MESSAGE": "m",
        "_TRANSPORT": "syslog",
    }
    return json.dumps(known | fields).encode() + b"\n"


@pytest.mark.parametrize(
    ("fields", "trusted"),
    [
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "ssh.service"}, True),
        ({"_UID": "0", "_COMM": "anything", "_SYSTEMD_UNIT": "ssh.service"}, True),
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "session-4.scope"}, True),
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "ssh@7-192.0.2.1:22-192.0.2.2:9.service"}, True),
        ({"_UID": "0", "_COMM": "sshd"}, True),
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_CGROUP": "/docker/abc"}, False),
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "docker-abc.scope"}, False),
        ({"_UID": "0", "_COMM": "logger", "_SYSTEMD_UNIT": "session-4.scope"}, False),
        ({"_UID": "1000", "_COMM": "sshd", "_SYSTEMD_UNIT": "ssh.service"}, False),
        ({"_COMM": "sshd", "_SYSTEMD_UNIT": "ssh.service"}, False),
        ({"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "ssh.service", "_TRANSPORT": "kernel"}, False),
    ],
)
def test_trust_follows_the_fields_that_a_sender_cannot_choose(fields: dict[str, str], trusted: bool) -> None:
    [chunk] = JournalFollower(["ssh.service"])._take(entry(**fields))
    assert chunk.trusted is trusted
