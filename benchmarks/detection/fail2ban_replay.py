"""Feeds a log to fail2ban's own sshd filter and failure counting, by the clock of the lines; a line `time
address` for each ban.

Run by the interpreter of the installed fail2ban; it needs nothing of this project. The filter is
`filter.d/sshd.conf` with the defaults of `jail.conf`, read by fail2ban's own reader. An address is reported
once a ban.
"""

from __future__ import annotations

import sys
from typing import Any

from fail2ban.client.jailreader import JailReader
from fail2ban.server.filter import Filter
from fail2ban.server.mytime import MyTime


class Jail:
    """As much of a jail as a filter asks for."""

    name = "sshd"
    database = None
    idle = False

    def __init__(self) -> None:
        self.bans: list[Any] = []
        self.filter: Any = None

    def putFailTicket(self, ticket: Any) -> None:
        self.bans.append(ticket)


def main(path: str) -> None:
    reader = JailReader("sshd", force_enable=True, basedir="/etc/fail2ban")
    reader.read()
    reader.getOptions()
    jail = Jail()
    jail.filter = filter = Filter(jail)
    ban_s = 600.0
    for command in reader.convert(allow_no_files=True):
        if command[0] == "multi-set":
            for value in command[3]:
                setting(filter, command[2], value)
        elif command[0] == "set" and len(command) == 4 and command[2] == "bantime":
            ban_s = float(MyTime.str2seconds(command[3]))
        elif command[0] == "set" and len(command) >= 4:
            setting(filter, command[2], command[3])
    filter.inOperation = True
    banned: dict[str, float] = {}
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            replay(filter, jail, line.rstrip("\n"), banned, ban_s)


def setting(filter: Any, name: str, value: Any) -> None:
    if name == "prefregex":
        filter.prefRegex = value
    elif name == "addfailregex":
        filter.addFailRegex(value)
    elif name == "addignoreregex":
        filter.addIgnoreRegex(value)
    elif name == "maxlines":
        filter.setMaxLines(int(value))
    elif name == "datepattern":
        filter.setDatePattern(value)
    elif name == "maxretry":
        filter.setMaxRetry(int(value))
    elif name == "maxmatches":
        filter.failManager.maxMatches = int(value)
    elif name == "findtime":
        filter.setFindTime(MyTime.str2seconds(value))
    elif name == "usedns":
        filter.setUseDns("no")


def replay(filter: Any, jail: Jail, line: str, banned: dict[str, float], ban_s: float) -> None:
    found = filter.dateDetector.matchTime(line)
    if not found[0]:
        return
    start, end = found[0].span(1)
    got = filter.dateDetector.getTime(line[start:end], found)
    if got is None:
        return
    now = got[0]
    MyTime.setTime(now)
    filter.processLineAndAdd((line[:start], line[start:end], line[end:]), now)
    for ticket in jail.bans:
        address = str(ticket.getID())
        if banned.get(address, 0.0) <= now:
            banned[address] = now + ban_s
            print(f"{now:.6f} {address}")
    jail.bans.clear()


if __name__ == "__main__":
    main(sys.argv[1])
