"""`notify`: tell people, beyond the sinks that hear of every incident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...config.values import Name
from ..decisions import Case, Decision
from ..step import Carrier, Step


class Notify(Step):
    """Tell, and do nothing else: the incident goes to every sink, as every incident does, and to who is named here."""

    action: Literal["notify"] = Field(description="`notify`.")
    hooks: list[Name] = Field(
        default=[], max_length=8, description="Hooks of the configuration: each gets the incident by webhook."
    )
    commands: list[Name] = Field(
        default=[],
        max_length=8,
        description="Commands of the rails file, such as a mail command: each gets the incident as text.",
    )

    def decide(self, case: Case) -> list[Decision]:
        whom = ["sinks", *(f"hook:{h}" for h in self.hooks), *(f"command:{c}" for c in self.commands)]
        return [self.decision(case, target, "act", "telling changes nothing") for target in whom]

    @classmethod
    def carried_by(cls, action: Mapping[str, Any]) -> Carrier:
        kind = str(action["target"]).partition(":")[0]
        return "hook" if kind == "hook" else "command" if kind == "command" else "sinks"

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        kind, _, name = str(action["target"]).partition(":")
        return {"do": "notify"} if kind == "hook" else {"run": name, "undo": 0}

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> str:
        return "what was told cannot be taken back"

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return "told"
