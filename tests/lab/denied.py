"""A deny list as the enforcer publishes it, for readers that are tested without an enforcer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

NS_PER_S = 1_000_000_000


class DeniedFile:
    """The file at `path`, which is written anew by `write` and grows by `add` and `remove`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write()

    def write(self, boot_id: str = "") -> None:
        """An empty list of this boot, in the place of the former one."""
        boot_id = boot_id or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps({"denied": 1, "boot_id": boot_id, "sequence": 1}) + "\n")
        new.chmod(0o640)
        new.rename(self.path)

    def add(self, kind: str, name: str, lasts_s: float = 0.0) -> DeniedFile:
        ends = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(lasts_s * NS_PER_S) if lasts_s else 0
        return self._append(["+", kind, name, ends])

    def remove(self, kind: str, name: str) -> DeniedFile:
        return self._append(["-", kind, name])

    def _append(self, entry: list[Any]) -> DeniedFile:
        with open(self.path, "a", encoding="ascii") as file:
            file.write(json.dumps(entry) + "\n")
        return self
