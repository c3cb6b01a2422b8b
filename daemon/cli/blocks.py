"""`gatewatch blocks list`, `block`, `unblock`: addresses and users that are blocked, and an operator's own blocks."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config, socket_path
from .output import emit, json_line, printable

KindArgument = Annotated[str, typer.Argument(metavar="ip|user", help="What VALUE is: ip or user.")]
ValueArgument = Annotated[
    str,
    typer.Argument(
        metavar="VALUE",
        help="An address, or a network such as 203.0.113.0/24. A user: KIND:NAME, where KIND is account, key, "
        "subject, certificate or any; a plain NAME means any.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]
COLUMNS = ("blocked", "where", "remains", "since", "by", "reason", "incident")
WHERE = {"": "kernel and gateway", "gateway": "gateway"}
HERE, GATEWAY = (
    "logins to this machine (where the rails start the accounts helper)",
    "requests at the gateway",
)
COMPRISES = {
    "account": ("the Unix account", HERE),
    "key": ("the API key", GATEWAY),
    "subject": ("the subject that the gateway verified", GATEWAY),
    "certificate": ("the client certificate", GATEWAY),
    "any": (
        "whatever bears that name, be it Unix account, key, subject or certificate",
        f"{HERE}, and {GATEWAY}",
    ),
}
"""What the kind of a user comprises, and what is refused."""
API_KEYS = ("sk-", "Bearer ")
"""How API keys begin (those of OpenAI, LiteLLM, and of many who follow them); no key id does."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Who is blocked now.")
    group.command("list")(list_)
    app.add_typer(group, name="blocks")
    app.command()(block)
    app.command()(unblock)


def list_(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List the blocks in force, oldest first: the addresses, then the users."""
    enforcer = _enforcer(config, state)
    rows: Iterator[dict[str, Any]] = map(_row, chain(enforcer.blocks(), enforcer.users()))
    shown = rows if as_json else map(_shown, rows)
    if not emit(shown, as_json, COLUMNS) and not as_json:
        print("nothing is blocked")


def block(
    kind: KindArgument,
    value: ValueArgument,
    reason: ReasonOption,
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long: 90s, 30m, 24h, 7d.")] = "1h",
    where: Annotated[
        str,
        typer.Option(
            "--where",
            metavar="PLACE",
            help="gateway: not in the kernel; the authorisation endpoint refuses it.",
        ),
    ] = "",
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop everything from and to an address or network, and end its connections; or refuse a user."""
    from ...config.values import parse_duration
    from ..errors import UsageError

    whom = _user(kind, value)
    try:
        ttl_s = int(parse_duration(ttl))
    except ValueError as error:
        raise UsageError(f"--ttl {ttl}: {error}") from error
    if where not in WHERE or (where and whom):
        raise UsageError(f"--where {where}: not here", remedy="it can be `gateway`, and for an address alone")
    enforcer = _enforcer(config, state)
    if whom:
        answer = enforcer.block_user(whom[1], kind=whom[0], ttl_s=ttl_s, reason=reason)
        comprises, refused = COMPRISES[whom[0]]
        after = f" ({comprises}); refused are {refused}{_doubt(*whom)}"
    else:
        answer = enforcer.block(value, ttl_s=ttl_s, reason=reason, where=where)
        after = " at the gateway alone" if where else f"; {answer.get('cut', 0)} sockets ended"
    already = " already" if answer.get("already") else ""
    _say(answer, as_json, f"{_target(answer)} is{already} blocked for {answer.get('ttl_s')} s{after}")


def unblock(
    kind: KindArgument,
    value: ValueArgument,
    reason: ReasonOption,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the block of an address or network, or of a user."""
    whom, enforcer = _user(kind, value), _enforcer(config, state)
    answer = enforcer.unblock_user(whom[1], reason, kind=whom[0]) if whom else enforcer.unblock(value, reason)
    _say(answer, as_json, unblocked(answer) if "unblocked" in answer else "")


def unblocked(answer: dict[str, Any]) -> str:
    """What came of taking a block back."""
    text = f"{_target(answer)} {'is unblocked' if answer['unblocked'] else 'was not blocked'}"
    if answer["covered_by"]:
        holds = "by" if "user" in answer else "in"
        text += f"; it is {holds} {', '.join(answer['covered_by'])}, which stays blocked"
    return text


def _target(answer: dict[str, Any]) -> str:
    return f"{answer['kind']}:{answer['user']}" if "user" in answer else str(answer.get("address", ""))


def _enforcer(config: Any, state: Any) -> Any:
    from ..enforcer.client import Enforcer

    return Enforcer(socket_path(load_config(config, state)))


def _user(kind: str, value: str) -> tuple[str, str] | None:
    """The kind and name of a user; None for an address."""
    from ..enforcer.protocol import principal
    from ..errors import UsageError

    if kind == "ip":
        _check_address(value)
        return None
    if kind != "user":
        raise UsageError(
            f"{kind!r} cannot be blocked", remedy="say `block ip ADDRESS` or `block user KIND:NAME`"
        )
    try:
        found = principal(value)
    except ValueError as error:
        raise UsageError(f"user {value[:40]!r}: {error}") from None
    if found[0] in ("key", "any") and found[1].startswith(API_KEYS):
        raise UsageError(
            "that looks like an API key itself, which the audit log must not hold",
            remedy="`gatewatch authz key-id < FILE` prints its id, as key:k-…",
        )
    return found


def _doubt(kind: str, name: str) -> str:
    """What may be wrong with a name that can be blocked all the same."""
    before, colon, _ = name.partition(":")
    if kind == "any" and colon:
        return f"; mind that {before!r} is no kind of user: {', '.join(COMPRISES)}"
    if kind == "account":
        import pwd

        try:
            pwd.getpwnam(name)
        except (KeyError, ValueError):
            return "; mind that there is no such account here now"
    return ""


def _check_address(value: str) -> None:
    """What may be blocked the enforcer judges; what is no address at all is wrong usage."""
    from ..errors import UsageError

    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise UsageError(str(error), remedy="write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/64") from None


def _row(said: dict[str, Any]) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(said.pop("since_ns") // 10**9))
    return {**said, "remains": f"{said['ttl_s']} s", "since": since}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """With what people want to read in place of the fields."""
    where = WHERE.get(row["where"], row["where"]) if "where" in row else ""
    return {**row, "blocked": _target(row), "where": where}


def _say(answer: dict[str, Any], as_json: bool, text: str) -> None:
    from .approvals import pending

    if not as_json:
        print(printable(pending(answer) if "pending" in answer else text))
    else:
        print(json_line({k: v for k, v in answer.items() if k != "ok"}))
