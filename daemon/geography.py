"""Where addresses are, by databases in MaxMind's format: country, place, autonomous system.

A database is read whole into memory by the pure Python reader: a file that shrinks while it is mapped would end the
process, and a damaged one must not reach C code. What a record says is checked field by field; a record that
cannot be read is an address of unknown place, never an error.

Format: MaxMind DB File Format Specification 2.0 (maxmind.github.io/MaxMind-DB); fields as in GeoIP2 City, Country
and ASN.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import numpy as np

from ..detectors.profiles import packed
from .errors import ConfigError
from .events import I64, U8, U64
from .systems import DEPTH, Systems

MOST_BYTES = 1 << 30
MOST_CACHED = 65_536
"""Addresses whose answer is kept; the one kept longest goes first."""
ACCURACY_KM = 100
"""Taken where a database has places and does not say how exact they are."""

REMEDY = "detection.geo takes databases in MaxMind's format (.mmdb), such as GeoLite2 City and ASN"

_HALF = np.uint64(32)

Answer = tuple[int, int, int, int]
"""Country, autonomous system, packed place, accuracy; 0 = unknown."""


class Geography:
    """Answers for addresses from one or two databases.

    Parameters: `city` and `asn` (files, or None). Either may be of either kind, or hold both. Where one cannot be
    read, a `patient` one is without it until `refresh` can read it; else ConfigError names the file. Everything
    is read in the constructor and in `refresh`; `columns` opens nothing. `index_systems`: `networks_around` will be
    asked, so the networks of each autonomous system in `asn` are listed then, too, which takes a second or two.
    """

    def __init__(
        self, city: Path | None, asn: Path | None, *, patient: bool = False, index_systems: bool = False
    ) -> None:
        self._city = [_Database(city, patient)] if city is not None else []
        self._asn = [_Database(asn, patient, index_systems)] if asn is not None else []
        self._databases = [*self._city, *self._asn]
        self._cache: dict[int, Answer] = {}  # by IPv4 address, or the first half of an IPv6 address

    def columns(self, address: U64, family: U8) -> tuple[I64, I64, I64]:
        """For addresses `uint64[n, 2]`: country (both letters as one number), autonomous system (both `int64[n]`),
        and `int64[n, 4]`: latitude and longitude packed, accuracy in kilometres, network, family; 0 = unknown.
        """
        # Of IPv6 the /64, which is no number of IPv4: nothing below 0:1::/32 is given to anybody.
        high = np.where(address[:, 0] >> _HALF != 0, address[:, 0], np.uint64(0))
        networks: U64 = np.where(family == 6, high, address[:, 1])
        distinct, back = np.unique(networks, return_inverse=True)
        cache = self._cache
        answers = [cache.get(network) or self._look_up(network, cache) for network in distinct.tolist()]
        found = np.array(answers, np.int64).reshape(-1, 4)[back]
        places = np.zeros((len(found), 4), np.int64)
        places[:, :2] = found[:, 2:]
        placed = found[:, 2] != 0
        places[placed, 2] = networks[placed].view(np.int64)
        places[placed, 3] = family[placed]
        return found[:, 0].copy(), found[:, 1].copy(), places

    def networks_around(self, address: str, most: int) -> list[str] | None:
        """The /24 networks (of IPv6 the /48) of the autonomous system that an address or network is in, its own first.

        None where its system is unknown. A system of more than `most` gives `most + 1`, so that whoever asks sees that
        it is too large. Only whole networks of its family are told. `address` that is none: None.
        """
        try:
            network = ip_network(address, strict=False)
        except ValueError:
            return None
        for database in self._asn:
            system = _system(database.record(network.network_address))
            if not system or database.systems is None:
                continue
            length = DEPTH[network.version]
            own = str(network.supernet(new_prefix=length)) if network.prefixlen >= length else ""
            found = database.systems.networks(system, network.version, most + 1)
            return ([own] if own else []) + [n for n in found if n != own][: most + 1 - bool(own)]
        return None

    def refresh(self) -> list[str]:
        """Takes files that were replaced. Returns what is wrong, each once; then the former content stays."""
        said: list[str] = []
        for database in self._databases:
            said += database.refresh()
        if any(database.fresh for database in self._databases):
            self._cache = {}  # whoever looks up meanwhile, in another thread, goes on with the former one
        return said

    def built(self) -> dict[Path, int]:
        """When each database was made, in seconds since 1970."""
        return {database.path: database.built_s for database in self._databases}

    def _look_up(self, network: int, cache: dict[int, Answer]) -> Answer:
        address = IPv6Address(network << 64) if network >> 32 else IPv4Address(network)
        country = system = place = accuracy = 0
        for database in self._databases:
            record = database.record(address)
            country = country or _country(record)
            system = system or _system(record)
            if not place:
                place, accuracy = _place(record)
        while len(cache) >= MOST_CACHED:
            del cache[next(iter(cache))]
        answer = cache[network] = country, system, place, accuracy
        return answer


class _Database:
    """One file. `fresh`: the last `refresh` read it anew."""

    def __init__(self, path: Path, patient: bool, index_systems: bool = False) -> None:
        self.path = path
        self.fresh = False
        self.systems: Systems | None = None
        self._index_systems = index_systems
        self._identity = ""
        self._said = ""
        self._damaged = False
        self._reader: Any = None
        if not patient:
            self._identity = _identity(path)
            self._take(path)

    @property
    def built_s(self) -> int:
        return int(self._reader.metadata().build_epoch) if self._reader is not None else 0

    def record(self, address: IPv4Address | IPv6Address) -> Mapping[str, Any]:
        if self._reader is None or (address.version == 6 and self._reader.metadata().ip_version == 4):
            return {}
        try:
            found = self._reader.get(address)
        except Exception:
            self._damaged = True
            return {}
        return found if isinstance(found, dict) else {}

    def refresh(self) -> list[str]:
        self.fresh = False
        problem = f"{self.path}: damaged: some addresses have no place" if self._damaged else ""
        try:
            identity = _identity(self.path)
            if identity != self._identity:
                self._identity = identity
                self._take(self.path)
                self.fresh, self._damaged, self._said, problem = True, False, "", ""
            elif self._said and not problem:
                return []
        except ConfigError as error:
            state = (
                "no place is known from it" if self._reader is None else "what was read before stays in use"
            )
            problem = f"{error.message}; {state}"
        if problem in ("", self._said):
            return []
        self._said = problem
        return [problem]

    def _take(self, path: Path) -> None:
        """Reads the file, and lists its systems where they are wanted. Raises ConfigError; then nothing changed."""
        reader, content = _open(path, self._index_systems)
        if self._index_systems:
            metadata = reader.metadata()
            try:
                self.systems = Systems(
                    content,
                    nodes=int(metadata.node_count),
                    record_bits=int(metadata.record_size),
                    version=metadata.ip_version,
                    system=partial(_system_of, reader),
                )
            except Exception as error:
                raise ConfigError(
                    f"{path}: the networks of its systems cannot be listed: {error}", remedy=REMEDY
                ) from error
        self._reader = reader


def _system_of(reader: Any, address: IPv4Address | IPv6Address) -> int:
    try:
        found = reader.get(address)
    except Exception:
        return 0
    return _system(found) if isinstance(found, dict) else 0


def _identity(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", remedy="correct detection.geo, or leave it out"
        ) from error
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _open(path: Path, whole: bool = False) -> tuple[Any, bytes]:
    """A reader, and with `whole` what the file holds."""
    import maxminddb

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise ConfigError(f"{path}: {size:,} bytes; at most {MOST_BYTES:,} are read", remedy=REMEDY)
            reader = maxminddb.open_database(file, maxminddb.MODE_FD)
            file.seek(0)
            content = file.read(MOST_BYTES) if whole else b""
        metadata = reader.metadata()
        if metadata.ip_version not in (4, 6) or not 0 <= int(metadata.build_epoch) < 1 << 40:
            raise ValueError("its metadata makes no sense")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", remedy="the analyser's user must be able to read it"
        ) from error
    except ConfigError:
        raise
    except Exception as error:
        said = str(error).replace(f" ({path})", "").strip() or type(error).__name__
        raise ConfigError(f"{path}: no database of places: {said}", remedy=REMEDY) from error
    return reader, content


def _within(record: Any, *names: str) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def country_number(code: str) -> int:
    """`DE` as one number of 16 bits; 0 where it is no code of two capital letters (ISO 3166-1)."""
    good = len(code) == 2 and code.isascii() and code.isalpha() and code.isupper()
    return ord(code[0]) << 8 | ord(code[1]) if good else 0


def country_text(number: int) -> str:
    return chr(number >> 8) + chr(number & 0xFF) if number else ""


def _country(record: Mapping[str, Any]) -> int:
    code = _within(record, "country", "iso_code")
    return country_number(code) if isinstance(code, str) else 0


def _system(record: Mapping[str, Any]) -> int:
    number = record.get("autonomous_system_number")
    return number if type(number) is int and 0 < number < 1 << 32 else 0


def _place(record: Mapping[str, Any]) -> tuple[int, int]:
    latitude, longitude = _within(record, "location", "latitude"), _within(record, "location", "longitude")
    if not all(isinstance(x, int | float) for x in (latitude, longitude)):
        return 0, 0
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        return 0, 0
    accuracy = _within(record, "location", "accuracy_radius")
    if type(accuracy) is not int or not 0 < accuracy <= 20_000:
        accuracy = ACCURACY_KM
    return packed(round(latitude * 10_000), round(longitude * 10_000)), accuracy
