"""What the enforcer notes in its journal becomes alerts: refusals, kills, releases, approvals, what was healed.

A line to the enforcer gives each notable entry with the journal's seal after it. Its document and the place up to
which the journal was followed are committed together, so that no entry is lost and one that comes again has the key
that it had. Sinks get the seals with the documents, and the journal can be compared with them. It must never block
anything, ask for anything but this, nor move on past an entry that could not be saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from .audit import Counted, document, entry_document, whole
from .enforcer.client import REMEDY, UnreachableError, judged
from .enforcer.protocol import MOST_BYTES, encode
from .errors import EnforcerError, GatewatchError, StoreError
from .events import NS_PER_S
from .link import opened
from .store import Store

NOTE = "enforcer_journal"
"""Under which name the store keeps the place up to which the journal was followed."""
MOST_REFUSALS = 60
"""How many refused actions become documents within MINUTE_S; further ones are told as one count."""
MINUTE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PATIENCE_S = 10.0
"""How long the answer to the request itself may take."""
LASTING_S = 5.0
"""A line that held so long was a good one, as was one that brought something."""
MOST_AT_ONCE = 64
"""How many entries one transaction takes."""
MOST_MESSAGE_BYTES = 4 * MOST_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where the journal was followed: an entry's sequence and seal ("" where it is not known)."""

    sequence: int = 0
    head: str = ""
    counted: Counted | None = None

    @classmethod
    def from_note(cls, note: Any) -> Place | None:
        """None where there is no note, or none that can be used: then everything is told once more, under the same
        names."""
        try:
            counted = note["counted"] and Counted.from_note(note["counted"])
            return cls(int(note["sequence"]), str(note["head"]), counted)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


