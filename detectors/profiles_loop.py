# mypy: disable-error-code="untyped-decorator"
"""The loop that updates what is usual for each user (`profiles.py`); compiled where there was a C compiler.

One event after the other, in integers: no result depends on how events were divided into batches. Failures only
ask. Nothing here may read a clock, draw a random number, or use a float.

A row of the table of users, in columns: strength, last success, first success, cell of ageing, logins, logins
from a new wider network, logins from a new range, 8 methods, 24 hours (UTC), the last place and the last familiar
one in 5 each; then five sets of (keys, when each was first seen, when last). Counts are in sixteenths, so that
halving them keeps something. A row of the table of the site: strength, last, first, when it was settled, and 4
users as (key, first seen).
"""

from __future__ import annotations

import cython

from ..daemon.events import I64, U8

_WAYS = cython.declare(cython.Py_ssize_t, 8)
_LOGINS = cython.declare(cython.Py_ssize_t, 4)
_STRAYED = cython.declare(cython.Py_ssize_t, 5)
_ROAMED = cython.declare(cython.Py_ssize_t, 6)
_METHODS = cython.declare(cython.Py_ssize_t, 7)
_HOURS = cython.declare(cython.Py_ssize_t, 15)
_PLACE = cython.declare(cython.Py_ssize_t, 39)
_FAMILIAR_PLACE = cython.declare(cython.Py_ssize_t, 44)
_SETS = cython.declare(cython.Py_ssize_t, 49)
_SITE_USERS = cython.declare(cython.Py_ssize_t, 4)
_ONE = cython.declare(cython.longlong, 16)
_HOUR_NS = cython.declare(cython.longlong, 3_600_000_000_000)
_DAY_NS = cython.declare(cython.longlong, 86_400_000_000_000)
_NEVER = cython.declare(cython.longlong, 0x7FFF_FFFF_FFFF_FFFF)
_METHOD = cython.declare(cython.longlong, 32)
_HOUR = cython.declare(cython.longlong, 64)
_RANGE = cython.declare(cython.Py_ssize_t, 2)  # the first of the sets that the site has as well
_SITE = cython.declare(cython.longlong, 128)
_FAMILIAR = cython.declare(cython.longlong, 4 | 16 | 128)  # range or system of the user, range of the site
_SEEN = cython.declare(cython.Py_ssize_t, 16)


@cython.cfunc
@cython.inline
@cython.locals(keys="long long[::1]")
def _find(keys: I64, home: cython.Py_ssize_t, key: cython.longlong) -> cython.Py_ssize_t:
    """The place of `key` in the bucket that begins at `home`, or -1."""
    way: cython.Py_ssize_t
    for way in range(_WAYS):
        if keys[home + way] == key:
            return home + way
    return -1


@cython.cfunc
@cython.locals(keys="long long[::1]", table="long long[:, ::1]")
def _claim(
    keys: I64, table: I64, home: cython.Py_ssize_t, key: cython.longlong, grace: cython.longlong
) -> cython.Py_ssize_t:
    """The place of `key`, found or made; what is made takes that of the weakest entry, and is all zero."""
    way: cython.Py_ssize_t
    slot: cython.Py_ssize_t = _find(keys, home, key)
    column: cython.Py_ssize_t
    least: cython.longlong = _NEVER
    score: cython.longlong
    if slot >= 0:
        return slot
    slot = home
    for way in range(home, home + _WAYS):
        if keys[way] == 0:
            slot = way
            break
        score = table[way, 1] + table[way, 0] * grace
        if score < least:
            least = score
            slot = way
    keys[slot] = key
    for column in range(table.shape[1]):
        table[slot, column] = 0
    return slot


@cython.cfunc
@cython.locals(row="long long[::1]")
def _known(
    row: I64,
    start: cython.Py_ssize_t,
    size: cython.Py_ssize_t,
    key: cython.longlong,
    now: cython.longlong,
    memory: cython.longlong,
    settle: cython.longlong,
    learn: cython.bint,
) -> cython.int:
    """Of the set that begins at `start`: 0 where `key` is not in it, 1 where it is, 2 where it is settled."""
    at: cython.Py_ssize_t
    oldest: cython.Py_ssize_t = start
    found: cython.int = 0
    for at in range(start, start + size):
        if row[at] == key:
            if learn and row[at + size] > now:
                row[at + size] = now
            if now - row[at + 2 * size] <= memory:
                found = 2 if now - row[at + size] >= settle else 1
            elif learn:
                row[at + size] = now
            if learn:
                row[at + 2 * size] = now
            return found
        if row[at + 2 * size] < row[oldest + 2 * size]:
            oldest = at
    if learn:
        row[oldest] = key
        row[oldest + size] = now
        row[oldest + 2 * size] = now
    return 0


