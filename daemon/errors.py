"""Every error that Gatewatch raises on purpose.

GatewatchError                  one line for the user: what is wrong, where, what to do
├── UsageError          exit 2  a wrong option, or options that do not fit together
├── ConfigError         exit 2  a configuration, playbook or rails file: names file, line or key
├── InputError          exit 1  a log or capture that cannot be read: names file and offset
├── PrivilegeError      exit 1  the operation needs a privilege that this process lacks
├── StoreError          exit 1  the SQLite store
├── CommandError        exit 1  a command of the rails could not be run, or failed
└── EnforcerError       exit 1  the enforcer could not be reached, or the kernel refused
    └── RefusedError    exit 1  the enforcer refused: names the rail or the missing authority
"""

from __future__ import annotations


class GatewatchError(Exception):
    """One line for the user. `remedy` says what to do and is printed after the message."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(GatewatchError):
    exit_code = 2


class ConfigError(GatewatchError):
    exit_code = 2


class InputError(GatewatchError):
    pass


class PrivilegeError(GatewatchError):
    pass


class StoreError(GatewatchError):
    pass


class CommandError(GatewatchError):
    pass


class EnforcerError(GatewatchError):
    pass


class RefusedError(EnforcerError):
    """`rail` names the limit that refused; empty where the asker lacks the authority."""

    def __init__(self, message: str, *, remedy: str = "", rail: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.rail = rail
