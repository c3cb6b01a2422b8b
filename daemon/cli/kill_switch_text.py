"""What `gatewatch kill-switch` prints: the receipt, the status and the drill's result, for people or as JSON."""

from __future__ import annotations

import time
from typing import Any

from .output import json_line, printable


def show(action: str, answer: dict[str, Any], as_json: bool, *, direct: bool) -> int:
    """Print the answer to `action`; the exit code: 0 where all is as it should be."""
    said = {k: v for k, v in answer.items() if k != "ok"} if action == "engage" else _readable(answer)
    if action in ("engage", "release") and direct:
        said["enforcer"] = "did not answer; done by this command"
    if as_json:
        print(json_line(_with_times(said)))
    else:
        if "pending" in said:
            lines = _pending(action, said)
        else:
            makers = {"engage": _receipt, "release": _released, "status": _status, "drill": _drill}
            lines = makers[action](_with_times(said))
        width = max((len(label) for label, _ in lines), default=0)
        for label, text in lines:
            print(printable(f"{label:<{width}}  {text}" if text else label))
        if "enforcer" in said:
            print(f"{'enforcer':<{width}}  {said['enforcer']}")
    return int(
        bool(said.get("not_proven") or said.get("differs") or said.get("pending"))
        or any(b["kind"] != "unseen" for b in said.get("bypasses", ()))
        or (action == "release" and bool(said.get("break_glass")))
        or (action == "drill" and not all(e["covered"] for e in said["drill"]))
    )


def verify(file: str, key: str, as_json: bool) -> int:
    """Check the receipt in `file`; 0 where its signature fits, and is by `key` if one is given.

    Raises GatewatchError.
    """
    import json
    import sys

    from ..enforcer.signatures import fits
    from ..errors import GatewatchError

    try:
        if file == "-":
            text = sys.stdin.read(1 << 20)
        else:
            with open(file, encoding="utf-8") as opened:
                text = opened.read(1 << 20)
        receipt = json.loads(text)
        if type(receipt) is not dict:
            raise ValueError
    except OSError as error:
        raise GatewatchError(f"receipt {file}: {error.strerror}") from None
    except ValueError:
        raise GatewatchError(
            f"receipt {file}: is no JSON object", remedy="keep what `--json` printed"
        ) from None
    stripped = {k: v for k, v in receipt.items() if k not in _ADDED}
    good = fits(stripped)
    known = not key or receipt.get("key") == key
    if as_json:
        print(
            json_line({"file": file, "signature": good, "key": receipt.get("key", ""), "key_expected": known})
        )
    elif good and known:
        proven = "proven" if receipt.get("proven") else "NOT proven"
        engaged = ", ".join(map(str, receipt.get("engaged", ())))
        print(
            printable(f"{file}: the signature fits: {engaged} engaged on {receipt.get('machine')}, {proven}")
        )
        whose = "as expected" if key else "whose key that is was not checked: give --key"
        print(printable(f"signed with key {receipt.get('key')}, {whose}"))
    if not good:
        raise GatewatchError(f"receipt {file}: the signature does not fit: it was changed, or never signed")
    if not known:
        raise GatewatchError(f"receipt {file}: signed with another key, {receipt.get('key')}")
    return 0


_ADDED = ("since", "time", "enforcer")
"""What this command adds to the receipt when it prints it; the signature is over the rest."""


def _with_times(said: dict[str, Any]) -> dict[str, Any]:
    """A receipt as it was signed, with its times for people beside."""
    stamps = {k: said[f"{k}_ns"] for k in ("since", "time") if f"{k}_ns" in said}
    return {**said, **{k: rfc3339(ns) for k, ns in stamps.items()}}


def others(count: int) -> str:
    """How many more have to agree."""
    return "another person" if count == 1 else f"{count} other persons"


def _pending(action: str, said: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"NOT YET: {action}", f"waits as {said['pending']} for {said['expires_s'] // 60} minutes"),
        ("needs", f"{others(said['needs'])}: gatewatch approvals grant {said['pending']}"),
    ]


