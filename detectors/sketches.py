# mypy: disable-error-code="untyped-decorator"
"""The loops that update the detectors' bounded tables (`tables.py`); compiled where there was a C compiler.

A table is set-associative: a key belongs to one bucket of eight places. A newcomer in a full bucket replaces
the weakest entry there, so memory is fixed whatever is sent, and sources of one attempt each cannot push out
one that goes on attacking. Loops take one event after the other, in integers, so no result depends on how
events were divided into batches. Nothing here may read a clock, draw a random number, or use a float.

Keys are keyed 64-bit hashes, held as the `int64` view of the same bits; 0 means absent and is skipped.
"""

from __future__ import annotations

from typing import Any

import cython

from ..daemon.events import I32, I64, U8

_WAYS = cython.declare(cython.Py_ssize_t, 8)
_STRENGTH = cython.declare(cython.Py_ssize_t, 0)  # each unit keeps an entry for one more `grace`
_LAST = cython.declare(cython.Py_ssize_t, 1)  # time of the newest event; 0 in an entry that was just made
_MOST_STRENGTH = cython.declare(cython.longlong, 64)
_NEVER = cython.declare(cython.longlong, 0x7FFF_FFFF_FFFF_FFFF)
_MOST_LINE = cython.declare(cython.longlong, (1 << 37) - 1)


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
def _replace(
    keys: I64,
    table: I64,
    home: cython.Py_ssize_t,
    key: cython.longlong,
    grace: cython.longlong,
    head: cython.Py_ssize_t,
) -> cython.Py_ssize_t:
    """Gives `key` the place of the weakest entry of its bucket and clears the first `head` columns there."""
    way: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    victim: cython.Py_ssize_t = home
    least: cython.longlong = _NEVER
    strength: cython.longlong
    score: cython.longlong
    for way in range(_WAYS):
        slot = home + way
        if keys[slot] == 0:
            victim = slot
            break
        strength = table[slot, _STRENGTH]
        if strength > _MOST_STRENGTH:
            strength = _MOST_STRENGTH
        score = table[slot, _LAST] + strength * grace
        if score < least:
            least = score
            victim = slot
    keys[victim] = key
    column: cython.Py_ssize_t
    for column in range(head):
        table[victim, column] = 0
    return victim


@cython.cfunc
@cython.inline
@cython.locals(keys="long long[::1]", table="long long[:, ::1]")
def _claim(
    keys: I64,
    table: I64,
    home: cython.Py_ssize_t,
    key: cython.longlong,
    grace: cython.longlong,
    head: cython.Py_ssize_t,
) -> cython.Py_ssize_t:
    """The place of `key`, found or made."""
    slot: cython.Py_ssize_t = _find(keys, home, key)
    return slot if slot >= 0 else _replace(keys, table, home, key, grace, head)


