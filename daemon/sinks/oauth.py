"""Access tokens by OAuth 2.0 client credentials (RFC 6749, section 4.4), kept until shortly before they end."""

from __future__ import annotations

import base64
import time
from urllib.parse import quote_plus

import msgspec

from .contract import SinkError
from .http import Client, Refused, judge

_EARLY_S = 30.0


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float = 60.0


class ClientCredentials:
    """Tokens for `client_id` from `token_url`."""

    def __init__(self, client: Client, token_url: str, client_id: str, secret: str) -> None:
        self._client = client
        self._url = token_url
        # Both are form-encoded first (section 2.3.1).
        pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
        self._basic = base64.b64encode(pair.encode()).decode()
        self._token = ""
        self._ends_s = 0.0

    async def header(self) -> str:
        """The value of Authorization. Raises SinkError, for a wrong secret too: a person can mend it."""
        if time.monotonic() >= self._ends_s:
            answer = await self._client.ask(
                "POST",
                self._url,
                {
                    "Authorization": f"Basic {self._basic}",
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                },
                b"grant_type=client_credentials",
            )
            try:
                judge(answer, self._url)
            except Refused as refused:
                raise SinkError(str(refused), remedy="check client_id and the secret file") from None
            token = answer.json(_Token, self._url)
            if not token.access_token.isascii() or not token.access_token.isprintable():
                raise SinkError(f"{self._url}: the token is not printable ASCII")
            self._token = token.access_token
            self._ends_s = time.monotonic() + max(1.0, token.expires_in - _EARLY_S)
        return f"Bearer {self._token}"

    def forget(self) -> None:
        """The token is not taken any more."""
        self._ends_s = 0.0
