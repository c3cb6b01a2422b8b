"""The detectors by name, and the two objects through which everything else uses them. A new detector is one
file and one line here. Each can say how an entity stands with it (`standing`), which changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np

from ..daemon.events import I64, AuthBatch, Direction, FlowBatch
from .campaigns import Followed
from .finding import Finding
from .gateway.control_endpoint import ControlEndpointAccess
from .login.attempts import AttemptStage
from .login.brute_force import BruteForce
from .login.compromise import Compromise
from .login.credential_stuffing import CredentialStuffing
from .login.distributed_brute_force import DistributedBruteForce
from .login.impossible_travel import ImpossibleTravel
from .login.mfa_fatigue import MfaFatigue
from .login.new_access import NewAccess
from .login.password_spray import PasswordSpray
from .login.rotation import Rotation
from .network.allowlist import AllowList, AllowRule
from .network.port_scan import PortScan
from .profiles import Locator
from .standing import Standing

Options = Mapping[str, Mapping[str, Any]]

SOURCE_DETECTORS: dict[str, Callable[..., Any]] = {
    "brute_force": BruteForce,
    "password_spray": PasswordSpray,
    "rotation": Rotation,
}
"""Those that follow the failures of one source: `follow(attempts)` says what campaign each attempt belongs to."""
SITE_DETECTORS: dict[str, Callable[..., Any]] = {
    "distributed_brute_force": DistributedBruteForce,
    "credential_stuffing": CredentialStuffing,
    "mfa_fatigue": MfaFatigue,
}
"""Those that follow many sources at once, an account's or all: the same, once it is known who is convicted alone."""
JUDGING_DETECTORS: dict[str, Callable[..., Any]] = {
    "compromise": Compromise,
    "new_access": NewAccess,
    "impossible_travel": ImpossibleTravel,
}
"""Those that judge logins by what the others follow: `update(attempts, convictions)`."""
REQUEST_DETECTORS: dict[str, Callable[..., Any]] = {
    "control_endpoint": ControlEndpointAccess,
}
"""Those that look at requests of an access log, whatever came of them: `find(batch)` picks rows, `judge(picked,
credit)` says what they come to."""
AUTH_DETECTORS = SOURCE_DETECTORS | SITE_DETECTORS | JUDGING_DETECTORS | REQUEST_DETECTORS
FLOW_DETECTORS: dict[str, Callable[..., Any]] = {
    "port_scan": PortScan,
}
"""Beside these there are the two allow-lists, which take rules instead of options."""


def _make(detectors: Mapping[str, Callable[..., Any]], options: Options, **site: Any) -> dict[str, Any]:
    """Every detector with its options. Raises ValueError naming the key that no detector knows."""
    for name in options:
        if name not in detectors:
            raise ValueError(f"{name}: no such detector; known are {', '.join(detectors)}")
    made = {}
    for name, factory in detectors.items():
        given = options.get(name, {})
        parameters = signature(factory).parameters
        known = [name for name in parameters if name not in site]
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"{name}.{key}: no such option; known are {', '.join(known)}")
            if key in getattr(factory, "texts", ()):
                if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
                    raise ValueError(f"{name}.{key}: {value!r} is no list of texts")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}.{key}: {value!r} is no whole number above 0")
        made[name] = factory(**{key: known for key, known in site.items() if key in parameters}, **given)
    return made


