"""By what a finding is joined to an incident: the keys that it looks for, and those that it leaves behind.

Only what is fixed when a finding is raised makes a key. How far a campaign has grown by the time that another
finding comes depends on how the events were divided into batches; its entity, and the campaigns that the event
itself was part of, do not. See decision 0009.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from ..detectors.finding import Finding

MOST_JOINED_KEYS = 4096
"""The most keys of one incident: a botnet's incident cannot grow without bound."""
CAMPAIGN_PREFIX = {4: 24, 6: 48}
"""The widest networks that are judged as one source."""
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"({_BYTE}(?:\.{_BYTE}){{2}})\.{_BYTE}")
"""An address as it is usually written, which most sources are; its /24 is told from the text."""


class JoinKeys(NamedTuple):
    """`sought`: in this order; the first that an open incident holds decides. `left`: what later ones find."""

    sought: tuple[str, ...]
    left: tuple[str, ...]


def join_keys(finding: Finding) -> JoinKeys:
    """The keys of one finding, by its kind.

    A guessing source is known by its network; it also finds the IPv4 /24 or IPv6 /48 around it where that is an
    incident, and a /48 the /64 in it that is one. What is about an account (a `user` entity) is known by
    the account, and is found there by what else is about accounts alone: sources that guess the same popular
    name do not meet. Prompts for a second factor are also known by the source of the event that raised them, if
    nobody has logged in from there. A login (a compromise, a new access) is known by user and source together. Calls of
    control endpoints by a key are known by the key.
    """
    match finding.kind:
        case "brute_force" | "password_spray":
            return _source(finding.entity)
        case "distributed_brute_force":
            return _both(f"account {finding.entity}")
        case "mfa_fatigue":
            keys = (f"prompts {finding.entity}", f"account {finding.entity}")
            source = _source(finding.trigger_source).sought if finding.trigger_source else ()
            return JoinKeys(keys + source, keys + source[:1])
        case "credential_stuffing":
            return _both(f"site {finding.entity}")
        case "account_compromise":
            return _compromise(finding)
        case "control_endpoint_access" if finding.entity_type == "user":
            return _calls(finding)
        case "new_access" | "impossible_travel":
            logins = _logins(finding)
            prompts = [f"prompts {user}" for user in _accounts(finding)]
            return JoinKeys((*logins, *_campaigns(finding), *prompts), logins)
        case _:
            if finding.entity_type == "source":
                return _source(finding.entity)
            return _both(f"{finding.entity_type} {finding.entity}")


@lru_cache(maxsize=4096)
def network_text(source: str) -> str:
    """The network by which sources are the same: an IPv4 address, an IPv6 /64."""
    if _IPV4.fullmatch(source):
        return source
    try:
        network = ipaddress.ip_network(source, strict=False)
    except ValueError:
        return source
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen > 64:
        return str(network.supernet(new_prefix=64))
    return str(network) if network.num_addresses > 1 else str(network.network_address)


def _both(*keys: str) -> JoinKeys:
    return JoinKeys(keys, keys)


@lru_cache(maxsize=4096)
def _source(source: str) -> JoinKeys:
    text = network_text(source)
    own = f"source {text}"
    address = _IPV4.fullmatch(text)
    if address:
        return JoinKeys((own, f"source {address[1]}.0/{CAMPAIGN_PREFIX[4]}"), (own,))
    try:
        network = ipaddress.ip_network(text)
        around = network.supernet(new_prefix=CAMPAIGN_PREFIX[network.version])
    except ValueError:  # no address, or wider than that
        return _both(own)
    # An IPv6 /48 is one site's. An IPv4 /24 is many people's, of whom each may have failed for a reason of his own.
    inside = (f"within {around}",) if network.version == 6 else ()
    if around == network:
        return JoinKeys((own, *inside), (own,))
    return JoinKeys((own, f"source {around}"), (own, *inside))


def _compromise(finding: Finding) -> JoinKeys:
    logins = _logins(finding)
    sources: dict[str, None] = {}
    for source in _sources(finding):
        sources |= dict.fromkeys(_source(source).sought)
    accounts = [f"{what} {user}" for user in _accounts(finding) for what in ("prompts", "account")]
    own = tuple(f"source {network_text(source)}" for source in _sources(finding))
    sought = (*_campaigns(finding), *sources, *logins, *accounts)
    return JoinKeys(tuple(dict.fromkeys(sought)), own + logins)


def _calls(finding: Finding) -> JoinKeys:
    """Calls by a key are known by it, and belong to a login by it from where the first of them came."""
    own = f"calls {finding.entity}"
    login = (
        (f"login {finding.entity} {network_text(finding.trigger_source)}",) if finding.trigger_source else ()
    )
    return JoinKeys((own, *login), (own,))


def _campaigns(finding: Finding) -> list[str]:
    """The keys of the campaigns that the finding says it is part of."""
    keys: list[str] = []
    for kind in finding.part_of:
        if kind == "credential_stuffing":
            keys.append("site site")
        elif kind in ("distributed_brute_force", "mfa_fatigue"):
            keys += [f"account {user}" for user in _accounts(finding)]
        else:
            keys += [key for source in _sources(finding) for key in _source(source).sought]
    return keys


def _accounts(finding: Finding) -> tuple[str, ...]:
    return (finding.entity,) if finding.entity_type == "user" else ()


def _sources(finding: Finding) -> tuple[str, ...]:
    """The source of a login: one, or none that is fixed."""
    if finding.entity_type == "source":
        return (finding.entity,)
    return finding.sources if len(finding.sources) == 1 else ()


def _logins(finding: Finding) -> tuple[str, ...]:
    """`login USER SOURCE`; of impossible travel both ends."""
    most = 2 if finding.kind == "impossible_travel" else 1
    if len(finding.sources) > most:
        return ()
    return tuple(f"login {user} {network_text(s)}" for user in _accounts(finding) for s in finding.sources)
