"""What an action is: its options in a playbook, what it decides, what its carrier is asked, and how it is undone.

To add one, write its module under `actions/` and name its class in `actions/registry.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..config.schema import Options
from .decisions import Approval, Case, Decision, State

Carrier = Literal["enforcer", "command", "hook", "evidence", "sinks"]
"""Who carries an action out: the enforcer, the exec helper, a hook of the shipper, the analyser's own evidence folder;
`sinks` get every incident anyway."""


class Step(Options):
    """One action of a playbook. Subclasses have a field `action` with their name."""

    carrier: ClassVar[Carrier] = "enforcer"

    @property
    def name(self) -> str:
        return str(getattr(self, "action"))  # noqa: B009 - each subclass narrows its type

    @abstractmethod
    def decide(self, case: Case) -> list[Decision]:
        """What is done for an incident; pure, as all of `case` is given."""

    @classmethod
    def carried_by(cls, action: Mapping[str, Any]) -> Carrier:
        return cls.carrier

    @classmethod
    @abstractmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        """What the carrier is asked for. The same request twice must do no more than once."""

    @classmethod
    @abstractmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any] | str:
        """What takes it back, or why nothing has to be taken back."""

    @classmethod
    def check(cls, action: Mapping[str, Any]) -> dict[str, Any] | None:
        """A question whether it still stands, for those of which the answer has `blocked`; None where there is none."""
        return None

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        """What was done, in words."""
        return "done"

    def decision(
        self,
        case: Case,
        target: str,
        state: State,
        why: str,
        *,
        ttl_s: int = 0,
        approval: Approval = "none",
        **more: Any,
    ) -> Decision:
        return Decision(
            case.playbook.name, self.name, target, ttl_s, approval, case.reason, state, why, **more
        )


def common(action: Mapping[str, Any]) -> dict[str, Any]:
    """What every request to the enforcer says of why it is made, and who must agree."""
    detail = action.get("detail") or {}
    said: dict[str, Any] = {"reason": action["reason"]}
    if detail.get("needs"):
        said["approval"] = detail["needs"]
        said["hits"] = str(detail.get("hits_text", ""))[:1000] or "nobody who lately succeeded"
    return said


def origin(action: Mapping[str, Any]) -> dict[str, Any]:
    return {"incident": action["incident"], "playbook": action["playbook"]}


def grown(ttl_s: int, grow: float, longest_s: int, earlier: int) -> int:
    """Seconds of a block after `earlier` blocks of the same target; never more than `longest_s`."""
    ttl = float(ttl_s)
    for _ in range(min(earlier, 1000)):
        if grow == 1 or ttl >= longest_s:
            break
        ttl *= grow
    return min(int(ttl), longest_s)