@cython.cfunc
@cython.locals(row="long long[::1]")
def _known_to_site(
    row: I64,
    user: cython.longlong,
    settled: cython.bint,
    now: cython.longlong,
    memory: cython.longlong,
    half_day: cython.longlong,
) -> cython.bint:
    """Whether this was usual at the site before; it is once five users had it settled, or one for half a day."""
    at: cython.Py_ssize_t
    known: cython.bint
    if now - row[1] > memory:
        for at in range(row.shape[0]):
            row[at] = 0
    if row[2] == 0:
        row[2] = now
    known = row[3] != 0
    row[0] = 64 if known else 1
    row[1] = now
    if known or not settled:
        return known
    at = _SITE_USERS
    while at < row.shape[0] and row[at] != 0 and row[at] != user:
        at += 2
    if at >= row.shape[0]:
        row[3] = now
    elif row[at] == 0:
        row[at] = user
        row[at + 1] = now
    elif now - row[at + 1] >= half_day:
        row[3] = now
    elif now < row[at + 1]:
        row[at + 1] = now
    return False


@cython.cfunc
@cython.locals(counts="long long[::1]")
def _around(
    counts: I64, start: cython.Py_ssize_t, hour: cython.longlong, reach: cython.longlong
) -> cython.longlong:
    """The sum of the hours of the day up to `reach` from `hour`."""
    step: cython.longlong
    total: cython.longlong = 0
    for step in range(-reach, reach + 1):
        total += counts[start + (hour + step + 24) % 24]
    return total


@cython.cfunc
@cython.locals(row="long long[::1]", site="long long[::1]")
def _usual_hour(row: I64, site: I64, hour: cython.longlong) -> cython.bint:
    """Whether the user, or the people of the site, log in at about this hour of the day; see `Profiles`."""
    logins: cython.longlong = row[_LOGINS]
    near: cython.longlong
    reach: cython.longlong
    total: cython.longlong = 0
    at: cython.Py_ssize_t
    if logins < 20 * _ONE:
        reach = 4 if logins < 10 * _ONE else 2
        if _around(row, _HOURS, hour, reach) >= 2 * _ONE:
            return True
    else:
        near = _around(row, _HOURS, hour, 1)
        if near >= 2 * _ONE and near * 50 >= logins:
            return True
        if near == 0 and logins >= 200 * _ONE:
            return False
    for at in range(24):
        total += site[at]
    return total >= 100 * _ONE and _around(site, 0, hour, 1) * 64 >= total


@cython.cfunc
@cython.locals(row="long long[::1]")
def _around_the_clock(row: I64) -> cython.bint:
    """Whether no hour is this user's own, as with a scheduled job."""
    at: cython.Py_ssize_t
    busy: cython.int = 0
    for at in range(_HOURS, _HOURS + 24):
        if row[at] > 0 and row[at] * 64 >= row[_LOGINS]:
            busy += 1
    return busy >= 18


@cython.cfunc
@cython.inline
@cython.locals(row="long long[::1]")
def _age(
    row: I64, at: cython.Py_ssize_t, first: cython.Py_ssize_t, end: cython.Py_ssize_t, cell: cython.longlong
) -> cython.void:
    """Halves the counts from `first` to `end` for each cell since the one that `at` holds."""
    column: cython.Py_ssize_t
    steps: cython.longlong = cell - row[at]
    if steps == 0 or steps == -1:
        return
    row[at] = cell
    if steps < 0:
        return
    if steps > 40:
        steps = 40
    for column in range(first, end):
        row[column] >>= steps


