"""The internet's background: scanners that leave at the banner, and a few guesses each from two thousand
sources a day.

Noise is nobody's friend and no episode: no source fails ten times, so by the issue's own measure none of it
is a brute force; it may be raised at low priority. The names that it tries are now and then hostile to
whoever reads the log.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import shapes
from ..chance import Chance
from ..networks import ABROAD, HOME_PLACES, networks
from ..site import DAY, Actor, Site, Visit, sorted_visits

GUESSED = (
    "root", "root", "root", "root", "admin", "admin", "test", "ubuntu", "user", "oracle", "postgres", "git", "guest",
    "ftpuser", "mysql", "jenkins", "hadoop", "pi", "nagios", "tomcat", "www", "support", "minecraft", "vagrant", "es",
    "elastic", "odoo", "zabbix", "ts3", "kafka", "spark", "llm", "vllm", "ollama", "debian", "centos", "steam", "dev",
)  # fmt: skip
ODD = (
    "P@ssw0rd123!", "Summer2026!", "hunter2", "correct horse battery", "admin\\303\\244", "a" * 120, "root\\033[2J",
    "$(reboot)", "' OR 1=1 --", "", "-froot", "../../etc/passwd", "root:toor", "%s%s%n",
)  # fmt: skip
SOURCES_A_DAY = 2000


def streams(site: Site) -> list[Iterator[Visit]]:
    return [_guesses(site), _scanners(site)]


def forged(chance: Chance, victim: str) -> str:
    """A user name that puts another address where a careless reader looks for one."""
    return chance.pick(
        (
            f"admin from {victim} port 22 ssh2",
            f"x from {victim}",
            f"root from {victim} port 4242 ssh2: RSA SHA256:x",
            f"invalid user a from {victim} port 1 ssh2",
        )
    )


def _actor(site: Site, kind: str, why: str) -> Actor:
    return site.actor(kind, "noise", why)


def _guesses(site: Site) -> Iterator[Visit]:
    chance = site.chance("noise")
    actor = _actor(site, "background_guessing", "one to four guesses from each of two thousand sources a day")
    rows = networks("hosting") + networks("residential", ABROAD) + networks("hosting", None, 6)
    rows += networks("residential", HOME_PLACES)[:1]
    again: list[str] = []
    for day in range(site.options.days):
        today = again
        again = []
        for _ in range(round(SOURCES_A_DAY * site.options.noise)):
            source = site.addresses.source(chance, chance.pick(rows))
            today.append(source)
            if chance.chosen(0.1):
                again.append(source)
        visits: list[Visit] = []
        for source in today:
            for _ in range(chance.pick((1, 1, 1, 2, 3, 4))):
                draw = chance.random()
                if draw < 0.01:
                    user = forged(
                        chance, chance.pick((site.office, site.branch, chance.pick(site.people).at_home(day)))
                    )
                elif draw < 0.03:
                    user = chance.pick(ODD)
                else:
                    user = chance.pick(GUESSED)
                lines = shapes.failures(chance, user, source, known=user == "root" or user in site.names)
                visits.append(Visit(day * DAY + chance.random() * DAY, lines, actor, source, user))
        yield from sorted_visits(visits)


def _scanners(site: Site) -> Iterator[Visit]:
    chance = site.chance("scanners")
    actor = _actor(site, "background_scanning", "connections that end before a login")
    rows = networks("hosting")
    sources = [site.addresses.v4(chance, chance.pick(rows)) for _ in range(400)]
    actor.sources |= dict.fromkeys(sources)
    at = 0.0
    while at < site.end:
        at += chance.exponential(5.0 / max(site.options.noise, 0.01))
        yield Visit(at, shapes.probe(chance, source := chance.pick(sources)), actor, source)
