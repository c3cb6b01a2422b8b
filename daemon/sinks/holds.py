"""Which accounts of an identity provider are disabled by us, and for which actions: one small file.

It is written before an account is disabled, so that after a crash the account is known to be ours; what is not in it
is never enabled again by us. An account that several actions disabled stays so until the last of them ends.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from .contract import SinkError


class Holds:
    """The file at `path`, made with the first hold. Methods raise SinkError where the disk cannot."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, list[str]] | None = None

    def of(self, account: str) -> tuple[str, ...]:
        """The ids of the actions that hold this account."""
        return tuple(self._read().get(account, ()))

    def account_of(self, action: str) -> str | None:
        return next((account for account, ids in self._read().items() if action in ids), None)

    def put(self, account: str, actions: tuple[str, ...]) -> None:
        """The account is held by these actions and no other; by none: it is forgotten."""
        held = {**self._read(), account: list(actions)}
        if not actions:
            del held[account]
        if held != self._held:
            self._write(held)
            self._held = held

    def _read(self) -> dict[str, list[str]]:
        if self._held is None:
            try:
                self._held = msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[str]])
            except FileNotFoundError:
                self._held = {}
            except OSError as error:
                raise SinkError(f"{self._path}: cannot be read ({error.strerror})") from None
            except msgspec.MsgspecError:
                # Users must still be blocked. Those of the damaged file stay disabled until a person enables them.
                with contextlib.suppress(OSError):
                    self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
                self._held = {}
        return self._held

    def _write(self, held: dict[str, list[str]]) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(held))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SinkError(f"{self._path}: cannot be written ({error.strerror})") from None
