"""The analyser: follows logs, takes packets, detects, decides, and owns the store.

It has no privilege: it reads logs by group and opens no IP socket; what listens was handed to it. What it lets
out is a committed row of the outbox, or a request that the enforcer judges for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..config.schema import Config
from ..detectors.finding import Finding
from ..playbooks.engine import Engine
from ..playbooks.loader import load_playbooks
from .assembly import build_correlator, build_detection, parser_options, provenance_of
from .collectors.shared import PacketSource
from .control import serve_commands
from .enforcer.client import Enforcer, socket_path
from .enforcer.rails import Rails
from .errors import GatewatchError, StoreError
from .events import NS_PER_S, rfc3339
from .feeds import Feed, JournalFeed, LogFeed
from .incidents import Change, Incident, action_document
from .response import Responder
from .sinks.outbox import OutboxServer
from .store import Store

PACKETS_A_TURN = 16_384
DIRTY_S = 1.0
"""How long an incident that grew, without news for the sinks, may wait to be saved."""
HEALTH_S = 5.0
DAY_NS = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class LogSource:
    """One log to follow. `format` None: seen from its first lines."""

    path: Path
    format: str | None = None
    trusted: bool = False
    timezone: str = "local"
    year: int | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service hands to the analyser."""

    config: Config
    rails: Rails | None
    state: Path
    mode: str
    logs: tuple[LogSource, ...]
    journal_units: tuple[str, ...]  # empty: the journal is not followed
    local: tuple[str, ...]
    control: socket.socket  # from the service: a new packet worker's socket with each message
    commands: socket.socket  # listening, for the command line
    outbox: socket.socket  # listening, for the shipper
    shipper_uid: int
    watches_packets: bool
    enforces: bool
    say: Callable[[str], None]


