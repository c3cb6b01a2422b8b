"""`gatewatch authz`: the key id of an API key, and what the authorisation endpoint says of itself."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import typer

from .options import ConfigOption, JsonOption, StateOption, load_config
from .output import json_line, printable

if TYPE_CHECKING:
    from ...config.schema import Config

_PATIENCE_S = 2.0
_MOST_ANSWER = 1 << 20
_MOST_KEY = 1 << 16


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True)
    group.command("key-id")(key_id)
    group.command("status")(status)
    app.add_typer(group, name="authz", help="The authorisation endpoint: key ids and counters.")


def key_id(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Print the key id of the API key on standard input, as logs and incidents name it.

    To block it: gatewatch block user key:ID. The key is never read from the arguments, which other users can see.
    """
    from ..authz.keys import key_id as key_id_of
    from ..authz.keys import read_secret
    from ..errors import UsageError

    secret = read_secret(load_config(config, state).state_folder() / "authz" / "key")
    api_key = _read_key()
    if not api_key or len(api_key) >= _MOST_KEY or b"\n" in api_key:
        raise UsageError("one API key is wanted on standard input", remedy="gatewatch authz key-id < FILE")
    made = key_id_of(secret, api_key)
    print(json_line({"key_id": made, "user": f"key:{made}"}) if as_json else made)


def status(config: ConfigOption = None, state: StateOption = None) -> None:
    """Show, as JSON, what the authorisation endpoint says: the deny list, and how often it answered what."""
    from ..errors import GatewatchError, UsageError

    found = health_of(load_config(config, state))
    if found is None:
        raise UsageError("authz.listen is empty", remedy="name there where the endpoint is to listen")
    if "deny_list" not in found:
        raise GatewatchError(f"the authorisation endpoint does not answer: {found['problem']}")
    print(json_line(found))


def health_of(settings: Config) -> dict[str, Any] | None:
    """What the endpoint answers for /healthz; {"problem": …} where it does not; None where it is not configured."""
    if not settings.authz.listen:
        return None
    try:
        return _ask(settings.authz.listen[0])
    except (OSError, ValueError) as error:
        return {"problem": printable(str(error))}


def _ask(place: str) -> dict[str, Any]:
    from ..authz.listening import place_of

    where = place_of(place)
    family = (
        socket.AF_UNIX if isinstance(where, str) else socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    )
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(_PATIENCE_S)
        asking.connect(where)
        asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: authz\r\nConnection: close\r\n\r\n")
        answer = bytearray()
        while len(answer) < _MOST_ANSWER and (data := asking.recv(1 << 16)):
            answer += data
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] not in ([b"200"], [b"503"]):
        raise ValueError("somebody else answers there")
    found = json.loads(body)
    if type(found) is not dict or "deny_list" not in found:
        raise ValueError("somebody else answers there")
    return found


def _read_key() -> bytes:
    """Without the white space around it, as a header is read."""
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("API key: ").encode("utf-8", "surrogateescape").strip()
    return sys.stdin.buffer.read(_MOST_KEY).strip()
