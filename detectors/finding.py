"""What a detector concludes about one entity, with the evidence for it, and what every detector is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

Kind = Literal[
    "brute_force", "password_spray", "distributed_brute_force", "credential_stuffing", "account_compromise",
    "new_access", "impossible_travel", "mfa_fatigue", "api_key_abuse", "control_endpoint_access",
    "model_enumeration", "model_extraction", "off_allowlist_ingress", "off_allowlist_egress", "port_scan",
    "host_sweep", "syn_flood", "beacon", "exfiltration", "dns_tunnel", "shadow_service", "anomaly",
    "circuit_breaker",
]  # fmt: skip

EntityType = Literal["source", "user", "endpoint", "destination", "site"]

MOST_LISTED = 32
"""The most sources, users, targets and lines that one finding lists; `figures` has the true counts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One conclusion. A later finding with the same `id` replaces it: the same campaign, grown."""

    id: str
    detector: str
    kind: Kind
    entity_type: EntityType
    entity: str  # a source network ("203.0.113.7", "2001:db8::/64"), a user, "address:port/tcp", ...
    time_ns: int  # the event at which the threshold was crossed
    start_ns: int
    end_ns: int
    severity: int  # 0 to 100: the harm if it is true
    confidence: float  # 0 to 1: how surely it is true
    sources: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    figures: dict[str, int | float | str] = field(default_factory=dict)
    threshold: str = ""  # in words with units: "10 failures in 300 s"
    baseline: str = ""  # what is usual for this entity, in words
    techniques: tuple[str, ...] = ()  # MITRE ATT&CK or ATLAS ids
    lines: tuple[int, ...] = ()  # line or frame numbers that it rests on, the first MOST_LISTED
    samples: tuple[str, ...] = ()  # raw lines as read; whoever shows them makes control characters harmless
    provenance: int = 0  # the least trusted of what it rests on
    blockable: tuple[str, ...] = ()  # those of `sources` that are their own peer and that no forger made up
    trigger_line: int = 0  # that of the event at `time_ns`, 0 = unknown: orders what one second holds
    trigger_source: str = ""  # of that event, where no entity says it and nobody logs in from there
    graded_ns: int = 0  # the event that made severity and confidence what they are, 0 = that at `time_ns`
    part_of: tuple[Kind, ...] = ()  # the campaigns that this event was part of; fixed from then on
    blockable_users: tuple[
        str, ...
    ] = ()  # principals (`account:alice`) whose credential somebody else has or abuses
    refusable: tuple[
        str, ...
    ] = ()  # those of `sources` that would be blockable but for a trusted proxy before them
    participants_digest: str = ""  # of all sources, where more than MOST_LISTED take part; hex


def finding_id(detector: str, entity: str, *trigger: int | str) -> str:
    """The stable id of a finding: sixteen hex digits of BLAKE2b over what names it."""
    said = "\0".join((detector, entity, *map(str, trigger)))
    return hashlib.blake2b(said.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


Input = TypeVar("Input", contravariant=True)


class Detector(Protocol[Input]):
    """A state and what it does with a batch. It opens no file and no socket and asks no clock.

    `update` may be called with any division of the same rows into batches and gives the same findings
    (a finding that grows is given again, at most once a batch; the last one given is the same).
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    partition_key: ClassVar[EntityType]

    def update(self, batch: Input, /) -> list[Finding]: ...

    def save(self) -> dict[str, Any]:
        """Everything that `load` needs, as copies: arrays, numbers, text, bytes, lists, dictionaries."""
        ...

    def load(self, state: dict[str, Any], /) -> None: ...