@cython.locals(
    home="const long long[::1]",
    users="const long long[::1]",
    time_ns="const long long[::1]",
    success="const unsigned char[::1]",
    items="const long long[:, ::1]",
    site_home="const long long[:, ::1]",
    site_items="const long long[:, ::1]",
    methods="const unsigned char[::1]",
    places="const long long[:, ::1]",
    sizes="const long long[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    site_keys="long long[::1]",
    site_table="long long[:, ::1]",
    hours="long long[::1]",
    out="long long[:, ::1]",
    row="long long[::1]",
)
def recall_profiles(
    home: I64,
    users: I64,
    time_ns: I64,
    success: U8,
    items: I64,
    site_home: I64,
    site_items: I64,
    methods: U8,
    places: I64,
    sizes: I64,
    memory: cython.longlong,
    settle: cython.longlong,
    half_life: cython.longlong,
    keys: I64,
    table: I64,
    site_keys: I64,
    site_table: I64,
    hours: I64,
    out: I64,
) -> None:
    """What was usual before each event, and of a success what it adds.

    `items` columns: the keys of network, wider network, range, country, number; 0 = unknown. `site_items`: those of
    the last three at the site. `places` columns: latitude and longitude packed, accuracy, address, family.
    `hours` has those of the site, its cell of ageing, its first success. `out` columns: see `Profiles`.
    """
    i: cython.Py_ssize_t
    s: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    at: cython.Py_ssize_t
    start: cython.Py_ssize_t
    now: cython.longlong
    last: cython.longlong
    key: cython.longlong
    facts: cython.longlong
    hour: cython.longlong
    found: cython.int
    learn: cython.bint
    for i in range(users.shape[0]):
        out[i, 8] = hours[25]
        if users[i] == 0:
            continue
        learn = success[i] != 0
        slot = (
            _claim(keys, table, home[i], users[i], memory // 64) if learn else _find(keys, home[i], users[i])
        )
        if slot < 0:
            continue
        row = table[slot]
        now = time_ns[i]
        last = row[1]
        if last - now > _DAY_NS:
            # What came then was of a wrong clock: else nothing new would settle until that day.
            last = now
            if row[2] > now and learn:
                row[2] = now
        if now < last:
            now = last
        if last != 0 and now - last > memory:
            if not learn:
                continue
            for at in range(row.shape[0]):
                row[at] = 0
            last = 0
        if learn:
            _age(row, 3, _LOGINS, _PLACE, now // half_life)
            _age(hours, 24, 0, 24, now // half_life)
        facts = 0
        start = _SETS
        for s in range(sizes.shape[0]):
            key = items[i, s]
            if key != 0:
                found = _known(row, start, sizes[s], key, now, memory, settle, learn)
                if found > 0:
                    facts |= 1 << (_SEEN + s)
                    if found > 1:
                        facts |= 1 << s
            start += 3 * sizes[s]
        out[i, 0] = row[_LOGINS] // _ONE
        out[i, 1] = row[2]
        out[i, 2] = last
        out[i, 4] = row[_STRAYED] // _ONE
        out[i, 5] = row[_ROAMED] // _ONE
        if learn:
            for s in range(site_items.shape[1]):
                key = site_items[i, s]
                if key != 0:
                    at = _claim(site_keys, site_table, site_home[i, s], key, memory // 64)
                    found = facts >> (_RANGE + s) & 1
                    if _known_to_site(site_table[at], users[i], found, now, memory, 12 * _HOUR_NS):
                        facts |= _SITE << s
            hour = now // _HOUR_NS % 24
            at = _METHODS + methods[i]
            if row[at] > 0 and row[at] * 20 >= row[_LOGINS]:
                facts |= _METHOD
            if _usual_hour(row, hours, hour):
                facts |= _HOUR
            out[i, 6] = row[at] // _ONE
            out[i, 7] = row[_METHODS + 1] // _ONE
            if places[i, 0] != 0:
                for s in range(10):
                    out[i, 9 + s] = row[_PLACE + s]
                row[_PLACE] = places[i, 0]
                row[_PLACE + 1] = now
                row[_PLACE + 2] = places[i, 1]
                row[_PLACE + 3] = places[i, 2]
                row[_PLACE + 4] = places[i, 3] | facts << 8
                if facts & _FAMILIAR:
                    for s in range(5):
                        row[_FAMILIAR_PLACE + s] = row[_PLACE + s]
            if hours[25] == 0 or hours[25] > time_ns[i]:
                hours[25] = time_ns[i]
            if facts & 1 and now - row[2] >= _DAY_NS and now // _HOUR_NS > last // _HOUR_NS:
                hours[hour] += 0 if _around_the_clock(row) else _ONE
            if row[2] == 0:
                row[2] = now
            if not facts & (2 << _SEEN):
                row[_STRAYED] += _ONE
            if not facts & (4 << _SEEN):
                row[_ROAMED] += _ONE
            row[at] += _ONE
            row[_HOURS + hour] += _ONE
            row[_LOGINS] += _ONE
            row[1] = now
            row[0] = row[_LOGINS] // _ONE if row[_LOGINS] < 64 * _ONE else 64
        out[i, 3] = facts