class Analyser:
    """One process, one event loop, one owner of all state. Raises StoreError, ConfigError."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store = Store.open(parts.state / "analyser" / "gatewatch.db")
        self._hash_key = self.store.hash_key()
        self.feeds = self._make_feeds()
        self._detection = build_detection(parts.config, list(parts.local), self._hash_key)
        self._correlator = build_correlator(parts.config, parts.rails)
        self._responder = Responder(
            Engine(
                load_playbooks(parts.config.playbooks.directories, shipped=parts.config.playbooks.shipped)
            ),
            self.store,
            Enforcer(socket_path(parts.state)) if parts.enforces else None,
            mode="enforce" if parts.mode == "enforce" else "observe",
            max_action_age_s=parts.config.detection.max_action_age_s,
            corroborated=self._corroborated,
            say=parts.say,
        )
        self._outbox = OutboxServer(self.store, parts.shipper_uid)
        self._packets: PacketSource | None = None
        self._dirty: dict[str, Incident] = {}
        self._changed_since_snapshot = False
        self._stopping = asyncio.Event()
        self._started_ns = time.time_ns()

    async def run(self, ready: Callable[[], None]) -> int:
        """Recovers, then works until SIGTERM; the last act is a snapshot."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._recover()
        work = [self._follow(feed) for feed in self.feeds.values()] + [
            self._responder.run(self._action_finished),
            self._outbox.serve(self.parts.outbox),
            serve_commands(self.parts.commands, self._command),
            self._take_handovers(),
            self._tick(),
        ]
        tasks = [asyncio.ensure_future(w) for w in work]
        stop = asyncio.ensure_future(self._stopping.wait())
        ready()
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not stop:
                    task.result()
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
            with contextlib.suppress(StoreError):
                self._snapshot()
            self._responder.close()
            self.store.close()
        return 0

    def _make_feeds(self) -> dict[str, Feed]:
        parts = self.parts
        options = partial(parser_options, parts.config, parts.rails, self._hash_key)
        feeds: list[Feed] = [
            LogFeed(
                log.path,
                log.format,
                options(timezone=log.timezone, year=log.year, provenance=provenance_of(log.trusted)),
                parts.say,
            )
            for log in parts.logs
        ]
        if parts.journal_units:
            feeds.append(JournalFeed(parts.journal_units, options, parts.say))
        return {feed.name: feed for feed in feeds}

    def _recover(self) -> None:
        """The state of the last snapshot, then what was read since, once more; incidents come from their rows."""
        saved: dict[str, Any] = {}
        try:
            state = self.store.snapshot()
            if state is not None:
                self._detection.load(state["detection"])
                saved = state["feeds"]
        except (StoreError, KeyError, ValueError, TypeError) as error:
            self.parts.say(f"what the detectors remembered cannot be used, they start afresh: {error}")
        checkpoints = self.store.checkpoints()
        for name, feed in self.feeds.items():
            if name in saved:
                feed.load(saved[name])
            if name in checkpoints:
                feed.resume(checkpoints[name])
        self._correlator.restore(
            Incident.from_state(s) for s in self.store.open_states(time.time_ns() - 2 * DAY_NS)
        )
        findings: dict[str, Finding] = {}
        lost = 0
        for note in self.store.batches():
            feed_again = self.feeds.get(note.source)
            if feed_again is None:
                continue
            reading = feed_again.again(note.range, note.receive_ns)
            if reading is None:
                lost += 1
                continue
            findings |= {f.id: f for f in self._detection.auth(reading.events, reading.receive_ns)}
        if lost:
            self.parts.say(f"{lost} pieces of logs read before the restart are gone and were not read again")
        self._settle(list(findings.values()))
        self._responder.pending_again()

    async def _follow(self, feed: Feed) -> None:
        async for reading in feed.readings():
            findings = self._detection.auth(reading.events, reading.receive_ns)
            self._settle(findings, (feed.name, reading.note, reading.now_ns))

    async def _take_handovers(self) -> None:
        """Each new packet worker: the service sends the socket through which it hands its ring over."""
        loop = asyncio.get_running_loop()
        while True:
            message, descriptors = await _receive(self.parts.control)
            if not message:
                self._stopping.set()
                return
            if self._packets is not None:
                loop.remove_reader(self._packets.fileno())
                self._packets.close()
                self._packets = None
            handover = socket.socket(fileno=descriptors[0])
            try:
                self._packets = await loop.run_in_executor(None, PacketSource, handover)
            except (GatewatchError, OSError, ValueError) as error:
                self.parts.say(f"packets are off: {error}")
                handover.close()
                continue
            loop.add_reader(self._packets.fileno(), self._take_packets)

    def _take_packets(self) -> None:
        if self._packets is None:
            return
        rows = self._packets.pull(PACKETS_A_TURN)
        if len(rows):
            self._settle(self._detection.packets(rows))
            self._try_waiting()

    def _corroborated(self, source: str) -> bool:
        return not self.parts.watches_packets or self._detection.corroborated(source, time.time_ns())

    def _settle(self, findings: list[Finding], note: tuple[str, dict[str, Any], int] | None = None) -> None:
        """Findings to incidents, decisions and outbox rows, all in one transaction with the range of input."""
        self._changed_since_snapshot = self._changed_since_snapshot or note is not None or bool(findings)
        changes = self._correlator.apply(findings)
        telling = [c for c in changes if c.telling]
        self._dirty |= {c.incident.id: c.incident for c in changes}
        actions: list[dict[str, Any]] = []
        try:
            with self.store.transaction():
                if note is not None:
                    self.store.note_batch(*note)
                for change in telling:
                    actions += self._save(change.incident, tell=True)
        except StoreError as error:
            self.parts.say(f"not saved, and tried again: {error}")
            for change in telling:
                change.incident.told = ("", "", 0, 0)
            return
        self._responder.submit(actions)
        if telling:
            self.store.sync()
            self._outbox.notify()
        for change in telling:
            self._show(change, actions)

    def _save(self, incident: Incident, *, tell: bool) -> list[dict[str, Any]]:
        now_ns = time.time_ns()
        document = incident.document()
        self.store.save_incident(document, incident.state(), incident.start_ns, incident.end_ns, now_ns)
        self._dirty.pop(incident.id, None)
        if not tell:
            return []
        self.store.add_to_outbox(
            f"{incident.id}:{incident.revision}", {"event": "incident", **document}, now_ns
        )
        actions = self._responder.decide(document)
        for action in actions:
            if action["state"] not in ("pending", "skipped"):
                self._tell_action(action)
        return actions

    def _tell_action(self, action: Mapping[str, Any]) -> None:
        document = {"event": "action", **action_document(action)}
        self.store.add_to_outbox(f"{action['id']}:{action['state']}", document, time.time_ns())

    def _action_finished(self, action: dict[str, Any]) -> None:
        try:
            with self.store.transaction():
                self.store.save_action(action)
                self._tell_action(action)
        except StoreError as error:
            self.parts.say(f"action {action['id']} is not in the books: {error}")
            return
        self._outbox.notify()

    def _try_waiting(self) -> None:
        """What waited for a handshake, or for the enforcer, is decided again."""
        for incident in self._responder.waiting:
            if not any(self._corroborated(s) for s in incident["blockable"]):
                continue
            with self.store.transaction():
                actions = self._responder.decide(incident)
            self._responder.submit(actions)

    def _show(self, change: Change, actions: Iterable[Mapping[str, Any]]) -> None:
        incident = change.incident
        word = "new" if change.new else "grown"
        self.parts.say(
            f"incident {incident.id} {incident.priority} {incident.lead.kind} ({word}): {incident.title()}"
        )
        for action in actions:
            if action["incident"] == incident.id and action["state"] not in ("pending", "skipped"):
                self.parts.say(f"  {action['action']} {action['target']}: {action['state']}, {action['why']}")

    async def _tick(self) -> None:
        snapshot_s = self.parts.config.store.snapshot_s
        next_snapshot = time.monotonic() + snapshot_s
        next_health = 0.0
        while True:
            await asyncio.sleep(DIRTY_S)
            try:
                if self._dirty:
                    with self.store.transaction():
                        for incident in list(self._dirty.values()):
                            self._save(incident, tell=False)
                if time.monotonic() >= next_snapshot:
                    next_snapshot = time.monotonic() + snapshot_s
                    self._snapshot()
                    self._correlator.expire()
                if time.monotonic() >= next_health:
                    next_health = time.monotonic() + HEALTH_S
                    self.store.put("health", self.health())
                self._responder.retry_failed()
            except StoreError as error:
                self.parts.say(f"not saved, and tried again: {error}")

    def _snapshot(self) -> None:
        if not self._changed_since_snapshot:
            return
        state = {
            "detection": self._detection.save(),
            "feeds": {name: feed.save() for name, feed in self.feeds.items()},
        }
        checkpoints = {name: at for name, feed in self.feeds.items() if (at := feed.checkpoint()) is not None}
        with self.store.transaction():
            for incident in list(self._dirty.values()):
                self._save(incident, tell=False)
            self.store.save_snapshot(state, checkpoints, time.time_ns())
        self._changed_since_snapshot = False

    def health(self) -> dict[str, Any]:
        """What `status` shows."""
        return {
            "time": rfc3339(time.time_ns()),
            "pid": os.getpid(),
            "started": rfc3339(self._started_ns),
            "mode": self.parts.mode,
            "logs": [feed.health() for feed in self.feeds.values()],
            "packets": None if self._packets is None else dict(self._packets.counters()),
            "auth_events": self._detection.auth_events,
            "packets_seen": self._detection.packets_seen,
            "flows": self._detection.flows_seen,
            "sinks": self.store.lags(self.parts.config.sinks),
        }

    def _command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers the command line: `acknowledge`, `close`, `health`."""
        match request.get("do"):
            case "health":
                return {"ok": True, **self.health()}
            case "acknowledge" | "close" as what:
                incident, note = str(request.get("incident", "")), str(request.get("note", ""))[:1000]
                status = "acknowledged" if what == "acknowledge" else "closed"
                with self.store.transaction():
                    if not self.store.set_status(incident, status, note):
                        return {"ok": False, "error": f"no incident {incident}"}
                    self.store.add_to_outbox(
                        f"{incident}:{status}:{time.time_ns()}",
                        {"event": "status", "id": incident, "status": status, "note": note},
                        time.time_ns(),
                    )
                self._outbox.notify()
                return {"ok": True, "incident": incident, "status": status}
            case other:
                return {"ok": False, "error": f"unknown request {json.dumps(other)[:80]}"}


async def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """One message with its descriptors from a non-blocking socket."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
            return message, descriptors
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(control, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(control)


def run_analyser(parts: Parts, ready: Callable[[], None]) -> int:
    """The body of the analyser's process; returns its exit code."""

    async def work() -> int:
        return await Analyser(parts).run(ready)

    return asyncio.run(work())
