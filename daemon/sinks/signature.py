"""Signatures of webhooks as the Standard Webhooks specification 1.0.0 has them, with HMAC-SHA256 (scheme v1).

What is signed is `ID.TIMESTAMP.BODY`; the id stays the same however often a document is sent, the timestamp is that
of the attempt. https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

from ..errors import ConfigError

LEAST_KEY = 24
MOST_KEY = 64
"""Bytes of a key, by the specification."""
_MOST_KEYS = 4


def signing_keys(secret: str, origin: str) -> tuple[bytes, ...]:
    """The keys in a secret file, one a line: `whsec_` and base64, or plain text.

    More than one are for the time of a change: each signs. Raises ConfigError naming `origin` and the line.
    """
    keys = []
    for number, line in enumerate(secret.split("\n"), 1):
        text = line.strip()
        if not text:
            continue
        try:
            plain = text.removeprefix("whsec_")
            key = base64.b64decode(plain, validate=True) if plain != text else text.encode("ascii")
        except binascii.Error:
            raise ConfigError(f"{origin}:{number}: what follows whsec_ is not base64") from None
        if not LEAST_KEY <= len(key) <= MOST_KEY:
            raise ConfigError(
                f"{origin}:{number}: the key has {len(key)} bytes; {LEAST_KEY} to {MOST_KEY} are needed",
                remedy="make one: (printf whsec_; head -c 32 /dev/urandom | base64 -w0) > FILE",
            )
        keys.append(key)
    if not 1 <= len(keys) <= _MOST_KEYS:
        raise ConfigError(f"{origin}: {len(keys)} keys; 1 to {_MOST_KEYS} are needed")
    return tuple(keys)


def message_id(key: str) -> str:
    """The id of the document with this key: the key itself, or its hash where it could not stand in what is signed."""
    if re.fullmatch(r"[A-Za-z0-9_:/@-]{1,200}", key):
        return key
    return "sha256-" + hashlib.sha256(key.encode()).hexdigest()


def signed_headers(keys: tuple[bytes, ...], message: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers; one signature for each key."""
    content = f"{message}.{timestamp_s}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
