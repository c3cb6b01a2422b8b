"""Users of a Keycloak realm, by its admin API (https://www.keycloak.org/docs-api/latest/rest-api/index.html).

The client is confidential, with a service account that has the role `manage-users` of the client `realm-management`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from .http import Answer, Refused
from .identity import Account, IdentityProvider, segment
from .oauth import ClientCredentials


class _User(msgspec.Struct):
    id: str
    username: str
    enabled: bool = True


class Keycloak(IdentityProvider):
    """Disables users of `realm` at the server `url` and logs them out.

    Parameters, beside those of `Hook`
    ----------
    realm, client_id: the realm, and the client in it; the secret file holds the client's secret.
    token_url: where tokens are had; None = the realm's token endpoint.
    subject_is: "id" or "username", what a principal of the kind subject is.
    """

    forbidden = "give the client's service account the role manage-users of realm-management"

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        base, realm = self.url, quote(options["realm"], safe="")
        self._client_id: str = options["client_id"]
        self._subject_is_id = options.get("subject_is", "id") == "id"
        token_url = options.get("token_url") or f"{base}/realms/{realm}/protocol/openid-connect/token"
        self._tokens = ClientCredentials(self.client, token_url, self._client_id, self.secret)
        self.url = f"{base}/admin/realms/{realm}"

    async def authorization(self) -> str:
        return await self._tokens.header()

    def forget_authorization(self) -> bool:
        self._tokens.forget()
        return True

    async def find(self, kind: str, name: str) -> Account | None:
        if kind == "subject" and self._subject_is_id:
            account = await self.get(name)
        else:
            answer = await self.ask("GET", f"/users?exact=true&max=2&username={quote_plus(name)}")
            users = answer.json(list[_User], "users")
            # Keycloak keeps names in lower case.
            found = [u for u in users if u.username.lower() == name.lower()]
            if len(found) > 1:
                raise Refused(f"{name}: names {len(found)} users")
            account = _account(found[0]) if found else None
        if account is not None and account.name == f"service-account-{self._client_id}".lower():
            raise Refused(f"{account.name}: is the account by which users are blocked")
        return account

    async def get(self, account_id: str) -> Account | None:
        answer = await self.ask("GET", f"/users/{segment(account_id)}", absent=True)
        if answer.status == 404:
            return None
        user = answer.json(_User, "user")
        return _account(user) if user.id == account_id else None

    async def set_active(self, account: Account, active: bool) -> None:
        # What is not named stays as it is: attributes, and what the user's profile requires.
        await self.ask("PUT", f"/users/{segment(account.id)}", {"enabled": active})

    async def end_sessions(self, account: Account) -> None:
        await self.ask("POST", f"/users/{segment(account.id)}/logout")

    async def test(self) -> Answer:
        """Gets a token and counts the users."""
        return await self.ask("GET", "/users/count")


def _account(user: _User) -> Account:
    return Account(user.id, user.username, user.enabled)
