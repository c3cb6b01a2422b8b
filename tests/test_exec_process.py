"""The exec helper as a process: reloading, ending, dying, systemd, the service, the doctor, mail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from exec_site import ANALYSER, OWN, START, STRANGER, Helper, answers_of, ended, exec_helper
from gatewatch.config.schema import Config
from gatewatch.daemon.doctor import examine
from gatewatch.daemon.errors import CommandError
from gatewatch.daemon.exec_link import ExecLink
from lab.hosts import program
from lab.lab import Lab, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture
def helper() -> Iterator[Helper]:
    with exec_helper() as helper:
        yield helper


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
        asked = asyncio.ensure_future(answers_of(link, [{"run": "page", "id": i} for i in range(5)]))
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
        asked = asyncio.ensure_future(answers_of(link, [{"run": "page", "id": 1}]))
        await asyncio.to_thread(wait_for, "the command", helper.started_lines)
        assert helper.process is not None
        helper.process.kill()
        await asyncio.to_thread(helper.process.wait, 30)
        return [*await asked, *await answers_of(link, [{"run": "page", "id": 2}])]

    first, second = asyncio.run(lost())
    assert type(first) is CommandError
    assert "[[command]]" in first.remedy
    assert "Connection refused" in second.message
    wait_for("the end of it", lambda: ended(int(helper.started_lines()[0])))


def test_a_line_to_nobody_and_an_answer_that_does_not_come_are_errors(helper: Helper) -> None:
    helper.command("page", f"echo run >> {helper.started}; {helper.wait}")

    async def ask(timeout_s: float) -> Any:
        return (await answers_of(ExecLink(helper.socket, timeout_s), [{"run": "page", "id": 1}]))[0]

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
        wait_for("the helper", lambda: "gatewatch-exec: ready" in watch.said())
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