class Entry(NamedTuple):
    sequence: int
    head: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, data: bytes) -> Entry:
        """Raises EnforcerError where the message is none."""
        try:
            message = json.loads(data)
            fields, head = message["entry"], message["head"]
            sequence = fields["seq"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EnforcerError("the enforcer sent an entry of its journal that is none") from None
        if not (isinstance(fields, dict) and whole(sequence) and sequence > 0 and _seal(head)):
            raise EnforcerError("the enforcer sent an entry of its journal that is none")
        return cls(sequence, head, fields)


class News:
    """Follows the journal of the enforcer that listens on `path`, for as long as `run` lives.

    Parameters
    ----------
    committed : called when documents were committed to the store's outbox.
    complain : is given what kept documents from being saved; they are tried again.
    say : one line for a person.
    heard : is given each entry inside the transaction that notes the place after it.
    """

    def __init__(
        self,
        path: Path | str,
        store: Store,
        *,
        committed: Callable[[], None],
        complain: Callable[[StoreError], None],
        say: Callable[[str], None],
        heard: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    ) -> None:
        self.path = str(path)
        self.problem = ""
        self.kept_back = False
        self.following = False
        self._store = store
        self._committed = committed
        self._complain = complain
        self._say = say
        self._heard = heard
        self._told: deque[float] = deque()
        self._due: asyncio.TimerHandle | None = None
        found = Place.from_note(store.get(NOTE))
        self._new = found is None
        self._place = found or Place()

    def health(self) -> dict[str, Any]:
        return {
            "following": self.following,
            "sequence": self._place.sequence,
            "head": self._place.head,
            "problem": self.problem,
        }

    async def run(self) -> None:
        """Follows, and comes again after pauses where the enforcer went away or the store could not be written."""
        self._plan_count()
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                since, before = time.monotonic(), self._place
                await self._attempt()
                if time.monotonic() - since >= LASTING_S or self._place != before:
                    pause_s = FIRST_PAUSE_S
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            if self._due is not None:
                self._due.cancel()

    async def _attempt(self) -> None:
        """One line to the enforcer, until it ends."""
        try:
            await self._follow()
        except StoreError as error:
            self.kept_back = True
            self._complain(error)
        except FileNotFoundError as error:
            # Where no enforcer ever was, as an unprivileged user, there is nothing to be complained of.
            if not self._new or self.problem:
                self._fail(f"enforcer at {self.path}: {error.strerror}; {REMEDY}")
        except (GatewatchError, OSError) as error:
            self._fail(str(error) or f"enforcer at {self.path}: no answer in {PATIENCE_S:g} s")
        except Exception as error:  # what goes wrong here must not reach detection
            self._fail(f"a fault: {type(error).__name__}: {error}")
        finally:
            self.following = False

    def _fail(self, said: str) -> None:
        self.kept_back = False
        if self.problem != said:
            self.problem = said
            self._say(f"the enforcer's journal is not followed: {said}")

    async def _follow(self) -> None:
        """Raises OSError, TimeoutError, EnforcerError, StoreError."""
        loop = asyncio.get_running_loop()
        line = opened(self.path, encode({"request": "follow", "after": self._place.sequence}))
        with contextlib.closing(line):
            async with asyncio.timeout(PATIENCE_S):
                answer = judged(await loop.sock_recv(line, MOST_BYTES))
            if not self._begin(answer):
                return
            self.following = True
            if self.problem:
                self.problem = ""
                self._say("the enforcer's journal is followed again")
            while True:
                messages = [await loop.sock_recv(line, MOST_MESSAGE_BYTES)]
                with contextlib.suppress(BlockingIOError):
                    while messages[-1] and len(messages) < MOST_AT_ONCE:
                        messages.append(line.recv(MOST_MESSAGE_BYTES))
                self._take(messages)
                if not messages[-1]:
                    raise UnreachableError(f"enforcer at {self.path}: hung up", remedy=REMEDY)
                await asyncio.sleep(0)  # detection goes on though a long journal is read

    def _begin(self, answer: Mapping[str, Any]) -> bool:
        """Whether the journal goes on from our place. Where another one has taken its place, that is told, and it is
        followed from its beginning. Raises EnforcerError, StoreError."""
        sequence, head, oldest = (answer.get(name) for name in ("sequence", "head", "oldest"))
        if not (whole(sequence) and whole(oldest) and _seal(head)):
            raise EnforcerError("the enforcer gave an answer to `follow` that is none")
        place, now_ns, journal = self._place, time.time_ns(), (sequence, head)
        seal = head if sequence == place.sequence else answer.get("seal")  # of the entry where we stand
        there = oldest <= place.sequence and isinstance(seal, str)
        if sequence < place.sequence or (place.head and there and seal != place.head):
            told = document(
                f"enforcer-replaced-{place.sequence}-{place.head[:12]}-{head[:12]}",
                now_ns,
                *journal,
                action="replaced",
                title="the enforcer's journal was replaced or its end cut off",
                reason=f"it ends at entry {sequence}, and has no entry {place.sequence} with the seal {place.head}",
                priority="critical",
            )
            self._commit([told], Place(counted=place.counted), now_ns)
            return False
        if oldest > place.sequence + 1:
            told = document(
                f"enforcer-gap-{place.sequence + 1}-{oldest}-{head[:12]}",
                now_ns,
                *journal,
                action="gap",
                title=f"entries {place.sequence + 1} to {oldest - 1} of the enforcer's journal are not told",
                reason="they are not at hand any more; the journal's older files have what is notable among them",
                priority="info" if self._new else "medium",
            )
            self._commit([told], Place(oldest - 1, "", place.counted), now_ns)
        return True

    def _take(self, messages: list[bytes]) -> None:
        """Entries to documents. What stands before a message that is none is kept. Raises EnforcerError, StoreError."""
        documents: list[dict[str, Any]] = []
        entries: list[Mapping[str, Any]] = []
        place, told, now_ns = self._place, self._told.copy(), time.time_ns()
        wrong: EnforcerError | None = None
        for data in filter(None, messages):
            try:
                entry = Entry.of(data)
            except EnforcerError as error:
                wrong = error
                break
            if entry.sequence <= place.sequence:
                continue
            made = entry_document(entry.fields, entry.sequence, entry.head)
            counted = place.counted
            if made["outcome"] == "refused" and not _room(told):
                many = entry.fields.get("count")
                counted = counted or Counted(entry.sequence, entry.sequence, entry.head, now_ns)
                counted = counted.with_more(made, many if whole(many) else 1)
            else:
                documents.append(made)
            place = Place(entry.sequence, entry.head, counted)
            entries.append(entry.fields)
        if place != self._place:
            self._commit(documents, place, now_ns, entries)
            self._told = told
        if wrong is not None:
            raise wrong

    def _commit(
        self,
        documents: list[dict[str, Any]],
        place: Place,
        now_ns: int,
        entries: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        with self._store.transaction():
            for entry in entries:
                self._heard(entry)
            for made in documents:
                self._store.add_to_outbox(made["id"], made, now_ns)
            self._store.note(NOTE, asdict(place))
        self._place, self._new, self.kept_back = place, False, False
        self._plan_count()
        if documents:
            self._committed()
        for made in documents:
            if made["priority"] != "info":
                self._say(f"enforcer: {made['title']}")

    def _plan_count(self) -> None:
        """The refusals that were only counted are told a minute after the first of them."""
        counted = self._place.counted
        if counted is None or self._due is not None:
            return
        since_s = (time.time_ns() - counted.since_ns) / NS_PER_S
        wait_s = MINUTE_S - since_s if 0 <= since_s <= MINUTE_S else FIRST_PAUSE_S
        self._due = asyncio.get_running_loop().call_later(wait_s, self._tell_count)

    def _tell_count(self) -> None:
        self._due = None
        counted = self._place.counted
        if counted is None:
            return
        now_ns = time.time_ns()
        try:
            self._commit([counted.document(now_ns)], replace(self._place, counted=None), now_ns)
        except StoreError as error:
            self.kept_back = True
            self._complain(error)
            self._due = asyncio.get_running_loop().call_later(FIRST_PAUSE_S, self._tell_count)


def _seal(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _room(told: deque[float]) -> bool:
    """Whether one more refusal may be told singly; if so it is counted."""
    now = time.monotonic()
    while told and told[0] <= now - MINUTE_S:
        told.popleft()
    if len(told) >= MOST_REFUSALS:
        return False
    told.append(now)
    return True
