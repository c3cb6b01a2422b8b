"""`capture_evidence`: keep what an incident rests on, where no retention of logs takes it away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..decisions import Case, Decision
from ..step import Step


class CaptureEvidence(Step):
    """Keep the incident, its findings and the log lines that they rest on in a folder of its own, with a checksum."""

    carrier = "evidence"
    action: Literal["capture_evidence"] = Field(description="`capture_evidence`.")

    def decide(self, case: Case) -> list[Decision]:
        return [self.decision(case, case.id, "act", "keeping evidence changes nothing")]

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"keep": action["incident"]}

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"drop": action["incident"]}

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return f"kept in {answer['folder']}, {answer['files']} files"