@cython.cfunc
@cython.locals(keys="long long[::1]", door="long long[:, ::1]")
def _at_door(
    keys: I64,
    door: I64,
    key: cython.longlong,
    now: cython.longlong,
    idle: cython.longlong,
    wait: cython.bint,
) -> cython.Py_ssize_t:
    """Where a first event of `key` waits for a second one: its place + 1; 0 where none does.

    With `wait`, this event then takes a place, that of whoever has waited longest in the bucket, and -1 - its
    place is told. The first column is the time. A newcomer who never comes again so takes no place of a table.
    """
    home: cython.Py_ssize_t = ((key >> 20) & (keys.shape[0] // _WAYS - 1)) * _WAYS
    slot: cython.Py_ssize_t = _find(keys, home, key)
    way: cython.Py_ssize_t
    if slot >= 0:
        if now - door[slot, 0] <= idle:
            return slot + 1
        if not wait:
            return 0
    elif not wait:
        return 0
    else:
        slot = home
        for way in range(_WAYS):
            if keys[home + way] == 0:
                slot = home + way
                break
            if door[home + way, 0] < door[slot, 0]:
                slot = home + way
        keys[slot] = key
    door[slot, 0] = now
    return -1 - slot


@cython.locals(
    home="const long long[::1]",
    wanted="const long long[::1]",
    time_ns="const long long[::1]",
    weights="const long long[::1]",
    scales="const long long[:, ::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    counts="long long[:, ::1]",
    spread="long long[::1]",
    door_keys="long long[::1]",
    door="long long[:, ::1]",
)
def count_windows(
    home: I64,
    wanted: I64,
    time_ns: I64,
    weights: I64,
    scales: I64,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    counts: I64,
    spread: I64,
    door_keys: I64,
    door: I64,
) -> None:
    """A key enters with weight 2, or with its second event; `door` holds the time of the first.

    `spread` takes how many cells of the last scale are not empty; it may be empty itself.

    Columns from 2 on: for each scale the start of its newest cell, that cell's place, the sum; then all cells.
    """
    i: cython.Py_ssize_t
    s: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    field: cython.Py_ssize_t
    first: cython.Py_ssize_t
    place: cython.Py_ssize_t
    step: cython.Py_ssize_t
    now: cython.longlong
    weight: cython.longlong
    cell_ns: cython.longlong
    cells: cython.longlong
    steps: cython.longlong
    total: cython.longlong
    owed: cython.longlong
    head: cython.Py_ssize_t = 2 + 3 * scales.shape[0]
    longest: cython.longlong = scales[scales.shape[0] - 1, 0] * scales[scales.shape[0] - 1, 1]
    for i in range(wanted.shape[0]):
        if wanted[i] == 0:
            continue
        weight = weights[i]
        slot = _find(keys, home[i], wanted[i])
        if slot < 0:
            if door_keys.shape[0] > 0 and weight != 0:
                place = _at_door(door_keys, door, wanted[i], time_ns[i], longest, weight == 1)
                if place < 0:
                    for s in range(scales.shape[0]):
                        counts[i, s] = 1
                    if spread.shape[0] > 0:
                        spread[i] = 1
                    continue
                if place > 0:
                    weight += 1 if weight > 0 else 0
                    door_keys[place - 1] = 0
            if weight <= 0:
                continue
            slot = _replace(keys, table, home[i], wanted[i], grace, head)
        now = time_ns[i]
        if now < table[slot, _LAST]:
            now = table[slot, _LAST]
        table[slot, _LAST] = now
        first = head
        total = 0
        for s in range(scales.shape[0]):
            cell_ns = scales[s, 0]
            cells = scales[s, 1]
            field = 2 + 3 * s
            place = table[slot, field + 1]
            total = table[slot, field + 2]
            if now - table[slot, field] >= cell_ns:
                steps = now // cell_ns - table[slot, field] // cell_ns
                table[slot, field] = now // cell_ns * cell_ns
                if steps >= cells:
                    for step in range(first, first + cells):
                        table[slot, step] = 0
                    total = 0
                else:
                    for _ in range(steps):
                        place = place + 1 if place + 1 < cells else 0
                        total -= table[slot, first + place]
                        table[slot, first + place] = 0
                table[slot, field + 1] = place
            if weight > 0:
                table[slot, first + place] += weight
                total += weight
            elif weight < 0:
                owed = -weight
                for _ in range(cells):
                    if owed > table[slot, first + place]:
                        owed -= table[slot, first + place]
                        total -= table[slot, first + place]
                        table[slot, first + place] = 0
                    else:
                        table[slot, first + place] -= owed
                        total -= owed
                        break
                    place = place - 1 if place > 0 else cells - 1
            table[slot, field + 2] = total
            counts[i, s] = total
            if weight > 0 and s == scales.shape[0] - 1 and spread.shape[0] > 0:
                for step in range(first, first + cells):
                    if table[slot, step] != 0:
                        spread[i] += 1
            first += cells
        table[slot, _STRENGTH] = total


@cython.locals(
    home="const long long[::1]",
    wanted="const long long[::1]",
    items="const long long[::1]",
    time_ns="const long long[::1]",
    change="const signed char[::1]",
    windows="const long long[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    counts="long long[:, ::1]",
    door_keys="long long[::1]",
    door="long long[:, ::1]",
)
def count_distinct(
    home: I64,
    wanted: I64,
    items: I64,
    time_ns: I64,
    change: Any,
    windows: I64,
    few: cython.longlong,
    alike: cython.longlong,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    counts: I64,
    door_keys: I64,
    door: I64,
) -> None:
    """A key enters with its second event; `door` holds time, item and change of the first.

    Columns from 2 on: items held, which goes next when full, items, when each was last seen, 4 x tries + standing.

    Standing: 0 counts, 1 counts in the first window only, 2 counts against the others. `change`: 1 to 3 add
    with standing 0 to 2, 4 adds with 0 but leaves what stands against, -1 removes, 0 asks. `counts` has a column
    for each window, one for the items that stand against within the first, and, where `alike`, one for each
    window again: of the items whose last 16 bits are those of this event's.
    """
    i: cython.Py_ssize_t
    w: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    place: cython.Py_ssize_t
    at: cython.Py_ssize_t
    size: cython.Py_ssize_t
    most: cython.Py_ssize_t = (table.shape[1] - 4) // 3
    seen: cython.Py_ssize_t = 4 + most
    held: cython.Py_ssize_t = 4 + 2 * most
    last_window: cython.Py_ssize_t = windows.shape[0] - 1
    now: cython.longlong
    age: cython.longlong
    mark: cython.longlong
    standing: cython.longlong
    item: cython.longlong
    same: cython.bint
    longest: cython.longlong = windows[last_window]
    for i in range(wanted.shape[0]):
        if wanted[i] == 0:
            continue
        slot = _find(keys, home[i], wanted[i])
        if slot < 0:
            place = 0
            if door_keys.shape[0] > 0 and change[i] != 0:
                place = _at_door(door_keys, door, wanted[i], time_ns[i], longest, change[i] > 0)
                if place < 0:
                    door[-1 - place, 1] = items[i]
                    door[-1 - place, 2] = change[i]
                    # Of one item what is counted is known without a place.
                    if change[i] == 3:
                        for w in range(last_window + 1):
                            counts[i, w] = -1
                            if alike:
                                counts[i, last_window + 2 + w] = -1
                        counts[i, last_window + 1] = 1
                    else:
                        for w in range(1 if change[i] == 2 else last_window + 1):
                            counts[i, w] = 1
                            if alike:
                                counts[i, last_window + 2 + w] = 1
                    continue
                if place > 0 and (change[i] > 0 or door[place - 1, 1] == items[i]):
                    door_keys[place - 1] = 0
            if change[i] <= 0:
                continue
            slot = _replace(keys, table, home[i], wanted[i], grace, 4)
            if place > 0:
                table[slot, 2] = 1
                table[slot, 4] = door[place - 1, 1]
                table[slot, seen] = door[place - 1, 0]
                table[slot, held] = 4 + (door[place - 1, 2] - 1 if door[place - 1, 2] < 4 else 0)
                table[slot, _LAST] = door[place - 1, 0]
        now = time_ns[i]
        if now < table[slot, _LAST]:
            now = table[slot, _LAST]
        table[slot, _LAST] = now
        size = table[slot, 2]
        if change[i] != 0:
            item = items[i]
            place = 0
            while place < size and table[slot, 4 + place] != item:
                place += 1
            if change[i] < 0:
                if place < size:
                    size -= 1
                    table[slot, 2] = size
                    table[slot, 4 + place] = table[slot, 4 + size]
                    table[slot, seen + place] = table[slot, seen + size]
                    table[slot, held + place] = table[slot, held + size]
            else:
                mark = 0
                standing = change[i] - 1 if change[i] < 4 else 0
                if place < size:
                    if now - table[slot, seen + place] < longest:
                        mark = table[slot, held + place]
                        if mark & 2 and (change[i] == 2 or change[i] == 4):
                            standing = 2
                elif size < most:
                    size += 1
                    table[slot, 2] = size
                else:
                    place = table[slot, 3]
                    table[slot, 3] = place + 1 if place + 1 < most else 0
                table[slot, 4 + place] = item
                table[slot, seen + place] = now
                table[slot, held + place] = (mark & ~3) + 4 + standing
        item = items[i]
        for at in range(size):
            age = now - table[slot, seen + at]
            if age >= longest:
                continue
            same = alike != 0 and ((table[slot, 4 + at] ^ item) & 0xFFFF) == 0
            mark = table[slot, held + at]
            if mark & 2:
                for w in range(last_window + 1):
                    if age < windows[w]:
                        counts[i, w] -= 1
                        if same:
                            counts[i, last_window + 2 + w] -= 1
                if age < windows[0]:
                    counts[i, last_window + 1] += 1
            elif mark >> 2 > few:
                continue
            elif mark & 1:
                if age < windows[0]:
                    counts[i, 0] += 1
                    if same:
                        counts[i, last_window + 2] += 1
            else:
                w = last_window
                while w >= 0 and age < windows[w]:
                    counts[i, w] += 1
                    if same:
                        counts[i, last_window + 2 + w] += 1
                    w -= 1
        table[slot, _STRENGTH] = size


@cython.cfunc
@cython.locals(
    keys="long long[::1]",
    table="long long[:, ::1]",
    prompt_keys="long long[::1]",
    prompt_table="long long[:, ::1]",
    said="long long[::1]",
)
def _join_prompts(
    kind: cython.int,
    user: cython.longlong,
    session: cython.longlong,
    now: cython.longlong,
    attempts: cython.longlong,
    placed: cython.bint,
    join_ns: cython.longlong,
    keys: I64,
    table: I64,
    prompt_keys: I64,
    prompt_table: I64,
    said: I64,
) -> None:
    """Joins a denied second factor with sshd's line about the same prompt, where another process wrote it.

    `said` holds weight and denials of the line, and is corrected. Columns from 2 on: session of the newest
    denial, denials that have been weighed, denials of which nobody has said where they came from.
    """
    home: cython.Py_ssize_t = (user & (prompt_keys.shape[0] // _WAYS - 1)) * _WAYS
    slot: cython.Py_ssize_t
    place: cython.Py_ssize_t
    taken: cython.longlong
    if kind == 8:
        place = _claim(prompt_keys, prompt_table, home, user, 0, 5)
    else:
        place = _find(prompt_keys, home, user)
        if place < 0:
            return
    if now < prompt_table[place, _LAST]:
        now = prompt_table[place, _LAST]
    if now - prompt_table[place, _LAST] > join_ns:
        prompt_table[place, 3] = 0
        prompt_table[place, 4] = 0
    if kind == 8:
        prompt_table[place, _LAST] = now
        prompt_table[place, 2] = session
        if placed:
            prompt_table[place, 3] += attempts
            taken = said[1] - attempts
        else:
            taken = -attempts
    elif said[1] > 0:
        taken = said[1]
        if prompt_table[place, 2] == session:
            prompt_table[place, 3] = 0
    elif session != 0 and prompt_table[place, 2] == session:
        prompt_table[place, 3] = 0
        return
    elif kind == 4:
        said[0] -= prompt_table[place, 3]
        prompt_table[place, 3] = 0
        taken = prompt_table[place, 4]
        if taken > attempts:
            taken = attempts
        said[1] = taken
        if said[0] < taken:
            said[0] = taken
        session = prompt_table[place, 2]
        if taken > 0 and session != 0:
            slot = _find(keys, (session & (keys.shape[0] // _WAYS - 1)) * _WAYS, session)
            if slot >= 0 and table[slot, 9] - table[slot, 10] >= taken:
                table[slot, 10] += taken
    else:
        return
    prompt_table[place, 4] -= taken
    if prompt_table[place, 4] < 0:
        prompt_table[place, 4] = 0


@cython.locals(
    home="const long long[::1]",
    sessions="const long long[::1]",
    time_ns="const long long[::1]",
    kinds="const unsigned char[::1]",
    attempts="const long long[::1]",
    placed="const unsigned char[::1]",
    users="const long long[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    prompt_keys="long long[::1]",
    prompt_table="long long[:, ::1]",
    prompted="long long[::1]",
    said="long long[::1]",
    out="long long[:, ::1]",
)
def weigh_lines(
    home: I64,
    sessions: I64,
    time_ns: I64,
    kinds: U8,
    attempts: I64,
    placed: U8,
    users: I64,
    idle_ns: cython.longlong,
    join_ns: cython.longlong,
    keys: I64,
    table: I64,
    prompt_keys: I64,
    prompt_table: I64,
    prompted: I64,
    said: I64,
    out: I64,
) -> None:
    """What each line adds to its session; `out` columns: attempts, user that the session last named, denied
    second factors among the attempts.

    `kinds` are `Outcome`s, with 32 for a key that was offered and refused. Columns from 2 on: failures, PAM's
    failures, 1 after an invalid user, 1 after a refused key, 1 after a success, attempts given out, user,
    denied second factors, those given out. `prompted`: when the newest second factor was denied.
    """
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    column: cython.Py_ssize_t
    now: cython.longlong
    told: cython.longlong
    kind: cython.int
    for i in range(sessions.shape[0]):
        kind = kinds[i]
        out[i, 1] = users[i]
        if sessions[i] == 0:
            if placed[i] and (kind == 2 or kind == 4 or kind == 8):
                out[i, 0] = attempts[i]
                if kind == 8:
                    out[i, 2] = attempts[i]
            elif placed[i] and kind == 3:
                out[i, 0] = 1
        else:
            if kind == 2 or kind == 3 or kind == 4 or kind == 8 or kind == 32:
                slot = _claim(keys, table, home[i], sessions[i], idle_ns, table.shape[1])
            else:
                slot = _find(keys, home[i], sessions[i])
                if slot < 0:
                    continue
            now = time_ns[i]
            if now < table[slot, _LAST]:
                now = table[slot, _LAST]
            if now - table[slot, _LAST] > idle_ns:
                for column in range(2, table.shape[1]):
                    table[slot, column] = 0
            table[slot, _LAST] = now
            if users[i] != 0:
                table[slot, 8] = users[i]
            out[i, 1] = table[slot, 8]
            if kind == 2:
                table[slot, 2] += attempts[i]
            elif kind == 4:
                table[slot, 3] += attempts[i]
            elif kind == 8:
                table[slot, 9] += attempts[i]
            elif kind == 3:
                table[slot, 4] = 1
            elif kind == 32:
                table[slot, 5] = 1
            elif kind == 1:
                table[slot, 6] = 1
            if placed[i] and kind != 1:
                told = table[slot, 2]
                if table[slot, 3] > told:
                    told = table[slot, 3]
                if table[slot, 9] > told:
                    told = table[slot, 9]
                if told == 0 and (table[slot, 4] or (kind == 5 and table[slot, 5] and not table[slot, 6])):
                    told = 1
                out[i, 2] = table[slot, 9] - table[slot, 10]
                table[slot, 10] = table[slot, 9]
                if told - table[slot, 7] > out[i, 2]:
                    out[i, 0] = told - table[slot, 7]
                else:
                    out[i, 0] = out[i, 2]
                if out[i, 0] > 0:
                    table[slot, 7] += out[i, 0]
                    table[slot, _STRENGTH] = table[slot, 7]
        if kind == 8:
            if time_ns[i] > prompted[0]:
                prompted[0] = time_ns[i]
        elif time_ns[i] - prompted[0] > join_ns or not placed[i] or (kind != 2 and kind != 4 and kind != 5):
            continue
        if out[i, 1] != 0:
            said[0] = out[i, 0]
            said[1] = out[i, 2]
            _join_prompts(
                kind, out[i, 1], sessions[i], time_ns[i], attempts[i], placed[i], join_ns, keys, table,
                prompt_keys, prompt_table, said,
            )  # fmt: skip
            out[i, 0] = said[0]
            out[i, 2] = said[1]


@cython.locals(
    pair_home="const long long[::1]",
    pairs="const long long[::1]",
    nameless_home="const long long[::1]",
    nameless="const long long[::1]",
    source_home="const long long[::1]",
    sources="const long long[::1]",
    time_ns="const long long[::1]",
    weights="const long long[::1]",
    success="const unsigned char[::1]",
    pair_keys="long long[::1]",
    pair_table="long long[:, ::1]",
    source_keys="long long[::1]",
    source_table="long long[:, ::1]",
    out="long long[:, ::1]",
)
def recall_history(
    pair_home: I64,
    pairs: I64,
    nameless_home: I64,
    nameless: I64,
    source_home: I64,
    sources: I64,
    time_ns: I64,
    weights: I64,
    success: U8,
    tolerance: cython.longlong,
    patience_ns: cython.longlong,
    settle_ns: cython.longlong,
    challenge_ns: cython.longlong,
    memory_ns: cython.longlong,
    pair_keys: I64,
    pair_table: I64,
    source_keys: I64,
    source_table: I64,
    out: I64,
) -> None:
    """What each event weighs once history is known, and that history, as it was before the event.

    `out` columns: weight (see `History`), failures of this user from this source since its last success, time
    of its first success (0 = none), users with earlier successes from this source.
    Pair columns from 2 on: failures, first success, last failure, last success. Source columns: settled users,
    fresh users, the grid cell of the fresh ones.
    """
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    place: cython.Py_ssize_t
    now: cython.longlong
    pending: cython.longlong
    weight: cython.longlong
    keep_ns: cython.longlong = memory_ns // _MOST_STRENGTH
    for i in range(sources.shape[0]):
        if sources[i] == 0:
            continue
        weight = weights[i]
        place = _find(source_keys, source_home[i], sources[i])
        if place >= 0:
            now = time_ns[i]
            if now < source_table[place, _LAST]:
                now = source_table[place, _LAST]
            if now - source_table[place, _LAST] > memory_ns:
                source_table[place, 2] = 0
                source_table[place, 3] = 0
            elif now // settle_ns > source_table[place, 4]:
                source_table[place, 2] += source_table[place, 3]
                source_table[place, 3] = 0
            if success[i]:
                source_table[place, _LAST] = now
            out[i, 3] = source_table[place, 2]
            if source_table[place, 3] >= 3:
                out[i, 3] += source_table[place, 3]
        if nameless[i] != 0 and (success[i] or pairs[i] == 0):
            if success[i]:
                slot = _find(pair_keys, nameless_home[i], nameless[i])
                if slot >= 0 and pair_table[slot, 2] > 0 and time_ns[i] - pair_table[slot, 4] <= challenge_ns:
                    pair_table[slot, 2] -= 1
                    out[i, 0] = -1
            elif weight > 0:
                slot = _claim(pair_keys, pair_table, nameless_home[i], nameless[i], keep_ns, 6)
                now = time_ns[i]
                if now < pair_table[slot, _LAST]:
                    now = pair_table[slot, _LAST]
                if now - pair_table[slot, 4] > challenge_ns:
                    pair_table[slot, 2] = 0
                pair_table[slot, _LAST] = now
                pair_table[slot, 2] += weight
                pair_table[slot, 4] = now
        if pairs[i] == 0:
            out[i, 0] = weight if weight > 0 else out[i, 0]
            continue
        if not success[i] and weight <= 0:
            continue
        slot = _claim(pair_keys, pair_table, pair_home[i], pairs[i], keep_ns, 6)
        now = time_ns[i]
        if now < pair_table[slot, _LAST]:
            now = pair_table[slot, _LAST]
        pair_table[slot, _LAST] = now
        if now - pair_table[slot, 5] > memory_ns:
            pair_table[slot, 3] = 0
        if now - pair_table[slot, 4] > patience_ns:
            pair_table[slot, 2] = 0
        pending = pair_table[slot, 2]
        out[i, 1] = pending
        out[i, 2] = pair_table[slot, 3]
        if not success[i]:
            pair_table[slot, 2] = pending + weight
            pair_table[slot, 4] = now
            if pair_table[slot, 3] == 0:
                out[i, 0] = weight
                pair_table[slot, _STRENGTH] = 1 if pending else 0
            elif pending >= tolerance:
                out[i, 0] = weight
            elif pending + weight >= tolerance:
                out[i, 0] = pending + weight
            continue
        pair_table[slot, 2] = 0
        pair_table[slot, _STRENGTH] = _MOST_STRENGTH
        if pending >= tolerance:
            continue
        pair_table[slot, 5] = now
        if pair_table[slot, 3] != 0:
            continue
        out[i, 0] -= pending
        pair_table[slot, 3] = now
        place = _claim(source_keys, source_table, source_home[i], sources[i], keep_ns, 5)
        if now < source_table[place, _LAST]:
            now = source_table[place, _LAST]
        source_table[place, _STRENGTH] = _MOST_STRENGTH
        source_table[place, _LAST] = now
        source_table[place, 3] += 1
        source_table[place, 4] = now // settle_ns


@cython.locals(
    home="const long long[::1]",
    sources="const long long[::1]",
    users="const long long[::1]",
    time_ns="const long long[::1]",
    weights="const long long[::1]",
    by_key="const unsigned char[::1]",
    absent="const unsigned char[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    out="unsigned char[::1]",
)
def note_rhythm(
    home: I64,
    sources: I64,
    users: I64,
    time_ns: I64,
    weights: I64,
    by_key: U8,
    absent: U8,
    bout_ns: cython.longlong,
    slack_ns: cython.longlong,
    idle_ns: cython.longlong,
    most: cython.longlong,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    out: U8,
) -> None:
    """What the failures of a source have in common, this event's included: bits of `Rhythm`.

    Columns from 2 on: the one user (0 = several, or nobody), 1 once there was a failure with a password, 1 once
    there was one for an account that exists, start of the last bout, the period, gaps that fit it, gaps that
    do not, failures, failures of the last bout.
    """
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    now: cython.longlong
    before: cython.longlong
    gap: cython.longlong
    periods: cython.longlong
    off: cython.longlong
    column: cython.Py_ssize_t
    for i in range(sources.shape[0]):
        if sources[i] == 0:
            continue
        if weights[i] > 0:
            slot = _claim(keys, table, home[i], sources[i], grace, 11)
            before = table[slot, _LAST]
            now = time_ns[i]
            if now < before:
                now = before
            if now - before > idle_ns:
                for column in range(2, 11):
                    table[slot, column] = 0
            table[slot, _LAST] = now
            if table[slot, 9] == 0:
                table[slot, 2] = users[i]
            elif table[slot, 2] != users[i]:
                table[slot, 2] = 0
            table[slot, 9] += 1
            table[slot, _STRENGTH] = table[slot, 9]
            if not by_key[i]:
                table[slot, 3] = 1
            if not absent[i]:
                table[slot, 4] = 1
            gap = now - table[slot, 5]
            if table[slot, 5] == 0:
                table[slot, 5] = now
            elif gap >= bout_ns:
                table[slot, 5] = now
                if table[slot, 6] == 0:
                    table[slot, 6] = gap
                else:
                    periods = (gap + table[slot, 6] // 2) // table[slot, 6]
                    off = gap - periods * table[slot, 6]
                    if off < 0:
                        off = -off
                    # Whoever goes on and on begins a bout as soon as one can begin: that is no period.
                    if table[slot, 10] > most or (now - before) * 3 < gap:
                        table[slot, 8] += 1
                    elif periods > 0 and off <= slack_ns + table[slot, 6] // 64:
                        table[slot, 7] += 1
                    else:
                        table[slot, 8] += 1
                    if table[slot, 8] > table[slot, 7]:
                        table[slot, 6] = gap
                        table[slot, 7] = 0
                        table[slot, 8] = 0
                table[slot, 10] = 0
            table[slot, 10] += weights[i]
        else:
            slot = _find(keys, home[i], sources[i])
            if slot < 0:
                continue
        if table[slot, 2] != 0:
            out[i] = 1
        if table[slot, 7] >= 3 and table[slot, 8] * 4 <= table[slot, 7]:
            out[i] |= 2
        if table[slot, 3] == 0:
            out[i] |= 4
        if table[slot, 4] == 0:
            out[i] |= 8


@cython.locals(
    home="const long long[::1]",
    wanted="const long long[::1]",
    time_ns="const long long[::1]",
    weights="const long long[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    out="long long[:, ::1]",
)
def learn_rates(
    home: I64,
    wanted: I64,
    time_ns: I64,
    weights: I64,
    cell_ns: cython.longlong,
    memory: cython.longlong,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    out: I64,
) -> None:
    """`out` columns: the mean of the whole cells before this event's, in 1/1024; how many of them there are.

    Columns from 2 on: the newest cell, what is in it, the mean in 1/1024, whole cells known.
    """
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    now: cython.longlong
    cell: cython.longlong
    steps: cython.longlong
    value: cython.longlong
    for i in range(wanted.shape[0]):
        if wanted[i] == 0:
            continue
        if weights[i] > 0:
            slot = _claim(keys, table, home[i], wanted[i], grace, 6)
        else:
            slot = _find(keys, home[i], wanted[i])
            if slot < 0:
                continue
        now = time_ns[i]
        if now < table[slot, _LAST]:
            now = table[slot, _LAST]
        cell = now // cell_ns
        if table[slot, _LAST] == 0:
            table[slot, 2] = cell
        table[slot, _LAST] = now
        steps = cell - table[slot, 2]
        if steps > 4 * memory:
            steps = 4 * memory
        value = table[slot, 3]
        # What is far above the mean is an attack, and is not what is usual.
        if table[slot, 5] >= memory // 3 and value > 4 * (table[slot, 4] >> 10) + 16:
            value = 4 * (table[slot, 4] >> 10) + 16
        for _ in range(steps):
            if table[slot, 5] < memory:
                table[slot, 5] += 1
            table[slot, 4] += (value * 1024 - table[slot, 4]) // table[slot, 5]
            value = 0
        if steps > 0:
            table[slot, 2] = cell
            table[slot, 3] = 0
        if weights[i] > 0:
            table[slot, 3] += weights[i]
        table[slot, _STRENGTH] = table[slot, 5]
        out[i, 0] = table[slot, 4]
        out[i, 1] = table[slot, 5]


@cython.cfunc
@cython.locals(
    spans="const int[:, ::1]",
    text="const unsigned char[::1]",
    name_keys="long long[::1]",
    name_table="long long[:, ::1]",
    name_text="unsigned char[:, ::1]",
)
def _name(
    item: cython.longlong,
    row: cython.Py_ssize_t,
    now: cython.longlong,
    spans: I32,
    text: U8,
    name_keys: I64,
    name_table: I64,
    name_text: U8,
) -> None:
    """Keeps the text of an item, behind a byte that says its length."""
    mask: cython.longlong = name_keys.shape[0] // _WAYS - 1
    most: cython.Py_ssize_t = name_text.shape[1] - 1
    place: cython.Py_ssize_t = _claim(name_keys, name_table, (item & mask) * _WAYS, item, 0, 2)
    length: cython.Py_ssize_t
    column: cython.Py_ssize_t
    if name_table[place, _LAST] == 0 or name_text[place, 0] == 0:
        length = spans[row, 1] - spans[row, 0]
        if spans[row, 0] < 0:
            length = 0
        if length > most - 1:
            length = most
        name_text[place, 0] = length
        for column in range(length):
            name_text[place, 1 + column] = text[spans[row, 0] + column]
    name_table[place, _LAST] = now


@cython.cfunc
@cython.locals(table="long long[:, ::1]", out="long long[:, ::1]")
def _tell_trail(
    row: cython.Py_ssize_t,
    serial: cython.longlong,
    before: cython.longlong,
    table: I64,
    slot: cython.Py_ssize_t,
    ring: cython.Py_ssize_t,
    out: I64,
) -> None:
    """What is known of a campaign whose record others have pushed out: that it goes on, and its latest events."""
    oldest: cython.Py_ssize_t = table[slot, 3] - ring
    if oldest < 0:
        oldest = 0
    out[row, 0] = serial
    out[row, 1] = table[slot, 4 + 3 * (oldest % ring) + 2]
    out[row, 2] = before
    out[row, 4] = table[slot, 3]


@cython.locals(
    home="const long long[::1]",
    wanted="const long long[::1]",
    time_ns="const long long[::1]",
    since_ns="const long long[::1]",
    over="const unsigned char[::1]",
    marks="const long long[::1]",
    amounts="const long long[:, ::1]",
    kept="const long long[::1]",
    items="const long long[::1]",
    spans="const int[:, ::1]",
    text="const unsigned char[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    records="long long[:, ::1]",
    record_names="unsigned char[:, :, ::1]",
    newest="long long[::1]",
    name_keys="long long[::1]",
    name_table="long long[:, ::1]",
    name_text="unsigned char[:, ::1]",
    touched="long long[::1]",
    out="long long[:, ::1]",
    door_keys="long long[::1]",
    door="long long[:, ::1]",
)
def follow_campaigns(
    home: I64,
    wanted: I64,
    time_ns: I64,
    since_ns: I64,
    over: U8,
    marks: I64,
    amounts: I64,
    kept: I64,
    items: I64,
    spans: I32,
    text: U8,
    gap_ns: cython.longlong,
    any_blockable: cython.longlong,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    records: I64,
    record_names: U8,
    newest: I64,
    name_keys: I64,
    name_table: I64,
    name_text: U8,
    touched: I64,
    out: I64,
    door_keys: I64,
    door: I64,
) -> None:
    """A key enters with its second event, or with one that is over; `door` holds time, mark and item of the first.

    Opens a campaign where `over`, with the trail that led there, and grows it until `gap_ns` without events.

    `out` columns: serial (0 = none), start, time of the last event before this one, 1 where the row is the
    campaign's last of the batch + 2 where it opened one, attempts so far, what it keeps. Table columns from 2
    on: serial, events on the trail, then the trail as a ring of mark, item, time. A record's columns: serial,
    trigger time and line, start, end, attempts, lines, items, provenance, blockable + 2 if refusable, two amounts,
    16 words of a bitmap of items, lines, items, what is kept.
    """
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    place: cython.Py_ssize_t
    record: cython.Py_ssize_t
    column: cython.Py_ssize_t
    names_mask: cython.longlong = name_keys.shape[0] // _WAYS - 1
    ring: cython.Py_ssize_t = (table.shape[1] - 4) // 3
    known: cython.Py_ssize_t
    first: cython.longlong
    step: cython.longlong
    mark: cython.longlong
    one: cython.longlong = 1
    now: cython.longlong
    before: cython.longlong
    serial: cython.longlong
    item: cython.longlong
    for i in range(wanted.shape[0]):
        if wanted[i] == 0:
            continue
        slot = _find(keys, home[i], wanted[i])
        if slot < 0:
            if marks[i] < 0 or not (marks[i] & 0xFFFFF or items[i] != 0):
                continue
            place = 0
            if door_keys.shape[0] > 0:
                place = _at_door(door_keys, door, wanted[i], time_ns[i], gap_ns, not over[i])
                if place < 0:
                    door[-1 - place, 1] = marks[i]
                    door[-1 - place, 2] = items[i]
                    if items[i] != 0:
                        _name(items[i], i, time_ns[i], spans, text, name_keys, name_table, name_text)
                    continue
            slot = _replace(keys, table, home[i], wanted[i], grace, 4)
            if place > 0:
                door_keys[place - 1] = 0
                table[slot, 3] = 1
                table[slot, 4] = door[place - 1, 1]
                table[slot, 5] = door[place - 1, 2]
                table[slot, 6] = door[place - 1, 0]
                table[slot, _LAST] = door[place - 1, 0]
        before = table[slot, _LAST]
        now = time_ns[i]
        if now < before:
            now = before
        serial = table[slot, 2]
        if now - before > gap_ns:
            serial = 0
        if marks[i] < 0:
            record = serial % records.shape[0]
            if serial and records[record, 0] == serial:
                out[i, 0] = serial
                out[i, 1] = records[record, 3]
                out[i, 2] = before
                out[i, 4] = records[record, 5]
                out[i, 5] = records[record, 92]
            elif serial:
                _tell_trail(i, serial, before, table, slot, ring, out)
            continue
        if now - before > gap_ns:
            table[slot, 2] = 0
            table[slot, 3] = 0
        table[slot, _LAST] = now
        item = items[i]
        if item != 0:
            _name(item, i, now, spans, text, name_keys, name_table, name_text)
        place = 4 + 3 * (table[slot, 3] % ring)
        table[slot, 3] += 1
        table[slot, place] = marks[i]
        table[slot, place + 1] = item
        table[slot, place + 2] = now
        table[slot, _STRENGTH] = table[slot, 3]
        first = table[slot, 3] - 1
        if serial == 0:
            if not over[i]:
                continue
            serial = newest[0] + 1
            newest[0] = serial
            table[slot, 2] = serial
            record = serial % records.shape[0]
            for column in range(records.shape[1]):
                records[record, column] = 0
            records[record, 0] = serial
            records[record, 1] = now
            records[record, 2] = (marks[i] >> 24) & _MOST_LINE
            records[record, 8] = 7
            records[record, 9] = 3 * (1 - any_blockable)
            if kept.shape[0] > 0:
                records[record, 92] = kept[i]
            first = table[slot, 3] - ring
            if first < 0:
                first = 0
            out[i, 3] = 2
        else:
            record = serial % records.shape[0]
            if records[record, 0] != serial:
                _tell_trail(i, serial, before, table, slot, ring, out)
                continue
        for step in range(first, table[slot, 3]):
            place = 4 + 3 * (step % ring)
            if table[slot, place + 2] < since_ns[i] and out[i, 3] == 2:
                continue
            mark = table[slot, place]
            item = table[slot, place + 1]
            if records[record, 6] == 0:
                records[record, 3] = table[slot, place + 2]
            records[record, 4] = table[slot, place + 2]
            records[record, 5] += mark & 0xFFFFF
            if (mark >> 21) & 7 < records[record, 8]:
                records[record, 8] = (mark >> 21) & 7
            if any_blockable:
                records[record, 9] |= ((mark >> 20) & 1) | ((mark >> 60) & 2)
            else:
                records[record, 9] &= ((mark >> 20) & 1) | ((mark >> 60) & 2)
            column = records[record, 6]
            if column < 32:
                records[record, 28 + column] = (mark >> 24) & _MOST_LINE
                records[record, 6] += 1
            if item == 0:
                continue
            records[record, 12 + ((item >> 25) & 15)] |= one << ((item >> 20) & 31)
            known = records[record, 7]
            column = 0
            while column < known and records[record, 60 + column] != item:
                column += 1
            if column < 32 and column == known:
                records[record, 60 + known] = item
                records[record, 7] += 1
                record_names[record, known, 0] = 0
                place = _find(name_keys, (item & names_mask) * _WAYS, item)
                if place >= 0:
                    for column in range(name_text.shape[1]):
                        record_names[record, known, column] = name_text[place, column]
        if amounts.shape[0] > 0:
            records[record, 10] += amounts[i, 0]
            records[record, 11] += amounts[i, 1]
        out[i, 0] = serial
        out[i, 1] = records[record, 3]
        out[i, 2] = before
        out[i, 3] += 1
        out[i, 4] = records[record, 5]
        out[i, 5] = records[record, 92]
        if touched[record] >= 0:
            out[touched[record], 3] &= ~1
        touched[record] = i


@cython.locals(
    home="const long long[::1]",
    flows="const long long[::1]",
    time_ns="const long long[::1]",
    bytes_out="const long long[::1]",
    bytes_in="const long long[::1]",
    keys="long long[::1]",
    table="long long[:, ::1]",
    out="long long[:, ::1]",
)
def grow_flows(
    home: I64,
    flows: I64,
    time_ns: I64,
    bytes_out: I64,
    bytes_in: I64,
    grace: cython.longlong,
    keys: I64,
    table: I64,
    out: I64,
) -> None:
    """What each row adds to its flow. `out` columns: bytes out, bytes in, 1 for the first row of the flow."""
    i: cython.Py_ssize_t
    slot: cython.Py_ssize_t
    for i in range(flows.shape[0]):
        if flows[i] == 0:
            continue
        slot = _claim(keys, table, home[i], flows[i], grace, 4)
        if table[slot, _LAST] == 0:
            out[i, 2] = 1
        if time_ns[i] > table[slot, _LAST]:
            table[slot, _LAST] = time_ns[i]
        if bytes_out[i] > table[slot, 2]:
            out[i, 0] = bytes_out[i] - table[slot, 2]
            table[slot, 2] = bytes_out[i]
        if bytes_in[i] > table[slot, 3]:
            out[i, 1] = bytes_in[i] - table[slot, 3]
            table[slot, 3] = bytes_in[i]
