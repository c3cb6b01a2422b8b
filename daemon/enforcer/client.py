"""How others speak to the enforcer: one request, one answer, with a limit on the time.

The kill switch starts through this file, so it imports nothing that costs time before the request is sent
(`_socket`, the compiled half of `socket`, loads in a tenth of the time).
"""

from __future__ import annotations

import _socket
import _struct
import os

from ..errors import EnforcerError, RefusedError
from .protocol import MOST_BYTES, MOST_IMPORTED, SOCKET, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any


REMEDY = "it runs where `gatewatch run` was started as root"


class UnreachableError(EnforcerError):
    """Nobody answers on the socket. `hung`: something holds it and says nothing."""

    def __init__(self, message: str, *, remedy: str = "", hung: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.hung = hung


def socket_path(state: str | os.PathLike[str]) -> str:
    """Where the enforcer of the state folder `state` listens."""
    return os.path.join(os.fspath(state), SOCKET)


class Enforcer:
    """The enforcer that listens on the socket `path`.

    Every method raises UnreachableError, RefusedError (with `rail`) or EnforcerError, and returns the answer.
    A call that failed may have taken effect: ask `check` or `status`, or repeat it, which is harmless.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._socket: _socket.socket | None = None

    def call(self, message: Mapping[str, object], timeout: float = 5.0) -> dict[str, Any]:
        """Send `message` (see `protocol.REQUESTS`) and return the answer; `timeout` in seconds for each step.

        The connection is kept; one that went away since the last call (the enforcer restarted) is opened anew.
        """
        data = encode(message)
        if len(data) > MOST_BYTES:
            raise EnforcerError(f"request to the enforcer longer than {MOST_BYTES} bytes")
        fresh = self._socket is None
        try:
            answer = self._exchange(data, timeout)
        except UnreachableError as gone:
            if fresh or gone.hung:
                raise
            answer = self._exchange(data, timeout)
        return judged(answer)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, data: bytes, timeout: float) -> bytes:
        try:
            if self._socket is None:
                self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
                limit = _struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6) or 1)  # timeval
                self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
                self._socket.connect(self.path)  # blocking: where many connect, it waits for its turn
            self._socket.settimeout(timeout)
            answer = self._answer(self._socket, data)
        except OSError as error:
            self.close()
            hung = isinstance(error, TimeoutError) or error.errno == 11
            raise UnreachableError(
                f"enforcer at {self.path}: {'no answer in ' + str(timeout) + ' s' if hung else error.strerror}",
                remedy=REMEDY,
                hung=hung,
            ) from None
        if not answer:
            self.close()
            raise UnreachableError(f"enforcer at {self.path} hung up", remedy=REMEDY)
        return answer

    @staticmethod
    def _answer(connection: _socket.socket, data: bytes) -> bytes:
        try:
            connection.send(data)
        except BrokenPipeError:
            pass  # whoever may not ask has been told so already, and the line was closed
        import json  # noqa: F401 - loaded while the enforcer works

        try:
            return connection.recv(MOST_BYTES)
        except ConnectionResetError:
            return connection.recv(MOST_BYTES)

    def block(
        self,
        address: str,
        *,
        ttl_s: int | None = None,
        reason: str,
        incident: str = "",
        playbook: str = "",
        where: str = "",
    ) -> dict[str, Any]:
        """Drop everything from and to `address` (an address or a network) for `ttl_s` seconds; with `where`
        "gateway" the authorisation endpoint alone refuses it.

        The answer has `address` as it is in force, `ttl_s` that remain, `already`, and for an operator `cut` (sockets
        ended; for the analyser that follows after the answer). Where other people have to agree first it has
        `pending` (the id), `needs` (how many more) and `expires_s`.
        """
        named = {"incident": incident, "playbook": playbook, "where": where}
        return self.call(_message("block", reason, ttl_s, address=address, **named))

    def block_user(
        self,
        user: str,
        *,
        kind: str = "any",
        ttl_s: int | None = None,
        reason: str,
        incident: str = "",
        playbook: str = "",
    ) -> dict[str, Any]:
        """Refuse a principal (see `protocol.KINDS`) for `ttl_s` seconds; the answer is like that of `block`."""
        named = {"incident": incident, "playbook": playbook}
        return self.call(_message("block_user", reason, ttl_s, user=user, kind=kind, **named))

    def unblock_user(self, user: str, reason: str, *, kind: str = "any") -> dict[str, Any]:
        return self.call(_message("unblock_user", reason, user=user, kind=kind))

    def users(self) -> Iterator[dict[str, Any]]:
        """Every blocked principal, oldest first; what changes meanwhile may be missing or appear twice."""
        return self._pages("users")

    def check_user(self, user: str, *, kind: str = "any") -> dict[str, Any]:
        """As `check`, of a principal."""
        return self.call({"request": "check_user", "user": user, "kind": kind})

    def approvals(self) -> Iterator[dict[str, Any]]:
        """What waits until people agree, oldest first."""
        return self._pages("approvals")

    def import_blocks(self, blocks: Sequence[tuple[str, int]], reason: str) -> dict[str, Any]:
        """Take over blocks (address, seconds) of another program, as an operator; `imported`, `already`,
        `shortened` to what the rails allow, and `refused`: [address, why] of each that a rail forbids."""
        total: dict[str, Any] = {"imported": 0, "already": 0, "shortened": 0, "refused": []}
        for at in range(0, len(blocks), MOST_IMPORTED):
            chunk = [list(pair) for pair in blocks[at : at + MOST_IMPORTED]]
            answer = self.call({"request": "import", "blocks": chunk, "reason": plain(reason)}, 30.0)
            for key in total:
                total[key] += answer[key]
        return total

    def follow(self, after: int, timeout: float = 5.0) -> Iterator[dict[str, Any]]:
        """The answer to `follow`, then every notable entry of the journal after that sequence, as it is written.

        Ends where nothing came for `timeout` seconds. The connection serves nothing else from then on.
        """
        yield self.call({"request": "follow", "after": after}, timeout)
        import json

        while self._socket is not None:
            self._socket.settimeout(timeout)
            try:
                data = self._socket.recv(MOST_BYTES)
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            yield json.loads(data)

    def unblock(self, address: str, reason: str) -> dict[str, Any]:
        return self.call({"request": "unblock", "address": address, "reason": plain(reason)})

    def blocks(self) -> Iterator[dict[str, Any]]:
        """Every block in force, oldest first; what changes meanwhile may be missing or appear twice."""
        return self._pages("blocks")

    def _pages(self, what: str) -> Iterator[dict[str, Any]]:
        page = 0
        while page >= 0:
            answer = self.call({"request": what, "page": page})
            yield from answer[what]
            page = answer["next"]

    def check(self, address: str) -> dict[str, Any]:
        """`blocked` (the entries that cover the address) and `would_refuse`, `rail` where a block would be refused."""
        return self.call({"request": "check", "address": address})

    def kill(self, endpoints: list[str], reason: str, timeout: float = 10.0) -> dict[str, Any]:
        """Cut the named endpoints off, or all for an empty list; the answer is the receipt."""
        return self.call({"request": "kill", "endpoints": endpoints, "reason": plain(reason)}, timeout)

    def release(self, endpoints: list[str], reason: str) -> dict[str, Any]:
        return self.call({"request": "release", "endpoints": endpoints, "reason": plain(reason)})

    def cut(self, address: str, reason: str, **said: str) -> dict[str, Any]:
        """End the connections of `address` without a block; `said`: incident and playbook."""
        return self.call({"request": "cut", "address": address, "reason": plain(reason), **said})

    def restrict(
        self, endpoints: list[str], reason: str, *, ttl_s: int | None = None, **said: str
    ) -> dict[str, Any]:
        """Let only their allowed networks reach the named endpoints, for `ttl_s` seconds or until lifted."""
        message: dict[str, object] = {"request": "restrict", "endpoints": endpoints, "reason": plain(reason)}
        if ttl_s is not None:
            message["ttl_s"] = ttl_s
        return self.call({**message, **said}, 10.0)

    def lift(self, endpoints: list[str], reason: str) -> dict[str, Any]:
        return self.call({"request": "lift", "endpoints": endpoints, "reason": plain(reason)})

    def status(self) -> dict[str, Any]:
        return self.call({"request": "status"})


def _message(request: str, reason: str, ttl_s: int | None = None, **named: str) -> dict[str, object]:
    """A request with those of its fields that are given."""
    given = {name: value for name, value in named.items() if value}
    lasting = {} if ttl_s is None else {"ttl_s": ttl_s}
    return {"request": request, "reason": plain(reason), **given, **lasting}


def plain(reason: str) -> str:
    """A reason may quote what an attacker wrote; the enforcer takes no control characters."""
    kept = reason[:500]
    return kept if kept.isprintable() else "".join(c if c.isprintable() else "?" for c in kept)


def judged(data: bytes) -> dict[str, Any]:
    """The answer in `data`. Raises RefusedError or EnforcerError where it says so."""
    import json

    try:
        answer = json.loads(data)
        if answer["ok"]:
            return dict(answer)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EnforcerError("the enforcer gave an answer that is none") from None
    said = {k: str(answer.get(k, "")) for k in ("refused", "rail", "error", "remedy")}
    if said["refused"]:
        raise RefusedError(said["refused"], remedy=said["remedy"], rail=said["rail"])
    raise EnforcerError(said["error"] or "the enforcer failed", remedy=said["remedy"])
