"""What the authorisation endpoint says of itself: the deny list, and how often it answered what.

The tables are bounded: an endpoint that nobody named is counted with the others of its kind.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from typing import Any

from ..denied import DenyList
from .decision import Answer

_MOST_ENDPOINTS = 256
OTHERS = "(others)"


class Health:
    """Counters since the start."""

    def __init__(self, denied: DenyList) -> None:
        self._denied = denied
        self._started_ns = time.time_ns()
        self._endpoints: dict[str, Counter[str]] = {}
        self.connections = 0
        self.trouble: Counter[str] = Counter()
        """Connections that were ended, by why."""

    def count(self, endpoint: str, answer: Answer) -> None:
        counts = self._endpoints.get(endpoint)
        if counts is None:
            name = endpoint if len(self._endpoints) < _MOST_ENDPOINTS else OTHERS
            counts = self._endpoints.setdefault(name, Counter())
        counts[answer.reason or "allowed"] += 1
        if answer.unknown and not answer.reason:
            counts["allowed while unknown"] += 1

    def document(self) -> dict[str, Any]:
        """Plain values: `deny_list`, `answered` in all and by endpoint, `connections`, `ended`, `uptime_s`."""
        denied = self._denied
        total: Counter[str] = Counter()
        for counts in self._endpoints.values():
            total.update(counts)
        return {
            "deny_list": {
                "known": denied.known,
                "problem": denied.problem,
                "sequence": denied.sequence,
                "written_s_ago": _age_s(denied.path),
                "entries": denied.counts(),
            },
            "answered": dict(total),
            "endpoints": {name: dict(counts) for name, counts in self._endpoints.items()},
            "connections": self.connections,
            "ended": dict(self.trouble),
            "uptime_s": round((time.time_ns() - self._started_ns) / 1e9, 3),
        }

    def response(self) -> tuple[bytes, bytes]:
        """Head, without the empty line that ends it, and body: 200 where the deny list is known, else 503."""
        body = json.dumps(self.document()).encode() + b"\n"
        status = b"200 OK" if self._denied.known else b"503 Service Unavailable"
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % (
            status,
            len(body),
        )
        return head, body


def _age_s(path: str) -> float | None:
    """Since the enforcer last wrote, by the file's time; None where there is no file."""
    try:
        return round(max(0.0, time.time() - os.stat(path).st_mtime), 3)
    except OSError:
        return None
