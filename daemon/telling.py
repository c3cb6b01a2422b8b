"""An incident as the text of a message, for commands that mail or page somebody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cli.output import printable

MOST = 32
MOST_CHARACTERS = 60_000


def mail_text(incident: Mapping[str, Any]) -> str:
    """Plain text, a line for each fact, without control characters: title first, then who, what was done, why."""
    lines = [
        str(incident.get("title", "incident")),
        "",
        f"incident    {incident.get('id', '')}, {incident.get('kind', '')}",
        f"priority    {incident.get('priority', '')}, confidence {incident.get('confidence', '')}",
        f"from        {incident.get('start', '')} to {incident.get('end', '')}",
    ]
    for name in ("sources", "users", "targets"):
        listed = [str(v) for v in incident.get(name, ())]
        more = f" and {len(listed) - MOST} more" if len(listed) > MOST else ""
        if listed:
            lines.append(f"{name:12}{', '.join(listed[:MOST])}{more}")
    findings, actions = incident.get("findings", ()), incident.get("actions", ())
    lines += [f"because     {f['threshold']}" for f in findings[:MOST] if f.get("threshold")]
    lines += [f"done        {a['action']} {a['target']}: {a['state']}, {a['why']}" for a in actions[:MOST]]
    lines += ["", f"gatewatch incidents show {incident.get('id', '')}"]
    return "\n".join(printable(line) for line in lines)[:MOST_CHARACTERS] + "\n"