def _receipt(said: dict[str, Any]) -> list[tuple[str, str]]:
    dropped = [p for p in said["probes"] if p["verdict"] == "dropped"]
    proven = (
        f"yes: rules read back, {len(dropped)} probes from outside dropped"
        if dropped
        else "yes: rules read back; nothing was tried from outside"
    )
    lines = [
        ("KILL SWITCH ENGAGED", ", ".join(said["engaged"])),
        ("proven", proven if said["proven"] else "NO"),
        *(("  not proven", why) for why in said["not_proven"]),
        *(
            ("  not probed", f"{p['service']}: {p['why']}")
            for p in said["probes"]
            if p["verdict"] == "not probed"
        ),
        ("rules", str(said["rules"])),
        ("connections", f"{said['connections_before']} before, {said['connections_after']} after"),
        *((f"  in {p['path']}", f"{p['before']} before, {p['after']} after") for p in said["namespaces"]),
        ("took", f"{said['took_ms']} ms"),
        ("since", f"{said['since']}, by {said['by']}: {said['reason']}"),
        ("until", _until(said["ends_s"])),
    ]
    if said["already"]:
        lines.append(("already engaged", ", ".join(said["already"])))
    signed = f"entry {said['sequence']} of the audit log; " + (
        f"signature {said['signature'][:16]}… by key {said['key'][:16]}…; --json prints it whole"
        if "signature" in said
        else f"not signed: {said.get('unsigned', '')}"
    )
    named = "".join(f" --endpoint {name}" for name in said["engaged"])
    return [*lines, ("receipt", signed), ("undo", f"gatewatch kill-switch release{named} --reason TEXT")]


def _until(ends_s: int | None) -> str:
    if ends_s is None:
        return "a person releases it"
    return f"{rfc3339(time.time_ns() + ends_s * 10**9)}, when it releases itself, or a person does"


def _released(said: dict[str, Any]) -> list[tuple[str, str]]:
    done = ", ".join(said["released"])
    lines = [("released", f"{done}; read back from the kernel" if done else "nothing was engaged")]
    lines += [("  not proven", why) for why in said.get("not_proven", ())]
    if said["engaged"]:
        lines.append(("still engaged", ", ".join(said["engaged"])))
    return lines + _glass(said["break_glass"])


def _status(said: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (
            f"ENGAGED {kill['endpoint']}",
            f"since {kill['since']}, until {_until(kill['ends_s'])}; by {kill['by']}: {kill['reason']}",
        )
        for kill in said["kills"]
    ] or ([] if said["break_glass"] else [("not engaged", "")])
    lines = _glass(said["break_glass"]) + lines
    engaged = {*(kill["endpoint"] for kill in said["kills"]), *said["break_glass"]}
    for endpoint in said["endpoints"]:
        if endpoint["endpoint"] not in engaged:
            may = "" if endpoint["kill_switch"] else " (the rails keep the kill switch from it)"
            lines.append((f"open    {endpoint['endpoint']}", ", ".join(endpoint["services"]) + may))
    for r in said.get("restrictions", ()):
        more = r["allowed_count"] - len(r["allowed"])
        allowed = ", ".join(r["allowed"]) + (f" and {more} more" if more else "")
        until = "until lifted" if r["ends_s"] is None else f"for {r['ends_s']} s more"
        lines.append(
            (
                f"RESTRICTED {r['endpoint']}",
                f"to {allowed} since {r['since']}, {until}; by {r['by']}: {r['reason']}",
            )
        )
    lines += [("differs", what) for what in said["differs"]]
    if said["journal"]["note"]:
        lines.append(("JOURNAL", said["journal"]["note"]))
    if said["waiting"]:
        lines.append(("waiting", f"{said['waiting']} requests for a second person: gatewatch approvals list"))
    lines.append(("receipts", f"signed with key {said['receipt_key']}"))
    return lines


def _drill(said: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for e in said["drill"]:
        lines.append((e["endpoint"], "covered" if e["covered"] else "NOT SEEN: no request was counted"))
        for s in e["services"]:
            if s["requests"] or s["answers"]:
                seen = f"{s['requests']} packets of requests, {s['answers']} of answers"
            else:
                seen = f"{s['packets']} packets, none of them a request" if s["packets"] else "no packet came"
            lines.append((f"  {s['service']}", seen))
    for b in said["bypasses"]:
        lines += [("BYPASS" if b["kind"] != "unseen" else "not known", b["what"]), ("  remedy", b["remedy"])]
    return lines or [("no drill was running", "")]


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
            made["since"] = rfc3339(value["since_ns"])
        return made
    return [_readable(v) for v in value] if isinstance(value, list) else value


def rfc3339(ns: int) -> str:
    """Nanoseconds since 1970 to the second, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))
