"""The labels of a log, read back and indexed: who is at an address, and who attacks from it when."""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from .kinds import KINDS

GRACE_US = 3600 * 1_000_000
WIDEST = {4: 24, 6: 48}


def microseconds(text: str) -> int:
    """RFC 3339 to microseconds since 1970, in whole numbers."""
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int(at.replace(microsecond=0).timestamp()) * 1_000_000 + at.microsecond


def read_labels(path: Path) -> list[dict[str, Any]]:
    with path.open() as stream:
        return [json.loads(line) for line in stream]


class Labels:
    """The labels, indexed by address and prefix."""

    def __init__(self, labels: Iterable[Mapping[str, Any]]) -> None:
        rows: list[dict[str, Any]] = [dict(row) for row in labels]
        self.site = next(row for row in rows if row["label"] == "site")
        self.episodes = [row for row in rows if row["label"] == "episode"]
        self.legitimate: dict[str, str] = {}
        self.noise: set[str] = set()
        for row in rows:
            if row["label"] == "actor" and row["nature"] == "noise":
                self.noise |= set(row["sources"])
            elif row["label"] == "actor":
                for source in row["sources"]:
                    self.legitimate.setdefault(source, f"{row['id']}: {row['why']}")
        self.taking_part: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.accusable: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in self.episodes:
            row["start_us"], row["end_us"] = microseconds(row["start"]), microseconds(row["end"])
            row["times_us"] = [microseconds(entry[1]) for entry in row["attempts"]]
            during = (row["start_us"], row["end_us"] + GRACE_US)
            for source in row["sources"]:
                self.taking_part[source].append(during)
            if KINDS[row["kind"]].rule in ("entry", "prompts"):
                for user in row["users"]:
                    self.accusable[user].append(during)
        self._known = {
            a: ipaddress.ip_address(a) for a in {*self.legitimate, *self.noise, *self.taking_part} if a
        }
        self._within: dict[tuple[int, int], dict[int, list[str]]] = {}

    def covered(self, source: str) -> list[str]:
        """The labelled addresses that a claim names by this address or network; itself where it is none of
        them."""
        if source in self._known:
            return [source]
        try:
            network = ipaddress.ip_network(source, strict=False)
        except ValueError:
            return [source]
        if network.prefixlen == network.max_prefixlen:
            return [source]
        key = (network.version, network.prefixlen)
        if key not in self._within:
            shift = network.max_prefixlen - network.prefixlen
            found: dict[int, list[str]] = defaultdict(list)
            for text, address in self._known.items():
                if address.version == network.version:
                    found[int(address) >> shift].append(text)
            self._within[key] = found
        whole = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        return self._within[key].get(whole, [])

    def wide(self, source: str) -> bool:
        try:
            network = ipaddress.ip_network(source, strict=False)
        except ValueError:
            return False
        return network.prefixlen < WIDEST[network.version]

    def hostile(self, source: str, at_us: int) -> bool:
        return source in self.noise or self.attacking(source, at_us)

    def attacking(self, source: str, at_us: int) -> bool:
        return any(a <= at_us <= b for a, b in self.taking_part.get(source, ()))
