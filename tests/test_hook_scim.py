"""SCIM: a real server (scim2-server from PyPI) deactivates users; a scripted one says what real ones seldom say."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.sinks.contract import RejectedError, Row, SinkError
from gatewatch.daemon.sinks.registry import make_hook
from hook_site import Reply, Request, Server, secret_file, serving

TOKEN = "a-bearer-token-of-the-lab"
LIMIT_S = 60.0
USER = "urn:ietf:params:scim:schemas:core:2.0:User"


class Service:
    """scim2-server on the loopback, as its administrator sees it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/scim+json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return json.loads(response.read() or b"null")

    def add(self, name: str, **more: Any) -> str:
        user = self.ask("POST", "/Users", {"schemas": [USER], "userName": name, "active": True, **more})
        return str(user["id"])

    def active(self, account_id: str) -> bool:
        return bool(self.ask("GET", f"/Users/{account_id}")["active"])

    def set_active(self, account_id: str, active: bool) -> None:
        change = {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{"op": "replace", "path": "active", "value": active}],
        }
        self.ask("PATCH", f"/Users/{account_id}", change)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from scim2_server.testserver.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--bearer-token", TOKEN],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        limit = time.monotonic() + LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the SCIM server ended"
                assert time.monotonic() < limit
                time.sleep(0.05)
        yield Service(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def options(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    plain = {"template": "scim", "url": url, "secret_file": str(secret_file(folder, TOKEN))}
    return plain | {"holds": str(folder / "h.holds.json"), "kinds": ["subject", "account", "any"]} | more


def row(do: str, action: str, user: str, **more: Any) -> Row:
    now = rfc3339(time.time_ns() // 10**9 * 10**9)
    document = {"event": "hook", "do": do, "id": action, "user": user, "time": now} | more
    return Row("h", 1, f"{action}:{do}", msgspec.Raw(json.dumps(document).encode()))


def send(made: dict[str, Any], *rows: Row) -> None:
    """As a shipper that was started anew."""

    async def scenario() -> None:
        hook = make_hook("h", made)
        try:
            await hook.write(rows)
        finally:
            await hook.close()

    asyncio.run(scenario())


def refused(made: dict[str, Any], *rows: Row) -> str:
    with pytest.raises(RejectedError) as caught:
        send(made, *rows)
    return caught.value.message


def test_a_user_is_deactivated_and_activated_again_however_often_it_is_sent(
    service: Service, tmp_path: Path
) -> None:
    alice, other = service.add("alice"), service.add("alice2")
    made = options(service.url, tmp_path)
    for _ in range(2):
        send(made, row("block_user", "a1", "subject:alice"))
        assert not service.active(alice)
    assert service.active(other)
    for _ in range(2):
        send(made, row("unblock_user", "a1", "subject:alice"))
        assert service.active(alice)


def test_a_user_whom_somebody_else_deactivated_stays_so(service: Service, tmp_path: Path) -> None:
    bob = service.add("bob")
    service.set_active(bob, False)
    send(
        options(service.url, tmp_path),
        row("block_user", "b1", "account:bob"),
        row("unblock_user", "b1", "account:bob"),
    )
    assert not service.active(bob)


def test_a_user_of_two_actions_is_activated_when_the_last_ends(service: Service, tmp_path: Path) -> None:
    carol = service.add("carol")
    made = options(service.url, tmp_path)
    send(made, row("block_user", "c1", "any:carol"), row("block_user", "c2", "any:carol"))
    send(made, row("unblock_user", "c1", "any:carol"))
    assert not service.active(carol)
    send(made, row("unblock_user", "c2", "any:carol"))
    assert service.active(carol)


def test_what_a_person_undid_is_not_undone_again(service: Service, tmp_path: Path) -> None:
    """Activated by a person while the block lasts, deactivated by that person later: it is theirs."""
    dave = service.add("dave")
    made = options(service.url, tmp_path)
    send(made, row("block_user", "d1", "subject:dave"))
    service.set_active(dave, True)
    send(made, row("block_user", "d2", "subject:dave"), row("unblock_user", "d1", "subject:dave"))
    assert not service.active(dave)
    send(made, row("unblock_user", "d2", "subject:dave"))
    assert service.active(dave)


def test_users_are_found_by_id_or_external_id_where_that_is_what_subjects_are(
    service: Service, tmp_path: Path
) -> None:
    erin = service.add("erin", externalId="sub-17")
    by_external = options(service.url, tmp_path, subject_is="external_id")
    send(by_external, row("block_user", "e1", "subject:sub-17"), row("unblock_user", "e1", "subject:sub-17"))
    assert service.active(erin)
    send(options(service.url, tmp_path, subject_is="id"), row("block_user", "e2", f"subject:{erin}"))
    assert not service.active(erin)


@pytest.mark.parametrize(
    "name", ['x" or userName pr or userName eq "alice', "*", "al%", "nobody", "..", "alice/../x"]
)
def test_a_name_from_a_log_finds_nobody_else(name: str, service: Service, tmp_path: Path) -> None:
    names = [user["id"] for user in service.ask("GET", "/Users").get("Resources", [])]
    before = [service.active(i) for i in names]
    for subject_is in ("username", "id", "external_id"):
        made = options(service.url, tmp_path, subject_is=subject_is)
        assert refused(made, row("block_user", "x", f"subject:{name}"))
    assert [service.active(i) for i in names] == before


def test_a_wrong_token_is_tried_again_since_a_person_can_mend_it(service: Service, tmp_path: Path) -> None:
    made = options(service.url, tmp_path)
    secret_file(tmp_path, "wrong")
    with pytest.raises(SinkError, match=r"401.*check the secret file"):
        send(made, row("block_user", "w", "subject:alice"))


def test_a_block_that_is_over_is_not_made(service: Service, tmp_path: Path) -> None:
    fred = service.add("fred")
    past = rfc3339((time.time_ns() // 10**9 - 5) * 10**9)
    assert "was over" in refused(
        options(service.url, tmp_path), row("block_user", "f1", "any:fred", until=past)
    )
    assert service.active(fred)


def test_protected_users_and_what_is_no_block_are_refused(service: Service, tmp_path: Path) -> None:
    """The provider may spell a name in another way than the log does."""
    gina = service.add("Gina")
    made = options(service.url, tmp_path, protected=("any:gina", "account:someone"))
    for user in ("subject:Gina", "account:gina"):
        assert "never blocked" in refused(made, row("block_user", "g1", user))
    by_id = options(service.url, tmp_path, subject_is="id", protected=("subject:gina",))
    assert "never blocked" in refused(by_id, row("block_user", "g1", f"subject:{gina}"))
    assert service.active(gina)
    assert "cannot 'notify'" in refused(made, row("notify", "g2", ""))


def reply(body: Any) -> Reply:
    return Reply(200, {"Content-Type": "application/scim+json"}, json.dumps(body).encode())


@pytest.fixture
def double() -> Iterator[Server]:
    with serving() as made:
        yield made


def test_a_service_that_says_yes_and_does_nothing_is_not_believed(double: Server, tmp_path: Path) -> None:
    alice = {"id": "7", "userName": "alice", "active": True}
    double.otherwise = lambda request: reply({"Resources": [alice]} if "filter=" in request.path else alice)
    made = options(double.url, tmp_path)
    assert "accepted and not made" in refused(made, row("block_user", "a1", "any:alice"))
    double.requests.clear()
    send(made, row("unblock_user", "a1", "any:alice"))
    assert double.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"Resources":[{"id":7}]}', b"[" * 60_000, b'{"x":"' + b"y" * 200_000]
)
def test_an_answer_that_makes_no_sense_is_tried_again(body: bytes, double: Server, tmp_path: Path) -> None:
    double.otherwise = lambda request: Reply(200, body=body)
    with pytest.raises(SinkError):
        send(options(double.url, tmp_path), row("block_user", "a1", "any:alice"))


def test_a_user_of_another_name_or_id_than_asked_for_is_not_taken(double: Server, tmp_path: Path) -> None:
    mallory = {"id": "9", "userName": "mallory", "active": True}
    double.otherwise = lambda request: reply(
        {"Resources": [mallory]} if "filter=" in request.path else mallory
    )
    assert "not known" in refused(options(double.url, tmp_path), row("block_user", "a1", "any:alice"))
    by_id = options(double.url, tmp_path, subject_is="id")
    assert "not known" in refused(by_id, row("block_user", "a1", "subject:7"))
    assert {request.method for request in double.requests} == {"GET"}


def test_a_token_that_is_not_taken_any_more_is_had_anew_once(double: Server, tmp_path: Path) -> None:
    tokens: list[str] = []

    def answer(request: Any) -> Reply:
        if request.path == "/token":
            tokens.append(f"t{len(tokens)}")
            assert request.body == b"grant_type=client_credentials"
            return reply({"access_token": tokens[-1], "token_type": "Bearer", "expires_in": 300})
        if request.headers["authorization"] != "Bearer t1":
            return Reply(401)
        return reply({"Resources": []})

    double.otherwise = answer
    made = options(double.url, tmp_path, token_url=double.url + "/token", client_id="me: and / you")
    assert "not known" in refused(made, row("block_user", "a1", "any:alice"))
    assert tokens == ["t0", "t1"]


def test_an_account_counts_as_ours_though_the_answer_to_our_change_was_lost(
    double: Server, tmp_path: Path
) -> None:
    alice = {"id": "7", "userName": "alice", "active": True}
    cut = [True]

    def answer(request: Request) -> Reply:
        if request.method == "PATCH":
            alice["active"] = json.loads(request.body)["Operations"][0]["value"]
            if cut.pop():
                return Reply(cut=True)
        return reply({"Resources": [alice]} if "filter=" in request.path else alice)

    double.otherwise = answer
    made = options(double.url, tmp_path)
    with pytest.raises(SinkError):
        send(made, row("block_user", "a1", "any:alice"))
    send(made, row("block_user", "a1", "any:alice"))
    assert alice["active"] is False
    cut.append(True)
    with pytest.raises(SinkError):
        send(made, row("unblock_user", "a1", "any:alice"))
    send(made, row("unblock_user", "a1", "any:alice"))
    assert alice["active"] is True
    alice["active"] = False
    send(made, row("unblock_user", "a1", "any:alice"))
    assert alice["active"] is False


def test_a_damaged_note_of_what_we_disabled_hinders_no_block_and_enables_nobody(
    service: Service, tmp_path: Path
) -> None:
    hugo, iris = service.add("hugo"), service.add("iris")
    made = options(service.url, tmp_path)
    send(made, row("block_user", "h1", "any:hugo"))
    (tmp_path / "h.holds.json").write_bytes(b'{"torn":')
    send(made, row("block_user", "i1", "any:iris"), row("unblock_user", "h1", "any:hugo"))
    assert not service.active(iris)
    assert not service.active(hugo)
    assert (tmp_path / "h.holds.json.damaged").exists()


def test_a_note_that_cannot_be_written_keeps_the_user_as_it_was(service: Service, tmp_path: Path) -> None:
    """Disabled without a note, it could never be enabled again."""
    jane = service.add("jane")
    made = options(service.url, tmp_path, holds=str(tmp_path / "none" / "h.json"))
    with pytest.raises(SinkError, match="cannot be written"):
        send(made, row("block_user", "j1", "any:jane"))
    assert service.active(jane)
