"""Keycloak: a real server on the loopback disables users and ends their sessions.

Runs where GATEWATCH_KEYCLOAK names the folder of an unpacked distribution; `make keycloak` fetches one and runs this.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.sinks.contract import RejectedError, Row, SinkError
from gatewatch.daemon.sinks.registry import make_hook
from hook_site import secret_file

HOME = os.environ.get("GATEWATCH_KEYCLOAK", "")
SECRET = "the+secret/of the=client%"
PASSWORD = "correct-horse"
LIMIT_S = 300.0

pytestmark = [
    pytest.mark.skipif(not HOME, reason="GATEWATCH_KEYCLOAK names no Keycloak; `make keycloak` fetches one"),
    pytest.mark.timeout(600),
]


class Realm:
    """A Keycloak server with one realm, as its administrator sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._admin = ""
        self.count = 0

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        return self._send(
            method, path, "application/json", json.dumps(body).encode() if body else None, token
        )

    def token(self, realm: str = "lab", **form: str) -> dict[str, Any]:
        """What the token endpoint answers. Raises urllib.error.HTTPError."""
        body = urllib.parse.urlencode(form).encode()
        path = f"/realms/{realm}/protocol/openid-connect/token"
        found: dict[str, Any] = self._send("POST", path, "application/x-www-form-urlencoded", body, "")
        return found

    def _send(self, method: str, path: str, kind: str, body: bytes | None, token: str | None) -> Any:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        if token is None:
            token = self._admin
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or b"null")

    def become_admin(self) -> None:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": "admin"}
        self._admin = self.token("master", **form)["access_token"]

    def prepare(self) -> None:
        self.become_admin()
        self.ask("POST", "/admin/realms", {"realm": "lab", "enabled": True})
        for name, role in (("gatewatch", "manage-users"), ("powerless", None)):
            client = {"clientId": name, "serviceAccountsEnabled": True, "standardFlowEnabled": False}
            self.ask("POST", "/admin/realms/lab/clients", {**client, "publicClient": False, "secret": SECRET})
            if role is not None:
                self._give(name, role)
        shop = {"clientId": "shop", "publicClient": True, "directAccessGrantsEnabled": True}
        self.ask("POST", "/admin/realms/lab/clients", shop)

    def _give(self, client: str, role: str) -> None:
        of = f"/admin/realms/lab/clients/{self._client(client)}/service-account-user"
        management = self._client("realm-management")
        account = self.ask("GET", of)["id"]
        wanted = self.ask("GET", f"/admin/realms/lab/clients/{management}/roles/{role}")
        self.ask("POST", f"/admin/realms/lab/users/{account}/role-mappings/clients/{management}", [wanted])

    def _client(self, name: str) -> str:
        return str(self.ask("GET", f"/admin/realms/lab/clients?clientId={name}")[0]["id"])

    def add(self, name: str) -> str:
        self.become_admin()
        user = {
            "username": name, "enabled": True, "email": f"{name}@example.org", "firstName": "F", "lastName": "L",
            "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
        }  # fmt: skip
        self.ask("POST", "/admin/realms/lab/users", user)
        found = self.ask("GET", f"/admin/realms/lab/users?exact=true&username={name}")
        return str(found[0]["id"])

    def user(self, account_id: str) -> dict[str, Any]:
        self.become_admin()
        found: dict[str, Any] = self.ask("GET", f"/admin/realms/lab/users/{account_id}")
        return found

    def set_enabled(self, account_id: str, enabled: bool) -> None:
        self.become_admin()
        self.ask("PUT", f"/admin/realms/lab/users/{account_id}", {"enabled": enabled})

    def log_in(self, name: str) -> dict[str, Any]:
        return self.token(grant_type="password", client_id="shop", username=name, password=PASSWORD)

    def refresh(self, session: dict[str, Any]) -> dict[str, Any]:
        return self.token(
            grant_type="refresh_token", client_id="shop", refresh_token=session["refresh_token"]
        )


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, management = free.getsockname()[1], other.getsockname()[1]
    log = tmp_path_factory.mktemp("keycloak") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                f"{HOME}/bin/kc.sh", "start-dev", "--db=dev-mem", "--http-host=127.0.0.1", f"--http-port={port}",
                f"--http-management-port={management}",
            ],
            env=os.environ | {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": "admin"},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        made = Realm(f"http://127.0.0.1:{port}")
        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                made.become_admin()
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < limit, log.read_text()[-2000:]
                time.sleep(0.5)
        made.prepare()
        yield made
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def options(realm: Realm, folder: Path, **more: Any) -> dict[str, Any]:
    plain = {
        "template": "keycloak", "url": realm.url + "/", "realm": "lab", "client_id": "gatewatch",
        "secret_file": str(secret_file(folder, SECRET)), "holds": str(folder / "idp.holds.json"),
        "kinds": ["subject", "account"], "timeout_s": 60,
    }  # fmt: skip
    return plain | more


def row(do: str, action: str, user: str) -> Row:
    now = rfc3339(time.time_ns() // 10**9 * 10**9)
    document = {"event": "hook", "do": do, "id": action, "user": user, "time": now}
    return Row("idp", 1, f"{action}:{do}", msgspec.Raw(json.dumps(document).encode()))


def send(made: dict[str, Any], *rows: Row) -> None:
    async def scenario() -> None:
        hook = make_hook("idp", made)
        try:
            await hook.write(rows)
        finally:
            await hook.close()

    asyncio.run(scenario())


def test_a_blocked_user_is_logged_out_and_cannot_log_in_until_the_block_ends(
    realm: Realm, tmp_path: Path
) -> None:
    alice, bob = realm.add("alice"), realm.add("bob")
    session, other = realm.log_in("alice"), realm.log_in("bob")
    session = realm.refresh(session)
    before = realm.user(alice)
    made = options(realm, tmp_path)
    for _ in range(2):
        send(made, row("block_user", "a1", f"subject:{alice}"))
        assert realm.user(alice)["enabled"] is False
        with pytest.raises(urllib.error.HTTPError):
            realm.log_in("alice")
        with pytest.raises(urllib.error.HTTPError):
            realm.refresh(session)
        assert realm.ask("GET", f"/admin/realms/lab/users/{alice}/sessions") == []
    realm.refresh(other)
    realm.log_in("bob")
    for _ in range(2):
        send(made, row("unblock_user", "a1", f"subject:{alice}"))
    realm.log_in("alice")
    with pytest.raises(urllib.error.HTTPError):
        realm.refresh(session)
    after = realm.user(alice)
    assert after | {"notBefore": 0} == before | {"notBefore": 0}
    assert realm.user(bob)["enabled"] is True


def test_accounts_are_found_by_name(realm: Realm, tmp_path: Path) -> None:
    carol, longer = realm.add("carol"), realm.add("carol2")
    send(options(realm, tmp_path), row("block_user", "c1", "account:Carol"))
    assert [realm.user(i)["enabled"] for i in (carol, longer)] == [False, True]


def test_a_user_whom_somebody_else_disabled_stays_so(realm: Realm, tmp_path: Path) -> None:
    dave = realm.add("dave")
    realm.set_enabled(dave, False)
    made = options(realm, tmp_path)
    send(made, row("block_user", "d1", f"subject:{dave}"), row("unblock_user", "d1", f"subject:{dave}"))
    assert realm.user(dave)["enabled"] is False


def test_a_user_of_two_actions_is_enabled_when_the_last_ends(realm: Realm, tmp_path: Path) -> None:
    erin = realm.add("erin")
    made = options(realm, tmp_path)
    for action in ("e1", "e2"):
        send(made, row("block_user", action, f"subject:{erin}"))
    send(made, row("unblock_user", "e1", f"subject:{erin}"))
    assert realm.user(erin)["enabled"] is False
    send(made, row("unblock_user", "e2", f"subject:{erin}"))
    assert realm.user(erin)["enabled"] is True


@pytest.mark.parametrize(
    "name", ["..", ".", "../../lab", "%2e%2e", "a/../..", "count", "profile", "no-such-id", "*"]
)
def test_a_subject_from_a_log_changes_nothing_but_a_user(name: str, realm: Realm, tmp_path: Path) -> None:
    with pytest.raises((RejectedError, SinkError)):
        send(options(realm, tmp_path), row("block_user", "x", f"subject:{name}"))
    with pytest.raises(RejectedError):
        send(options(realm, tmp_path), row("block_user", "x", f"account:{name}"))
    realm.become_admin()
    assert realm.ask("GET", "/admin/realms/lab")["enabled"] is True


def test_the_hook_does_not_block_itself(realm: Realm, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="by which users are blocked"):
        send(options(realm, tmp_path), row("block_user", "s1", "account:service-account-gatewatch"))


def test_a_wrong_secret_and_a_missing_role_are_said_with_what_to_do(realm: Realm, tmp_path: Path) -> None:
    frank = realm.add("frank")
    block = row("block_user", "f1", f"subject:{frank}")
    with pytest.raises(SinkError, match=r"403.*manage-users"):
        send(options(realm, tmp_path, client_id="powerless"), block)
    made = options(realm, tmp_path)
    secret_file(tmp_path, "wrong")
    with pytest.raises(SinkError, match=r"401.*check client_id and the secret file"):
        send(made, block)
    assert realm.user(frank)["enabled"] is True


def test_hooks_test_reads_users_and_changes_nothing(realm: Realm, tmp_path: Path) -> None:
    async def scenario() -> tuple[int, bytes]:
        hook = make_hook("idp", options(realm, tmp_path))
        try:
            answer = await hook.test()
        finally:
            await hook.close()
        return answer.status, answer.body

    status, body = asyncio.run(scenario())
    assert status == 200
    assert int(body) >= 1
