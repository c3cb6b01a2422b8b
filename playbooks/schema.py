"""The schema of a playbook: which incidents get which actions, and with whose approval.

A playbook only asks. The enforcer's rails limit what is done, whatever stands in a playbook.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from ..config.schema import Options
from ..config.values import Duration, Name, Number
from ..detectors.finding import Kind
from .actions.block_source import BlockSource, Prefix
from .actions.registry import AnyStep

__all__ = ["PRIORITIES", "BlockSource", "Limits", "Playbook", "Prefix", "Priority", "When"]

Priority = Literal["critical", "high", "medium", "low", "info"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""From the highest to the lowest."""


class When(Options):
    """Which incidents a playbook is for: every condition must hold."""

    kinds: list[Kind] = Field(default=[], description="The incident is of one of these kinds; empty = any.")
    priority: Priority = Field(default="info", description="The incident has at least this priority.")
    confidence: Number = Field(
        default=0.0, ge=0, le=1, description="The incident has at least this confidence, 0 to 1."
    )
    endpoints: list[Name] = Field(
        default=[], description="The incident concerns one of these endpoints; empty = any."
    )
    repeats: int = Field(
        default=0, ge=0, le=1000, description="The source was blocked at least so many times before."
    )


class Limits(Options):
    """How much a playbook may do."""

    per_minute: int = Field(default=60, ge=1, le=100_000, description="The most actions a minute.")


class Playbook(Options):
    """One playbook."""

    name: Name = Field(
        description="Its name; a site's own playbook replaces the shipped one of the same name."
    )
    description: str = Field(default="", max_length=1000, description="What it is for, for people.")
    enabled: bool = Field(default=True, description="false = this playbook does nothing.")
    when: When = Field(default=When(), description="Which incidents it is for.")
    then: list[AnyStep] = Field(min_length=1, max_length=16, description="What is done, in this order.")
    limits: Limits = Field(default=Limits(), description="How much it may do.")
    cooldown: Duration = Field(
        default=300,
        description="The same action on the same target is not repeated before so much time passed.",
    )

    def uses_systems(self) -> bool:
        """Whether a step blocks whole autonomous systems."""
        return any(isinstance(step, BlockSource) and step.asn for step in self.then)

    def file_form(self) -> dict[str, Any]:
        """As it would stand in a file."""
        return self.model_dump(mode="json")
