"""The schema of a playbook: which incidents get which actions, and with whose approval.

A playbook only asks. The enforcer's rails limit what is done, whatever stands in a playbook.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from ..config.schema import Options
from ..config.values import Duration, Name
from ..detectors.finding import Kind

Priority = Literal["critical", "high", "medium", "low", "info"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""From the highest to the lowest."""

Approval = Literal["none", "one", "two"]


def _number(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number)]


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


class Prefix(Options):
    """How much around a source is blocked."""

    ipv4: Literal[32, 24] = Field(
        default=32, description="Prefix length of a blocked IPv4 network: 32 or 24."
    )
    ipv6: Literal[128, 64, 48] = Field(
        default=64, description="Prefix length of a blocked IPv6 network: 128, 64 or 48."
    )


class BlockSource(Options):
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
    approval: Approval = Field(default="none", description="How many people must agree first.")


class Notify(Options):
    """Tell, and do nothing else: the incident goes to every sink, as every incident does."""

    action: Literal["notify"] = Field(description="`notify`.")


class KillSwitch(Options):
    """Ask people to drop every inbound connection to a model endpoint. It is never done without them."""

    action: Literal["kill_switch"] = Field(description="`kill_switch`.")
    endpoint: Name = Field(default="all", description="The endpoint's name in the rails file, or all.")
    approval: Literal["one", "two"] = Field(default="one", description="How many people must agree.")


Step = Annotated[BlockSource | Notify | KillSwitch, Field(discriminator="action")]


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
    then: list[Step] = Field(min_length=1, max_length=16, description="What is done, in this order.")
    limits: Limits = Field(default=Limits(), description="How much it may do.")
    cooldown: Duration = Field(
        default=300,
        description="The same action on the same target is not repeated before so much time passed.",
    )

    def endpoints(self) -> set[str]:
        """Every endpoint that it names."""
        return {*self.when.endpoints, *(step.endpoint for step in self.then if isinstance(step, KillSwitch))}

    def file_form(self) -> dict[str, Any]:
        """As it would stand in a file."""
        return self.model_dump(mode="json")
