"""`gatewatch restrict`, `lift`: leave a model endpoint to the networks that the rails allow, and open it again."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import json_line, printable

EndpointsArgument = Annotated[
    list[str], typer.Argument(metavar="ENDPOINT...", help="Endpoints, as rails.toml names them.")
]
_LONGEST_S = 7 * 86_400


def register(app: typer.Typer) -> None:
    app.command()(restrict)
    app.command()(lift)


def restrict(
    endpoints: EndpointsArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")],
    lasting: Annotated[
        str,
        typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 8h, 7d at most; else until lifted."),
    ] = "",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let only the allowed networks reach an endpoint, and end the connections of others; exit code 1 where it is
    not proven."""
    message: dict[str, object] = {"request": "restrict", "endpoints": endpoints}
    if lasting:
        message["ttl_s"] = _seconds(lasting)
    answer = _ask({**message, "reason": _reason(reason)}, config, state)
    _show(answer, as_json, _restricted)
    if "pending" in answer or not answer["proven"]:
        raise typer.Exit(1)


def lift(
    endpoints: EndpointsArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")] = "no longer needed",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open a restricted endpoint to everybody again."""
    answer = _ask({"request": "lift", "endpoints": endpoints, "reason": _reason(reason)}, config, state)
    _show(answer, as_json, _lifted)
    if "pending" in answer or answer["not_proven"]:
        raise typer.Exit(1)


def until(ends_s: int | None) -> str:
    """When a restriction ends, for people."""
    if ends_s is None:
        return "a person lifts it"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ends_s))


def reach(said: dict[str, Any]) -> str:
    """Which networks are allowed, for people."""
    more = said["allowed_count"] - len(said["allowed"])
    return ", ".join(said["allowed"]) + (f" and {more} more" if more else "")


def _ask(message: dict[str, object], config: Any, state: Any) -> dict[str, Any]:
    """Without an enforcer root does it, as with the kill switch."""
    from .kill_switch import Speaker

    settings = load_config(config, state)
    rails = str(settings.rails) if config else ""  # else those that the enforcer used last
    speaker = Speaker(str(settings.state_folder()), rails)
    answer = speaker.call(message)
    if speaker.direct:
        answer["enforcer"] = "did not answer; done by this command"
    return answer


def _seconds(lasting: str) -> int:
    from ...config.values import parse_duration
    from ..errors import UsageError

    try:
        seconds = int(parse_duration(lasting))
    except ValueError as error:
        raise UsageError(f"--for {lasting}: {error}") from error
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--for {lasting}: a time such as 90s, 30m or 8h is wanted, at most 7d")
    return seconds


def _reason(reason: str) -> str:
    from ..enforcer.client import plain
    from ..errors import UsageError

    if not reason.strip():
        raise UsageError("the reason is missing", remedy="add --reason TEXT")
    return plain(reason)


def _show(answer: dict[str, Any], as_json: bool, lines_of: Any) -> None:
    if as_json:
        print(json_line({k: v for k, v in answer.items() if k not in ("ok", "since_ns")}))
        return
    if "pending" in answer:
        lines = [
            ("NOT YET", f"waits as {answer['pending']} for {answer['expires_s'] // 60} minutes"),
            ("needs", str(answer["needs"])),
        ]
    else:
        lines = lines_of(answer)
    if "enforcer" in answer:
        lines.append(("enforcer", answer["enforcer"]))
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(printable(f"{label:<{width}}  {text}"))


def _restricted(answer: dict[str, Any]) -> list[tuple[str, str]]:
    names = " ".join(answer["restricted"])
    lines = [
        ("RESTRICTED", ", ".join(answer["restricted"])),
        ("proven", "yes: rules read back" if answer["proven"] else "NO"),
        *(("  not proven", why) for why in answer["not_proven"]),
        ("allowed", reach(answer)),
        ("always", ", ".join([*answer["always"], "this machine"])),
        ("connections", f"{answer['cut']} of others ended"),
        ("until", until(answer["ends_s"])),
    ]
    if answer["killed"]:
        lines.append(("kill switch", f"is engaged for {', '.join(answer['killed'])}: nobody reaches it"))
    return [*lines, ("undo", f"gatewatch lift {names}")]


def _lifted(answer: dict[str, Any]) -> list[tuple[str, str]]:
    done = ", ".join(answer["lifted"])
    lines = [("lifted", f"{done}; read back from the kernel" if done else "nothing was restricted")]
    lines += [("  not proven", why) for why in answer["not_proven"]]
    if answer["restricted"]:
        lines.append(("still restricted", ", ".join(answer["restricted"])))
    return lines
