"""The exec helper as a real process with rails and programs of its own, for its tests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from gatewatch.daemon.commands.request import encoded
from gatewatch.daemon.exec_link import ExecLink
from lab.lab import wait_for

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


@contextlib.contextmanager
def exec_helper() -> Iterator[Helper]:
    """A helper to be started; it is stopped at the end."""
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


async def answers_of(link: ExecLink, messages: list[dict[str, object]]) -> list[Any]:
    return await asyncio.gather(*(link.ask(message) for message in messages), return_exceptions=True)
