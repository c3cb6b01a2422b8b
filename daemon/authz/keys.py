"""API keys as Gatewatch knows them: a keyed hash, so that neither logs nor journal hold anything that opens a door.

The secret that keys the hash belongs to this gateway alone. Nothing here writes an API key anywhere.
"""

from __future__ import annotations

import os
from hashlib import blake2b

from ..errors import ConfigError, PrivilegeError

SECRET_BYTES = 32
DIGEST_BYTES = 8


def key_id(secret: bytes, api_key: bytes) -> str:
    """`k-` and 16 hexadecimal digits of BLAKE2b (RFC 7693), keyed with `secret`."""
    return "k-" + blake2b(api_key, key=secret, digest_size=DIGEST_BYTES).hexdigest()


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """The secret in a file. Raises ConfigError and PrivilegeError."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(SECRET_BYTES + 1)
    except PermissionError:
        raise PrivilegeError(f"{name}: may not be read by this user", remedy="try again as root") from None
    except OSError as error:
        raise ConfigError(
            f"{name}: {error.strerror}", remedy="`gatewatch run` makes it where authz.listen is not empty"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"{name}: others than its owner may read it", remedy=f"chmod 0400 {name}")
    if len(secret) != SECRET_BYTES:
        raise ConfigError(
            f"{name}: {SECRET_BYTES} bytes are wanted",
            remedy="remove it: a new one is made, and key ids change",
        )
    return secret


def make_secret(path: str | os.PathLike[str], uid: int | None, gid: int | None) -> None:
    """Makes the file where there is none: 0400, of this user. Raises ConfigError."""
    name = os.fspath(path)
    if os.path.lexists(name):
        return
    new = f"{name}.new"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        try:
            os.write(descriptor, os.urandom(SECRET_BYTES))
            os.fchmod(descriptor, 0o400)
            if uid is not None and gid is not None:
                os.fchown(descriptor, uid, gid)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(new, name)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}", remedy="it must be possible to write there") from error
