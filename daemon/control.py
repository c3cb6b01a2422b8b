"""The analyser's command socket: one JSON object a line in, one out. Only root and the same user are served."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import GatewatchError

MOST_BYTES = 65_536
PATIENCE_S = 5.0


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end (SO_PEERCRED, unix(7))."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


async def serve_commands(
    listening: socket.socket, answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> None:
    """Answers one request a connection, for as long as the task lives; bad requests get an error, never a crash."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = writer.get_extra_info("socket")
            if peer_uid(connection) not in (0, os.geteuid()):
                made: Mapping[str, Any] = {"ok": False, "error": "only root may ask"}
            else:
                line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
                request = json.loads(line)
                made = answer(request) if isinstance(request, dict) else {"ok": False, "error": "no object"}
        except (ValueError, RecursionError, TimeoutError, OSError, GatewatchError) as error:
            made = {"ok": False, "error": str(error) or "no request in time"}
        try:
            writer.write(json.dumps(made).encode() + b"\n")
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, sock=listening, limit=MOST_BYTES)
    async with server:
        await server.serve_forever()


def ask(path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """One request to the analyser that listens at `path`. Raises GatewatchError where none answers or it refuses."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline(1 << 20))
    except (OSError, ValueError) as error:
        raise GatewatchError(
            f"{path}: the analyser does not answer ({error})", remedy="is `gatewatch run` running?"
        ) from error
    if not answer.get("ok"):
        raise GatewatchError(str(answer.get("error", "the analyser refused")))
    return dict(answer)
