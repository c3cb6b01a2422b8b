"""When a line came to be in a file: what a latency is counted from."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

LIMIT_S = 30.0


class Arrival:
    """When a line with this text came to be in a file, to within half a millisecond."""

    def __init__(self, path: Path, text: str) -> None:
        self.ns = 0
        self._text = text.encode()
        self._file = path.open("rb")  # here, so that nothing is missed that is written from now on
        self._file.seek(0, os.SEEK_END)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        until = time.monotonic() + LIMIT_S
        with self._file as file:
            said = b""
            while time.monotonic() < until:
                said += file.read()
                if self._text in said:
                    self.ns = time.time_ns()
                    return
                time.sleep(0.0005)

    def wait(self) -> int:
        self._thread.join()
        assert self.ns, f"{self._text!r} did not come"
        return self.ns
