"""`kill_switch`: drop every inbound connection to a model endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...config.values import Name
from ..decisions import Case, Decision
from ..step import Step, common


class KillSwitch(Step):
    """Ask people to drop every inbound connection to a model endpoint.

    Without them it is done only where the rails say `kill_without_person` of that endpoint, and the playbook `none`.
    """

    action: Literal["kill_switch"] = Field(description="`kill_switch`.")
    endpoint: Name = Field(default="all", description="The endpoint's name in the rails file, or all.")
    approval: Literal["none", "one", "two"] = Field(
        default="one", description="How many people must agree; `none` asks as the rails say."
    )

    def decide(self, case: Case) -> list[Decision]:
        state, why = case.open_state(self.approval, "as far as the rails grant it beforehand")
        if state == "wait":
            why = f"a kill switch needs the approval of {self.approval}"
        return [self.decision(case, self.endpoint, state, why, approval=self.approval)]

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        endpoints = [] if action["target"] == "all" else [action["target"]]
        return {"request": "kill", "endpoints": endpoints} | common(action)

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> str:
        return "only a person releases the kill switch: gatewatch kill-switch release"

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return "engaged, proven" if answer.get("proven") else "engaged, not proven"
