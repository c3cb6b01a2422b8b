"""The analyser: follows logs, takes packets, detects, decides, and owns the store.

It has no privilege: it reads logs by group and opens no IP socket; what listens was handed to it. What it lets
out is a committed row of the outbox, or a request that the enforcer judges for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..config.values import duration_text
from ..detectors.finding import Finding
from ..playbooks.actions.block_source import MOST_NETWORKS_OF_AS
from ..playbooks.breaker import Breaker, client_network
from ..playbooks.engine import Engine
from . import recovery
from .assembly import build_correlator, build_detection, build_geography, parser_options, provenance_of
from .benign import BenignList
from .books import Books
from .collectors.shared import PacketSource
from .control import serve_commands
from .corroboration import Needed, needs
from .denied import DenyList
from .desk import Desk
from .detection import Detection
from .enforcer.client import socket_path
from .errors import GatewatchError, StoreError
from .events import NS_PER_S, rfc3339
from .evidence import Evidence
from .exec_link import ExecLink
from .feeds import Feed, JournalFeed, LogFeed, Reading
from .incidents import MOST_OPEN, Change, Incident, action_document
from .link import EnforcerLink
from .masking import Mask
from .news import News
from .parts import Parts
from .response import Carriers, Responder, to_be_filed
from .sinks.outbox import OutboxServer
from .store import Store
from .successes import Successes
from .tripping import tripped

PACKETS_A_TURN = 16_384
MOST_NEEDED = 16_384
DIRTY_S = 1.0
"""How long an incident that grew, without news for the sinks, may wait to be saved."""
REST_S = 5.0
"""How long an incident must have been quiet before what it grew by is told."""
HEALTH_S = 5.0
PRUNE_S = 86_400.0
PLACES_S = 60.0
DAY_NS = 86_400 * NS_PER_S


class Analyser:
    """One process, one event loop, one owner of all state. Raises StoreError, ConfigError."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store = Store.open(parts.state / "analyser" / "gatewatch.db")
        self._hash_key = self.store.hash_key()
        self.feeds = self._make_feeds()
        self._geography = build_geography(
            parts.config, patient=True, index_systems=any(p.uses_systems() for p in parts.playbooks)
        )
        for problem in self._geography.refresh() if self._geography is not None else ():
            parts.say(problem)
        self._detection = self._make_detection()
        self._correlator = build_correlator(parts.config, parts.rails)
        self._correlator.recall = self._recall
        self._correlator.mask = Mask(self._hash_key, lambda name: self._detection.knows_user(name))
        self._correlator.benign = self._benign = BenignList(recovery.exceptions(self.store, parts.say))
        self._engine = Engine(parts.playbooks)
        self._successes = Successes()
        self._lately: tuple[int, dict[str, int], dict[str, int]] = (0, {}, {})
        self._denied = DenyList(parts.state / "run" / "denied")
        self._responder = Responder(
            self._engine,
            self.store,
            Carriers(
                enforcer=EnforcerLink(socket_path(parts.state)) if parts.enforces else None,
                commands=_commands(parts),
                evidence=Evidence(parts.state / "analyser" / "evidence"),
                hooks=frozenset(parts.config.hooks),
                geography=self._networks_of_system,
            ),
            mode="enforce" if parts.mode == "enforce" else "observe",
            max_action_age_s=parts.config.detection.max_action_age_s,
            corroborated=self._corroborated,
            say=parts.say,
            breaker=self._breaker,
        )
        self.store.hooks = frozenset(parts.config.hooks)
        self._outbox = OutboxServer(self.store, parts.shipper_uid, delivered=self._delivered)
        self._news = News(
            socket_path(parts.state),
            self.store,
            committed=self._publish,
            complain=self._complain,
            say=parts.say,
            heard=self._heard,
        )
        self._desk = Desk(
            parts,
            self.store,
            detection=lambda: self._detection,
            correlator=self._correlator,
            benign=self._benign,
            engine=self._engine,
            responder=self._responder,
            recall=self._recall,
            publish=self._publish,
            health=self.health,
        )
        self._packets: PacketSource | None = None
        self._needed: dict[tuple[Any, ...], Needed] = {}
        self._dirty: dict[str, Incident] = {}
        self._untold: dict[str, Incident] = {}
        self._unsynced = False
        self._syncing: asyncio.Task[None] | None = None
        self._growing: dict[str, tuple[Incident, float]] = {}
        self._unbooked: dict[str, dict[str, Any]] = {}
        self._unnoted = False
        self._trouble = ""
        self._changed_since_snapshot = False
        self._stopping = asyncio.Event()
        self._started_ns = time.time_ns()
        self._faults = 0

    async def run(self, ready: Callable[[], None]) -> int:
        """Recovers, then works until SIGTERM; the last act is a snapshot."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._recover()
        work = [self._follow(feed) for feed in self.feeds.values()] + [
            self._responder.run(self._action_finished),
            self._news.run(),
            self._outbox.serve(self.parts.outbox),
            serve_commands(self.parts.commands, self._desk.answer),
            self._take_handovers(),
            self._tick(),
            self._renew_places(),
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
            if self._syncing is not None:
                await self._syncing
            with contextlib.suppress(StoreError):
                self._snapshot()
            self.store.close()
        return 0

    def _make_feeds(self) -> dict[str, Feed]:
        parts = self.parts
        options = partial(parser_options, parts.config, parts.rails, self._hash_key)
        feeds: list[Feed] = [
            LogFeed(
                log.path,
                log.format,
                options(
                    timezone=log.timezone,
                    year=log.year,
                    provenance=provenance_of(log.trusted),
                    verified_users=log.verified_users,
                ),
                parts.say,
            )
            for log in parts.logs
        ]
        if parts.journal_units:
            feeds.append(JournalFeed(parts.journal_units, options, parts.say))
        return {feed.name: feed for feed in feeds}

    def _make_detection(self) -> Detection:
        parts = self.parts
        return build_detection(
            parts.config, list(parts.local), self._hash_key, self._geography, parts.sshd.ports
        )

    def _recover(self) -> None:
        """The state of the last snapshot, then what was read since, once more; incidents come from their rows."""
        if not recovery.remember(self.store, self._detection, self.feeds, self._successes, self.parts.say):
            self._detection = self._make_detection()
            self.feeds = self._make_feeds()
        recovery.go_on(self.store, self.feeds, self.parts.say)
        gap_ns = self.parts.config.detection.incident_gap_s * NS_PER_S
        since_ns = time.time_ns() - 2 * max(gap_ns, DAY_NS)
        self._correlator.restore(recovery.incidents(self.store, since_ns, MOST_OPEN, self.parts.say))
        self._settle(recovery.read_again(self.store, self.feeds, self._judge, self.parts.say))
        self._responder.resume()

    def _recall(self, incident: str) -> Incident | None:
        """An incident that is in the store and no longer in memory."""
        try:
            found = self.store.incident_state(incident)
            return None if found is None else Incident.from_state(*found)
        except (StoreError, KeyError, TypeError, ValueError, IndexError):
            return None

    def _judge(self, name: str, reading: Reading) -> list[Finding]:
        self._successes.note(reading.events)
        return self._guarded(partial(self._detection.auth, reading.events, reading.receive_ns), name)

    async def _follow(self, feed: Feed) -> None:
        async for reading in feed.readings():
            self._settle(self._judge(feed.name, reading), (feed.name, reading.note, reading.now_ns))

    def _guarded(self, detect: Callable[[], list[Finding]], source: str) -> list[Finding]:
        """Findings, or none where a detector failed: a fault that some input provokes must not end detection."""
        try:
            return detect()
        except Exception as error:
            self._faults += 1
            self.parts.say(
                f"a piece of {source} was not judged, a fault in detection: {type(error).__name__}: {error}"
            )
            return []

    async def _take_handovers(self) -> None:
        """Each new packet worker: the service sends the socket through which it hands its ring over."""
        loop = asyncio.get_running_loop()
        while True:
            message, descriptors = await _receive(self.parts.control)
            if not message:
                self._stopping.set()
                return
            self._leave_packets()
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
        try:
            rows = self._packets.pull(PACKETS_A_TURN)
        except GatewatchError as error:
            self.parts.say(f"packets: captured anew: {error}")
            self._leave_packets()
            return
        if len(rows):
            self._settle(self._guarded(partial(self._detection.packets, rows), "the packets"))
            self._try_waiting()

    def _leave_packets(self) -> None:
        """Lets go of the capture process, which ends it."""
        if self._packets is not None:
            asyncio.get_running_loop().remove_reader(self._packets.fileno())
            self._packets.close()
            self._packets = None

    def _networks_of_system(self, source: str) -> list[str] | None:
        if self._geography is None:
            return None
        return self._geography.networks_around(source, MOST_NETWORKS_OF_AS)

    def _breaker(self, books: Books) -> Breaker:
        """Who succeeded lately, and what is blocked: by the list that the enforcer publishes, and by the books."""
        options, now_ns = self.parts.config.response.breaker, time.time_ns()
        self._denied.refresh()
        if abs(now_ns - self._lately[0]) > NS_PER_S:  # many incidents in one second share the answer
            self._lately = now_ns, self._successes.clients(now_ns), self._successes.users(now_ns)
        _, clients, users = self._lately
        return Breaker(
            clients=clients,
            users=users,
            denied_client=lambda client: books.covers(client) or _denies_client(self._denied, client),
            denied_user=lambda user: books.covers_user(user) or _denies_user(self._denied, user),
            share=options.share,
            spared=options.spared,
            now_ns=now_ns,
        )

    def _heard(self, entry: Mapping[str, Any]) -> None:
        """What became of requests to which people had to agree. Inside the transaction that notes the place."""
        for action in self._responder.heard(entry):
            self._tell_action(action)

    def _delivered(self, sink: str, key: str, problem: str | None) -> None:
        """A hook took what it was sent, or never will. Raises StoreError where that cannot be noted."""
        try:
            with self.store.transaction():
                for action in self._responder.delivered(key, problem):
                    self._tell_action(action)
        except StoreError as error:
            self._complain(error)
            raise  # the row comes again
        self._publish()

    def _tell_trips(self) -> None:
        """The circuit breaker stopped something: that is an incident of its own."""
        trips, self._responder.trips = self._responder.trips, []
        if trips:
            self._settle([tripped(trips, time.time_ns())])

    def _tend_actions(self) -> None:
        with self.store.transaction():
            ended = self._responder.tend()
            for action in ended:
                self._tell_action(action)
        if ended:
            self._publish()

    def _corroborated(
        self, source: str, incident: Mapping[str, Any] | None = None, accused: str = ""
    ) -> bool:
        """Whether the wire showed what an incident says of a source, or packets are not watched.

        `accused`: the source or user against whom something is to be done, "" = whoever the incident accuses. Without
        an incident: whether the source was seen to be connected within the hour.
        """
        if not self.parts.watches_packets:
            return True
        needed = None if incident is None else self._needs(incident, source, accused)
        return self._detection.corroborated(source, time.time_ns(), needed)

    def _needs(self, incident: Mapping[str, Any], source: str, accused: str) -> Needed:
        """What is asked is asked again with every turn of packets, for each incident that waits."""
        key = incident["id"], incident.get("revision"), incident["end"], source, accused
        if key not in self._needed:
            if len(self._needed) >= MOST_NEEDED:
                self._needed.clear()
            self._needed[key] = needs(incident, source, accused, tries=self.parts.sshd.tries)
        return self._needed[key]

    def _settle(
        self,
        findings: list[Finding],
        note: tuple[str, dict[str, Any], int] | None = None,
        at_rest: Iterable[Incident] = (),
    ) -> None:
        """Findings to incidents, decisions and outbox rows, all in one transaction with the range of input.

        What cannot be saved (a full disk) is told later. Of the input no further range is noted then until a
        snapshot was saved: after a crash everything from there on is read again, and nothing left out between.
        """
        self._changed_since_snapshot = self._changed_since_snapshot or note is not None or bool(findings)
        changes = self._correlator.apply(findings)
        self._dirty |= {c.incident.id: c.incident for c in changes}
        telling = [c for c in changes if c.telling]
        now_s = time.monotonic()
        self._growing |= {c.incident.id: (c.incident, now_s) for c in changes if not c.telling}
        rested = [self._correlator.tell(i, at_rest=True) for i in at_rest]
        again = [self._correlator.tell(i) for i in self._untold.values()]
        telling += [*rested, *(c for c in again if c.telling)]
        actions: list[dict[str, Any]] = []
        try:
            with self.store.transaction():
                if note is not None and not self._unnoted:
                    self.store.note_batch(*note)
                for exception in self._benign.changed():
                    self.store.save_exception(exception.state())
                for change in telling:
                    actions += self._save(change.incident, tell=True)
        except StoreError as error:
            self._unnoted = self._unnoted or note is not None
            for change in telling:
                change.take_back()
                if change not in rested:
                    self._untold[change.incident.id] = change.incident
            self._complain(error)
            return
        self._benign.saved()
        if not telling:
            return
        for change in telling:
            self._dirty.pop(change.incident.id, None)
            self._untold.pop(change.incident.id, None)
            self._growing.pop(change.incident.id, None)
            self._show(change, actions)
        self._publish()

    def _tell_what_rests(self) -> None:
        """An incident that grew since it was told, and then no more, is told once again with its last figures.

        One that grows again and again is told after ever longer pauses.
        """
        now_s = time.monotonic()
        due = [
            i for i, since_s in self._growing.values() if now_s - since_s >= REST_S * 2 ** min(i.pauses, 9)
        ]
        for incident in due:
            incident.pauses += 1
        if due:
            self._settle([], at_rest=due)

    def _publish(self) -> None:
        """Committed alerts to the disk, and then to the shipper; the loop does not wait for the disk."""
        self._unsynced = True
        if self._syncing is None:
            self._syncing = asyncio.ensure_future(self._sync())

    async def _sync(self) -> None:
        while self._unsynced:
            self._unsynced = False
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.store.sync)
            except StoreError as error:
                self._complain(error)
            self._outbox.notify()
        self._syncing = None

    def _complain(self, error: StoreError) -> None:
        trouble = f"not saved, and tried again: {error}"
        if self._trouble != trouble:
            self._trouble = trouble
            self.parts.say(trouble)

    def _save(self, incident: Incident, *, tell: bool) -> list[dict[str, Any]]:
        now_ns = time.time_ns()
        document = incident.document()
        actions: list[dict[str, Any]] = []
        if tell:
            actions = self._responder.decide(document | {"status": "closed"} if incident.closed else document)
            self._responder.submit(actions)
        self.store.save_incident(document, incident.state(), incident.start_ns, incident.end_ns, now_ns)
        if not tell:
            return actions
        self.store.add_to_outbox(
            f"{incident.id}:{incident.revision}", {"event": "incident", **document}, now_ns
        )
        self._tell_decided(actions)
        return actions

    def _tell_decided(self, actions: Iterable[Mapping[str, Any]]) -> None:
        """Of what is asked for, or filed, the answer is told."""
        for action in actions:
            if action["state"] not in ("pending", "skipped") and not to_be_filed(action):
                self._tell_action(action)

    def _tell_action(self, action: Mapping[str, Any]) -> None:
        document = {"event": "action", **action_document(action)}
        self.store.add_to_outbox(f"{action['id']}:{action['state']}", document, time.time_ns())

    def _action_finished(self, action: dict[str, Any]) -> None:
        try:
            with self.store.transaction():
                self.store.save_action(action)
                self._tell_action(action)
        except StoreError as error:
            self._unbooked[action["id"]] = action
            self._complain(error)
            return
        self._unbooked.pop(action["id"], None)
        self._outbox.notify()

    def _try_waiting(self) -> None:
        """What waited for a handshake is decided again."""
        for incident in self._responder.due():
            try:
                with self.store.transaction():
                    actions = self._responder.decide(incident)
                    self._tell_decided(actions)
            except StoreError as error:
                self._complain(error)
                return
            self._responder.submit(actions)
            if actions:
                self._publish()

    def _show(self, change: Change, actions: Iterable[Mapping[str, Any]]) -> None:
        incident = change.incident
        word = "new" if change.new else "grown"
        self.parts.say(
            f"incident {incident.id} {incident.priority} {incident.lead.kind} ({word}): {incident.title()}"
        )
        if change.new and incident.lead.threshold:
            lead = incident.lead
            self.parts.say(f"  because: {incident.mask.text(lead.threshold, lead.users)}")
        for action in actions:
            if action["incident"] == incident.id and action["state"] not in ("pending", "skipped"):
                lasting = f" for {duration_text(action['ttl_s'])}" if action["ttl_s"] else ""
                self.parts.say(
                    f"  {action['action']} {action['target']}{lasting}: {action['state']}, {action['why']}"
                )

    async def _tick(self) -> None:
        next_snapshot = time.monotonic() + self.parts.config.store.snapshot_s
        next_health = next_prune = 0.0
        while True:
            await asyncio.sleep(DIRTY_S)
            now = time.monotonic()
            try:
                self._save_dirty()
                if now >= next_snapshot or (self._unnoted and now >= next_health):
                    next_snapshot = now + self.parts.config.store.snapshot_s
                    self._correlator.expire()
                    self._snapshot()
                if now >= next_health:
                    next_health = now + HEALTH_S
                    self.store.put("health", self.health())
                if now >= next_prune:
                    next_prune = now + PRUNE_S
                    kept_ns = self.parts.config.store.retention_days * DAY_NS
                    self.store.prune(time.time_ns() - kept_ns, self.parts.config.sinks)
                    self._benign.forget(time.time_ns() - kept_ns)
                self._tell_what_rests()
                self._try_waiting()
                self._responder.retry_failed()
                self._tell_trips()
                self._tend_actions()
            except StoreError as error:
                self._complain(error)
                continue
            kept_back = self._untold or self._unbooked or self._unnoted or self._news.kept_back
            if self._trouble and not kept_back:
                self._trouble = ""
                self.parts.say("all is saved again")

    async def _renew_places(self) -> None:
        """Takes databases of places that were replaced."""
        loop = asyncio.get_running_loop()
        while self._geography is not None:
            await asyncio.sleep(PLACES_S)
            for problem in await loop.run_in_executor(None, self._geography.refresh):
                self.parts.say(problem)
        await self._stopping.wait()

    def _save_dirty(self) -> None:
        """What grew, and what could not be saved before."""
        if self._untold:
            self._settle([])
        if self._dirty:
            with self.store.transaction():
                for incident in self._dirty.values():
                    self._save(incident, tell=False)
            self._dirty.clear()
        for action in list(self._unbooked.values()):
            self._action_finished(action)

    def _snapshot(self) -> None:
        if not self._changed_since_snapshot:
            return
        state = {
            "detection": self._detection.save(),
            "feeds": {name: feed.save() for name, feed in self.feeds.items()},
            "successes": self._successes.save(),
        }
        checkpoints = {name: at for name, feed in self.feeds.items() if (at := feed.checkpoint()) is not None}
        with self.store.transaction():
            for incident in self._dirty.values():
                self._save(incident, tell=False)
            self.store.save_snapshot(state, checkpoints, time.time_ns())
        self._dirty.clear()
        self._changed_since_snapshot = self._unnoted = False

    def health(self) -> dict[str, Any]:
        """What `status` shows."""
        return {
            "time": rfc3339(time.time_ns()),
            "pid": os.getpid(),
            "started": rfc3339(self._started_ns),
            "mode": self.parts.mode,
            "logs": [feed.health() for feed in self.feeds.values()],
            "packets": None if self._packets is None else dict(self._packets.counters()),
            "faults": self._faults,
            "trouble": self._trouble,
            "auth_events": self._detection.auth_events,
            "packets_seen": self._detection.packets_seen,
            "flows": self._detection.flows_seen,
            "enforcer": self._news.health(),
            "sinks": self.store.lags([*self.parts.config.sinks, *self.parts.config.hooks]),
            "problems": dict(self._outbox.problems),
        }


def _commands(parts: Parts) -> ExecLink | None:
    """The line to the helper that runs commands, where the rails name any. People are told in observe mode, too."""
    named = parts.rails is not None and parts.rails.commands
    return ExecLink(parts.state / "run" / "exec.sock") if named else None


def _denies_client(denied: DenyList, client: str) -> bool:
    network = client_network(client)
    return network is not None and denied.denied_address(network.network_address)


def _denies_user(denied: DenyList, user: str) -> bool:
    kind, colon, name = user.partition(":")
    if colon and kind == "key":
        return denied.denied_user("key", name)
    return any(denied.denied_user(kind, user) for kind in ("account", "subject", "certificate"))


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
