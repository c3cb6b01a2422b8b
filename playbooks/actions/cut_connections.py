"""`cut_connections`: end what the incident's sources have open now, without blocking them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..decisions import FORGEABLE, MOST_TARGETS, Approval, Case, Decision, State
from ..step import Step, common, origin
from .block_source import Prefix, block_target


class CutConnections(Step):
    """End the connections of the incident's sources. They may connect again: add `block_source` to keep them out."""

    action: Literal["cut_connections"] = Field(description="`cut_connections`.")
    approval: Approval = Field(default="none", description="How many people must agree first.")

    def decide(self, case: Case) -> list[Decision]:
        decisions = []
        for source in sorted(set(case.texts("blockable")) & set(case.texts("sources")))[:MOST_TARGETS]:
            target = block_target(source, Prefix(ipv6=64))
            if target is None:
                continue
            state: State
            state, why = case.open_state(self.approval, "its connections are ended")
            if case.waits_for_the_wire(state, self.approval) and case.could_be_forged(source, "blockable"):
                state, why = "wait", FORGEABLE
            decisions.append(self.decision(case, target, state, why, approval=self.approval))
        return decisions

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "cut", "address": action["target"]} | common(action) | origin(action)

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> str:
        return "connections that were ended are opened again by their clients"

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return f"{answer.get('cut', 0)} connections cut"
