"""The UTC time of a log's local time, with or without a year.

It decides the two things that a log does not say: the year of a syslog time, and which of the two hours is meant
when summer time ends. It must never ask the machine's clock, so that a replay gives the times of the live run.
"""

from __future__ import annotations

from calendar import timegm
from datetime import UTC, datetime, timedelta, tzinfo

from ...errors import UsageError
from ...events import NS_PER_S

NO_TIME = -(1 << 63)
DAY_S = 86_400
BEHIND_S = 31 * DAY_S
"""With a given year, a line may be this much older than the one before it; what is older still is of the next year."""

SLACK_S = 300
"""When the clock is set back, lines may be this much out of order and still belong to the second of the two hours."""


def zone_of(name: str) -> tzinfo | None:
    """The zone of that name; None for the machine's own. Raises UsageError for a name that does not exist."""
    if name == "local":
        return None
    if name.upper() in ("UTC", "Z"):
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"there is no time zone {name!r}",
            remedy="use 'local', 'UTC' or an IANA name such as 'Europe/Berlin'",
        ) from error


class Clock:
    """Times of one log. `year` is that of its first line, or None; `now_ns` may be changed between chunks."""

    def __init__(self, zone: tzinfo | None, year: int | None, now_ns: int) -> None:
        self.zone = zone
        self.year = year
        self.now_ns = now_ns

    def hour(self, year: int, month: int, day: int, hour: int, last_ns: int) -> int:
        """The start of an hour all of whose seconds follow from it; NO_TIME where each must be asked for.

        `year` 0 means unknown; `last_ns` is the time of the line before, or NO_TIME.
        """
        start = self.second(year, month, day, hour, 0, 0, last_ns)
        end = self.second(year, month, day, hour, 59, 59, last_ns)
        if start == NO_TIME or end - start != 3599 * NS_PER_S:
            return NO_TIME
        steady = self._offset(start // NS_PER_S - 7200) == self._offset(start // NS_PER_S + 10800)
        return start if steady else NO_TIME

    def _offset(self, utc_s: int) -> timedelta | None:
        return datetime.fromtimestamp(utc_s, UTC).astimezone(self.zone).utcoffset()

    def second(
        self, year: int, month: int, day: int, hour: int, minute: int, second: int, last_ns: int
    ) -> int:
        """The time of one second, ns since the epoch; NO_TIME where there is no such date."""
        last_s = None if last_ns == NO_TIME else last_ns // NS_PER_S
        if year:
            found = self._at(year, month, day, hour, minute, second, last_s)
        elif self.year is None:
            found = self._newest(month, day, hour, minute, second, last_s)
        else:
            found = self._rolled(self.year, month, day, hour, minute, second, last_s)
        return NO_TIME if found is None else found * NS_PER_S

    def _at(
        self, year: int, month: int, day: int, hour: int, minute: int, second: int, last_s: int | None
    ) -> int | None:
        leap, second = divmod(second, 60)
        try:
            local = datetime(year, month, day, hour, minute, second, tzinfo=self.zone)
        except ValueError:
            return None
        first = _seconds(local) + leap
        later = _seconds(local.replace(fold=1)) + leap
        if later > first and last_s is not None and first < last_s - SLACK_S and later <= last_s + DAY_S:
            return later
        return first

    def _newest(
        self, month: int, day: int, hour: int, minute: int, second: int, last_s: int | None
    ) -> int | None:
        limit = self.now_ns // NS_PER_S + DAY_S
        this_year = datetime.fromtimestamp(limit, UTC).year
        for year in range(this_year + 1, this_year - 9, -1):
            found = self._at(year, month, day, hour, minute, second, last_s)
            if found is not None and found <= limit:
                return found
        return None

    def _rolled(
        self, year: int, month: int, day: int, hour: int, minute: int, second: int, last_s: int | None
    ) -> int | None:
        """The time within about a year from a month before the last line; before any line, in `year` itself."""
        if last_s is None:
            return self._at(year, month, day, hour, minute, second, last_s)
        near = datetime.fromtimestamp(last_s, UTC).year
        for candidate in (near - 1, near, near + 1, near + 2, near + 3, near + 4):
            found = self._at(candidate, month, day, hour, minute, second, last_s)
            if found is not None and found >= last_s - BEHIND_S:
                return found
        return None


def _seconds(local: datetime) -> int:
    if local.tzinfo is UTC:
        return timegm(local.timetuple())
    return (local.astimezone(UTC) - _EPOCH) // timedelta(seconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
