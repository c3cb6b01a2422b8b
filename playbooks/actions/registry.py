"""The actions, by the name that a playbook calls them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..step import Step
from .block_source import BlockSource
from .block_user import BlockUser
from .capture_evidence import CaptureEvidence
from .cut_connections import CutConnections
from .exec import Exec
from .kill_switch import KillSwitch
from .notify import Notify
from .restrict_endpoint import RestrictEndpoint

AnyStep = Annotated[
    BlockSource
    | BlockUser
    | CutConnections
    | RestrictEndpoint
    | KillSwitch
    | CaptureEvidence
    | Notify
    | Exec,
    Field(discriminator="action"),
]

ACTIONS: dict[str, type[Step]] = {
    "block_source": BlockSource,
    "block_user": BlockUser,
    "cut_connections": CutConnections,
    "restrict_endpoint": RestrictEndpoint,
    "kill_switch": KillSwitch,
    "capture_evidence": CaptureEvidence,
    "notify": Notify,
    "exec": Exec,
}
