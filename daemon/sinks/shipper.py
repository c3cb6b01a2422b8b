"""The process that ships the outbox: it takes rows from the analyser and writes them to the sinks.

It holds the sinks' credentials and reads nothing hostile but the alerts themselves, as data. Rows stay in the
analyser's store until a sink has them for good, so this process may be killed at any moment. It must never
acknowledge a row before that, nor let one sink wait for another.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ConfigError, GatewatchError, UsageError
from .contract import LARGEST_DOCUMENT, WINDOW, RejectedError, Row, Sink, SinkError
from .registry import make_sink

_LINE_LIMIT = LARGEST_DOCUMENT + (64 << 10)
MOST_WAIT_S = 3600.0
"""The longest that a receiver can put us off with; it is tried again by then whatever it said."""
_LASTING_S = 5.0  # a connection that lasted so long was a good one


class Backoff:
    """Waiting times that double, each shortened by chance so that many clients do not come at once."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def reset(self) -> None:
        self._next_s = self._first_s

    def next_s(self) -> float:
        wait_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, self._most_s)
        return wait_s


class _Lane:
    """One sink's queue and the task that empties it. Rows of a connection that is gone are dropped: they come again."""

    def __init__(self, name: str, sink: Sink, say: Callable[[str], None], retry: Backoff) -> None:
        self.name = name
        self._sink = sink
        self._most_rows: int = getattr(sink, "most_rows", WINDOW)
        self._say = say
        self._retry = retry
        self._failing = ""
        self._rows: asyncio.Queue[tuple[Row, asyncio.StreamWriter]] = asyncio.Queue(2 * WINDOW)
        self._connection: asyncio.StreamWriter | None = None
        self._changed = asyncio.Event()

    def connect(self, connection: asyncio.StreamWriter | None) -> None:
        self._connection = connection
        while not self._rows.empty():
            self._rows.get_nowait()
        self._retry.reset()
        self._changed.set()

    def put(self, row: Row, connection: asyncio.StreamWriter) -> None:
        """Raises asyncio.QueueFull where the analyser sends more than the window allows."""
        self._rows.put_nowait((row, connection))

    async def run(self) -> None:
        try:
            while True:
                queued = [await self._rows.get()]
                while len(queued) < WINDOW and not self._rows.empty():
                    queued.append(self._rows.get_nowait())
                connection = self._connection
                rows = [row for row, came_by in queued if came_by is connection]
                while rows and connection is not None and connection is self._connection:
                    rows = await self._write(rows[: self._most_rows], connection) + rows[self._most_rows :]
        finally:
            await self._sink.close()

    async def _write(self, rows: list[Row], connection: asyncio.StreamWriter) -> list[Row]:
        """Writes, and tells the analyser; returns the rows that are still to be written."""
        try:
            await _whole(self._sink.write(rows))
        except RejectedError as rejected:
            at = next(at for at, row in enumerate(rows) if row.id == rejected.row_id)
            if at:
                await self._tell(connection, {"ack": rows[at - 1].id, "sink": self.name})
            reason = rejected.message
            self._say(f"sink {self.name}: row {rejected.row_id} is refused for good: {reason}")
            await self._tell(connection, {"dead": rejected.row_id, "sink": self.name, "reason": reason})
            return rows[at + 1 :]
        except SinkError as error:
            await self._failed(str(error), rows[0].id, connection, min(error.wait_s, MOST_WAIT_S))
            return rows
        except Exception as error:  # a fault in one sink must not stop the others
            await self._failed(f"{type(error).__name__}: {error}", rows[0].id, connection)
            return rows
        if self._failing:
            self._say(f"sink {self.name}: works again")
            self._failing = ""
        self._retry.reset()
        await self._tell(connection, {"ack": rows[-1].id, "sink": self.name})
        return []

    async def _failed(
        self, text: str, row_id: int, connection: asyncio.StreamWriter, least_s: float = 0.0
    ) -> None:
        if text != self._failing:
            self._failing = text
            self._say(f"sink {self.name}: {text}")
        self._changed.clear()
        await self._tell(connection, {"error": text, "sink": self.name, "id": row_id})
        try:
            async with asyncio.timeout(max(self._retry.next_s(), least_s)):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _tell(self, connection: asyncio.StreamWriter, message: dict[str, object]) -> None:
        if connection is not self._connection:
            return
        try:
            connection.write(msgspec.json.encode(message) + b"\n")
            await connection.drain()
        except ConnectionError:
            pass  # The reader notices, and connects again.


