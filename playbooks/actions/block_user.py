"""`block_user`: refuse a principal (account, API key, subject, certificate) and end its sessions.

Only those are blocked against whom there is evidence of compromise or abuse (the incident's `blockable_users`), never
for failures alone: else whoever guesses somebody's password a thousand times could lock that person out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ...config.values import Duration, Name, Number, duration_text
from ..decisions import FORGEABLE, MOST_TARGETS, Approval, Case, Decision, State
from ..step import Step, common, grown, origin

PrincipalKind = Literal["account", "key", "subject", "certificate"]


class BlockUser(Step):
    """Refuse whoever is shown to be compromised or abusive: at PAM, at the gateway, at the identity provider."""

    action: Literal["block_user"] = Field(description="`block_user`.")
    ttl: Duration = Field(default=3600, description="How long: 30s, 10m, 1h, 7d.")
    grow: Number = Field(
        default=2.0,
        ge=1,
        le=100,
        description="Each earlier block of the same user multiplies `ttl` by this.",
    )
    longest: Duration = Field(default=604_800, description="What `grow` never exceeds.")
    kinds: list[PrincipalKind] = Field(
        default=["account", "key", "subject", "certificate"],
        min_length=1,
        description="Which principals: Unix accounts, API keys, subjects of tokens, client certificates.",
    )
    hooks: list[Name] = Field(
        default=[],
        max_length=8,
        description="Hooks (of the configuration) that are told to disable the user as well, and to enable it again "
        "at the end: an identity provider.",
    )
    approval: Approval = Field(default="none", description="How many people must agree first.")

    def decide(self, case: Case) -> list[Decision]:
        accused = case.texts("blockable_users")
        if not accused and case.texts("users"):
            why = "no evidence of compromise or abuse: failures alone never block a user"
            return [self.decision(case, "users", "skip", why, approval=self.approval)]
        decisions = [self._block(case, principal) for principal in accused[:MOST_TARGETS]]
        if len(accused) > MOST_TARGETS:
            why = f"an incident blocks at most {MOST_TARGETS} users"
            decisions.append(self.decision(case, accused[MOST_TARGETS], "skip", why, approval=self.approval))
        return decisions

    def _block(self, case: Case, principal: str) -> Decision:
        context, repeats = case.context, case.playbook.when.repeats
        earlier = max(0, context.earlier_blocks(principal))
        ttl_s = grown(self.ttl, self.grow, self.longest, earlier)
        kind = principal.partition(":")[0]
        state: State
        if kind not in self.kinds:
            state, why = "skip", f"this playbook blocks {', '.join(self.kinds)}, not {kind}"
        elif earlier < repeats:
            state, why = "skip", f"blocked {earlier} times before, not {repeats}"
        elif case.late:
            state, why = "skip", case.late
        elif context.blocked(principal, ttl_s):
            state, why = "skip", "blocked already"
        else:
            state, why = case.open_state(self.approval, f"for {duration_text(ttl_s)}")
        if case.waits_for_the_wire(state, self.approval) and case.could_be_forged(
            principal, "blockable_users"
        ):
            state, why = "wait", FORGEABLE
        detail = {"hooks": dict.fromkeys(self.hooks, "")} if self.hooks else {}
        return self.decision(case, principal, state, why, ttl_s=ttl_s, approval=self.approval, detail=detail)

    @classmethod
    def request(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return (
            {"request": "block_user", **named(action), "ttl_s": action["ttl_s"]}
            | common(action)
            | origin(action)
        )

    @classmethod
    def undo(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "unblock_user", **named(action), "reason": action["reason"]}

    @classmethod
    def check(cls, action: Mapping[str, Any]) -> dict[str, Any]:
        return {"request": "check_user", **named(action)}

    @classmethod
    def outcome(cls, action: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
        return f"refused for {answer['ttl_s']} s"


def named(action: Mapping[str, Any]) -> dict[str, str]:
    """The principal of an action, as the enforcer wants it."""
    kind, _, name = str(action["target"]).partition(":")
    return {"user": name, "kind": kind}
