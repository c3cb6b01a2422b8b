"""What the service hands to the analyser: values and sockets, made before privileges are dropped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..config.schema import Config
from ..playbooks.schema import Playbook
from .enforcer.rails import Rails
from .sshd_settings import SshdSettings


@dataclass(frozen=True, slots=True)
class LogSource:
    """One log to follow. `format` None: seen from its first lines."""

    path: Path
    format: str | None = None
    trusted: bool = False
    timezone: str = "local"
    year: int | None = None
    verified_users: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service hands to the analyser."""

    config: Config
    rails: Rails | None
    state: Path
    mode: str
    playbooks: tuple[Playbook, ...]
    logs: tuple[LogSource, ...]
    journal_units: tuple[str, ...]  # empty: the journal is not followed
    local: tuple[str, ...]
    control: socket.socket  # from the service: a new packet worker's socket with each message
    commands: socket.socket  # listening, for the command line
    outbox: socket.socket  # listening, for the shipper
    shipper_uid: int
    watches_packets: bool
    enforces: bool
    say: Callable[[str], None]
    sshd: SshdSettings = field(default_factory=SshdSettings)