async def _whole(writing: Any) -> None:
    """Awaits a write to its end even when cancelled: a thread goes on writing whoever waits for it."""
    task = asyncio.ensure_future(writing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def ship(
    socket_path: Path,
    sinks: Mapping[str, Sink],
    say: Callable[[str], None],
    *,
    first_retry_s: float = 0.1,
    most_retry_s: float = 30.0,
) -> None:
    """Ships until it is cancelled; connects again, with growing pauses, whenever the analyser is gone."""
    lanes = {
        name: _Lane(name, sink, say, Backoff(first_retry_s, most_retry_s)) for name, sink in sinks.items()
    }
    tasks = [asyncio.create_task(lane.run()) for lane in lanes.values()]
    pause = Backoff(min(first_retry_s, 0.05), 5.0)
    said = False
    try:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(socket_path, limit=_LINE_LIMIT)
            except OSError as error:
                if not said:
                    say(
                        f"shipper: the analyser cannot be reached at {socket_path} ({error.strerror}); tries again"
                    )
                    said = True
                await asyncio.sleep(pause.next_s())
                continue
            said = False
            began_s = asyncio.get_running_loop().time()
            try:
                await _session(reader, writer, lanes)
            except (OSError, asyncio.IncompleteReadError):
                pass
            except (msgspec.MsgspecError, asyncio.LimitOverrunError, asyncio.QueueFull) as error:
                say(f"shipper: the analyser sent what cannot be understood ({type(error).__name__}: {error})")
            finally:
                for lane in lanes.values():
                    lane.connect(None)
                writer.close()
            if asyncio.get_running_loop().time() - began_s > _LASTING_S:
                pause.reset()
            await asyncio.sleep(pause.next_s())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _session(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lanes: Mapping[str, _Lane]
) -> None:
    """One connection, until the analyser closes it."""
    for lane in lanes.values():
        lane.connect(writer)
    writer.write(msgspec.json.encode({"hello": "shipper", "sinks": list(lanes)}) + b"\n")
    await writer.drain()
    decoder = msgspec.json.Decoder(Row)
    while True:
        row = decoder.decode(await reader.readuntil(b"\n"))
        if row.sink not in lanes:
            raise msgspec.ValidationError(f"a row for the unknown sink {row.sink!r}")
        lanes[row.sink].put(row, writer)


def _say(text: str) -> None:
    print(f"gatewatch: {text}", file=sys.stderr, flush=True)


class _Unmade:
    """A hook that cannot be made, since its secret was taken away, say. Its documents wait, and the others go on."""

    def __init__(self, error: ConfigError) -> None:
        self._error = error

    async def write(self, rows: Sequence[Row]) -> None:
        raise SinkError(
            self._error.message, remedy=f"{self._error.remedy or 'mend it'}, and start Gatewatch again"
        )

    async def close(self) -> None: ...


def _make(name: str, options: Path | Mapping[str, Any]) -> Sink:
    try:
        return make_sink(name, options)
    except ConfigError as error:
        if isinstance(options, Path) or options.get("type") != "webhook":
            raise
        return _Unmade(error)


def run_shipper(
    socket_path: Path,
    sinks: Mapping[str, Path | Mapping[str, Any]],
    say: Callable[[str], None] = _say,
    give_up_rights: Callable[[], None] = lambda: None,
) -> int:
    """The whole process: ships until SIGTERM or SIGINT, then returns 0.

    `sinks` maps each sink's or hook's name to its options (`type` and those of its class), or to the path of a
    JSON-lines file. `give_up_rights` is called once secrets and modules are read. Raises ConfigError.
    """
    made = {name: _make(name, options) for name, options in sinks.items()}
    give_up_rights()

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        work = asyncio.ensure_future(ship(socket_path, made, say))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            pass

    asyncio.run(until_signal())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gatewatch.daemon.sinks.shipper", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the analyser's outbox socket")
    parser.add_argument(
        "--sink",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a JSON-lines file; may be given again",
    )
    given = parser.parse_args(arguments)
    try:
        sinks = {}
        for text in given.sink:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise UsageError(f"--sink {text}: not NAME=PATH")
            sinks[name] = Path(path)
        return run_shipper(given.socket, sinks)
    except GatewatchError as error:
        _say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
