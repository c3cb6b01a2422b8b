"""The kinds of episodes: who writes them, and what a detector has to say of them to have caught them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .chance import Chance
from .hostile import access, brute_force, compromise, distributed, mfa, rotation, spray, stuffing
from .hostile.campaign import Planned
from .site import Site

Planner = Callable[[Site, Chance, tuple[int, int]], Planned]

GUESSING = frozenset(
    {"brute_force", "password_spray", "distributed_brute_force", "credential_stuffing", "ban"}
)
ONE_SOURCE = GUESSING | {"account_compromise"}
ONE_ACCOUNT = frozenset({"distributed_brute_force", "credential_stuffing", "ban"})
MANY_SOURCES = ONE_ACCOUNT | {"password_spray"}
TAKEN = frozenset({"account_compromise"})
ACCESS = frozenset({"new_access", "impossible_travel", "account_compromise"})
FATIGUE = frozenset({"mfa_fatigue", "account_compromise"})
ACCUSES_USER = frozenset({"account_compromise", "new_access", "impossible_travel", "mfa_fatigue"})
"""Incident kinds that say of their users that somebody else acted as them. `ban` is what a peer does,
whatever its reason."""

Rule = Literal["source", "network", "account", "site", "entry", "prompts"]


@dataclass(frozen=True, slots=True)
class Kind:
    """`rule`: how an incident is compared, see score.py. `exact`: the incident kind that names it best."""

    name: str
    family: str
    plan: Planner | None
    rule: Rule
    fits: frozenset[str]
    exact: str
    least: str = "medium"
    note: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("brute_force_burst", "brute force", brute_force.burst, "source", ONE_SOURCE, "brute_force"),
        Kind("brute_force_minutes", "brute force", brute_force.minutes, "source", ONE_SOURCE, "brute_force"),
        Kind("brute_force_slow", "brute force", brute_force.slow, "source", ONE_SOURCE, "brute_force"),
        Kind("brute_force_days", "brute force", brute_force.days, "source", ONE_SOURCE, "brute_force"),
        Kind("brute_force_nat", "behind NAT", brute_force.behind_nat, "source", ONE_SOURCE, "brute_force"),
        Kind("spray_fast", "spray", spray.fast, "source", ONE_SOURCE, "password_spray"),
        Kind("spray_slow", "spray", spray.slow, "source", ONE_SOURCE, "password_spray"),
        Kind("spray_nat", "behind NAT", spray.behind_nat, "source", ONE_SOURCE, "password_spray"),
        Kind("distributed_hour", "distributed", distributed.hour, "account", ONE_ACCOUNT, "distributed_brute_force"),
        Kind("distributed_day", "distributed", distributed.day, "account", ONE_ACCOUNT, "distributed_brute_force"),
        Kind("stuffing", "stuffing", stuffing.once, "site", MANY_SOURCES, "credential_stuffing"),
        Kind("stuffing_valid", "stuffing", stuffing.valid, "site", MANY_SOURCES, "credential_stuffing",
             note="a plan, not a label: makes one of stuffing and two of compromise_stuffing"),
        Kind("botnet_daily", "stuffing", stuffing.daily, "site", MANY_SOURCES, "credential_stuffing"),
        Kind("spray_pool", "stuffing", stuffing.spray_pool, "site", MANY_SOURCES, "credential_stuffing",
             note="beyond the sizes of the issue"),
        Kind("spray_proxies", "stuffing", stuffing.spray_proxies, "site", MANY_SOURCES, "credential_stuffing",
             note="beyond the sizes of the issue; makes one of compromise_stuffing as well"),
        Kind("rotation_64", "IPv6 rotation", rotation.within_64, "network", ONE_SOURCE, "brute_force"),
        Kind("rotation_48", "IPv6 rotation", rotation.within_48, "network", ONE_SOURCE, "brute_force"),
        Kind("compromise_guessed", "compromise", compromise.guessed, "entry", TAKEN, "account_compromise"),
        Kind("compromise_distributed", "compromise", compromise.distributed, "entry", TAKEN, "account_compromise",
             note="its plan makes one of distributed_hour as well"),
        Kind("compromise_stuffing", "compromise", None, "entry", TAKEN, "account_compromise",
             note="made by stuffing_valid"),
        Kind("new_access", "valid credentials", access.odd_hour, "entry", ACCESS, "new_access"),
        Kind("new_access_quiet", "valid credentials", access.quiet, "entry", ACCESS, "new_access", "low",
             "cannot be told from a traveller in the log alone: low priority is enough"),
        Kind("weak_method", "valid credentials", access.password_for_key, "entry", ACCESS, "new_access"),
        Kind("impossible_travel", "valid credentials", access.impossible_travel, "entry", ACCESS,
             "impossible_travel", "low", "medium only with a MaxMind-format database of networks.table()"),
        Kind("mfa_fatigue", "MFA fatigue", mfa.accepted, "prompts", FATIGUE, "mfa_fatigue"),
        Kind("mfa_bombing", "MFA fatigue", mfa.denied, "prompts", FATIGUE, "mfa_fatigue",
             note="denied to the end"),
    )
}  # fmt: skip
