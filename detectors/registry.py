"""The detectors by name, and the two objects through which everything else uses them. A new detector is one
file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from ..daemon.events import AuthBatch
from .finding import Finding
from .login.attempts import AttemptStage
from .login.brute_force import BruteForce
from .login.compromise import Compromise
from .login.password_spray import PasswordSpray

Options = Mapping[str, Mapping[str, Any]]

AUTH_DETECTORS: dict[str, Callable[..., Any]] = {
    "brute_force": BruteForce,
    "password_spray": PasswordSpray,
    "compromise": Compromise,
}


def _make(detectors: Mapping[str, Callable[..., Any]], options: Options) -> dict[str, Any]:
    """Every detector with its options. Raises ValueError naming the key that no detector knows."""
    for name in options:
        if name not in detectors:
            raise ValueError(f"{name}: no such detector; known are {', '.join(detectors)}")
    made = {}
    for name, factory in detectors.items():
        given = options.get(name, {})
        known = signature(factory).parameters
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"{name}.{key}: no such option; known are {', '.join(known)}")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}.{key}: {value!r} is no whole number above 0")
        made[name] = factory(**given)
    return made


class LoginDetection:
    """All login detectors over one stage that turns lines into attempts."""

    def __init__(self, options: Options, hash_key: bytes) -> None:
        self._detectors = _make(AUTH_DETECTORS, options)
        self._stage = AttemptStage(hash_key)

    def update(self, batch: AuthBatch) -> list[Finding]:
        """Findings new or grown, in the order of the events that raised them."""
        attempts = self._stage.update(batch)
        if not len(attempts.row):
            return []
        guessing, found = self._detectors["brute_force"].follow(attempts)
        spraying, sprayed = self._detectors["password_spray"].follow(attempts)
        found += sprayed
        found += self._detectors["compromise"].update(attempts, (guessing, spraying))
        return _in_order(found)

    def save(self) -> dict[str, Any]:
        return {"stage": self._stage.save(), **{n: d.save() for n, d in self._detectors.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self._stage.load(state["stage"])
        for name, detector in self._detectors.items():
            detector.load(state[name])


def _in_order(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: (finding.time_ns, finding.lines[:1], finding.id))


def login_detectors(options: Options, hash_key: bytes) -> LoginDetection:
    """`options`: for each name in AUTH_DETECTORS its constructor's options. Raises ValueError naming the key."""
    return LoginDetection(options, hash_key)
