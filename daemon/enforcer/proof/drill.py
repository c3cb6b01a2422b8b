"""The drill: the table `inet gatewatch_drill` counts what the kill switch would drop, at its hooks and by its matches.

It must never say 'covered' without having counted a request and an answer, and it must never stop a packet. What
was drilled stands in the rules' comments, so a drill outlives the process that began it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..kernel import killtable, rules
from ..kernel.blocktable import PRIORITY
from ..kernel.killtable import DRILL
from ..kernel.nft import Nft
from ..rails import Endpoint, Service

# A packet that NAT rewrites matches one service as it comes and another one later, so it is counted twice on its
# way: in `came`, where each packet passes once, and in `led`, once it is known where it goes.
_CAME, _LED = "came", "led"
_HOOKS = (
    ("prerouting", 'iif != "lo" ', _CAME),  # what is on loopback has passed output
    ("output", "", _CAME),
    ("input", "", _LED),
    ("forward", "", _LED),
)
_FRONT, _BACK = "f", "b"  # short, as a comment has at most 128 bytes
_DATA = "tcp flags & (syn | rst | psh | ack) == psh | ack"
"""TCP sends the end of what a program writes with PSH (RFC 9293, 3.9.1.2); no handshake, scan or close has it."""


def start(nft: Nft, endpoints: Mapping[str, Endpoint]) -> None:
    """Begin to count; a drill that is running begins anew. Raises EnforcerError."""
    nft.run(render(endpoints))


def stop(nft: Nft) -> list[dict[str, Any]]:
    """End the drill. For each endpoint, ready for JSON: `endpoint`, `packets`, `covered`, and `services` with
    `service`, `part` ("front" or "back"), `packets`, `requests`, `answers` (packets with data) and `covered`.

    A packet that a port published by DNAT passes on counts for front and back, and once for the endpoint.
    Empty where no drill was running. Raises EnforcerError.
    """
    listed = nft.table(DRILL)
    nft.run(killtable.remove(DRILL))
    return _result(listed or [])


def render(endpoints: Mapping[str, Endpoint]) -> str:
    """The table, replacing whatever stands under its name."""
    chains = ""
    for group in (_CAME, _LED):
        for number, endpoint in enumerate(endpoints.values()):
            matches = [(s, side, rules.match(s, side)) for s in endpoint.services for side in ("d", "s")]
            hit = f"{group}_{number}_hit"
            first = "".join(f'{m} counter goto {hit} comment "{endpoint.name} once"\n' for _, _, m in matches)
            each = "".join(_count(endpoint, *match) for match in matches)
            chains += f"chain {hit} {{\n{each}}}\nchain {group}_{number} {{\n{first}}}\n"
        jumps = "".join(f"jump {group}_{number}\n" for number in range(len(endpoints)))
        chains += f"chain {group} {{\n{jumps}}}\n"
    bases = "".join(
        f"chain {hook} {{\ntype filter hook {hook} priority {PRIORITY}; policy accept;\n{which}jump {group}\n}}\n"
        for hook, which, group in _HOOKS
    )
    return f"{killtable.remove(DRILL)}table inet {DRILL} {{\n{chains}{bases}}}\n"


def _count(endpoint: Endpoint, service: Service, side: str, match: str) -> str:
    part = _FRONT if service in endpoint.fronts else _BACK
    data = f"{match} {_DATA}" if service.protocol == "tcp" else match
    said = f"{endpoint.name} {part} {service} {side}"
    return f'{match} counter comment "{said} all"\n{data} counter comment "{said} data"\n'


class _Counts(NamedTuple):
    came: int = 0
    led: int = 0

    @property
    def most(self) -> int:
        """How many packets at least: what passed both groups was counted in both."""
        return max(self.came, self.led)


def _result(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = _counts(listed)
    services: dict[str, dict[tuple[str, str], None]] = {}
    for words in counts:
        known = services.setdefault(words[0], {})
        if len(words) == 5:
            known[words[1], words[2]] = None
    found = []
    for name, known in services.items():
        answered = any(
            counts.get((name, part, service, "s", "data"), _Counts()).most > 0
            for part, service in known
            if part == _BACK
        )
        said = [_service(counts, (name, part, service), answered) for part, service in known]
        fronts = [s for s in said if s["part"] == "front"]
        covered = any(s["covered"] for s in fronts or said)
        packets = counts.get((name, "once"), _Counts()).most
        found.append({"endpoint": name, "packets": packets, "covered": covered, "services": said})
    return found


def _service(
    counts: Mapping[tuple[str, ...], _Counts], words: tuple[str, str, str], answered: bool
) -> dict[str, Any]:
    """`answered`: a back sent answers. They are a front's where NAT led its requests on."""
    to, back = (counts.get((*words, side, "all"), _Counts()).most for side in ("d", "s"))
    requests, answers = (counts.get((*words, side, "data"), _Counts()) for side in ("d", "s"))
    led_on = words[1] == _FRONT and requests.came > 0 and requests.led == 0
    return {
        "service": words[2],
        "part": "front" if words[1] == _FRONT else "back",
        "packets": to + back,
        "requests": requests.most,
        "answers": answers.most,
        "covered": requests.most > 0 and (answers.most > 0 or (led_on and answered)),
    }


def _counts(listed: list[dict[str, Any]]) -> dict[tuple[str, ...], _Counts]:
    """By the words of a rule's comment; what somebody else put into the table counts for nothing."""
    found: dict[tuple[str, ...], _Counts] = {}
    for rule in (o["rule"] for o in listed if "rule" in o):
        words = tuple(str(rule.get("comment", "")).split())
        group = str(rule.get("chain", "")).partition("_")[0]
        packets = [
            e["counter"]["packets"] for e in rule.get("expr", []) if isinstance(e, dict) and "counter" in e
        ]
        if group in (_CAME, _LED) and len(words) in (2, 5) and packets:
            former = found.get(words, _Counts())
            found[words] = former._replace(**{group: getattr(former, group) + packets[0]})
    return found
