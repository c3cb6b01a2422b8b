"""`exec`: run a command that root named beforehand in the rails file, with fixed arguments and no shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...config.values import Name
from ..decisions import Case, Decision
from ..step import Step


class Exec(Step):
    """Run one of the commands that the rails file names (off unless it names any), as a user of its own.

    It gets the incident as JSON on its standard input and its id, kind and priority in the environment.
    """

    carrier = "command"
    action: Literal["exec"] = Field(description="`exec`.")
    command: Name = Field(description="The command's name in the rails file.")

    def decide(self, case: Case) -> list[Decision]:
        state, why = case.open_state("none", "as the rails file names it")
        return [self.decision(case, self.command, state, why)]

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"run": action["target"], "undo": 0}

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"run": action["target"], "undo": 1}

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        said = f": {answer['output']}" if answer.get("output") else ""
        return f"exit code {answer.get('exit_code', 0)}{said}"
