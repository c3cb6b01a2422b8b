"""Hypothesis strategies of logins: campaigns of every kind beside people, jobs and noise, as events in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gatewatch.daemon.events import I64, U8, U64, Outcome
from gatewatch.detectors.profiles import packed
from hypothesis import strategies as st
from test_detectors_login import Event, fail, login

HOUR, DAY = 3600, 86_400
_DENIED = Outcome["FACTOR_DENIED"] if "FACTOR_DENIED" in Outcome.__members__ else Outcome.PAM_FAILURE


class World:
    """Where addresses are, by their first octet or their first two groups; a `profiles.Locator`."""

    def columns(self, address: U64, family: U8) -> tuple[I64, I64, I64]:
        where = np.where(family == 6, address[:, 0] >> np.uint64(32), address[:, 1] >> np.uint64(24))
        number = where.astype(np.int64)
        place = packed((number * 37 % 120 - 60) * 10_000, (number * 91 % 360 - 180) * 10_000)
        network = np.where(family == 6, address[:, 0], address[:, 1]).view(np.int64)
        places = np.stack((place, np.full_like(place, 20), network, family.astype(np.int64)), axis=1)
        return 1 + number % 40, 64_500 + number % 256, places


Draw = Callable[[st.SearchStrategy[Any]], Any]
Piece = Callable[[Draw, int], list[Event]]


def _source(draw: Draw) -> str:
    network = draw(st.sampled_from(("203.0.113.{}", "198.51.100.{}", "10.9.8.{}", "2001:db8:7:{:x}::5")))
    return network.format(draw(st.integers(1, 250)))


def _gap(draw: Draw) -> int:
    return draw(st.sampled_from((1, 20, 61, 180, 1500, 3600)))


def _guesser(draw: Draw, at: int) -> list[Event]:
    source, gap, names = _source(draw), _gap(draw), draw(st.sampled_from((("root",), ("ann",), ("u1", "u2"))))
    tries = draw(st.integers(8, 28))
    events = [fail(at + gap * n, source=source, user=names[n % len(names)]) for n in range(tries)]
    if draw(st.booleans()):
        events.append(login(at + gap * tries, source=source, user=names[0], method="password"))
    return events


def _sprayer(draw: Draw, at: int) -> list[Event]:
    source, gap, users = _source(draw), _gap(draw), draw(st.integers(6, 20))
    events = [fail(at + gap * n, source=source, user=f"p{n}") for n in range(users)]
    if draw(st.booleans()):
        events.append(login(at + gap * users, source=source, user="p2", method="password"))
    return events


def _rotating(draw: Draw, at: int) -> list[Event]:
    network = draw(
        st.sampled_from(("192.0.2.{}", "198.51.100.{}", "2001:db8:7:{:x}::9", "2001:db8:8:{:x}::9"))
    )
    gap, tries = draw(st.sampled_from((2, 60, 200))), draw(st.integers(8, 60))
    return [fail(at + gap * n, source=network.format(n + 1), user=f"u{n % 5}") for n in range(tries)]


def _distributed(draw: Draw, at: int) -> list[Event]:
    """One account from many networks."""
    gap, sources = draw(st.sampled_from((20, 60, 600))), draw(st.integers(10, 80))
    user = draw(st.sampled_from(("p1", "p2", "ceo")))
    events = [fail(at + gap * n, source=f"{60 + n}.{n + 3}.7.9", user=user) for n in range(sources)]
    if draw(st.booleans()):
        events.append(login(at + gap * sources, source="59.3.7.9", user=user, method="password"))
    return events


def _stuffing(draw: Draw, at: int) -> list[Event]:
    """As many accounts as networks."""
    gap, sources = draw(st.sampled_from((3, 20))), draw(st.integers(40, 140))
    return [
        fail(at + gap * n, source=f"{30 + n}.{n * 7 % 251}.{n}.1", user=f"p{n}" if n % 2 else f"x{n}")
        for n in range(sources)
    ]


def _people(draw: Draw, at: int) -> list[Event]:
    """Some who log in, the fifth of them after a mistake; those who are away come from a new place."""
    office = draw(st.sampled_from(("198.51.100.77", "2001:db8:7:aa::{}")))
    people, times = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    method = draw(st.sampled_from(("password", "publickey")))
    events = []
    for n in range(people):
        for time in range(times):
            when, user = at + 5 * HOUR * time + 40 * n, f"p{n}"
            if (n + time) % 5 == 0:
                events.append(fail(when - 8, source=office.format(n), user=user))
            events.append(login(when, source=office.format(n), user=user, method=method))
    for away in draw(st.lists(st.sampled_from((600, 40 * HOUR)), max_size=2)):
        events.append(
            login(events[-1]["at"] + away, source="45.67.8.9", user=events[-1]["user"], method=method)
        )
    return events


def _prompts(draw: Draw, at: int) -> list[Event]:
    """A second factor that is asked for until somebody lets it through."""
    gap, times = draw(st.sampled_from((30, 240))), draw(st.integers(5, 14))
    more = {"source": "77.3.2.1", "user": "p1", "method": "keyboard-interactive/pam"}
    events = [fail(at + gap * n, outcome=_DENIED, session=f"prompt {at} {n}", **more) for n in range(times)]
    if draw(st.booleans()):
        events.append(login(at + gap * times, session=f"prompt {at} {times}", **more))
    return events


def _job(draw: Draw, at: int) -> list[Event]:
    method = draw(st.sampled_from(("password", "publickey")))
    tries, outcome = draw(st.integers(10, 40)), draw(st.sampled_from((Outcome.FAILURE, Outcome.INVALID_USER)))
    return [
        fail(at + 300 * n, source="10.9.8.3", user="backup-job", method=method, outcome=outcome)
        for n in range(tries)
    ]


def _noise(draw: Draw, at: int) -> list[Event]:
    sources = draw(st.lists(st.integers(1, (1 << 32) - 1), max_size=20))
    return [
        fail(at + 997 * n, source=f"{s >> 24 or 5}.{s >> 16 & 255}.{s >> 8 & 255}.{s & 255}", user="admin")
        for n, s in enumerate(sources)
    ]


def _many_lines(draw: Draw, at: int) -> list[Event]:
    """Attempts that write several lines, in sessions that overlap, some of them repeated or without an address."""
    source, events = _source(draw), []
    for n in range(draw(st.integers(1, 16))):
        user = draw(st.sampled_from(("root", "ann", "", "u1", "u2", "u3")))
        events += [
            {
                "at": at + 7 * n + 3 * line,
                "source": source if line or draw(st.booleans()) else "",
                "user": user,
                "outcome": draw(st.sampled_from(list(Outcome))),
                "session": draw(st.sampled_from(("", f"{at} {n}", f"{at} {n // 2}"))),
                "method": draw(st.sampled_from(("", "password", "publickey"))),
                "count": draw(st.integers(1, 5)),
            }
            for line in range(draw(st.integers(1, 4)))
        ]
    return events


def _calls(draw: Draw, at: int) -> list[Event]:
    """Requests for control endpoints of a model server, by keys and without, done and refused."""
    source, key = _source(draw), draw(st.sampled_from(("", "k-00000000000000a1", "k-00000000000000a2")))
    more = {"service": "nginx", "method": "POST", "key": key, "source": source, "user": ""}
    statuses = draw(st.lists(st.sampled_from((200, 403, 499)), min_size=1, max_size=6))
    outcomes = {403: Outcome.FAILURE, 200: Outcome.SUCCESS if key else Outcome.OTHER, 499: Outcome.OTHER}
    return [
        {"at": at + 50 * n, "status": status, "outcome": outcomes[status], "path": path} | more
        for n, status in enumerate(statuses)
        for path in (
            draw(
                st.sampled_from(("/sleep", "/%73leep", "//api/pull", "/server_info", "/v1/chat/completions"))
            ),
        )
    ]


PIECES: tuple[Piece, ...] = (
    _guesser, _sprayer, _rotating, _distributed, _stuffing, _people, _prompts, _job, _noise, _many_lines,
    _calls,
)  # fmt: skip


@st.composite
def sites(draw: Draw, sure: tuple[Piece, ...] = ()) -> list[Event]:
    """A few days of one site, in the order of time: people first, then `sure` and two to five other pieces."""
    events = _people(draw, 0)
    for piece in (*sure, *draw(st.lists(st.sampled_from(PIECES), min_size=2, max_size=5))):
        events += piece(draw, draw(st.integers(0, 60 * HOUR)))
    return sorted(events, key=lambda event: event["at"])
