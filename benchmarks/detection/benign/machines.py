"""Machines: scheduled jobs, a job with a dead key, the day on which passwords rotate, a jump host,
monitors, cron."""

from __future__ import annotations

from collections.abc import Iterator

from .. import shapes
from ..networks import HOME_PLACES, networks
from ..site import DAY, HOUR, MACHINES, Actor, Site, Visit, sorted_visits
from .people import log_in

AT_HOME = networks("residential", HOME_PLACES)[0]


def streams(site: Site) -> list[Iterator[Visit]]:
    jobs = [_job(site, number) for number in range(site.options.jobs)]
    return [
        *jobs,
        _dead_key(site),
        _dead_password(site),
        *_rotation(site),
        _runners(site),
        _jump_host(site),
        *_monitors(site),
        _cron(site),
    ]


def _job(site: Site, number: int) -> Iterator[Visit]:
    chance = site.chance("job", number)
    user = MACHINES[number % len(MACHINES)]
    source = f"10.20.{number // 50}.{10 + number % 50}"
    period = chance.pick((180, 300, 300, 300, 600, 900))
    actor = site.actor("job", "benign", f"logs in every {period} s by key")
    at = chance.between(0, period)
    while at < site.end:
        yield Visit(
            at, shapes.short_job(chance, user, source, 990, chance.between(1, 20)), actor, source, user
        )
        at += period + chance.between(-2, 2)


def _dead_key(site: Site) -> Iterator[Visit]:
    """A job whose key was removed, every five minutes, for ever."""
    chance = site.chance("dead key")
    source = "10.20.9.9"
    actor = site.actor("dead_key", "benign", "a job whose key was removed tries every five minutes for ever")
    at = chance.between(0, 300)
    while at < site.end:
        lines = shapes.dead_key(chance, "rsync", source, verbose=site.options.verbose)
        yield Visit(at, lines, actor, source, "rsync")
        at += 300 + chance.between(-1, 1)


def _dead_password(site: Site) -> Iterator[Visit]:
    """A script at a partner's, with the password of an account that was deleted, every twenty minutes for
    ever."""
    chance = site.chance("dead password")
    source = site.addresses.v4(chance, AT_HOME)
    actor = site.actor(
        "dead_password",
        "benign",
        "a partner's script for a deleted account tries every twenty minutes for ever",
    )
    at = chance.between(0, 1200)
    while at < site.end:
        yield Visit(
            at, shapes.failures(chance, "partner-sftp", source, known=False), actor, source, "partner-sftp"
        )
        at += 1200 + chance.between(-1, 1)


def _rotation(site: Site) -> list[Iterator[Visit]]:
    """Once a week a service password changes, and a fleet of fifteen machines fails for an hour until it is
    rolled out."""
    chance = site.chance("rotation")
    fleet = [f"10.30.1.{10 + n}" for n in range(14)] + [site.addresses.v4(chance, AT_HOME)]
    actor = site.actor(
        "password_rotation",
        "benign",
        "a fleet of jobs by password; on rotation day it fails for an hour, then is right",
    )
    days = range(2 if site.options.days > 2 else 0, site.options.days, 7)
    changes = {day: day * DAY + chance.between(9, 16) * HOUR for day in days}
    return [_fleet_machine(site, number, source, actor, changes) for number, source in enumerate(fleet)]


def _fleet_machine(
    site: Site, number: int, source: str, actor: Actor, changes: dict[int, float]
) -> Iterator[Visit]:
    chance = site.chance("fleet", number)
    period = 300 + 20 * number
    at = chance.between(0, period)
    while at < site.end:
        changed = changes.get(int(at / DAY), -DAY)
        if changed <= at < changed + HOUR:
            lines = shapes.failures(chance, "modelsync", source, known=True, repeated=site.options.repeated)
            wait = 60.0 + 2 * number  # it tries again at once a minute
        else:
            lines = shapes.login(chance, "modelsync", source, uid=991, seconds=20)
            wait = period
        yield Visit(at, lines, actor, source, "modelsync")
        at += wait + chance.between(-3, 3)


def _jump_host(site: Site) -> Iterator[Visit]:
    """Fifteen people reach the gateway through one internal address, now and then with a wrong password."""
    chance = site.chance("jump host")
    some = chance.sample(site.people, 15)
    actor = site.actor("jump_host", "benign", "fifteen people through one internal address")
    for day in range(site.options.days):
        visits: list[Visit] = []
        for person in some:
            if site.weekend(day) or day in person.away:
                continue
            for _ in range(chance.whole(1, 4)):
                at = day * DAY + chance.between(person.begins, person.ends)
                wrong = 1 if person.method == "password" and chance.chosen(0.1) else 0
                visits.append(log_in(site, chance, person, site.jump_host, at, actor, wrong))
        yield from sorted_visits(visits)


def _monitors(site: Site) -> list[Iterator[Visit]]:
    outside = site.chance("monitors")
    sources = ["10.0.9.2", "10.0.9.3", site.addresses.v4(outside, AT_HOME)]
    return [_monitor(site, source) for source in sources]


def _monitor(site: Site, source: str) -> Iterator[Visit]:
    chance = site.chance("monitor", source)
    actor = site.actor("monitor", "benign", "opens port 22 every minute and leaves")
    actor.sources[source] = None
    at = chance.between(0, 60)
    while at < site.end:
        port = chance.whole(1024, 65535)
        if source == "10.0.9.2":
            said = f"Did not receive identification string from {source} port {port}"
        else:
            said = f"Connection closed by {source} port {port} [preauth]"
        yield Visit(at, [(0.0, shapes.SSHD, said, 0)], actor, source)
        at += 60


def _cron(site: Site) -> Iterator[Visit]:
    chance = site.chance("cron")
    at = 1.0
    while at < site.end:
        for _ in range(4 if int(at) % 300 < 60 else 2):
            yield Visit(at, shapes.cron(chance), None)
        at += 60


def _runners(site: Site) -> Iterator[Visit]:
    """A build service in a cloud: a new machine each time, so that each login by key is from an address
    never seen."""
    chance = site.chance("runners")
    cloud = networks("hosting", ("amsterdam",))[0]
    actor = site.actor(
        "cloud_runner",
        "benign",
        "a build service that logs in by key, each time from a new address of one cloud",
    )
    at = chance.between(0, 1800)
    while at < site.end:
        source = site.addresses.v4(chance, cloud)
        yield Visit(
            at,
            shapes.short_job(chance, "ci-runner", source, 992, chance.between(5, 60)),
            actor,
            source,
            "ci-runner",
        )
        at += chance.exponential(1800)
