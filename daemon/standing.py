"""What keeps an address free, as the running analyser knows it: for `gatewatch explain`.

It reads the state that there is and changes nothing: asking about an address must not bring it nearer to a block,
nor take anything from its memory.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from ..detectors.standing import Standing
from ..playbooks.decisions import network_in, texts, unproven
from ..playbooks.engine import Engine, block_target, mismatch
from ..playbooks.schema import BlockSource, Playbook
from .assembly import trusted_proxies
from .corroboration import needs
from .detection import Detection
from .parts import Parts
from .store import Store

MOST_INCIDENTS = 10


def standing_of(
    network: str,
    incidents: Iterable[str],
    now_ns: int,
    *,
    parts: Parts,
    detection: Detection,
    store: Store,
    engine: Engine,
) -> list[Standing]:
    """Figures against thresholds for an address, then what stands between an incident of it and a block.

    `incidents`: ids of those that name it. Raises ValueError where `network` is wider than what detectors judge.
    """
    found = detection.standing(network, now_ns, packets=parts.watches_packets)
    if not (parts.logs or parts.journal_units):
        found.append(Standing("logs", "no log is followed: the login detectors see nothing"))
    if not parts.watches_packets:
        found.append(Standing("packets", "packets are not watched: the detectors of flows see nothing"))
    found += _proxy(network, parts)
    found += _handshake(network, now_ns, parts, detection)
    if parts.mode != "enforce":
        found.append(Standing("mode", "observe mode: nothing is blocked, whatever is found"))
    elif not parts.enforces:
        found.append(Standing("mode", "there is no enforcer: nothing is blocked, whatever is found"))
    for incident in list(incidents)[:MOST_INCIDENTS]:
        document = store.incident(incident)
        if document is not None:
            found += _unproven(document, network, now_ns, parts, detection)
            found += _playbooks(document, network, now_ns, store, engine.playbooks)
    return found


def _proxy(network: str, parts: Parts) -> list[Standing]:
    address = ipaddress.ip_network(network, strict=False)
    for text in trusted_proxies(parts.config, parts.rails):
        proxies = ipaddress.ip_network(text, strict=False)
        if proxies.version == address.version and proxies.overlaps(address):
            said = f"it is a proxy ({text}): what it passes on counts for the client that it names"
            return [Standing("proxy", said)]
    return []


def _handshake(network: str, now_ns: int, parts: Parts, detection: Detection) -> list[Standing]:
    """The rule by which what only a log tells, which others may write to, waits until packets prove the source."""
    open_to_all = [str(log.path) for log in parts.logs if not log.trusted]
    if not (parts.watches_packets and open_to_all) or detection.corroborated(network, now_ns):
        return []
    logs = ", ".join(open_to_all)
    said = f"{logs} could be forged: a block for what stands there alone waits for a handshake, and none was seen"
    return [Standing("handshake", said)]


def _unproven(
    incident: Mapping[str, Any], network: str, now_ns: int, parts: Parts, detection: Detection
) -> list[Standing]:
    """The connections that an incident of forgeable lines waits for, though some of that source were seen."""
    if not (parts.watches_packets and detection.corroborated(network, now_ns)):
        return []
    for named in texts(incident, "blockable"):
        if not _within(network, named) or unproven(incident, named, "blockable") is None:
            continue
        lacking = detection.lacking(named, needs(incident, named, named, tries=parts.sshd.tries))
        if lacking:
            said = (
                f"incident {incident['id']} could be forged: a block waits for {lacking}, and fewer were seen"
            )
            return [Standing("handshake", said)]
    return []


def _within(network: str, wider: str) -> bool:
    inner, outer = network_in(network), network_in(wider)
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def _playbooks(
    incident: Mapping[str, Any], network: str, now_ns: int, store: Store, playbooks: Iterable[Playbook]
) -> list[Standing]:
    """Why no playbook blocks for this incident; nothing where one does: its actions say what became of it."""
    name = f"incident {incident['id']}"
    if incident.get("status") == "closed":
        return [Standing("playbooks", f"{name} was closed by a person: nothing more is done about it")]
    whys = []
    for playbook in playbooks:
        steps = [step for step in playbook.then if isinstance(step, BlockSource)]
        if not steps:
            continue
        why = mismatch(playbook, incident)
        if why is None and playbook.when.repeats:
            target = block_target(network, steps[0].prefix) or network
            earlier = store.blocks_over(target, ("done",), now_ns)
            if earlier < playbook.when.repeats:
                why = f"blocked {earlier} times before, not {playbook.when.repeats}"
        if why is None:
            return []
        whys.append(f"{playbook.name}: {why}")
    what = f"no playbook blocks {incident.get('kind')} at priority {incident.get('priority')}"
    return [Standing("playbooks", f"{name}: {what} ({'; '.join(whys) or 'none blocks at all'})")]
