"""The exec helper: what the rails name is run as a user of its own, literally, bounded, and not twice."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from gatewatch.config.schema import Config
from gatewatch.daemon.commands import safety
from gatewatch.daemon.commands.request import MOST_INPUT, MalformedError, encoded, parse
from gatewatch.daemon.doctor import examine
from gatewatch.daemon.enforcer.rails import Command, load
from gatewatch.daemon.enforcer.rails import parse as parse_rails
from gatewatch.daemon.errors import CommandError, ConfigError
from gatewatch.daemon.exec_link import ExecLink, FailedError
from hypothesis import given
from hypothesis import strategies as st
from lab.hosts import program
from lab.lab import Lab, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.usefixtures("root")

ANALYSER, OWN, STRANGER = 61_941, 61_942, 61_943
ASK = """
import os, socket, sys
uid = int(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.settimeout(60)
try:
    line.connect(sys.argv[1])
    try:
        line.send(sys.argv[2].encode())
    except BrokenPipeError:
        pass  # refused already
    print(line.recv(262144).decode())
except PermissionError:
    print('{"ok": false, "error": "permission denied"}')
"""
START = (
    "import sys, runpy; from gatewatch.daemon.commands import server, run; {patch}; sys.argv[0] = 'exec'; "
)
START += "from gatewatch.daemon.commands.__main__ import main; sys.exit(main(sys.argv[1:]))"


class Helper:
    """The real process, its rails and its programs, in a folder that all may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rails = folder / "rails.toml"
        self.socket = folder / "exec.sock"
        self.said: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self.started = folder / "started"
        self.started.touch()
        self.started.chmod(0o666)
        self.gate = folder / "gate"
        self.gate.touch(0o644)

    def script(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def command(self, name: str, text: str, *arguments: str, undo: str = "", timeout_s: int = 60) -> None:
        """Adds a script as a command of the rails."""
        words = [self.script(name, text), *arguments]
        lines = [
            f"[[command]]\nname = {json.dumps(name)}\nrun = {json.dumps(words)}\ntimeout_s = {timeout_s}"
        ]
        if undo:
            lines.append(f"undo = {json.dumps([self.script(name + '-undo', undo)])}")
        before = self.rails.read_text() if self.rails.exists() else ""
        self.rails.write_text(before + "\n".join(lines) + "\n")
        self.rails.chmod(0o644)

    def start(self, patch: str = "pass") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.format(patch=patch), "--rails", str(self.rails)]
            + ["--listen", str(self.socket), "--analyser", str(ANALYSER), "--uid", str(OWN)]
            + ["--die-with", str(os.getpid())],
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        wait_for("the helper", lambda: self.tells("ready"))

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line)

    def tells(self, text: str) -> bool:
        return any(text in line for line in self.said)

    def send(self, data: bytes) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.settimeout(60)
            line.connect(str(self.socket))
            line.send(data)
            answer: dict[str, Any] = json.loads(line.recv(1 << 18))
            return answer

    def ask(self, run: str, action: str = "1", **more: Any) -> dict[str, Any]:
        return self.send(encoded({"run": run, "id": action, **more}))

    def ask_as(self, uid: int, run: str) -> dict[str, Any]:
        message = json.dumps({"run": run, "id": "1"})
        done = subprocess.run(
            [sys.executable, "-I", "-c", ASK, str(self.socket), message, str(uid)],
            capture_output=True,
            text=True,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def started_lines(self) -> list[str]:
        return self.started.read_text().split()

    @contextlib.contextmanager
    def closed_gate(self) -> Iterator[None]:
        """Commands that do `WAIT` wait until this ends."""
        with open(self.gate, "w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield

    @property
    def wait(self) -> str:
        return f"flock -s {self.gate} true"

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def helper() -> Iterator[Helper]:
    with tempfile.TemporaryDirectory(prefix="gatewatch-exec-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        helper = Helper(folder)
        try:
            yield helper
        finally:
            helper.stop()


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_command_runs_as_a_user_of_its_own_without_privileges(helper: Helper) -> None:
    text = "echo $(id -u) $(id -G) $(pwd) $(umask) $(ulimit -c); grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status"
    helper.command("who", text)
    helper.start()
    answer = helper.ask("who")
    assert answer["ok"], answer
    words = answer["output"].split()
    assert words[:5] == [str(OWN), str(OWN), "/", "0077", "0"]
    assert words[words.index("NoNewPrivs:") + 1] == "1"
    assert int(words[words.index("CapEff:") + 1], 16) == 0
    assert int(words[words.index("CapBnd:") + 1], 16) == 0


def test_a_command_is_in_a_session_of_its_own(helper: Helper) -> None:
    helper.command("session", "cut -d' ' -f1,5,6 /proc/$$/stat")
    helper.start()
    pid, group, session = helper.ask("session")["output"].split()
    assert pid == group == session


def test_a_command_is_limited(helper: Helper) -> None:
    helper.command(
        "limits", "exec awk '/processes|open files|file size|core/ {print $(NF-1)}' /proc/self/limits"
    )
    helper.start()
    output = helper.ask("limits")["output"].split()
    assert sorted(output) == sorted([str(64 << 20), "0", "128", "256"])


def test_arguments_and_variables_stay_text(helper: Helper) -> None:
    strange = ("$(id)", "; touch owned", "*", "", "a b", "`id`", "${HOME}", "--")
    helper.command("literal", 'printf "<%s>" "$@" "$GATEWATCH_WHAT"', *strange)
    helper.start()
    what = "$(id); * `id` | tee x"
    answer = helper.ask("literal", environment={"GATEWATCH_WHAT": what})
    assert answer["output"] == "".join(f"<{word}>" for word in (*strange, what))


def test_the_environment_has_nothing_of_the_helpers(helper: Helper) -> None:
    helper.command("environment", "exec /usr/bin/env")
    os.environ["GATEWATCH_SECRET_OF_THE_SERVICE"] = "1"
    try:
        helper.start()
    finally:
        del os.environ["GATEWATCH_SECRET_OF_THE_SERVICE"]
    answer = helper.ask("environment", environment={"GATEWATCH_INCIDENT": "7"})
    names = {word.split("=")[0] for word in answer["output"].split() if "=" in word}
    assert names - {"PWD", "_", "OLDPWD", "SHLVL"} == {"PATH", "LANG", "HOME", "GATEWATCH_INCIDENT"}


def test_no_descriptor_of_the_helper_reaches_a_command(helper: Helper) -> None:
    helper.command("open", "exec ls /proc/self/fd")
    helper.start()
    assert helper.ask("open", input="x")["output"] == "0 1 2 3"  # 3: the folder that ls reads


def test_text_comes_on_the_input_whole(helper: Helper) -> None:
    helper.command("size", "wc -c")
    helper.command("lines", "cat")
    helper.start()
    assert helper.ask("size", input='"' * MOST_INPUT)["output"] == str(MOST_INPUT)
    assert helper.ask("size", "2", input="é" * MOST_INPUT)["output"] == str(MOST_INPUT)
    assert helper.ask("size", "3")["output"] == "0"
    assert helper.ask("lines", input="an\tescape \x1b[31m\nsecond")["output"] == "an escape ?[31m second"


def test_a_command_that_reads_nothing_of_its_input_succeeds(helper: Helper) -> None:
    helper.command("deaf", "exit 0")
    helper.start()
    assert helper.ask("deaf", input="x" * MOST_INPUT)["ok"]


def test_failures_say_the_exit_code_and_what_was_written(helper: Helper) -> None:
    helper.command("fails", "echo no route >&2; exit 3")
    helper.command("killed", "kill -9 $$")
    helper.start()
    answer = helper.ask("fails")
    assert (answer["ok"], answer["exit_code"], answer["output"]) == (False, 3, "no route")
    assert answer["error"] == "command fails: exit code 3"
    assert helper.ask("killed")["error"] == "command killed: killed by signal 9"


def test_at_its_limit_a_command_is_killed_with_what_it_started(helper: Helper) -> None:
    text = f"(sleep 1000 & echo $! >> {helper.started}; wait) & echo $! >> {helper.started}; wait"
    helper.command("slow", text, timeout_s=1)
    helper.start()
    answer = helper.ask("slow")
    assert answer["error"] == "command slow: not done within 1 s, and killed"
    pids = [int(word) for word in helper.started_lines()]
    assert len(pids) == 2
    for pid in pids:
        wait_for(f"the end of {pid}", lambda pid=pid: ended(pid))


def test_what_a_command_leaves_running_in_its_group_ends_with_it(helper: Helper) -> None:
    helper.command("leaves", "sleep 1000 & echo $!")
    helper.start()
    answer = helper.ask("leaves")
    assert answer["ok"]
    wait_for("the end of it", lambda: ended(int(answer["output"])))


def test_who_leaves_the_group_and_holds_the_output_open_is_not_waited_for(helper: Helper) -> None:
    helper.command("escapes", "setsid sleep 1000 & echo $!")
    helper.start()
    answer = helper.ask("escapes")
    assert answer["ok"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(answer["output"]), signal.SIGKILL)


def test_a_flood_of_output_is_ended_and_costs_no_memory(helper: Helper) -> None:
    helper.command("flood", "exec yes")
    helper.start()
    answer = helper.ask("flood")
    assert answer["error"] == "command flood: wrote more than 16 MiB"
    assert len(answer["output"]) == 500
    assert helper.process is not None
    status = Path(f"/proc/{helper.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 80_000  # KiB


def test_output_that_is_no_text_is_shown_as_text(helper: Helper) -> None:
    helper.command("noise", "printf '\\377\\033[2Jok\\000'")
    helper.start()
    output = helper.ask("noise")["output"]
    assert output.isprintable()
    assert "ok" in output


def test_what_succeeded_is_not_run_twice(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; echo paged", undo=f"echo undo >> {helper.started}")
    helper.start()
    first, second = helper.ask("page", "7"), helper.ask("page", "7")
    assert "already" not in first
    assert (second["ok"], second["already"], second["output"]) == (True, True, "paged")
    assert helper.ask("page", "7", undo=1)["ok"]
    assert helper.ask("page", "7", undo=1)["already"]
    assert "already" not in helper.ask("page", "8")
    assert helper.started_lines() == ["run", "undo", "run"]


def test_what_failed_is_run_again(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; [ $(wc -l < {helper.started}) = 2 ]")
    helper.start()
    assert not helper.ask("page")["ok"]
    assert helper.ask("page")["ok"]
    assert helper.started_lines() == ["run", "run"]


def test_after_its_hour_a_success_is_forgotten(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start("server.REMEMBERED_S = 0.0")
    helper.ask("page")
    assert "already" not in helper.ask("page")
    assert helper.started_lines() == ["run", "run"]


async def _answers(link: ExecLink, messages: list[dict[str, object]]) -> list[Any]:
    return await asyncio.gather(*(link.ask(message) for message in messages), return_exceptions=True)


def test_whoever_asks_while_it_runs_waits_for_the_same_answer(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")
    helper.start()

    async def twice() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            asked = asyncio.ensure_future(_answers(link, [{"run": "page", "id": 7}] * 2))
            await asyncio.to_thread(wait_for, "the command", helper.started_lines)
        return await asked

    answers = asyncio.run(twice())
    assert [a.get("already", False) for a in answers] == [False, True]
    assert helper.started_lines() == ["run"]


def test_no_more_than_four_run_and_no_more_than_thirty_two_wait(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")
    helper.start()

    async def many() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            asked = asyncio.ensure_future(_answers(link, [{"run": "page", "id": i} for i in range(37)]))
            await asyncio.to_thread(wait_for, "four", lambda: len(helper.started_lines()) == 4)
            refused = helper.ask("page", "extra")
            assert refused["error"] == "command page: 32 wait already"
            assert len(helper.started_lines()) == 4
        return await asked

    answers = asyncio.run(many())
    assert [type(answer) for answer in answers] == [dict] * 36 + [FailedError]
    assert all(answer["ok"] for answer in answers[:36])
    assert len(helper.started_lines()) == 36


def test_undoing_waits_until_the_doing_is_done(helper: Helper) -> None:
    do = f"echo begins >> {helper.started}; {helper.wait}; echo ends >> {helper.started}"
    helper.command("page", do, undo=f"echo undone >> {helper.started}")
    helper.command("other", "true")
    helper.start()

    async def both() -> list[Any]:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            messages: list[dict[str, object]] = [{"run": "page", "id": 7, "undo": n} for n in (0, 1)]
            asked = asyncio.ensure_future(_answers(link, messages))
            await asyncio.to_thread(wait_for, "the command", helper.started_lines)
            assert helper.ask("other")["ok"]
            assert helper.started_lines() == ["begins"]
        return await asked

    assert all(answer["ok"] for answer in asyncio.run(both()))
    assert helper.started_lines() == ["begins", "ends", "undone"]


def test_sixty_a_minute_are_run_and_a_repeated_one_is_not_counted(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start()
    for number in range(60):
        assert helper.ask("page", str(number))["ok"]
        assert helper.ask("page", str(number))["already"]
    assert helper.ask("page", "60")["error"] == "command page: 60 in a minute are enough"
    assert helper.ask("page", "59")["already"]


def test_after_a_minute_there_is_room_again(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start("server._MINUTE_S = 0.0; server.MOST_A_MINUTE = 1")
    assert helper.ask("page", "1")["ok"]
    assert helper.ask("page", "2")["ok"]


def test_strangers_cannot_ask_and_the_analyser_can(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start()
    assert helper.ask_as(STRANGER, "page")["error"] == "permission denied"
    assert helper.ask_as(OWN, "page")["error"] == "permission denied"
    helper.socket.chmod(0o666)
    assert helper.ask_as(STRANGER, "page")["error"] == f"uid {STRANGER} is neither root nor the analyser"
    assert helper.ask_as(OWN, "page")["error"] == f"uid {OWN} is neither root nor the analyser"
    assert helper.started_lines() == []
    assert helper.ask_as(ANALYSER, "page")["ok"]


BAD: dict[bytes, str] = {
    b"": "",
    b"\xff": "no JSON object",
    b"[]": "no JSON object",
    b"[" * 200_000: "no JSON object",
    b"{}": "field run",
    b'{"run": "page"}': "field id",
    b'{"run": "page", "id": 1}': "field id",
    b'{"run": "page", "id": "\\u001b"}': "field id",
    b'{"run": "page", "id": "1", "id": "2"}': "given twice",
    b'{"run": ["/bin/sh"], "id": "1"}': "field run",
    b'{"run": "page", "id": "1", "arguments": ["x"]}': "field 'arguments' is unknown",
    b'{"run": "page", "id": "1", "undo": 2}': "field undo",
    b'{"run": "page", "id": "1", "undo": 1.0}': "field undo",
    b'{"run": "page", "id": "1", "input": 1}': "field input",
    b'{"run": "page", "id": "1", "input": "' + b"x" * 65_537 + b'"}': "field input",
    b'{"run": "page", "id": "1", "environment": []}': "field environment",
    b'{"run": "page", "id": "1", "environment": {"PATH": "/tmp"}}': "'PATH' is no name",
    b'{"run": "page", "id": "1", "environment": {"LD_PRELOAD": "x"}}': "'LD_PRELOAD' is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_x": "x"}}': "is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A=B": "x"}}': "is no name",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": 1}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "a\\nb"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "\\u0000"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "\\ud800"}}': "GATEWATCH_A: printable",
    b'{"run": "page", "id": "1", "environment": {"GATEWATCH_A": "' + b"x" * 1025 + b'"}}': "GATEWATCH_A",
    json.dumps(
        {"run": "page", "id": "1", "environment": {f"GATEWATCH_{i}": "x" * 1000 for i in range(20)}}
    ).encode(): "more than 16384 bytes",
    b'{"run": "pages", "id": "1"}': "command pages: the rails name none of this name",
    b'{"run": "../page", "id": "1"}': "the rails name none of this name",
    b'{"run": "page", "id": "1", "undo": 1}': "command page: cannot be undone",
}


def test_what_is_no_request_is_said_and_runs_nothing(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start()
    for data, why in BAD.items():
        if not data:
            continue
        answer = helper.send(data)
        assert answer["ok"] is False
        assert why in answer["error"], (data[:80], answer)
    assert helper.started_lines() == []
    assert helper.ask("page")["ok"]


def test_who_says_nothing_or_hangs_up_keeps_nobody_out(helper: Helper) -> None:
    helper.command("page", "exit 0")
    helper.start("server.HEAR_S = 0.2")
    lines = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(70)]
    try:
        for line in lines:
            line.settimeout(30)
            line.connect(str(helper.socket))
        last = json.loads(lines[-1].recv(4096))
        assert last["error"] == "64 ask already"
        assert lines[0].recv(4096) == b""  # sent away after a while
        assert helper.ask("page")["ok"]
    finally:
        for line in lines:
            line.close()


def test_whoever_hangs_up_before_the_answer_finds_it_later(helper: Helper) -> None:
    helper.command("page", f"{helper.wait}; echo run >> {helper.started}")
    helper.start()
    with helper.closed_gate(), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(str(helper.socket))
        line.send(encoded({"run": "page", "id": "1"}))
    answer = helper.ask("page", "1")
    assert (answer["ok"], answer["already"]) == (True, True)
    assert helper.started_lines() == ["run"]


def test_a_hangup_signal_reads_the_rails_anew(helper: Helper) -> None:
    helper.command("page", "echo old")
    helper.start()
    assert helper.process is not None
    helper.command("second", "echo new")
    helper.process.send_signal(signal.SIGHUP)
    wait_for("the rails", lambda: helper.tells("commands: page, second"))
    assert helper.ask("second")["output"] == "new"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rails: rails.write_text("[[command]]\nname = 'x'\n"), "command[0].run"),
        (lambda rails: rails.chmod(0o666), "others may write it"),
        (lambda rails: os.chown(rails, OWN, OWN), f"owned by uid {OWN}"),
        (lambda rails: rails.chmod(0o600), "Permission denied"),
        (lambda rails: rails.unlink(), "No such file"),
    ],
    ids=["wrong", "writable", "owned by the helper", "unreadable", "gone"],
)
def test_wrong_rails_change_nothing_and_are_complained_of(helper: Helper, spoil: Any, why: str) -> None:
    helper.command("page", "echo old")
    helper.start()
    assert helper.process is not None
    spoil(helper.rails)
    helper.process.send_signal(signal.SIGHUP)
    wait_for("the complaint", lambda: helper.tells("the former hold"))
    assert helper.tells(why), helper.said
    assert helper.ask("page")["output"] == "old"


def test_a_program_that_others_may_write_is_not_run(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}")
    helper.start()
    (helper.folder / "page").chmod(0o777)
    answer = helper.ask("page")
    assert "can be written by others than root" in answer["error"]
    assert answer["remedy"] == f"chmod go-w {helper.folder / 'page'}"
    (helper.folder / "page").chmod(0o755)
    assert helper.ask("page")["ok"]
    assert helper.started_lines() == ["run"]


def test_at_the_start_an_unsafe_program_is_complained_of(helper: Helper) -> None:
    helper.command("page", "exit 0")
    os.chown(helper.folder / "page", STRANGER, STRANGER)
    helper.start()
    assert helper.tells(f"belongs to user {STRANGER}")


def test_a_program_that_is_none_is_said(helper: Helper) -> None:
    helper.command("broken", "")
    helper.start()
    (helper.folder / "broken").write_text("#!/no/such/interpreter\n")
    answer = helper.ask("broken")
    assert not answer["ok"]
    assert "cannot be run (No such file or directory)" in answer["error"]


def test_ending_the_helper_ends_what_runs_and_says_so(helper: Helper) -> None:
    helper.command("page", f"sleep 1000 & echo $! >> {helper.started}; wait")
    helper.start()
    assert helper.process is not None

    async def interrupted() -> list[Any]:
        link = ExecLink(helper.socket)
        asked = asyncio.ensure_future(_answers(link, [{"run": "page", "id": i} for i in range(5)]))
        await asyncio.to_thread(wait_for, "four", lambda: len(helper.started_lines()) == 4)
        assert helper.process is not None
        helper.process.terminate()
        return await asked

    answers = asyncio.run(interrupted())
    assert all(isinstance(answer, CommandError) for answer in answers), answers
    assert sum("the helper ends" in str(answer) for answer in answers) >= 4, answers
    assert helper.process.wait(30) == 0
    for pid in helper.started_lines():
        wait_for("the end of it", lambda pid=pid: ended(int(pid)))


def test_a_killed_helper_takes_its_commands_with_it_and_the_line_says_the_remedy(helper: Helper) -> None:
    helper.command("page", f"echo $$ >> {helper.started}; exec sleep 1000")
    helper.start()

    async def lost() -> list[Any]:
        link = ExecLink(helper.socket)
        asked = asyncio.ensure_future(_answers(link, [{"run": "page", "id": 1}]))
        await asyncio.to_thread(wait_for, "the command", helper.started_lines)
        assert helper.process is not None
        helper.process.kill()
        await asyncio.to_thread(helper.process.wait, 30)
        return [*await asked, *await _answers(link, [{"run": "page", "id": 2}])]

    first, second = asyncio.run(lost())
    assert type(first) is CommandError
    assert "[[command]]" in first.remedy
    assert "Connection refused" in second.message
    wait_for("the end of it", lambda: ended(int(helper.started_lines()[0])))


def test_a_line_to_nobody_and_an_answer_that_does_not_come_are_errors(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")

    async def ask(timeout_s: float) -> Any:
        return (await _answers(ExecLink(helper.socket, timeout_s), [{"run": "page", "id": 1}]))[0]

    assert "No such file" in asyncio.run(ask(5)).message
    helper.start()
    with helper.closed_gate():
        assert "no answer in 0.2 s" in asyncio.run(ask(0.2)).message


def test_an_answer_nobody_wants_any_longer_harms_nothing(helper: Helper) -> None:
    helper.command("page", helper.wait)
    helper.start()

    async def cancelled() -> Any:
        link = ExecLink(helper.socket)
        with helper.closed_gate():
            link.ask({"run": "page", "id": 1}).cancel()
            left = link.ask({"run": "page", "id": 2})
            link.close()
            with pytest.raises(CommandError, match="closed"):
                await left
        return await link.ask({"run": "page", "id": 1})

    assert asyncio.run(cancelled())["already"]


def test_a_command_cannot_look_into_the_helper(helper: Helper) -> None:
    helper.command("look", "cat /proc/$PPID/environ /proc/$PPID/maps && echo seen")
    helper.start()
    answer = helper.ask("look")
    assert answer["exit_code"] == 1
    assert "Permission denied" in answer["output"]


def test_the_helper_serves_neither_as_root_nor_as_the_analyser(helper: Helper) -> None:
    helper.command("page", "exit 0")
    words = [sys.executable, "-m", "gatewatch.daemon.commands", "--rails", str(helper.rails)]
    words += ["--listen", str(helper.socket), "--analyser", str(ANALYSER)]
    for more, why in (
        ([], "--uid: started as root, it needs a user to become"),
        (["--uid", "0"], "--uid: started as root"),
        (["--uid", str(ANALYSER)], "a command could act as it"),
    ):
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert why in done.stderr


def test_the_helper_loads_nothing_heavy() -> None:
    code = (
        "import sys, gatewatch.daemon.commands.__main__; print(sorted(m for m in "
        "('numpy', 'pydantic', 'typer', 'asyncio', 'yaml', 'msgspec') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_way_to_a_program_is_roots_alone(helper: Helper) -> None:
    folder = helper.folder / "bin"
    folder.mkdir(0o755)
    program = folder / "page"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    safety.check(str(program))
    link = helper.folder / "link"
    link.symlink_to("bin/../bin/page")
    safety.check(str(link))

    def refused(path: Path, why: str) -> None:
        with pytest.raises(CommandError, match=why) as raised:
            safety.check(str(path))
        assert raised.value.remedy

    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    refused(link, f"link belongs to user {STRANGER}")
    program.chmod(0o775)
    refused(program, "page can be written by others")
    program.chmod(0o644)
    refused(program, "not executable")
    program.chmod(0o755)
    folder.chmod(0o777)
    refused(program, "bin can be written by others")
    folder.chmod(0o1777)
    safety.check(str(program))
    os.chown(program, STRANGER, STRANGER)
    refused(program, f"page belongs to user {STRANGER}")
    refused(folder, "no program but a folder")
    refused(folder / "missing", "No such file")
    refused(program / "below", "belongs to user")
    (helper.folder / "loop").symlink_to("loop")
    refused(helper.folder / "loop", "too many symbolic links")


def test_the_rails_name_commands() -> None:
    rails = parse_rails(
        '[[command]]\nname = "page"\nrun = ["/usr/local/sbin/page", "--now", ""]\nundo = ["/bin/true"]\n'
        '[[command]]\nname = "mail"\nrun = ["/usr/bin/mail"]\ntimeout_s = 300\n'
    )
    assert rails.commands == (
        Command("page", ("/usr/local/sbin/page", "--now", ""), ("/bin/true",), 10),
        Command("mail", ("/usr/bin/mail",), (), 300),
    )
    assert parse_rails("").commands == ()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('run = ["/bin/true"]', "command[0].name"),
        ('name = "a b"\nrun = ["/bin/true"]', "command[0].name"),
        ('name = "a"', "command[0].run"),
        ('name = "a"\nrun = []', "command[0].run"),
        ('name = "a"\nrun = "/bin/true"', "command[0].run"),
        ('name = "a"\nrun = ["true"]', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true", 1]', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true", "a\\u0007"]', "command[0].run"),
        (f'name = "a"\nrun = {json.dumps(["/bin/true"] * 33)}', "command[0].run"),
        ('name = "a"\nrun = ["/bin/true"]\nundo = []', "command[0].undo"),
        ('name = "a"\nrun = ["/bin/true"]\ntimeout_s = 0', "command[0].timeout_s"),
        ('name = "a"\nrun = ["/bin/true"]\ntimeout_s = 301', "command[0].timeout_s"),
        ('name = "a"\nrun = ["/bin/true"]\nshell = true', "command[0].shell"),
        ('name = "a"\nrun = ["/bin/true"]\n[[command]]\nname = "a"\nrun = ["/bin/true"]', "key command"),
    ],
)
def test_rails_with_a_wrong_command_name_file_and_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_rails(f"[[command]]\n{text}\n", "/etc/gatewatch/rails.toml")
    assert "/etc/gatewatch/rails.toml" in raised.value.message
    assert key in raised.value.message


def test_the_example_in_the_shipped_rails_is_right(repository: Path, tmp_path: Path) -> None:
    shipped = (repository / "config" / "rails.toml").read_text()
    lines = shipped[shipped.index("# [[command]]") :].splitlines()
    example = "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    path = tmp_path / "rails.toml"
    path.write_text(example)
    path.chmod(0o644)
    (command,) = load(path).commands
    assert (command.name, command.timeout_s) == ("page", 10)
    assert load(repository / "config" / "rails.toml").commands == ()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@given(
    st.dictionaries(st.from_regex(r"GATEWATCH_[A-Z0-9_]{1,20}", fullmatch=True), st.text(), max_size=8),
    st.text(),
)
def test_what_an_attacker_wrote_keeps_no_request_from_being_taken(
    environment: dict[str, str], text: str
) -> None:
    request = parse(encoded({"run": "page", "id": 7, "environment": environment, "input": text}))
    assert request.environment.keys() == environment.keys()
    assert len(request.input) <= MOST_INPUT


def test_long_text_is_cut_and_fits_the_line() -> None:
    data = encoded(
        {"run": "page", "id": "1", "environment": {"GATEWATCH_A": "é" * 5000}, "input": "é\n" * 90_000}
    )
    request = parse(data)
    assert len(request.environment["GATEWATCH_A"].encode()) == 1024
    assert MOST_INPUT - 2 <= len(request.input) <= MOST_INPUT
    assert len(encoded({"run": "page", "id": "1", "input": '"' * 90_000})) < 200_000


@pytest.mark.skipif(program("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_are_understood_and_allow_no_more_than_is_needed(repository: Path, tmp_path: Path) -> None:
    for name in ("gatewatch-exec.socket", "gatewatch-exec.service"):
        text = (repository / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/gatewatch/bin/python", sys.executable))
    service = str(tmp_path / "gatewatch-exec.service")
    for words in (
        ["verify", "--man=no", str(tmp_path / "gatewatch-exec.socket"), service],
        ["security", "--offline=true", "--threshold=30", service],
    ):
        done = subprocess.run(
            ["systemd-analyze", *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        )
        assert done.returncode == 0, done.stdout
        assert "gatewatch-exec" not in done.stderr, done.stderr


def test_started_as_its_user_it_takes_the_socket_that_is_handed_over(helper: Helper) -> None:
    helper.command("who", "id -u")
    words = "import os, argparse, shutil, tomllib, gatewatch.daemon.commands.__main__; os.setgroups([]); "
    words += f"os.setresgid({OWN}, {OWN}, {OWN}); os.setresuid({OWN}, {OWN}, {OWN}); "
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(helper.socket))
        listener.listen()
        os.dup2(listener.fileno(), 103)
        words += "os.dup2(103, 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))"
        with subprocess.Popen(
            [sys.executable, "-c", START.format(patch=words), "--rails", str(helper.rails)]
            + ["--analyser", str(ANALYSER)],
            pass_fds=[103],
        ) as process:
            os.close(103)
            try:
                assert helper.ask("who")["output"] == str(OWN)
            finally:
                process.terminate()
        assert process.returncode == 0


def test_the_doctor_says_whether_each_command_is_safe(helper: Helper) -> None:
    helper.command("page", "exit 0", undo="exit 0")
    helper.command("lost", "exit 0")
    helper.command("open", "exit 0", undo="exit 0")
    (helper.folder / "lost").unlink()
    (helper.folder / "open-undo").chmod(0o777)
    config = Config.model_validate({"state": str(helper.folder), "rails": str(helper.rails)})
    found = {check.check: check for check in examine(config, socket=helper.folder / "none.sock")}
    assert found["command page"].state == "ok"
    assert (found["command lost"].state, found["command open"].state) == ("fail", "fail")
    assert "No such file" in found["command lost"].detail
    assert found["command open"].remedy == f"chmod go-w {helper.folder / 'open-undo'}"


def test_the_service_starts_the_helper_where_the_rails_name_a_command(bare: Lab, helper: Helper) -> None:
    helper.command("who", "id -u; cat")
    with Gatewatch(bare, observe=True, rails=helper.rails.read_text()) as watch:
        helper.socket = watch.state / "run" / "exec.sock"
        (process,) = helpers(watch)
        status = Path(f"/proc/{process.pid}/status").read_text()
        analyser, own = helper.socket.stat().st_uid, process.uids().real
        assert own not in (0, analyser)
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        answer = helper.ask("who", input="what happened")
        assert answer["output"] == f"{own} what happened"
        helper.command("second", "echo new")
        rails = watch.folder / "rails.toml"
        rails.write_text(rails.read_text() + "[[command]]" + helper.rails.read_text().split("[[command]]")[2])
        assert watch.process is not None
        watch.process.send_signal(signal.SIGHUP)
        wait_for("the rails", lambda: "commands: who, second" in watch.said())
        assert helper.ask("second")["output"] == "new"
        process.kill()
        wait_for("its restart", lambda: watch.said().count("gatewatch-exec: ready") == 2)
        assert helper.ask("who", "2")["ok"]
    assert ended(process.pid)


def test_no_command_no_helper(bare: Lab) -> None:
    with Gatewatch(bare, observe=True) as watch:
        assert helpers(watch) == []


def helpers(watch: Gatewatch) -> list[psutil.Process]:
    assert watch.process is not None
    children = psutil.Process(watch.process.pid).children(recursive=True)
    return [child for child in children if "gatewatch.daemon.commands" in child.cmdline()]


class Mailbox(socketserver.StreamRequestHandler):
    """A mail server that keeps what it is given (RFC 5321)."""

    letters: ClassVar[list[str]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 mailbox\r\n")
        for line in self.rfile:
            word = line.strip().upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.letters.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")


@pytest.mark.skipif(program("msmtp") is None, reason="needs msmtp")
def test_the_documented_mail_script_sends_the_text(helper: Helper, repository: Path) -> None:
    page = (repository / "docs" / "exec.md").read_text()
    script = page.split("#!/bin/sh\n")[1].split("```")[0]
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = f"--host=127.0.0.1 --port={server.server_address[1]}"
        helper.command("mail", script.replace("--host=127.0.0.1", port), "ops@example.org")
        helper.start()
        text = "Title: no header\n\nzwölf\n.\nend\n"
        answer = helper.ask("mail", environment={"GATEWATCH_INCIDENT": "17"}, input=text)
        server.shutdown()
    assert answer["ok"], answer
    (letter,) = Mailbox.letters
    headers, _, body = letter.replace("\r\n", "\n").partition("\n\n")
    assert "To: ops@example.org" in headers
    assert "Subject: Gatewatch: incident 17" in headers
    assert body == text.replace("\n.\n", "\n..\n")
