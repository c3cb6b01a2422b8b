"""Keeps what an incident rests on: a folder for each, with the incident, its log lines and a checksum of both.

Bounded by number and size: the oldest go first. It must never hold up detection, nor fail it: what cannot be kept is
said.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import GatewatchError

MOST_KEPT = 1000
MOST_BYTES = 4 << 20
"""Of one file."""
LEAST_FREE_BYTES = 256 << 20
"""What is left on the disk: the store and the enforcer's journal come before evidence."""


class Evidence:
    """Folders under `folder`, one an incident."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, incident: Mapping[str, Any]) -> dict[str, Any]:
        """Writes what there is now; kept again, it takes the place of the former. Raises GatewatchError."""
        name = _name(incident)
        samples = [str(s) for f in incident.get("findings", ()) for s in f.get("samples", ())]
        files = {
            "incident.json": json.dumps(incident, indent=1, ensure_ascii=False, sort_keys=True)[:MOST_BYTES],
            "lines.txt": "".join(f"{_one_line(sample)}\n" for sample in dict.fromkeys(samples))[:MOST_BYTES],
        }
        new, place = self.folder / f".{name}.new", self.folder / name
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"less than {LEAST_FREE_BYTES >> 20} MiB are free")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o750)
            sums = []
            for file, text in files.items():
                data = text.encode("utf-8", "backslashreplace")
                (new / file).write_bytes(data)
                sums.append(f"{hashlib.sha256(data).hexdigest()}  {file}\n")
            (new / "SHA256SUMS").write_text("".join(sums))
            shutil.rmtree(place, ignore_errors=True)
            new.rename(place)
            self._prune()
        except OSError as error:
            raise GatewatchError(
                f"{place}: evidence cannot be kept ({error.strerror})", remedy="check the disk"
            ) from error
        return {"folder": str(place), "files": len(files)}

    def drop(self, incident: str) -> None:
        """Forgets it; nothing where nothing is kept."""
        shutil.rmtree(self.folder / _name({"id": incident}), ignore_errors=True)

    def _prune(self) -> None:
        kept = [e for e in os.scandir(self.folder) if e.is_dir() and not e.name.startswith(".")]
        if len(kept) > MOST_KEPT:
            for entry in sorted(kept, key=lambda e: e.stat().st_mtime)[: len(kept) - MOST_KEPT]:
                with contextlib.suppress(OSError):
                    shutil.rmtree(entry.path)


def _name(incident: Mapping[str, Any]) -> str:
    name = str(incident.get("id", ""))
    if not name.isalnum() or len(name) > 64:
        raise GatewatchError(f"an incident called {name[:64]!r} has no evidence")
    return name


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")
