"""The authorisation endpoint as a process, with a deny list that a test writes as the enforcer does."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from gatewatch.daemon.authz.keys import key_id, make_secret, read_secret

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
PATIENCE_S = 30.0


class DenyFile:
    """The deny list at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replace()

    def replace(self, *entries: list[Any], boot_id: str = BOOT) -> None:
        """A new file with these entries."""
        lines = [{"denied": 1, "boot_id": boot_id, "sequence": 1}, *entries]
        new = self.path.with_name("denied.new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines))
        new.chmod(0o640)
        new.rename(self.path)

    def add(self, kind: str, name: str, ends_ns: int = 0, *more: Any) -> None:
        self._append(["+", kind, name, ends_ns, *more])

    def remove(self, kind: str, name: str) -> None:
        self._append(["-", kind, name])

    def _append(self, entry: list[Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Answer(NamedTuple):
    status: int
    key_id: str | None
    reason: str | None
    headers: Mapping[str, str]
    body: bytes


class Authz:
    """`python -m gatewatch.daemon.authz` on a loopback port and a Unix socket of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None, *more: str) -> None:
        self.folder = folder
        self.denied = DenyFile(folder / "denied")
        self.key_file = folder / "key"
        make_secret(self.key_file, None, None)
        self.path = folder / "authz.sock"
        self._settings = json.dumps(settings or {})
        self._more = more
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listening.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._listening.close()

    def start(self) -> None:
        """Starts the process, and waits until it answers."""
        number = self._listening.fileno()
        words = ["--denied", str(self.denied.path), "--key-file", str(self.key_file)]
        words += ["--socket", str(number), "--listen", f"unix:{self.path}", "--settings", self._settings]
        command = [sys.executable, "-m", "gatewatch.daemon.authz", *words, *self._more]
        self.process = subprocess.Popen(command, pass_fds=(number,))
        assert ask(self.port, path="/healthz").status in (200, 503)

    def kill(self) -> None:
        """The process is gone; the port stays taken, as where the service holds it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def die(self) -> None:
        """The process is gone, and nobody listens any more."""
        self.kill()
        self._listening.close()

    def key_id(self, api_key: str) -> str:
        return key_id(read_secret(self.key_file), api_key.encode())

    def ask(self, endpoint: str = "chat", **headers: str) -> Answer:
        """One question; `x_api_key="…"` is the header X-Api-Key."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.port, named, f"/authz/{endpoint}")

    def health(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(ask(self.port, path="/healthz").body)
        return made

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until the endpoint has read what was written."""
        wait_for(condition)


def ask(
    port: int, headers: Mapping[str, str] | None = None, path: str = "/authz/chat", method: str = "GET"
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        body = answer.read()
    finally:
        connection.close()
    return Answer(
        answer.status, found.get("x-gatewatch-key-id"), found.get("x-gatewatch-reason"), found, body
    )


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it did not come to pass"
        time.sleep(0.005)