class LoginDetection:
    """All login detectors over one stage that turns lines into attempts."""

    def __init__(self, options: Options, hash_key: bytes, geography: Locator | None = None) -> None:
        self._detectors = _make(AUTH_DETECTORS, options, hash_key=hash_key)
        self._stage = AttemptStage(hash_key, geography=geography)

    def update(self, batch: AuthBatch) -> list[Finding]:
        """Findings new or grown, in the order of the events that raised them."""
        picked = {name: self._detectors[name].find(batch) for name in REQUEST_DETECTORS}
        asked = np.concatenate([rows.row for rows in picked.values()])
        attempts = self._stage.update(batch, asked)
        found: list[Finding] = []
        for (name, rows), credit in zip(picked.items(), _parts(attempts.asked_credit, picked), strict=True):
            found += self._detectors[name].judge(rows, credit)
        if not len(attempts.row):
            return _in_order(found)
        convictions: dict[str, Followed] = {}
        for name in SOURCE_DETECTORS:
            convictions[name], raised = self._detectors[name].follow(attempts)
            found += raised
        alone = np.any([followed.serial > 0 for followed in convictions.values()], axis=0)
        attempts = attempts.with_convicted(alone)
        for name in SITE_DETECTORS:
            convictions[name], raised = self._detectors[name].follow(attempts)
            found += raised
        for name in JUDGING_DETECTORS:
            found += self._detectors[name].update(attempts, convictions)
        return _in_order(found)

    def standing(self, family: int, high: int, low: int, now_ns: int) -> list[Standing]:
        """What keeps the source that an address belongs to from being raised. Changes nothing."""
        source, credit, found = self._stage.standing(family, high, low, now_ns)
        convicted = False
        for name in SOURCE_DETECTORS:
            said = self._detectors[name].standing(source, credit, now_ns)
            convicted |= any(s.threshold is None for s in said)
            found += said
        for name in JUDGING_DETECTORS:
            found += self._detectors[name].standing(convicted)
        for name in REQUEST_DETECTORS:
            found += self._detectors[name].standing(family, high, low)
        return found

    def save(self) -> dict[str, Any]:
        return {"stage": self._stage.save(), **_saved(self._detectors)}

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of detectors with other options."""
        self._stage.load(state["stage"])
        _load(self._detectors, state)


class NetworkDetection:
    """All network detectors. An allow-list that is None is off; one without rules allows nothing."""

    def __init__(
        self,
        options: Options,
        ingress_rules: Sequence[AllowRule] | None,
        egress_rules: Sequence[AllowRule] | None,
        hash_key: bytes,
    ) -> None:
        self._detectors = _make(FLOW_DETECTORS, options, hash_key=hash_key)
        for direction, rules in ((Direction.INGRESS, ingress_rules), (Direction.EGRESS, egress_rules)):
            if rules is not None:
                detector = AllowList(direction, rules, hash_key)
                self._detectors[detector.name] = detector

    def update(self, batch: FlowBatch) -> list[Finding]:
        """Findings new or grown, in the order of the rows that raised them."""
        return _in_order([f for detector in self._detectors.values() for f in detector.update(batch)])

    def standing(self, family: int, high: int, low: int, now_ns: int) -> list[Standing]:
        """What keeps an address, as the source or the far end of flows, from being raised. Changes nothing."""
        found: list[Standing] = []
        for detector in self._detectors.values():
            found += detector.standing(family, high, low, now_ns)
        return found

    def save(self) -> dict[str, Any]:
        return _saved(self._detectors)

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of detectors with other options."""
        _load(self._detectors, state)


def _parts(credit: I64, picked: Mapping[str, Any]) -> list[I64]:
    """The credit of the rows of each detector."""
    ends = np.cumsum([len(rows.row) for rows in picked.values()])
    return np.split(credit, ends[:-1])


def _saved(detectors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: detector.save() for name, detector in detectors.items()}


def _load(detectors: Mapping[str, Any], state: dict[str, Any]) -> None:
    """A detector that the state does not know begins anew: its rules were added since."""
    for name, detector in detectors.items():
        if name in state:
            detector.load(state[name])


_LAST = {"account_compromise": 1, "new_access": 2, "impossible_travel": 2}
"""By kind, what comes after the others where one event raises several: it joins what they begin."""


def _in_order(found: list[Finding]) -> list[Finding]:
    """By the events that raised them: one batch gives the order that many give."""
    return sorted(
        found,
        key=lambda f: (f.time_ns, f.trigger_line or min(f.lines, default=0), _LAST.get(f.kind, 0), f.id),
    )


def login_detectors(options: Options, hash_key: bytes, geography: Locator | None = None) -> LoginDetection:
    """`options`: for each name in AUTH_DETECTORS its constructor's options. Raises ValueError naming the key.

    `geography` knows where addresses are; without it no place of a login is judged.
    """
    return LoginDetection(options, hash_key, geography)


def network_detectors(
    options: Options,
    ingress_rules: Sequence[AllowRule] | None,
    egress_rules: Sequence[AllowRule] | None,
    hash_key: bytes,
) -> NetworkDetection:
    """`options`: for each name in FLOW_DETECTORS its constructor's options. Raises ValueError naming the key."""
    return NetworkDetection(options, ingress_rules, egress_rules, hash_key)
