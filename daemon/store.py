"""The SQLite store: input ranges, detector snapshots with checkpoints, incidents, actions and the outbox.

One process writes it, the analyser. What an input batch led to is committed in one transaction with the range
of input that it came from; every half minute a transaction holds the detectors' state and the checkpoints. So
after a crash the state and the place to go on from always belong together. Others open it read-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .errors import StoreError
from .incidents import PRIORITIES, action_document

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (source TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (sequence INTEGER PRIMARY KEY, source TEXT, range TEXT, receive_ns INTEGER);
CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), time_ns INTEGER, state BLOB);
CREATE TABLE IF NOT EXISTS incidents (
  id TEXT PRIMARY KEY, start_ns INTEGER, end_ns INTEGER, changed_ns INTEGER, status TEXT NOT NULL DEFAULT 'open',
  document TEXT, state TEXT, note TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS incidents_by_end ON incidents (end_ns);
CREATE TABLE IF NOT EXISTS actions (
  id TEXT PRIMARY KEY, incident TEXT, playbook TEXT, action TEXT, target TEXT, state TEXT, why TEXT,
  reason TEXT, time_ns INTEGER, ttl_s INTEGER, detail TEXT NOT NULL DEFAULT '{}') WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS actions_by_target ON actions (target, time_ns);
CREATE INDEX IF NOT EXISTS actions_by_incident ON actions (incident);
CREATE INDEX IF NOT EXISTS actions_by_playbook ON actions (playbook, time_ns);
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, time_ns INTEGER, document BLOB, recipient TEXT);
CREATE INDEX IF NOT EXISTS outbox_by_recipient ON outbox (recipient, id) WHERE recipient IS NOT NULL;
CREATE TABLE IF NOT EXISTS exceptions (
  id TEXT PRIMARY KEY, created_ns INTEGER, ended_ns INTEGER, state TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (sink TEXT PRIMARY KEY, acknowledged INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead (sink TEXT, outbox_id INTEGER, reason TEXT, time_ns INTEGER, document BLOB,
  PRIMARY KEY (sink, outbox_id)) WITHOUT ROWID;
"""

_BLOCK = "action IN ('block_source', 'block_user')"
_ASKS_NOBODY = "NOT (state = 'would' AND json_extract(detail, '$.needs') IS NOT NULL)"
"""Of what would have been done in observe mode, only that for which no person would have been asked."""
_ADDRESSED = "INDEXED BY outbox_by_recipient WHERE"

ADDED = (("outbox", "recipient", "TEXT"), ("actions", "detail", "TEXT NOT NULL DEFAULT '{}'"))
"""Table, column and type that stores of the same schema version were once made without."""

ACTION = (
    "id", "incident", "playbook", "action", "target", "state", "why", "reason", "time_ns", "ttl_s", "detail",
)  # fmt: skip
"""The columns of an action; `detail` is JSON: hits, approval, where, hooks."""


def pack(state: Any) -> bytes:
    """Nested dictionaries, lists, numbers, text, bytes and NumPy arrays as compressed msgpack."""

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            plain = np.ascontiguousarray(value)
            return {"__array__": [plain.dtype.str, list(plain.shape), plain.tobytes()]}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"cannot store {type(value).__name__}")

    return zlib.compress(msgspec.msgpack.encode(state, enc_hook=encode), 1)


