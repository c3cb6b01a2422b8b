"""Real gateways on loopback with the shipped snippets, and the model behind them that tells what it was sent."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from authz_rig import Authz, ask, wait_for

SNIPPETS = Path(__file__).parents[1] / "docs" / "gateways"
ENVOY = shutil.which("envoy") or str(Path(sys.executable).with_name("envoy"))
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

NGINX_MAIN = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
{user}
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/gatewatch.conf;
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
        return number


class _Model(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model", "m1")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def model() -> Iterator[int]:
    """A model server; its answer is what it was sent."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Gateway(ABC):
    """A gateway before `authz`; `ports` by whether it is fail-open, or fail-closed."""

    def __init__(self, folder: Path, authz: Authz, model_port: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.authz = authz
        self.log = folder / "access.json"
        self.ports = {"open": free_port(), "closed": free_port()}
        self._commands = self.prepare(model_port)
        self._processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def prepare(self, model_port: int) -> list[list[str]]:
        """Writes the configuration; returns the commands to start."""

    def __enter__(self) -> Self:
        with open(self.folder / "output", "wb") as output:
            self._processes = [
                subprocess.Popen(command, stdout=output, stderr=output) for command in self._commands
            ]
        try:
            wait_for(lambda: all(_listens(port) for port in self.ports.values()))
        except AssertionError:
            self.__exit__(None, None, None)
            raise AssertionError((self.folder / "output").read_text()[-2000:]) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)

    def ask(self, how: str = "open", method: str = "GET", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status, and what the model was sent."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = ask(self.ports[how], named, "/v1/chat?secret=1", method)
        assert not [name for name in answer.headers if name.startswith("x-gatewatch")]
        return answer.status, json.loads(answer.body) if answer.status == 200 else {}

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The access log, once it has so many lines."""
        wait_for(lambda: self.log.exists() and self.log.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class Nginx(Gateway):
    def prepare(self, model_port: int) -> list[list[str]]:
        changes = {
            "127.0.0.1:9180": f"127.0.0.1:{self.authz.port}",
            "listen 8080": f"listen 127.0.0.1:{self.ports['open']}",
            "listen 8081": f"listen 127.0.0.1:{self.ports['closed']}",
            "127.0.0.1:8000": f"127.0.0.1:{model_port}",
            "127.0.0.1:8001": f"127.0.0.1:{model_port}",
            "/var/log/nginx": str(self.folder),
        }
        (self.folder / "gatewatch.conf").write_text(replaced((SNIPPETS / "nginx.conf").read_text(), changes))
        shutil.copy(SNIPPETS / "gatewatch-ask.conf", self.folder)
        main = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        main.write_text(NGINX_MAIN.format(folder=self.folder, user=user))
        assert NGINX is not None
        return [[NGINX, "-e", str(self.folder / "error.log"), "-p", str(self.folder), "-c", str(main)]]


class Envoy(Gateway):
    def prepare(self, model_port: int) -> list[list[str]]:
        text = (SNIPPETS / "envoy.yaml").read_text()
        commands = []
        for how, port in self.ports.items():
            changes = {
                "port_value: 8080": f"port_value: {port}",
                "port_value: 9180": f"port_value: {self.authz.port}",
                "port_value: 8000": f"port_value: {model_port}",
                "/var/log/envoy": str(self.folder),
            }
            if how == "closed":
                changes["failure_mode_allow: true"] = "failure_mode_allow: false"
            path = self.folder / f"{how}.yaml"
            path.write_text(replaced(text, changes))
            words = [
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--file-flush-interval-msec",
                "50",
                "-l",
                "warning",
            ]
            commands.append([ENVOY, "-c", str(path), *words])
        return commands


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """`text` with each of these changed; every one must occur."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except ConnectionError:
        return False
