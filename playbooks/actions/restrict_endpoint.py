"""`restrict_endpoint`: only the networks that the rails name for an endpoint may still reach it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...config.values import Duration, Name, duration_text
from ..decisions import Approval, Case, Decision
from ..step import Step, common, origin


class RestrictEndpoint(Step):
    """Let only the allow-listed networks of an endpoint (`allowed` in the rails file) reach it, for a time.

    People are asked, unless the rails say `restrict_without_person` of that endpoint.
    """

    action: Literal["restrict_endpoint"] = Field(description="`restrict_endpoint`.")
    endpoint: Name = Field(description="The endpoint's name in the rails file.")
    ttl: Duration = Field(default=3600, description="How long: 30s, 10m, 1h, 7d.")
    approval: Approval = Field(
        default="one", description="How many people must agree; `none` asks as the rails say."
    )

    def decide(self, case: Case) -> list[Decision]:
        state, why = case.open_state(self.approval, f"for {duration_text(self.ttl)}")
        return [self.decision(case, self.endpoint, state, why, ttl_s=self.ttl, approval=self.approval)]

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        made = {"request": "restrict", "endpoints": [action["target"]], "ttl_s": action["ttl_s"]}
        return made | common(action) | origin(action)

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "lift", "endpoints": [action["target"]], "reason": action["reason"]}

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        allowed = ", ".join(map(str, answer.get("allowed", ()))) or "management alone"
        return f"open to {allowed} only"