def unpack(blob: bytes) -> Any:
    """The inverse of `pack`; arrays are writable copies. Raises StoreError where the blob is damaged."""

    def decode(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"__array__"}:
                dtype, shape, data = value["__array__"]
                return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()
            return {k: decode(v) for k, v in value.items()}
        return [decode(v) for v in value] if isinstance(value, list) else value

    try:
        return decode(msgspec.msgpack.decode(zlib.decompress(blob)))
    except (zlib.error, msgspec.MsgspecError, ValueError, TypeError) as error:
        raise StoreError(f"the detector snapshot is damaged ({error})") from error


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One document on its way to the sinks. `key` is stable: the same alert again has the same key.

    `recipient` is the hook that it is addressed to; None: it goes to every sink.
    """

    id: int
    key: str
    document: bytes
    recipient: str | None = None


@dataclass(frozen=True, slots=True)
class BatchNote:
    """What was read since the last snapshot: where it came from and when."""

    source: str
    range: dict[str, Any]
    receive_ns: int


class Store:
    """The analyser's own handle. Use `Store.open`; others use `Store.open_readonly`.

    `hooks` are the names to which documents can be addressed: they get those, and the sinks get all the others.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.hooks: frozenset[str] = frozenset()
        self._db = connection
        self.path = path
        self._log_fd = -1

    @classmethod
    def open(cls, path: Path) -> Store:
        """Opens or makes the store. Raises StoreError naming the file where it is damaged or from a newer version."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA busy_timeout = 2000")
            db.execute("PRAGMA journal_size_limit = 16777216")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: made by a newer Gatewatch (schema {version}, this one knows {SCHEMA_VERSION})",
                    remedy="install that version again, or move the file away",
                )
            _add_columns(db)
            db.executescript(SCHEMA)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{path}: cannot be used as the store ({error})",
                remedy="check its permissions and the disk; a damaged file can be moved away, detection starts afresh",
            ) from error
        return cls(db, path)

    @classmethod
    def open_readonly(cls, path: Path) -> Store:
        """For everyone but the analyser. Raises StoreError where there is none."""
        if not path.exists():
            raise StoreError(
                f"{path}: there is no store", remedy="start `gatewatch run`, or name its folder with --state"
            )
        try:
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            db.execute("PRAGMA busy_timeout = 2000")
            db.execute("SELECT 1 FROM incidents LIMIT 1")
        except sqlite3.Error as error:
            raise StoreError(
                f"{path}: cannot be read ({error})",
                remedy="run as root or as the user that Gatewatch runs as",
            ) from error
        return cls(db, path)

    def close(self) -> None:
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together, or nothing is. Raises StoreError (a full disk, a damaged file)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise StoreError(f"{self.path}: {error}", remedy="is the disk full?") from error

    def sync(self) -> None:
        """Makes what was committed survive a power cut: WAL frames are written at commit and synced here.

        Raises StoreError where the disk cannot.
        """
        try:
            if self._log_fd < 0:
                self._log_fd = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            os.fdatasync(self._log_fd)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot be synced ({error.strerror})", remedy="check the disk"
            ) from error

    def hash_key(self) -> bytes:
        """The 16 secret bytes that key the hashes of names and addresses; made once for each store."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'hash_key'").fetchone()
        if row is not None:
            return bytes(row[0])
        key = secrets.token_bytes(16)
        self._db.execute("INSERT INTO meta VALUES ('hash_key', ?)", (key,))
        return key

    def note_batch(self, source: str, range_: Mapping[str, Any], receive_ns: int) -> None:
        self._db.execute(
            "INSERT INTO batches (source, range, receive_ns) VALUES (?, ?, ?)",
            (source, json.dumps(range_), receive_ns),
        )

    def batches(self) -> list[BatchNote]:
        """What was read since the last snapshot, in order."""
        rows = self._db.execute("SELECT source, range, receive_ns FROM batches ORDER BY sequence")
        return [BatchNote(source, json.loads(range_), receive_ns) for source, range_, receive_ns in rows]

    def save_snapshot(self, state: Any, checkpoints: Mapping[str, Any], time_ns: int) -> None:
        """The detectors' state and where to go on; forgets the batches before. Call it inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?)", (time_ns, pack(state)))
        self._db.executemany(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)",
            [(source, json.dumps(value)) for source, value in checkpoints.items()],
        )
        self._db.execute("DELETE FROM batches")

    def snapshot(self) -> Any | None:
        row = self._db.execute("SELECT state FROM snapshot").fetchone()
        return None if row is None else unpack(row[0])

    def checkpoints(self) -> dict[str, Any]:
        return {s: json.loads(v) for s, v in self._db.execute("SELECT source, value FROM checkpoints")}

    def save_incident(
        self, document: Mapping[str, Any], state: Mapping[str, Any], start_ns: int, end_ns: int, now_ns: int
    ) -> None:
        """An incident as it now is; its status and note stay. Call it inside a transaction."""
        self._db.execute(
            "INSERT INTO incidents (id, start_ns, end_ns, changed_ns, document, state) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET start_ns = excluded.start_ns, end_ns = excluded.end_ns, "
            "changed_ns = excluded.changed_ns, document = excluded.document, state = excluded.state",
            (document["id"], start_ns, end_ns, now_ns, _dump(document), _dump(state)),
        )

    def set_status(self, incident: str, status: str, note: str) -> bool:
        cursor = self._db.execute(
            "UPDATE incidents SET status = ?, note = ? WHERE id = ?", (status, note, incident)
        )
        return cursor.rowcount == 1

    def recent_states(self, since_ns: int, most: int) -> list[tuple[dict[str, Any], bool]]:
        """The states of the incidents that changed since then, the last first; and whether each is closed."""
        rows = self._db.execute(
            "SELECT state, status = 'closed' FROM incidents WHERE changed_ns >= ? "
            "ORDER BY changed_ns DESC LIMIT ?",
            (since_ns, most),
        )
        return [(json.loads(state), bool(closed)) for state, closed in rows]

    def incident_state(self, incident: str) -> tuple[dict[str, Any], bool] | None:
        """The state of one incident, and whether it is closed. Raises StoreError."""
        try:
            row = self._db.execute(
                "SELECT state, status = 'closed' FROM incidents WHERE id = ?", (incident,)
            ).fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error
        return None if row is None else (json.loads(row[0]), bool(row[1]))

    def incident(self, incident: str) -> dict[str, Any] | None:
        """The document of one incident with its status, found by its whole id."""
        row = self._db.execute("SELECT document, status FROM incidents WHERE id = ?", (incident,)).fetchone()
        return None if row is None else json.loads(row[0]) | {"status": row[1]}

    def incidents(
        self,
        *,
        since_ns: int = 0,
        status: str | None = None,
        incident: str | None = None,
        limit: int = 1000,
        gravest_first: bool = False,
    ) -> list[dict[str, Any]]:
        """Incidents as users see them, the newest first, each with its status, note and actions.

        `incident` is an id or the beginning of one. `gravest_first` sorts by rank, then by priority, then the newest
        first, so that a flood of lesser ones does not push out a grave one.
        """
        grave = " ".join(f"WHEN '{priority}' THEN {n}" for n, priority in enumerate(PRIORITIES))
        order = (
            "coalesce(json_extract(document, '$.rank'), 99), "
            f"CASE json_extract(document, '$.priority') {grave} END, "
            if gravest_first
            else ""
        )
        rows = self._db.execute(
            "SELECT id, status, note, document FROM incidents WHERE end_ns >= ? AND (? IS NULL OR status = ?) "
            f"AND (? IS NULL OR substr(id, 1, length(?)) = ?) ORDER BY {order}end_ns DESC LIMIT ?",
            (since_ns, status, status, incident, incident, incident, limit),
        ).fetchall()
        return [
            json.loads(document)
            | {"status": state, "actions": [action_document(a) for a in self.actions(incident=id_)]}
            | ({"note": note} if note else {})
            for id_, state, note, document in rows
        ]

    def save_exception(self, state: Mapping[str, Any]) -> None:
        """An exception (`Benign.state`) as it now is. Call it inside a transaction."""
        self._db.execute(
            "INSERT OR REPLACE INTO exceptions VALUES (?, ?, ?, ?)",
            (state["id"], state["created_ns"], state["removed_ns"] or state["expires_ns"], _dump(state)),
        )

    def exceptions(self) -> list[dict[str, Any]]:
        """The states of all exceptions, the oldest first; none where the store is older than they. Raises
        StoreError.
        """
        try:
            known = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'exceptions'").fetchone()
            rows = self._db.execute("SELECT state FROM exceptions ORDER BY created_ns, id") if known else ()
            return [json.loads(state) for (state,) in rows]
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def open_by_priority(self) -> dict[str, int]:
        """How many incidents of each priority are open. Raises StoreError."""
        return self._count("status = 'open'")

    def count_by_priority(self, since_ns: int) -> dict[str, int]:
        """How many incidents of each priority lasted into the time since then. Raises StoreError."""
        return self._count("end_ns >= ?", since_ns)

    def _count(self, condition: str, *values: int) -> dict[str, int]:
        query = f"SELECT json_extract(document, '$.priority'), count(*) FROM incidents WHERE {condition} GROUP BY 1"
        try:
            counts = dict(self._db.execute(query, values))
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error
        return {priority: counts[priority] for priority in PRIORITIES if priority in counts}

    def save_action(self, action: Mapping[str, Any]) -> bool:
        """A decision and what became of it, keyed by its id. True where it was not known in that state."""
        row = {**action, "detail": _dump(action.get("detail") or {})}
        old = self._db.execute("SELECT state, why, detail FROM actions WHERE id = ?", (row["id"],)).fetchone()
        if old == (row["state"], row["why"], row["detail"]):
            return False
        values = ", ".join(f":{name}" for name in ACTION)
        self._db.execute(f"INSERT OR REPLACE INTO actions ({', '.join(ACTION)}) VALUES ({values})", row)
        return True

    def action_state(self, action: str) -> str | None:
        row = self._db.execute("SELECT state FROM actions WHERE id = ?", (action,)).fetchone()
        return None if row is None else str(row[0])

    def actions(self, *, incident: str | None = None, target: str | None = None) -> list[dict[str, Any]]:
        """Actions of an incident or on a target, the oldest first."""
        given = {k: v for k, v in (("incident", incident), ("target", target)) if v is not None}
        return self._actions(" AND ".join(f"{k} = ?" for k in given) or "1", *given.values())

    def action(self, action: str) -> dict[str, Any] | None:
        """One action by its id."""
        return next(iter(self._actions("id = ?", action)), None)

    def actions_since(self, since_ns: int, most: int = 100_000) -> list[dict[str, Any]]:
        """Every action that was decided or done since then, the oldest first; of more than `most` the newest."""
        return self._actions(f"time_ns >= ? ORDER BY time_ns DESC LIMIT {int(most)}", since_ns)[::-1]

    def blocks_since(self, since_ns: int, most: int) -> list[dict[str, Any]]:
        """The blocks among them, and those that last into that time."""
        lasting = f"time_ns + ttl_s * 1000000000 >= ? ORDER BY time_ns DESC LIMIT {int(most)}"
        return self._actions(f"{_BLOCK} AND {lasting}", since_ns)[::-1]

    def actions_in(self, state: str) -> list[dict[str, Any]]:
        return self._actions("state = ?", state)

    def acted_since(self, playbook: str, since_ns: int) -> int:
        """How many actions a playbook took, is about to take or would have taken since then."""
        query = (
            "SELECT count(*) FROM actions WHERE playbook = ? AND time_ns >= ? "
            f"AND state IN ('done', 'would', 'pending') AND {_ASKS_NOBODY}"
        )
        return int(self._db.execute(query, (playbook, since_ns)).fetchone()[0])

    def last_action(self, playbook: str, action: str, target: str, states: Iterable[str]) -> int | None:
        """When a playbook last did (or would have done) this to this target."""
        query = (
            "SELECT max(time_ns) FROM actions WHERE target = ? AND playbook = ? AND action = ? "
            f"AND state IN ({_listed(states)}) AND {_ASKS_NOBODY}"
        )
        found = self._db.execute(query, (target, playbook, action)).fetchone()[0]
        return None if found is None else int(found)

    def blocks_of(self, target: str, states: Iterable[str]) -> list[dict[str, Any]]:
        """The blocks of a target in these states, the oldest first."""
        return self._actions(f"target = ? AND {_BLOCK} AND state IN ({_listed(states)})", target)

    def blocks_over(self, target: str, states: Iterable[str], now_ns: int, before: Iterable[str] = ()) -> int:
        """How many blocks of a target in these states have run their time, and how many are in those of `before`."""
        query = (
            f"SELECT count(*) FROM actions WHERE target = ? AND {_BLOCK} AND ((state IN ({_listed(states)}) "
            f"AND time_ns + ttl_s * 1000000000 <= ? AND {_ASKS_NOBODY}) OR state IN ({_listed(before)}))"
        )
        return int(self._db.execute(query, (target, now_ns)).fetchone()[0])

    def _actions(self, condition: str, *values: str | int) -> list[dict[str, Any]]:
        order = "" if "ORDER BY" in condition else " ORDER BY time_ns, id"
        query = f"SELECT {', '.join(ACTION)} FROM actions WHERE {condition}{order}"
        try:
            rows = self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError:  # read-only, from before its time: it has no `detail`
            rows = self._db.execute(query.replace(", detail", ", '{}'"), values).fetchall()
        return [dict(zip(ACTION, (*row[:-1], json.loads(row[-1])), strict=True)) for row in rows]

    def add_to_outbox(
        self, key: str, document: Mapping[str, Any], now_ns: int, recipient: str | None = None
    ) -> bool:
        """A document for every sink, or for one hook alone. False where one with this key was there already."""
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO outbox (key, time_ns, document, recipient) VALUES (?, ?, ?, ?)",
            (key, now_ns, _dump(document).encode(), recipient),
        )
        return cursor.rowcount == 1

    def pending(self, sink: str, limit: int) -> list[OutboxRow]:
        """The oldest documents for a sink or hook that it has not acknowledged, in order."""
        # Alerts may wait by the hundred thousand: what is addressed is found without reading them.
        hook = sink in self.hooks
        whose = f"{_ADDRESSED} recipient = ?" if hook else "WHERE recipient IS NULL"
        values = (sink,) if hook else ()
        rows = self._db.execute(
            f"SELECT id, key, document, recipient FROM outbox {whose} AND id > "
            "coalesce((SELECT acknowledged FROM cursors WHERE sink = ?), 0) ORDER BY id LIMIT ?",
            (*values, sink, limit),
        )
        return [OutboxRow(*row) for row in rows]

    def acknowledge(self, sink: str, outbox_id: int) -> None:
        self._db.execute(
            "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (sink) DO UPDATE SET "
            "acknowledged = max(acknowledged, excluded.acknowledged)",
            (sink, outbox_id),
        )

    def dead(self, sink: str, outbox_id: int, reason: str) -> None:
        """A document that a sink will never take: kept beside, with the reason, and passed over."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO dead SELECT ?, id, ?, ?, document FROM outbox WHERE id = ?",
                (sink, reason[:1000], time.time_ns(), outbox_id),
            )
            self.acknowledge(sink, outbox_id)

    def lags(self, sinks: Iterable[str]) -> dict[str, int]:
        """How many documents each of these sinks and hooks has still to acknowledge. Raises StoreError."""
        try:
            oldest, newest = self._db.execute(
                "SELECT coalesce((SELECT min(id) FROM outbox), 1), coalesce((SELECT max(id) FROM outbox), 0)"
            ).fetchone()
            cursors = dict(self._db.execute("SELECT sink, acknowledged FROM cursors"))
            lags = {}
            for sink in sinks:
                after = cursors.get(sink, oldest - 1)
                one, values = ("recipient = ?", (sink,)) if sink in self.hooks else ("recipient NOT NULL", ())
                addressed = self._db.execute(
                    f"SELECT count(*) FROM outbox {_ADDRESSED} {one} AND id > ?", (*values, after)
                ).fetchone()[0]
                lags[sink] = addressed if sink in self.hooks else max(0, newest - after - addressed)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error
        return lags

    def dead_letters(self, sink: str, limit: int = 10) -> list[tuple[int, str]]:
        """When (ns) a sink or hook refused a document for good, and why, the last first. Raises StoreError."""
        try:
            rows = self._db.execute(
                "SELECT time_ns, reason FROM dead WHERE sink = ? ORDER BY outbox_id DESC LIMIT ?",
                (sink, limit),
            )
            return [(int(time_ns), str(reason)) for time_ns, reason in rows]
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def note(self, key: str, value: Any) -> None:
        """One of the analyser's own notes. Call it inside the transaction that it belongs to."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, _dump(value)))

    def put(self, key: str, value: Any) -> None:
        """A note on its own, such as the analyser's health. Raises StoreError."""
        with self.transaction():
            self.note(key, value)

    def get(self, key: str) -> Any | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def prune(self, before_ns: int, sinks: Iterable[str]) -> None:
        """Forgets incidents, actions, exceptions and documents that are older; what one of `sinks` or of the store's
        hooks still lacks stays. A hook that is not among these holds nothing.

        Raises StoreError.
        """
        with self.transaction():
            self._db.execute("DELETE FROM incidents WHERE changed_ns < ?", (before_ns,))
            self._db.execute("DELETE FROM actions WHERE time_ns < ?", (before_ns,))
            self._db.execute("DELETE FROM exceptions WHERE ended_ns < ?", (before_ns,))
            self._db.execute("DELETE FROM dead WHERE time_ns < ?", (before_ns,))
            cursors = dict(self._db.execute("SELECT sink, acknowledged FROM cursors"))
            least = min((cursors.get(name, 0) for name in sinks if name not in self.hooks), default=2**62)
            self._db.execute(
                "DELETE FROM outbox WHERE recipient IS NULL AND id <= ? AND time_ns < ?", (least, before_ns)
            )
            addressed = self._db.execute(
                "SELECT DISTINCT recipient FROM outbox WHERE recipient NOT NULL"
            ).fetchall()
            for (hook,) in addressed:
                has = cursors.get(hook, 0) if hook in self.hooks else 2**62
                self._db.execute(
                    "DELETE FROM outbox WHERE recipient = ? AND id <= ? AND time_ns < ?",
                    (hook, has, before_ns),
                )


def _add_columns(db: sqlite3.Connection) -> None:
    """Columns that came after the first stores of this schema version were made."""
    for table, column, kind in ADDED:
        there = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
        if there and column not in there:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")


def _listed(states: Iterable[str]) -> str:
    """Our own words, as SQL lists them."""
    return ", ".join(f"'{state}'" for state in states)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
