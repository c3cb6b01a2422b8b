"""What is usual for each user and at the site: where logins come from, how, and when.

Only a success writes, so a guesser's invented names take no entry and push nobody out. What a first login
brings does not become usual at once: a fact counts from `settle_ns` after it was first seen on. Whoever asks is
answered with what was known before the event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..daemon.events import I64, NS_PER_S, U8, U64
from . import profiles_loop
from .addressing import join_keys
from .tables import NS_PER_DAY, Table

NETWORK, WIDER, RANGE, COUNTRY, ASN, METHOD, HOUR = (1 << bit for bit in range(7))
"""Facts of an event that were usual for its user before it: the client's network (IPv4 /32, IPv6 /64), the wider
one (/24, /48), the range (/16, /32), its country, its autonomous system, the method, the hour of the day."""
SITE_RANGE, SITE_COUNTRY, SITE_ASN = (1 << bit for bit in range(7, 10))
"""The same of everybody's successes. Asked of successes alone."""
SEEN = 16
"""`NETWORK << SEEN` and the like: seen before, settled or not."""

METHODS = ("", "publickey", "password", "keyboard-interactive", "hostbased", "gssapi", "none", "other")
"""What `methods` number."""
PUBLICKEY, PASSWORD, KEYBOARD = 1, 2, 3

_SIZES = (16, 16, 8, 8, 8)
_COLUMNS = 49 + 3 * sum(_SIZES)
_KINDS = np.array([[1], [2], [3]], np.uint64)
_DEGREE = 10_000


class Locator(Protocol):
    """What knows where addresses are: the daemon's `Geography`."""

    def columns(self, address: U64, family: U8) -> tuple[I64, I64, I64]:
        """For addresses `uint64[n, 2]`: country, autonomous system, and `places` as `Profiles.update` takes them."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a user last succeeded. Degrees in 1e-4, accuracy in kilometres; `network` as an address column has it."""

    latitude: int
    longitude: int
    time_ns: int
    accuracy: int
    family: int
    network: int  # the IPv4 address, or the first 64 bits of the IPv6 address
    facts: int  # those of that login


FAMILIAR = RANGE | ASN | SITE_RANGE
"""Any of these makes a place familiar."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What `Profiles.update` says of each event, as it was before the event."""

    logins: I64  # successes of this user, halved with age; 0 = none yet (or the first few have aged away)
    first_ns: I64  # of this user's successes; 0 = none
    last_ns: I64
    facts: I64
    strayed: I64  # of these: successes from a wider network that was new then
    roamed: I64  # from a range that was new then
    by_method: I64  # by the method of this event
    by_key: I64  # by public key
    site_first_ns: I64  # the first success of anybody at the site; 0 = none
    places: I64  # [n, 10]; see `last_place` and `last_familiar_place`

    def last_place(self, at: int) -> Place | None:
        """Where this user's last success with a place was; None where there is none, or the event has no place."""
        return self._place(at, 0)

    def last_familiar_place(self, at: int) -> Place | None:
        """The last one whose range or system was usual for the user, or whose range for the site, when it came."""
        return self._place(at, 5)

    def _place(self, at: int, first: int) -> Place | None:
        packed, time_ns, accuracy, network, rest = self.places[at, first : first + 5].tolist()
        if packed == 0:
            return None
        latitude, longitude = unpacked(packed)
        return Place(latitude, longitude, time_ns, accuracy, rest & 0xFF, network, rest >> 8)


def packed(latitude: int, longitude: int) -> int:
    """Latitude and longitude, in 1e-4 degrees, as one number that is never 0."""
    return (latitude + 90 * _DEGREE + 1) << 32 | (longitude + 180 * _DEGREE)


def unpacked(place: int) -> tuple[int, int]:
    return (place >> 32) - 90 * _DEGREE - 1, (place & 0xFFFF_FFFF) - 180 * _DEGREE


class Profiles:
    """For each user with a success what is usual, forgotten `memory_ns` after the last one.

    Held of a user: the number of logins, of those from new networks, by method and by hour of the day (UTC),
    halved every `memory_ns`; up to 16 networks, 16 wider ones, 8 ranges, 8 countries and 8 autonomous systems,
    each until it has not been used for `memory_ns` (the one longest unused goes first); the place of the last one.

    An hour is usual where two logins were within four hours of it, of ten or more within two; of twenty or more, where
    two, and one in fifty, were within one; or where one in 64 of the site's people's are (those of users known for
    a day, from networks of theirs, who are not there around the clock), unless two hundred logins of this user
    know no such hour. A method
    is usual for one in twenty logins. A range, country or autonomous system is usual at the site once it is settled
    for five users, or for one who comes back half a day later; so stolen passwords make none.

    Parameters: `users` (16,384), `site` (ranges, countries and systems held: 8,192), `memory_ns` (30 days),
    `settle_ns` (an hour).
    """

    def __init__(
        self,
        users: int = 16384,
        site: int = 8192,
        memory_ns: int = 30 * NS_PER_DAY,
        settle_ns: int = 3600 * NS_PER_S,
    ) -> None:
        self._memory_ns, self._settle_ns = memory_ns, settle_ns
        self._users = Table(users, _COLUMNS, memory_ns // 64)
        self._site = Table(site, 12, memory_ns // 64)
        self._hours: I64 = np.zeros(26, np.int64)

    def update(
        self,
        users: U64,
        time_ns: I64,
        success: U8,
        networks: U64,
        wider: U64,
        ranges: U64,
        countries: I64,
        systems: I64,
        methods: U8,
        places: I64,
    ) -> Recalled:
        """Columns of n events; 0 stands for what is unknown. `methods` number METHODS; `places` (`int64[n, 4]`):
        packed latitude and longitude (see `packed`), accuracy in kilometres, network and family.
        """
        named = [networks.view(np.int64), wider.view(np.int64), ranges.view(np.int64), countries, systems]
        of_site: U64 = np.zeros((len(users), len(_KINDS)), np.uint64)
        rows = np.flatnonzero(success)
        for column, (kind, keys) in enumerate(zip(_KINDS, named[2:], strict=True)):
            key = keys[rows].view(np.uint64)
            of_site[rows, column] = np.where(key != 0, join_keys(kind, key), np.uint64(0))
        out: I64 = np.zeros((len(users), 19), np.int64)
        table, site = self._users, self._site
        profiles_loop.recall_profiles(
            table.home(users), users.view(np.int64), time_ns, success, np.stack(named, axis=1),
            site.home(of_site), of_site.view(np.int64), methods, places, np.array(_SIZES, np.int64),
            self._memory_ns, self._settle_ns, self._memory_ns, table.keys, table.rows, site.keys, site.rows,
            self._hours, out,
        )  # fmt: skip
        return Recalled(*np.ascontiguousarray(out[:, :9].T), out[:, 9:])  # type: ignore[call-arg]

    def save(self) -> dict[str, Any]:
        return {"users": self._users.save(), "site": self._site.save(), "hours": self._hours.copy()}

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the saved tables had another size."""
        self._users.load(state["users"])
        self._site.load(state["site"])
        self._hours[:] = state["hours"]
