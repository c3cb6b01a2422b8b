"""`gatewatch kill-switch`: cut the model endpoints off now, let them go, look, and rehearse.

Its clock runs from the command's exec to the last packet, so nothing is imported here that the request does
not need (argparse alone takes 9 ms); what shows the answer is imported while the enforcer works.
"""

from __future__ import annotations

import os
import sys

from ..errors import PrivilegeError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SYSTEM_STATE = "/var/lib/gatewatch"
USAGE = """\
usage: gatewatch kill-switch engage  --reason TEXT [--endpoint NAME]... [--for TIME] [--no-probe] [--json]
       gatewatch kill-switch release --reason TEXT [--endpoint NAME]... [--json]
       gatewatch kill-switch status  [--json]
       gatewatch kill-switch drill   [--endpoint NAME]... [--seconds N] [--json]
       gatewatch kill-switch verify  FILE [--key KEY] [--json]

engage   drop everything to and from the endpoints (all of them where none is named) and end their
         connections; what is engaged stays so through restarts, until released
release  let them go; where the rails ask for two people, the first one's request waits for the second
status   what is engaged, as the journal and as the kernel say
drill    count the endpoints' requests at the kill switch's place for N seconds (default 10), and name what
         bypasses it; cuts nothing
verify   check the signature of a receipt, as `engage --json` printed it

  --endpoint NAME   as in rails.toml; may be given again
  --reason TEXT     kept in the audit log
  --for TIME        release by itself after 90s, 30m, 8h or 7d at most; without it, as with --until-released,
                    only a person releases it
  --no-probe        do not try to reach the endpoints from outside
  --key KEY         the public key that the receipt has to be signed with (`status` shows it)
  --json            one JSON object
  --state FOLDER    the state folder (GATEWATCH_STATE; default /var/lib/gatewatch)
  --rails FILE      the rails, where no enforcer runs (GATEWATCH_RAILS)
  --config FILE     take state folder and rails from this configuration

Without an enforcer, root runs the same itself. Without Gatewatch: nft -f FOLDER/enforcer/break-glass.nft
Exit codes: 0 done (and proven), 1 failed or not proven, 2 wrong usage."""

_ANSWER_S = 5.0  # helper and probe take three at the most
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 7 * 86_400


class Options:
    """What the command line says."""

    def __init__(self, arguments: list[str]) -> None:
        self.action = ""
        self.endpoints: list[str] = []
        self.reason = self.state = self.rails = self.config = self.key = self.file = ""
        self.seconds = 10
        self.ttl_s = 0
        self.json = False
        self.probe = True
        rest = list(arguments)
        while rest:
            self._take(rest)
        if self.action not in ("engage", "release", "status", "drill", "verify"):
            raise UsageError(
                "kill-switch: engage, release, status, drill or verify?",
                remedy="kill-switch --help shows how",
            )
        if self.action == "verify" and not self.file:
            raise UsageError(
                "kill-switch verify: which file?", remedy="name a receipt, or - for standard input"
            )
        if self.ttl_s and self.action != "engage":
            raise UsageError(f"kill-switch {self.action}: --for belongs to engage")
        if self.action in ("engage", "release") and not self.reason.strip():
            raise UsageError(f"kill-switch {self.action}: the reason is missing", remedy="add --reason TEXT")

    def _take(self, rest: list[str]) -> None:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            if self.action == "verify" and not self.file:
                self.file = word
                return
            if self.action:
                raise UsageError(
                    f"kill-switch: {word!r} is one word too many",
                    remedy=f"is it --endpoint {word}? A reason stands in quotes",
                )
            self.action = word
            return
        if word in ("--json", "--no-probe", "--until-released"):
            self.json |= word == "--json"
            self.probe &= word != "--no-probe"
            self.ttl_s *= word != "--until-released"
            return
        name, equals, value = word.partition("=")
        if name not in (
            "--endpoint", "--for", "--reason", "--state", "--rails", "--config", "--seconds", "--key"
        ):  # fmt: skip
            raise UsageError(f"kill-switch: no option {name}", remedy="kill-switch --help shows them")
        if not equals:
            if not rest:
                raise UsageError(f"kill-switch: {name} wants a value", remedy="kill-switch --help shows how")
            value = rest.pop(0)
        if name == "--endpoint":
            self.endpoints.append(value)
        elif name == "--seconds":
            if not (value.isascii() and value.isdigit() and 0 < int(value) <= 3600):
                raise UsageError("kill-switch: --seconds wants a whole number from 1 to 3600")
            self.seconds = int(value)
        elif name == "--for":
            unit, number = _UNITS_S.get(value[-1:], 0), value[:-1]
            self.ttl_s = unit * int(number) if number.isascii() and number.isdigit() else 0
            if not 0 < self.ttl_s <= _LONGEST_S:
                raise UsageError(
                    f"kill-switch: --for {value}: a time such as 90s, 30m or 8h is wanted, at most 7d"
                )
        else:
            setattr(self, name[2:], value)


