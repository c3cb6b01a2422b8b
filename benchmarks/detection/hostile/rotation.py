"""IPv6 rotation: every try from another address of one /64, or from another /64 of one /48."""

from __future__ import annotations

from ..chance import Chance
from ..networks import ABROAD, networks, within64
from ..site import HOUR, Site
from .brute_force import _users
from .campaign import Planned, begin, episode, guess, many, span


def _rotating(site: Site, chance: Chance, bits: int, slot: tuple[int, int]) -> Planned:
    row = chance.pick(networks("hosting", ABROAD, 6))
    seconds = span(site, chance.between(0.5, 3) * HOUR)
    attempts = many(site, chance, 120, 240)
    made = episode(site, f"rotation_{bits}", attempts=attempts, seconds=round(seconds))
    slice48 = site.addresses.slice48(chance, row)
    slice64 = f"{slice48}:{chance.whole(1, 0xFFFF):x}"
    made.network = f"{slice64}::/64" if bits == 64 else f"{slice48}::/48"
    users = _users(site, chance)
    visits = []
    for at in chance.arrivals(begin(site, chance, seconds, slot), seconds, attempts):
        within = slice64 if bits == 64 else f"{slice48}:{chance.whole(1, 0xFFFF):x}"
        visits.append(guess(site, chance, made, within64(chance, within), chance.pick(users), at))
    return [(made, visits)]


def within_64(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _rotating(site, chance, 64, slot)


def within_48(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _rotating(site, chance, 48, slot)
