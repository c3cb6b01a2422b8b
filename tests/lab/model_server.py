"""A small model server for the lab: it speaks enough of the OpenAI HTTP interface to be guarded.

`/v1/completions` streams numbered tokens as server-sent events for as long as it is asked to, each with the
moment it was sent, so that whoever reads it can tell how late the last one was. It judges nobody but by the
API key, and it must never listen anywhere but where it was told to. An answer that it cannot finish it notes on
standard output: `PORT ended: ECONNRESET`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_TOKENS = 10_000_000
MODEL = "lab-7b"


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    keys: frozenset[str] = frozenset()

    def server_bind(self) -> None:
        """Without the look-up of a name that nobody asks for, which waits where there is no name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


class Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """nginx keeps the access log."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.send_header("X-Model", MODEL)
        self.end_headers()
        self.wfile.write(said)

    def _permitted(self) -> bool:
        scheme, _, key = self.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and key in self.server.keys

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        elif not self._permitted():
            self._answer(401, {"error": "an API key is needed"})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": MODEL, "object": "model"}]})
        else:
            self._answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        length = min(int(self.headers.get("Content-Length") or 0), 1 << 20)
        body = self.rfile.read(length)
        if self.path == "/collective_rpc":  # as vLLM: its API key guards what begins with /v1 alone
            self._answer(200, {"results": [None]})
            return
        if not self._permitted():
            self._answer(401, {"error": "an API key is needed"})
            return
        if self.path != "/v1/completions":
            self._answer(404, {"error": "no such path"})
            return
        try:
            asked = json.loads(body)
            count = min(int(asked.get("max_tokens", 16)), MOST_TOKENS)
            gap_s = 1.0 / float(asked.get("tokens_per_second", 100))
        except (ValueError, AttributeError, TypeError, ZeroDivisionError):
            self._answer(400, {"error": "the body is no request for a completion"})
            return
        self._stream(count, gap_s)

    def _stream(self, count: int, gap_s: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Model", MODEL)
        self.end_headers()
        due = time.monotonic()
        try:
            for number in range(count):
                sent = {"n": number, "t_ns": time.monotonic_ns(), "choices": [{"text": "token "}]}
                self._chunk(b"data: " + json.dumps(sent).encode() + b"\n\n")
                due += gap_s
                time.sleep(max(0.0, due - time.monotonic()))
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError as error:
            self.close_connection = True
            name = errno.errorcode.get(error.errno or 0, str(error))
            os.write(1, f"{self.server.server_port} ended: {name}\n".encode())  # whole, whichever thread

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def main() -> None:
    """`model_server.py ADDRESS PORT KEY…`"""
    address, port, *keys = sys.argv[1:]
    ModelServer.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = ModelServer((address, int(port)), Handler)
    server.keys = frozenset(keys)
    server.serve_forever()


if __name__ == "__main__":
    main()
