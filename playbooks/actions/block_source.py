"""`block_source`: drop everything that comes from the incident's sources, and cut their connections.

A source is blocked only where the detectors call it `blockable` (its own peer, and no forger made it up), or, behind a
trusted proxy, `refusable`: then the authorisation endpoint alone refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from ...config.schema import Options
from ...config.values import Duration, Number, duration_text
from ..decisions import (
    FORGEABLE,
    MOST_TARGETS,
    Approval,
    Case,
    Decision,
    State,
    network_in,
    single_or_network,
)
from ..step import Step, common, grown, origin

MOST_NETWORKS_OF_AS = 256


class Prefix(Options):
    """How much around a source is blocked."""

    ipv4: Literal[32, 24] = Field(
        default=32, description="Prefix length of a blocked IPv4 network: 32 or 24."
    )
    ipv6: Literal[128, 64, 48] = Field(
        default=64, description="Prefix length of a blocked IPv6 network: 128, 64 or 48."
    )


class BlockSource(Step):
    """Drop everything that comes from the incident's sources, and cut their connections."""

    action: Literal["block_source"] = Field(description="`block_source`.")
    ttl: Duration = Field(default=3600, description="How long: 30s, 10m, 1h, 7d.")
    grow: Number = Field(
        default=2.0,
        ge=1,
        le=100,
        description="Each earlier block of the same source multiplies `ttl` by this.",
    )
    longest: Duration = Field(default=86_400, description="What `grow` never exceeds.")
    prefix: Prefix = Field(default=Prefix(), description="How much around a source is blocked.")
    widen_after: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Where so many addresses of the same /24 (IPv4) or /48 (IPv6) were blocked in the last thirty "
        "days, all of it is blocked, unless somebody in it lately succeeded; 0 = never.",
    )
    asn: bool = Field(
        default=False,
        description="Block every network of the source's autonomous system (needs `detection.geo.asn` and the "
        f"approval of a person; at most {MOST_NETWORKS_OF_AS} networks).",
    )
    approval: Approval = Field(default="none", description="How many people must agree first.")

    def decide(self, case: Case) -> list[Decision]:
        blockable, refusable = set(case.texts("blockable")), set(case.texts("refusable"))
        decisions: list[Decision] = []
        seen: set[str] = set()
        for source in case.texts("sources"):
            if len(seen) >= MOST_TARGETS:
                why = f"an incident blocks at most {MOST_TARGETS} sources"
                decisions.append(self.decision(case, source, "skip", why, approval=self.approval))
                break
            if source not in blockable and source not in refusable:
                why = "not blockable: it may be forged, a proxy, or shared with others"
                decisions.append(self.decision(case, source, "skip", why, approval=self.approval))
                continue
            targets, why = self._targets(source, case)
            if not targets:
                decisions.append(self.decision(case, source, "skip", why, approval=self.approval))
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    decisions.append(self._block(case, target, source, source in blockable))
        return decisions

    def targets(self, sources: Iterable[str]) -> set[str]:
        """The networks that stand for these sources."""
        return {t for s in sources if (t := block_target(s, self.prefix)) is not None}

    def _targets(self, source: str, case: Case) -> tuple[list[str], str]:
        target = block_target(source, self.prefix)
        if target is None:
            return [], f"wider than /{self.prefix.ipv4} (IPv4) or /{self.prefix.ipv6} (IPv6), or no address"
        if self.asn:
            networks = case.context.asn_networks(source)
            if networks is None:
                return [], "no database (detection.geo.asn) says in which autonomous system it is"
            if len(networks) > MOST_NETWORKS_OF_AS:
                return [], f"its autonomous system is larger than {MOST_NETWORKS_OF_AS} networks"
            return list(networks), ""
        if self.widen_after:
            wide = block_target(source, Prefix(ipv4=24, ipv6=48))
            known = wide is not None and case.context.earlier_inside(wide) >= self.widen_after
            if wide is not None and known and case.hits_nobody(wide):
                return [wide], ""
        return [target], ""

    def _block(self, case: Case, target: str, source: str, in_kernel: bool) -> Decision:
        context, repeats = case.context, case.playbook.when.repeats
        approval: Approval = "one" if self.asn and self.approval == "none" else self.approval
        earlier = max(0, context.earlier_blocks(target))
        ttl_s = grown(self.ttl, self.grow, self.longest, earlier)
        times = f", as {earlier} blocks came before" if earlier and self.grow > 1 else ""
        state: State
        if earlier < repeats:
            state, why = "skip", f"blocked {earlier} times before, not {repeats}"
        elif case.late:
            state, why = "skip", case.late
        elif context.blocked(target, ttl_s):
            state, why = "skip", "blocked already"
        else:
            state, why = case.open_state(approval, f"for {duration_text(ttl_s)}{times}")
        key = "blockable" if in_kernel else "refusable"
        if case.waits_for_the_wire(state, approval) and case.could_be_forged(source, key):
            state, why = "wait", FORGEABLE
        made = self.decision(case, target, state, why, ttl_s=ttl_s, approval=approval)
        return made if in_kernel else replace(made, detail={"where": "gateway"})

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        made = {"request": "block", "address": action["target"], "ttl_s": action["ttl_s"]}
        where = (action.get("detail") or {}).get("where")
        return made | common(action) | origin(action) | ({"where": where} if where else {})

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "unblock", "address": action["target"], "reason": action["reason"]}

    @classmethod
    def check(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "check", "address": action["target"]}

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        cut = f", {answer['cut']} connections cut" if answer.get("cut") else ""
        gateway = (action.get("detail") or {}).get("where") == "gateway"
        where = "refused by the authorisation endpoint" if gateway else "dropped in the kernel"
        return f"{where} for {answer['ttl_s']} s{cut}"


def block_target(source: str, prefix: Prefix) -> str | None:
    """The network to block for a source: an address stands for itself, anything longer is widened to `prefix`.

    None where the source is wider than `prefix` or is no address.
    """
    network = network_in(source)
    if network is None:
        return None
    length = prefix.ipv4 if network.version == 4 else prefix.ipv6
    if network.prefixlen < length:
        return None
    return single_or_network(network.supernet(new_prefix=length))
