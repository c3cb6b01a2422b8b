"""MFA fatigue: the password is known, and the second factor is asked for again and again until somebody
lets it through."""

from __future__ import annotations

from .. import shapes
from ..chance import Chance
from ..networks import networks
from ..site import HOUR, Site, Visit
from .access import FAR, _known
from .campaign import Planned, episode, many


def _bombing(site: Site, chance: Chance, kind: str, accepted: bool) -> Planned:
    person, day = _known(site, chance, "keyboard-interactive/pam")
    source = site.addresses.v4(chance, chance.pick(networks("residential", FAR)))
    prompts = many(site, chance, 12, 30)
    duo = chance.chosen(0.7)
    made = episode(site, kind, prompts=prompts, module="pam_duo" if duo else "pam_google_authenticator")
    at = day * 86_400 + chance.between(9, 21) * HOUR
    visits: list[Visit] = []
    while prompts > 0:
        here = min(prompts, 3)
        prompts -= here
        lines = shapes.pushes(
            chance, person.name, source, uid=person.uid, denied=here, accepted=accepted and prompts <= 0,
            verbose=site.options.verbose, duo=duo,
        )  # fmt: skip
        visits.append(Visit(at, lines, made, source, person.name))
        at += 70 + chance.exponential(60)
    return [(made, visits)]


def accepted(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _bombing(site, chance, "mfa_fatigue", True)


def denied(site: Site, chance: Chance, slot: tuple[int, int]) -> Planned:
    return _bombing(site, chance, "mfa_bombing", False)
