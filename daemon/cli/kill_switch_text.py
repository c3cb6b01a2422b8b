"""What `gatewatch kill-switch` prints: the receipt, the status and the drill's result, for people or as JSON."""

from __future__ import annotations

import time
from typing import Any

from .output import json_line, printable


def show(action: str, answer: dict[str, Any], as_json: bool, *, direct: bool) -> int:
    """Print the answer to `action`; the exit code: 0 where all is as it should be."""
    said = _readable(answer)
    if action in ("engage", "release") and direct:
        said["enforcer"] = "did not answer; done by this command"
    if as_json:
        print(json_line(said))
    else:
        lines = {"engage": _receipt, "release": _released, "status": _status, "drill": _drill}[action](said)
        width = max((len(label) for label, _ in lines), default=0)
        for label, text in lines:
            print(printable(f"{label:<{width}}  {text}" if text else label))
        if "enforcer" in said:
            print(f"{'enforcer':<{width}}  {said['enforcer']}")
    return int(
        bool(said.get("not_proven") or said.get("differs"))
        or (action == "release" and bool(said["break_glass"]))
        or (action == "drill" and not all(e["covered"] for e in said["drill"]))
    )


def _receipt(said: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("KILL SWITCH ENGAGED", ", ".join(said["engaged"])),
        ("proven", "yes, read back from the kernel" if said["proven"] else "NO"),
        *(("  not proven", why) for why in said["not_proven"]),
        ("rules", str(said["rules"])),
        ("connections", f"{said['connections_before']} before, {said['connections_after']} after"),
        ("took", f"{said['took_ms']} ms"),
        ("since", f"{said['since']}, by {said['by']}: {said['reason']}"),
    ]
    if said["already"]:
        lines.append(("already engaged", ", ".join(said["already"])))
    return [*lines, ("undo", "gatewatch kill-switch release --reason TEXT")]


def _released(said: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("released", ", ".join(said["released"]) or "nothing was engaged")]
    if said["engaged"]:
        lines.append(("still engaged", ", ".join(said["engaged"])))
    return lines + _glass(said["break_glass"])


def _status(said: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (f"ENGAGED {kill['endpoint']}", f"since {kill['since']}, by {kill['by']}: {kill['reason']}")
        for kill in said["kills"]
    ] or ([] if said["break_glass"] else [("not engaged", "")])
    lines = _glass(said["break_glass"]) + lines
    engaged = {*(kill["endpoint"] for kill in said["kills"]), *said["break_glass"]}
    for endpoint in said["endpoints"]:
        if endpoint["endpoint"] not in engaged:
            may = "" if endpoint["kill_switch"] else " (the rails keep the kill switch from it)"
            lines.append((f"open    {endpoint['endpoint']}", ", ".join(endpoint["services"]) + may))
    lines += [("differs", what) for what in said["differs"]]
    if said["journal"]["note"]:
        lines.append(("JOURNAL", said["journal"]["note"]))
    return lines


def _drill(said: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            e["endpoint"],
            f"covered: {e['packets']} packets passed" if e["covered"] else "not seen: no packet passed",
        )
        for e in said["drill"]
    ] or [("no drill was running", "")]


def _glass(glass: Any) -> list[tuple[str, str]]:
    if not glass:
        return []
    cut = f"{', '.join(glass)}; " if isinstance(glass, list) else ""
    return [("BREAK-GLASS ENGAGED", f"{cut}undo: nft delete table inet gatewatch_break_glass")]


def _readable(value: Any) -> Any:
    """Times in RFC 3339: `since_ns` becomes `since`."""
    if isinstance(value, dict):
        made = {k: _readable(v) for k, v in value.items() if k not in ("ok", "since_ns")}
        if "since_ns" in value:
            made["since"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value["since_ns"] // 10**9))
        return made
    return [_readable(v) for v in value] if isinstance(value, list) else value
