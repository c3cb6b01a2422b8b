"""Where the authorisation endpoint listens: `127.0.0.1:9180`, `[::1]:9180` or `unix:/run/gatewatch/authz.sock`.

The sockets are made by whoever has the right to, and handed over.
"""

from __future__ import annotations

import os
import socket
import stat
from ipaddress import ip_address

from ..errors import ConfigError

BACKLOG = 1024
_MOST_PATH = 107  # unix(7): sun_path


def place_of(text: str) -> tuple[str, int] | str:
    """Host and port, or the path of a Unix socket. Raises ValueError."""
    if text.startswith("unix:"):
        path = text[len("unix:") :]
        if not path.startswith("/") or not path.isprintable() or len(os.fsencode(path)) > _MOST_PATH:
            raise ValueError(
                f"{text!r}: an absolute path of at most {_MOST_PATH} bytes is wanted after unix:"
            )
        return path
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit() and 0 <= int(port) < 65_536):
        raise ValueError(f"{text!r}: write 127.0.0.1:9180, [::1]:9180 or unix:/run/gatewatch/authz.sock")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{text!r}: an address is wanted, such as 127.0.0.1:9180") from None
    if bracketed != (address.version == 6):
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, an IPv4 address does not")
    return str(address), int(port)


def listen(text: str) -> socket.socket:
    """A listening socket; any local user may connect to a Unix one, since what is asked there says nothing that the
    asker does not know. Raises ConfigError."""
    try:
        place = place_of(text)
    except ValueError as error:
        raise ConfigError(f"authz.listen: {error}") from None
    made = socket.socket(_family(place), socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if isinstance(place, str):
            _clear(place)
            made.bind(place)
            os.chmod(place, 0o666)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"authz.listen: {text}: {error.strerror or error}", remedy="name another place to listen"
        ) from None
    made.setblocking(False)
    return made


def _family(place: tuple[str, int] | str) -> socket.AddressFamily:
    if isinstance(place, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in place[0] else socket.AF_INET


def _clear(path: str) -> None:
    """Makes the folder where there is none, and removes the socket of a process that is gone."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
