"""Users of any service that speaks SCIM 2.0 (RFC 7644), by their attribute `active` (RFC 7643, section 4.1.1).

SCIM knows no sessions: whether the service ends them when it deactivates a user is its own affair.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

import msgspec

from .http import Answer, Refused
from .identity import Account, IdentityProvider, segment
from .oauth import ClientCredentials

_PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
_ATTRIBUTES = {"username": "userName", "external_id": "externalId"}


class _User(msgspec.Struct, rename="camel"):
    id: str
    user_name: str = ""
    external_id: str | None = None
    active: bool | None = None


class _List(msgspec.Struct):
    resources: list[_User] = msgspec.field(default_factory=list, name="Resources")


class Scim(IdentityProvider):
    """Deactivates users of the service whose SCIM base is `url` (`/Users` lies below it).

    Parameters, beside those of `Hook`
    ----------
    subject_is: "username", "id" or "external_id", what a principal of the kind subject is.
    token_url, client_id: where a token is had for the secret; None = the secret is the bearer token.
    """

    media_type = "application/scim+json"
    forbidden = "let the token's owner read and change users"

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        self._subject_is: str = options.get("subject_is", "username")
        token_url, client_id = options.get("token_url"), options.get("client_id")
        self._tokens = (
            ClientCredentials(self.client, token_url, client_id, self.secret)
            if token_url and client_id
            else None
        )

    async def authorization(self) -> str:
        return f"Bearer {self.secret}" if self._tokens is None else await self._tokens.header()

    def forget_authorization(self) -> bool:
        if self._tokens is not None:
            self._tokens.forget()
        return self._tokens is not None

    async def find(self, kind: str, name: str) -> Account | None:
        by = self._subject_is if kind == "subject" else "username"
        if by == "id":
            return await self.get(name)
        # A value in a filter is a JSON string (RFC 7644, section 3.4.2.2).
        expression = f"{_ATTRIBUTES[by]} eq {json.dumps(name)}"
        answer = await self.ask("GET", f"/Users?count=2&filter={quote_plus(expression)}")
        users = answer.json(_List, "Users").resources
        if by == "external_id":
            found = [u for u in users if u.external_id == name]
        else:
            found = [u for u in users if u.user_name.lower() == name.lower()]
        if len(found) > 1:
            raise Refused(f"{name}: names {len(found)} users")
        return _account(found[0]) if found else None

    async def get(self, account_id: str) -> Account | None:
        answer = await self.ask("GET", f"/Users/{segment(account_id)}", absent=True)
        if answer.status == 404:
            return None
        user = answer.json(_User, "User")
        return _account(user) if user.id == account_id else None

    async def set_active(self, account: Account, active: bool) -> None:
        change = {"schemas": [_PATCH], "Operations": [{"op": "replace", "path": "active", "value": active}]}
        await self.ask("PATCH", f"/Users/{segment(account.id)}", change)

    async def test(self) -> Answer:
        """Asks for one user."""
        return await self.ask("GET", "/Users?count=1")


def _account(user: _User) -> Account:
    return Account(user.id, user.user_name, user.active is not False)