def main(argv: list[str]) -> int:
    """Run one action; 0 where it is done and proven. Raises GatewatchError."""
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0 if argv else 2
    options = Options(argv)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass  # only root may go before everyone else on a busy machine
    if options.action == "verify":
        from . import kill_switch_text

        return kill_switch_text.verify(options.file, options.key, options.json)
    state, rails = _places(options)
    speaker = Speaker(state, rails)
    if options.action == "drill":
        return _drill(speaker, options)
    message: dict[str, object] = {"request": "status"}
    if options.action != "status":
        from ..enforcer.client import plain

        message = {
            "request": "kill" if options.action == "engage" else "release",
            "endpoints": options.endpoints,
            "reason": plain(options.reason),
        }
        if options.action == "engage":
            message["probe"] = int(options.probe)
        if options.ttl_s:
            message["ttl_s"] = options.ttl_s
    answer = speaker.call(message)
    from . import kill_switch_text

    return kill_switch_text.show(options.action, answer, options.json, direct=speaker.direct)


class Speaker:
    """Asks the enforcer, and where none answers, does as root what it would have done."""

    def __init__(self, state: str, rails: str) -> None:
        self._state = state
        self._rails = rails
        from ..enforcer.client import Enforcer, socket_path

        self._enforcer: Any = Enforcer(socket_path(state))
        self.direct = False

    def call(self, message: Mapping[str, object]) -> dict[str, Any]:
        from ..enforcer.client import UnreachableError

        try:
            return dict(self._enforcer.call(message, _ANSWER_S))
        except UnreachableError as error:
            if os.geteuid() != 0:
                glass = f"in need, as root: nft -f {self._state}/enforcer/break-glass.nft"
                raise PrivilegeError(error.message, remedy=f"run this as root; {glass}") from None
        from ..enforcer.direct import Direct, rails_path

        self._enforcer = Direct(self._state, self._rails or rails_path(self._state))
        self.direct = True
        return dict(self._enforcer.call(message))


def _drill(speaker: Speaker, options: Options) -> int:
    import time

    speaker.call({"request": "drill_start", "endpoints": options.endpoints, "seconds": options.seconds})
    try:
        if sys.stderr.isatty():
            print(f"counting for {options.seconds} s; nothing is cut", file=sys.stderr)
        time.sleep(options.seconds)
    finally:
        answer = speaker.call({"request": "drill_stop"})
    from . import kill_switch_text

    return kill_switch_text.show("drill", answer, options.json, direct=speaker.direct)


def _places(options: Options) -> tuple[str, str]:
    """The state folder, and the rails where they were named."""
    if options.config:
        from ...config.loader import load

        config = load(options.config)
        return options.state or str(config.state_folder()), options.rails or str(config.rails)
    state = options.state or os.environ.get("GATEWATCH_STATE", "")
    if not state:
        from ..enforcer.client import socket_path

        system = os.geteuid() == 0 or os.path.exists(socket_path(SYSTEM_STATE))
        state = SYSTEM_STATE if system else os.path.expanduser("~/.local/state/gatewatch")
    return state, options.rails
