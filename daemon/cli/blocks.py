"""`gatewatch blocks list`, `block`, `unblock`: what is blocked in the kernel, and an operator's own blocks."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, socket_path
from .output import emit, json_line, printable

KindArgument = Annotated[str, typer.Argument(metavar="ip", help="What VALUE is: ip.")]
ValueArgument = Annotated[
    str, typer.Argument(metavar="VALUE", help="An address, or a network such as 203.0.113.0/24.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]
COLUMNS = ("address", "remains", "since", "by", "reason", "incident")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="What is blocked now.")
    group.command("list")(list_)
    app.add_typer(group, name="blocks")
    app.command()(block)
    app.command()(unblock)


def list_(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List the blocks in force, oldest first."""
    if not emit(map(_row, _enforcer(config, state).blocks()), as_json, COLUMNS) and not as_json:
        print("nothing is blocked")


def block(
    kind: KindArgument,
    value: ValueArgument,
    reason: ReasonOption,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long: 90s, 30m, 24h, 7d.")] = "1h",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop everything from and to an address or network, and end its connections."""
    from ...config.values import parse_duration
    from ..errors import UsageError

    _only_ip(kind)
    try:
        ttl_s = parse_duration(ttl)
    except ValueError as error:
        raise UsageError(f"--ttl {ttl}: {error}") from error
    answer = _enforcer(config, state).block(value, ttl_s=int(ttl_s), reason=reason)
    before = " already" if answer["already"] else ""
    _say(
        answer,
        as_json,
        f"{answer['address']} is{before} blocked for {answer['ttl_s']} s; {answer['cut']} sockets ended",
    )


def unblock(
    kind: KindArgument,
    value: ValueArgument,
    reason: ReasonOption,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the block of an address or network."""
    _only_ip(kind)
    answer = _enforcer(config, state).unblock(value, reason)
    text = (
        f"{answer['address']} is unblocked" if answer["unblocked"] else f"{answer['address']} was not blocked"
    )
    if answer["covered_by"]:
        text += f"; it is in {', '.join(answer['covered_by'])}, which stays blocked"
    _say(answer, as_json, text)


def _enforcer(config: Any, state: Any) -> Any:
    from ..enforcer.client import Enforcer

    return Enforcer(socket_path(load_config(config, state)))


def _only_ip(kind: str) -> None:
    from ..errors import UsageError

    if kind != "ip":
        raise UsageError(f"{kind!r} cannot be blocked", remedy="say `block ip ADDRESS`")


def _row(said: dict[str, Any]) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said.pop("since_ns") // 10**9))
    return {**said, "remains": f"{said['ttl_s']} s", "since": since}


def _say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    print(json_line({k: v for k, v in answer.items() if k != "ok"}) if as_json else printable(text))
