"""The gateway itself: sshd restarts, and a reboot after which the clock is an hour wrong until it is set."""

from __future__ import annotations

from collections.abc import Iterator

from ..shapes import SSHD, Line
from ..site import DAY, HOUR, Site, Visit


def streams(site: Site) -> list[Iterator[Visit]]:
    """A restart each second day; a reboot on the third and each tenth day after."""
    chance = site.chance("gateway")
    visits = []
    for day in range(site.options.days):
        at = day * DAY + chance.between(2, 4) * HOUR
        if day % 10 == 3:
            site.crash.append((at + 40, at + 70, -HOUR))
            visits.append(Visit(at, _stopped() + _listening(41), None))
        elif day % 2 == 0:
            hup: list[Line] = [(0.0, SSHD, "Received SIGHUP; restarting.", 0)]
            visits.append(Visit(at, hup + _listening(0.3), None))
    return [iter(visits)]


def _stopped() -> list[Line]:
    return [
        (0.0, "systemd-logind[612]", "The system will reboot now!", 0),
        (0.2, "systemd-logind[612]", "System is rebooting.", 0),
        (0.5, SSHD, "Received signal 15; terminating.", 0),
    ]


def _listening(at: float) -> list[Line]:
    return [
        (at, SSHD, "Server listening on 0.0.0.0 port 22.", 0),
        (at, SSHD, "Server listening on :: port 22.", 0),
    ]
