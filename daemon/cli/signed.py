"""`gatewatch signed`: commands that a person signs on another machine and anybody may carry to the enforcer."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, GatewatchError, UsageError
from .options import ConfigOption, JsonOption, StateOption
from .output import json_line, printable

KeyOption = Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key, from `signed key`.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Commands by signature, made here or elsewhere.")
    group.command("key")(key)
    group.command("make")(make)
    group.command("submit")(submit)
    app.add_typer(group, name="signed")


def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key is written.")],
) -> None:
    """Make a key pair; print what goes into rails.toml."""
    from ..enforcer.signatures import public_key

    seed = os.urandom(32)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise GatewatchError(
            f"{file}: {error.strerror}", remedy="name a file that is not there yet"
        ) from None
    with open(handle, "wb") as opened:
        opened.write(seed)
    print(f'[[signer]]\nname = "{file.stem}"\npublic_key = "{public_key(seed)}"')


def make(
    action: Annotated[
        str,
        typer.Argument(
            metavar="ACTION",
            help="block, unblock, block_user, unblock_user, kill, release, grant or deny.",
        ),
    ],
    private: KeyOption,
    signer: Annotated[str, typer.Option("--signer", metavar="NAME", help="The name in the rails.")],
    target: Annotated[str, typer.Option("--target", metavar="HOST", help="The gateway's host name.")],
    value: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VALUE]...", help="Endpoints, an address, a user (KIND:NAME), or the id."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")] = "",
    valid: Annotated[
        str, typer.Option("--valid", metavar="TIME", help="For how long it may be used.")
    ] = "15m",
    ttl: Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long a block or kill lasts.")] = "",
) -> None:
    """Print a signed command; it acts once, on that gateway, within that time."""
    from ...config.values import parse_duration
    from ..enforcer.protocol import MalformedError, encode, parse, principal
    from ..enforcer.signatures import COMMANDS, command

    if action not in COMMANDS:
        raise UsageError(f"{action!r} cannot be signed", remedy=f"one of {', '.join(COMMANDS)}")
    values = value or []
    request: dict[str, object] = {"request": action}
    if action in ("kill", "release"):
        request["endpoints"] = values
    elif len(values) != 1:
        raise UsageError(f"{action} wants one address, user or id")
    elif action in ("block_user", "unblock_user"):
        try:
            request["kind"], request["user"] = principal(values[0])
        except ValueError as error:
            raise UsageError(f"{values[0]}: {error}") from None
    else:
        request["id" if action in ("grant", "deny") else "address"] = values[0]
    if action not in ("grant", "deny"):
        request["reason"] = reason
    try:
        if ttl:
            request["ttl_s"] = parse_duration(ttl)
        expires = int(time.time()) + parse_duration(valid)
        parse(encode(request))
    except (ValueError, MalformedError) as error:
        raise UsageError(str(error), remedy="see `gatewatch signed make --help`") from None
    try:
        seed = private.read_bytes()
    except OSError as error:
        raise ConfigError(f"{private}: {error.strerror}") from None
    if len(seed) != 32:
        raise ConfigError(f"{private}: is no key", remedy="`gatewatch signed key FILE` makes one")
    text, signature = command(
        request,
        target=target,
        sequence=time.time_ns() // 1000,
        nonce=secrets.token_hex(8),
        expires=expires,
        seed=seed,
    )
    print(json_line({"command": text, "signer": signer, "signature": signature}))


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A signed command; - is standard input.")],
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand a signed command to the enforcer, which checks it itself."""
    import json
    import sys

    from .approvals import outcome, pending, speaker

    try:
        said: Any = json.loads(
            sys.stdin.read(1 << 20) if str(file) == "-" else file.read_text(encoding="utf-8")
        )
        message = {"request": "signed", **{k: str(said[k]) for k in ("command", "signer", "signature")}}
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{file}: is no signed command", remedy="`gatewatch signed make` prints one"
        ) from None
    answer = speaker(config, state).call(message)
    if as_json:
        print(json_line({k: v for k, v in answer.items() if k != "ok"}))
    elif "pending" in answer:
        print(printable(pending(answer)))
    else:
        print(printable(outcome(answer)))
