"""The HTTP client of the hooks: one request, a bounded answer, and what the answer means for the document.

It follows no redirect, uses no proxy from the environment, keeps no cookie, and verifies the server's certificate. It
must never put a request's header or body into a message: they hold secrets.
"""

from __future__ import annotations

import email.utils

# The socket module would load it with the first name, when this process may have lost the right to read it.
import encodings.idna  # noqa: F401
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from ... import __version__
from .contract import SinkError

LARGEST_ANSWER = 64 << 10
"""Bytes of an answer's body that are read."""
_AGAIN = (408, 425, 429)
_IDLE_S = 5.0  # less than any server waits, or the next request meets a closed connection


class Refused(Exception):
    """The receiver will never take this document."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` has at most LARGEST_ANSWER bytes; `whole` says whether that is all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool

    def text(self, most: int = 200) -> str:
        """The beginning of the body, printable, for messages."""
        shown = " ".join(self.body[: 4 * most].decode("utf-8", "replace").split())[:most]
        return "".join(c if c.isprintable() else "?" for c in shown)

    def json(self, kind: type[Any], what: str) -> Any:
        """The body as `kind`. Raises SinkError."""
        if not self.whole:
            raise SinkError(f"{what}: the answer is larger than {LARGEST_ANSWER} bytes")
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise SinkError(
                f"{what}: the answer is not what was expected ({error}): {self.text(80)}"
            ) from None


class Client:
    """Connections to one receiver; made at any time, used in one event loop."""

    def __init__(self, context: ssl.SSLContext, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str] = {}, body: bytes | None = None
    ) -> Answer:
        """One request with its answer. `url` is sent as it stands. Raises SinkError where there is no answer."""
        import yarl

        try:
            async with self._open().request(
                method, yarl.URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            ) as response:
                read = bytearray()
                while len(read) <= LARGEST_ANSWER:
                    more = await response.content.read(LARGEST_ANSWER + 1 - len(read))
                    if not more:
                        break
                    read += more
                whole = len(read) <= LARGEST_ANSWER
                if not whole:
                    response.close()
                return Answer(response.status, response.headers, bytes(read[:LARGEST_ANSWER]), whole)
        except TimeoutError:
            raise SinkError(f"{_where(url)}: no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SinkError(f"{_where(url)}: {_words(error)}") from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=2, keepalive_timeout=_IDLE_S),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                # A small answer must not unpack into a large one.
                auto_decompress=False,
                headers={"User-Agent": f"gatewatch/{__version__}", "Accept-Encoding": "identity"},
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def judge(answer: Answer, what: str, remedies: Mapping[int, str] = {}) -> None:
    """Returns where the receiver took it. Raises SinkError where it may later, Refused where it never will.

    `remedies` says for a status that a person can mend (a wrong secret, a missing role) how; those are tried again.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    said = f"{what}: {status}{f': {answer.text()}' if answer.body else ''}"
    if status in remedies:
        raise SinkError(said, remedy=remedies[status])
    if 300 <= status < 400:
        to = answer.headers.get("Location", "")[:200]
        raise SinkError(
            f"{what}: {status}, a redirect{f' to {to}' if to.isprintable() and to else ''}, which is not followed",
            remedy="name the address that answers",
        )
    if 400 <= status < 500 and status not in _AGAIN:
        raise Refused(said)
    raise SinkError(said, wait_s=retry_after(answer.headers.get("Retry-After", ""), time.time()))


def retry_after(value: str, now_s: float) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110, section 10.2.3): a number of them, or a date; else 0."""
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _where(url: str) -> str:
    """The URL without its query, which may name people."""
    return url.partition("?")[0]


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
        return f"the server's certificate is not accepted: {why}"
    return f"{error or type(error).__name__}"
