"""Ed25519 signatures (RFC 8032): commands that a person signed elsewhere, and receipts that the enforcer signs.

A command is bound to this machine, to a time and to a place in its signer's sequence, so that it acts once, here
and now or never. The library is loaded when it is first needed: the kill switch does not wait for it.
"""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any, NamedTuple

from ..errors import EnforcerError
from .protocol import MalformedError, encode, parse

KEY_FILE = "receipt.key"
COMMANDS = ("block", "unblock", "block_user", "unblock_user", "kill", "release", "grant", "deny")
"""What can be commanded by signature."""
LONGEST_VALID_S = 3600
_FIELDS = {"target": str, "sequence": int, "nonce": str, "expires": int, "request": dict}


class Command(NamedTuple):
    request: dict[str, Any]
    sequence: int
    nonce: str


def this_machine() -> str:
    """The name that a command has to be addressed to: uname(2)'s node name."""
    return os.uname().nodename


def command(
    request: dict[str, object], *, target: str, sequence: int, nonce: str, expires: int, seed: bytes
) -> tuple[str, str]:
    """The text of a command and its signature in base64. `expires`: seconds since 1970; `seed`: the private key."""
    text = json.dumps(
        {"target": target, "sequence": sequence, "nonce": nonce, "expires": expires, "request": request},
        sort_keys=True,
    )
    return text, base64.b64encode(_sign(seed, text.encode("ascii"))).decode("ascii")


def opened(text: str, signature: str, public_key: bytes, last_sequence: int) -> Command:
    """The command in `text`, if it is signed, for this machine, in time and new. Raises MalformedError."""
    try:
        sealed = base64.b64decode(signature, validate=True)
    except ValueError:
        sealed = b""
    if not _verify(public_key, sealed, text.encode("utf-8", "surrogatepass")):
        raise MalformedError("the signature does not fit")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise MalformedError("it is no JSON object") from None
    if type(said) is not dict or {k: type(v) for k, v in said.items()} != _FIELDS:
        raise MalformedError(f"its fields are not {', '.join(_FIELDS)}")
    if said["target"] != this_machine():
        raise MalformedError(f"it is for {said['target'][:64]!r}, this is {this_machine()!r}")
    now = time.time()
    if not now < said["expires"] <= now + LONGEST_VALID_S:
        raise MalformedError(f"it is out of date, or valid for longer than {LONGEST_VALID_S} s")
    if not last_sequence < said["sequence"] < 2**63 or len(said["nonce"]) > 64:
        raise MalformedError(f"its sequence {said['sequence']} is used up; the last one was {last_sequence}")
    if said["request"].get("request") not in COMMANDS:
        raise MalformedError(f"{', '.join(COMMANDS)} can be commanded by signature")
    try:
        request = parse(encode(said["request"]))
    except (TypeError, RecursionError):
        raise MalformedError("its request has a field of a wrong type") from None
    return Command(request, said["sequence"], said["nonce"])


def signed_receipt(receipt: dict[str, Any], folder: str) -> dict[str, Any]:
    """`receipt` with `key` and `signature` (base64) over the rest of it. Raises EnforcerError."""
    seed = _seed(f"{folder}/{KEY_FILE}")
    whole = {**receipt, "key": public_key(seed)}
    return {**whole, "signature": base64.b64encode(_sign(seed, _canonical(whole))).decode("ascii")}


def receipt_key(folder: str) -> str:
    """The public key that receipts are signed with; empty where there is none."""
    try:
        return public_key(_seed(f"{folder}/{KEY_FILE}"))
    except EnforcerError:
        return ""


def fits(receipt: dict[str, Any]) -> bool:
    """Whether the receipt's signature is by the key that it names; whose key that is, it cannot say."""
    whole = dict(receipt)
    try:
        sealed = base64.b64decode(whole.pop("signature"), validate=True)
        key = base64.b64decode(whole["key"], validate=True)
    except (KeyError, ValueError, TypeError):
        return False
    return len(key) == 32 and _verify(key, sealed, _canonical(whole))


def public_key(seed: bytes) -> str:
    """The public half, base64. Raises EnforcerError where the library is missing."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _private(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(public).decode("ascii")


def _canonical(receipt: dict[str, Any]) -> bytes:
    return json.dumps(receipt, sort_keys=True, separators=(",", ":")).encode("ascii")


def _seed(path: str) -> bytes:
    """The enforcer's own private key, made at the first use; readable by root alone."""
    try:
        try:
            with open(path, "rb") as file:
                seed = file.read(33)
        except FileNotFoundError:
            seed = os.urandom(32)
            fresh = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fresh, "wb") as file:
                file.write(seed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{path}.new", path)
    except OSError as error:
        raise EnforcerError(f"{path}: {error.strerror}") from None
    if len(seed) != 32:
        raise EnforcerError(f"{path}: is no key", remedy="remove it; the next receipt makes another one")
    return seed


def _private(seed: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise EnforcerError(f"signatures: {error}", remedy="pip install cryptography") from None
    return Ed25519PrivateKey.from_private_bytes(seed)


def _sign(seed: bytes, data: bytes) -> bytes:
    signature: bytes = _private(seed).sign(data)
    return signature


def _verify(public: bytes, signature: bytes, data: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise EnforcerError(f"signatures: {error}", remedy="pip install cryptography") from None
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
