"""What the command line asks of the analyser: acknowledge, close, except, explain, undo, tell how it is.

Only root and the analyser's own user are served (control.py). What a person decides is committed with its documents
for the sinks, and takes effect on incidents and actions at once.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..config.values import duration_text
from ..playbooks.engine import Engine
from .benign import LONGEST_S, Benign, BenignList
from .detection import Detection
from .incidents import Correlator, Incident
from .parts import Parts
from .response import Responder
from .standing import standing_of
from .store import Store


class Desk:
    """Answers requests, each a JSON object with `do`; errors are answers too."""

    def __init__(
        self,
        parts: Parts,
        store: Store,
        *,
        detection: Callable[[], Detection],
        correlator: Correlator,
        benign: BenignList,
        engine: Engine,
        responder: Responder,
        recall: Callable[[str], Incident | None],
        publish: Callable[[], None],
        health: Callable[[], dict[str, Any]],
    ) -> None:
        self._parts = parts
        self._store = store
        self._detection = detection
        self._correlator = correlator
        self._benign = benign
        self._engine = engine
        self._responder = responder
        self._recall = recall
        self._publish = publish
        self._health = health

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers the command line: `acknowledge`, `close`, `remove_exception`, `health`, `standing`, `undo`."""
        match request.get("do"):
            case "standing":
                return self._standing(request)
            case "health":
                return {"ok": True, **self._health()}
            case "acknowledge" | "close" as what:
                return self._set_status(request, "acknowledged" if what == "acknowledge" else "closed")
            case "undo":
                rails = self._parts.rails
                two_people = rails.two_people if rails is not None else frozenset()
                return {"ok": True, "said": self._responder.undo(str(request.get("action", "")), two_people)}
            case "remove_exception":
                return self._remove_exception(request)
            case other:
                return {"ok": False, "error": f"unknown request {json.dumps(other)[:80]}"}

    def _set_status(self, request: Mapping[str, Any], status: str) -> dict[str, Any]:
        """After a person; closing as benign (`benign_s`: for how long) makes exceptions in the same transaction."""
        incident, note = str(request.get("incident", "")), str(request.get("note", ""))[:1000]
        now_ns = time.time_ns()
        made: list[Benign] = []
        if status == "closed" and request.get("benign_s") is not None:
            known = self._correlator.incident(incident) or self._recall(incident)
            lasting_s = request["benign_s"]
            if known is None:
                return {"ok": False, "error": f"no incident {incident}"}
            if type(lasting_s) is not int or not 1 <= lasting_s <= LONGEST_S:
                return {"ok": False, "error": f"an exception lasts from 1s to {duration_text(LONGEST_S)}"}
            try:
                made = self._benign.closing(known, now_ns, lasting_s, _who(request), note)
            except ValueError as error:
                return {"ok": False, "error": str(error)}
        with self._store.transaction():
            if not self._store.set_status(incident, status, note):
                return {"ok": False, "error": f"no incident {incident}"}
            document: dict[str, Any] = {"event": "status", "id": incident, "status": status, "note": note}
            if made:
                document["exceptions"] = [exception.id for exception in made]
            self._store.add_to_outbox(f"{incident}:{status}:{now_ns}", document, now_ns)
            for exception in made:
                self._book_exception(exception, now_ns)
        self._benign.add(made)
        self._correlator.set_closed(incident, status == "closed")
        if status == "closed":
            self._responder.forget(incident)
        self._publish()
        return {
            "ok": True,
            "incident": incident,
            "status": status,
            "exceptions": [e.document(self._correlator.mask, now_ns) for e in made],
        }

    def _remove_exception(self, request: Mapping[str, Any]) -> dict[str, Any]:
        now_ns = time.time_ns()
        removed = self._benign.removing(str(request.get("exception", "")), now_ns, _who(request))
        if removed is None:
            return {"ok": False, "error": "there is no such exception in force"}
        with self._store.transaction():
            self._book_exception(removed, now_ns)
        self._benign.add([removed])
        self._publish()
        return {"ok": True, "exception": removed.document(self._correlator.mask, now_ns)}

    def _book_exception(self, exception: Benign, now_ns: int) -> None:
        """An exception made or removed, for the store and every sink. Call it inside a transaction."""
        self._store.save_exception(exception.state())
        document = {"event": "exception", **exception.document(self._correlator.mask, now_ns)}
        self._store.add_to_outbox(f"{exception.id}:{document['state']}", document, now_ns)

    def _standing(self, request: Mapping[str, Any]) -> dict[str, Any]:
        incidents = request.get("incidents")
        try:
            found = standing_of(
                str(request.get("network"))[:64],
                map(str, incidents) if isinstance(incidents, list) else (),
                time.time_ns(),
                parts=self._parts,
                detection=self._detection(),
                store=self._store,
                engine=self._engine,
            )
        except (ValueError, sqlite3.Error) as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True, "standing": [s._asdict() for s in found]}


def _who(request: Mapping[str, Any]) -> str:
    """Who asks, as the command says: only root and the same user are served, so this is for the books."""
    return "".join(c for c in str(request.get("by", ""))[:64] if c.isprintable()) or "unknown"
