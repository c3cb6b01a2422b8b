"""nftables by libnftables in this process: run commands, list a table. It knows nothing of what they mean."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from typing import Any

from ...errors import EnforcerError
from .elements import INET, Elements

# The bits of nft_ctx_output_set_flags, from nftables/libnftables.h.
_JSON = 1 << 4
_TERSE = 1 << 11
_NUMERIC = (1 << 7) | (1 << 8) | (1 << 9)


class Nft:
    """A context of libnftables, and beside it `elements`. Raises EnforcerError where the library is missing."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise EnforcerError(f"libnftables: {error}", remedy="apt install libnftables1") from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = ctypes.c_char_p
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_ctx_output_set_flags.restype = None
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise EnforcerError("libnftables: no context", remedy="is there memory left?")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        self.elements = Elements()

    def run(self, commands: str) -> None:
        """Run `commands` as one transaction: all or nothing. Raises EnforcerError with the kernel's reason."""
        self._flags(0)
        self._run(commands)

    def table(self, name: str) -> list[dict[str, Any]] | None:
        """What is in the table `inet name`, as libnftables-json(5) objects; None where there is none.

        Empty for a table with flags, and none of ours has any: libnftables 1.0.6 uses memory there that it has freed,
        which ends in no JSON or in the end of this process.
        """
        if (INET, name) in self.elements.flagged():
            return []
        self._flags(_JSON | _NUMERIC)
        try:
            listed: list[dict[str, Any]] = json.loads(self._run(f"list table inet {name}"))["nftables"]
        except ValueError:
            return []
        except EnforcerError as error:
            if os.strerror(errno.ENOENT) in error.message:
                return None
            raise
        return listed

    def ruleset(self) -> list[dict[str, Any]]:
        """Everything that anybody has in the kernel, without the elements of sets; empty where a table has flags (see
        `table`) or it is no JSON."""
        if self.elements.flagged():
            return []
        self._flags(_JSON | _NUMERIC | _TERSE)
        try:
            listed: list[dict[str, Any]] = json.loads(self._run("list ruleset"))["nftables"]
        except ValueError:
            return []
        return listed

    def _flags(self, flags: int) -> None:
        self._library.nft_ctx_output_set_flags(self._context, flags)

    def _run(self, commands: str) -> bytes:
        failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode("ascii"))
        output = bytes(self._library.nft_ctx_get_output_buffer(self._context) or b"")
        said = bytes(self._library.nft_ctx_get_error_buffer(self._context) or b"")
        if failed:
            line = said.decode("utf-8", "replace").strip().partition("\n")[0] or "nftables failed"
            remedy = "run as root" if "permitted" in line else "see `nft list ruleset`"
            raise EnforcerError(line, remedy=remedy)
        return output
