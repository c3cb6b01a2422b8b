"""The files that a hook needs: its secret, and the certificates of its connections.

They are read by the user that starts Gatewatch, as a rule root, before the shipper gives up its rights: so a secret
may be readable by root alone. What they hold never stands in a message.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_LARGEST_SECRET = 4096


def read_secret(path: str) -> str:
    """The text of a secret file without the white space around it. Raises ConfigError naming the file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        remedy = "write the secret into it, mode 0600" if error.errno == errno.ENOENT else ""
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", remedy=remedy) from None
    try:
        _refuse_open(path, os.fstat(handle))
        raw = os.read(handle, _LARGEST_SECRET + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    finally:
        os.close(handle)
    if len(raw) > _LARGEST_SECRET:
        raise ConfigError(f"{path}: larger than {_LARGEST_SECRET} bytes", remedy="is this the right file?")
    try:
        text = raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not ASCII text", remedy="is this the right file?") from None
    if not text or not all(c.isprintable() or c in "\r\n" for c in text):
        raise ConfigError(f"{path}: {'holds control characters' if text else 'is empty'}")
    return text


def _refuse_open(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: not a regular file")
    if found.st_mode & 0o027:
        raise ConfigError(
            f"{path}: others can read or change it (mode {stat.S_IMODE(found.st_mode):04o})",
            remedy=f"chmod 0600 {path}, and change the secret",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path}: belongs to user id {found.st_uid}", remedy=f"chown root {path}")


def tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The server must prove its name, by `ca_file` where that is given. Raises ConfigError naming file and option."""
    at = "ca_file"
    try:
        context = ssl.create_default_context(cafile=options.get("ca_file"))
        at = "client_certificate"
        if options.get(at) is not None:
            key = options.get("client_key")
            if key is not None:
                at = "client_key"
            _refuse_open(key or options[at], Path(key or options[at]).stat())
            context.load_cert_chain(options["client_certificate"], key, password=_no_password)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error.message}", remedy=error.remedy) from None
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
        raise ConfigError(f"{at}: {options.get(at)}: cannot be used ({reason or error})") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not")


def check_files(name: str, options: Mapping[str, Any]) -> None:
    """Reads all that the hook will read. Raises ConfigError naming the key."""
    from .signature import signing_keys

    try:
        secret = read_secret(options["secret_file"])
        if options.get("template", "generic") == "generic":
            signing_keys(secret, options["secret_file"])
    except ConfigError as error:
        raise ConfigError(f"hooks.{name}.secret_file: {error.message}", remedy=error.remedy) from None
    try:
        tls(options)
    except ConfigError as error:
        raise ConfigError(f"hooks.{name}.{error.message}", remedy=error.remedy) from None
