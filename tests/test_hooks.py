"""Hooks: what is sent and signed, what the answers mean, and what no receiver can bring about."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gatewatch.config.document import parse_document, validated
from gatewatch.config.loader import load
from gatewatch.config.schema import Config
from gatewatch.daemon.errors import ConfigError
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.sinks.contract import RejectedError, Row, SinkError
from gatewatch.daemon.sinks.hook_files import check_files, read_secret
from gatewatch.daemon.sinks.http import LARGEST_ANSWER, retry_after
from gatewatch.daemon.sinks.outbox import OutboxServer
from gatewatch.daemon.sinks.registry import make_sink
from gatewatch.daemon.sinks.shipper import Backoff, _Lane, ship
from gatewatch.daemon.sinks.signature import message_id, signed_headers, signing_keys
from gatewatch.daemon.store import Store
from hook_site import SECRET, Authority, Reply, Server, secret_file, serving

KEY = b"0123456789abcdefghijklmnopqrstuv"
LIMIT_S = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def options(server: Server, tmp_path: Path) -> dict[str, Any]:
    return {"type": "webhook", "url": server.url + "/in", "secret_file": str(secret_file(tmp_path))}


def document(**more: Any) -> dict[str, Any]:
    now = rfc3339(time.time_ns() // 10**9 * 10**9)
    plain = {
        "event": "hook",
        "hook": "h",
        "do": "block_user",
        "id": "a1",
        "user": "account:alice",
        "time": now,
    }
    return plain | more


def row(number: int = 1, key: str = "a1:block", **more: Any) -> Row:
    return Row("h", number, key, msgspec.Raw(json.dumps(document(**more)).encode()))


def send(options: dict[str, Any], *rows: Row) -> None:
    async def scenario() -> None:
        sink = make_sink("h", options)
        try:
            await sink.write(rows or [row()])
        finally:
            await sink.close()

    asyncio.run(scenario())


def refused(options: dict[str, Any], *rows: Row) -> str:
    with pytest.raises(RejectedError) as caught:
        send(options, *rows)
    return caught.value.message


def postponed(options: dict[str, Any], *rows: Row) -> SinkError:
    with pytest.raises(SinkError) as caught:
        send(options, *rows)
    return caught.value


def test_a_document_is_signed_so_that_the_receiver_can_verify_it(server: Server, options: Any) -> None:
    sent = row()
    send(options, sent)
    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/in")
    assert request.body == bytes(sent.document)
    content = (
        f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    )
    expected = base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    assert request.headers["webhook-id"] == "a1:block"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60


def test_the_signature_is_that_of_an_example_made_with_openssl() -> None:
    """printf 'msg_1.1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdefghijklmnopqrstuv -binary"""
    content = b'msg_1.1700000000.{"a":1}'
    made = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", KEY.decode(), "-binary"],
        input=content, capture_output=True, check=True,
    ).stdout  # fmt: skip
    headers = signed_headers((KEY,), "msg_1", 1_700_000_000, b'{"a":1}')
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(made).decode()}"


def test_while_the_secret_changes_both_sign(tmp_path: Path) -> None:
    keys = signing_keys(f"{SECRET}\nan-older-plain-text-secret-of-32", "f")
    signatures = signed_headers(keys, "m", 1, b"{}")["webhook-signature"].split()
    assert signatures == [signed_headers((key,), "m", 1, b"{}")["webhook-signature"] for key in keys]


@pytest.mark.parametrize("key", ["a.b", "a b", "a\nwebhook-id: other", "ä", "", "x" * 201])
def test_a_key_that_could_not_be_told_from_the_rest_of_what_is_signed_is_hashed(key: str) -> None:
    assert message_id(key) == "sha256-" + hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 422])
def test_a_refusal_is_for_good_and_says_why(status: int, server: Server, options: Any) -> None:
    server.script.append(Reply(status, body=b"no such\x1b[31m user"))
    assert refused(options).endswith(f"{status}: no such?[31m user")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int, server: Server, options: Any) -> None:
    server.script.append(Reply(status, {"Retry-After": "7"}))
    assert postponed(options).wait_s == 7


def test_retry_after_is_a_number_of_seconds_or_a_date() -> None:
    assert retry_after("120", 0) == 120
    assert retry_after(formatdate(1_000_060, usegmt=True), 1_000_000) == 60
    assert retry_after(formatdate(900_000, usegmt=True), 1_000_000) == 0
    for nonsense in ("", "-1", "soon", "1e9", "٣", "9" * 400, "Mon, 99 Foo 9999 00:00:00 GMT"):
        assert retry_after(nonsense, 1_000_000) in (0, 999_999_999)


def test_a_redirect_is_not_followed(server: Server, options: Any) -> None:
    with serving() as other:
        server.script.append(Reply(307, {"Location": other.url}))
        assert other.url in str(postponed(options))
        assert other.requests == []


def test_a_receiver_that_does_not_answer_is_given_up_on_in_time(server: Server, options: Any) -> None:
    server.script.append(Reply(hang=True))
    assert "no answer within 1 s" in str(postponed(options | {"timeout_s": 1}))


def test_a_receiver_that_is_not_there_or_breaks_off_is_tried_again(server: Server, options: Any) -> None:
    server.script.extend([Reply(cut=True)] * 3)
    postponed(options)
    server.script.clear()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        postponed(options | {"url": f"http://127.0.0.1:{taken.getsockname()[1]}/"})


def test_an_answer_without_end_is_not_read(server: Server, options: Any) -> None:
    server.script.append(Reply(500, body=b"x" * (40 * LARGEST_ANSWER)))
    assert len(str(postponed(options))) < 1000
    server.script.append(Reply(200, body=b"x" * (40 * LARGEST_ANSWER)))
    send(options)


def test_a_packed_answer_is_not_unpacked(server: Server, options: Any) -> None:
    import gzip

    server.script.append(Reply(400, {"Content-Encoding": "gzip"}, gzip.compress(bytes(50_000_000))))
    assert "400" in refused(options)


def test_what_was_not_delivered_in_time_is_given_up(server: Server, options: Any) -> None:
    server.script.append(Reply(503))
    old = rfc3339(time.time_ns() - 3700 * 10**9)
    assert "given up after 3600 s" in refused(options | {"give_up_s": 3600}, row(time=old))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"user": "key:k-0123456789abcdef"}, "takes account, any, subject alone"),
        ({"user": "alice"}, "names nobody"),
        ({"user": "account:" + "x" * 257}, "names nobody"),
        ({"user": "subject:breakglass"}, "never blocked"),
        ({"user": "account:carol"}, "never blocked"),
        ({"user": 7}, "not a document"),
    ],
)
def test_users_that_are_not_the_hooks_are_refused_before_anything_is_sent(
    more: Any, problem: str, server: Server, options: Any
) -> None:
    options |= {"kinds": ["subject", "account", "any"], "protected": ("any:breakglass", "account:carol")}
    assert problem in refused(options, row(**more))
    assert server.requests == []
    send(options, row(user="subject:carol"), row(do="unblock_user", user="subject:breakglass"))
    assert len(server.requests) == 2


def test_tls_is_verified_with_the_named_authority(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    secret = str(secret_file(tmp_path))
    with serving(authority.context()) as server:
        options = {"type": "webhook", "url": server.url, "secret_file": secret}
        for ca in ({}, {"ca_file": str(stranger.ca)}):
            assert "certificate is not accepted" in str(postponed(options | ca))
        assert server.requests == []
        send(options | {"ca_file": str(authority.ca)})
        assert len(server.requests) == 1


def test_a_certificate_for_another_name_is_not_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with serving(authority.context("other.example")) as server:
        options = {"type": "webhook", "url": server.url, "secret_file": str(secret_file(tmp_path))}
        error = postponed(options | {"ca_file": str(authority.ca)})
        assert "certificate is not accepted" in str(error)
        assert server.requests == []


def test_a_client_certificate_is_shown_where_one_is_asked_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = authority.issue("gateway")
    with serving(authority.context(asks_client=True)) as server:
        options = {"type": "webhook", "url": server.url, "secret_file": str(secret_file(tmp_path))}
        options["ca_file"] = str(authority.ca)
        postponed(options)
        send(options | {"client_certificate": str(mine)})
        assert len(server.requests) == 1


@pytest.mark.parametrize("mode", [0o604, 0o640 | 0o020, 0o602])
def test_a_secret_that_others_can_read_or_change_is_refused(mode: int, tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"others can read or change it.*chmod 0600"):
        read_secret(str(path))


def test_a_secret_of_no_use_is_refused(tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    for text, problem in (
        ("short", "24 to 64"),
        ("whsec_%%%", "base64"),
        ("\n", "empty"),
        ("x" * 5000, "larger"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            check_files("h", {"secret_file": str(path)})
    with pytest.raises(ConfigError, match=r"hooks\.h\.secret_file: .*No such file.*0600"):
        check_files("h", {"secret_file": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="regular file"):
        read_secret(str(tmp_path))


def test_no_message_holds_the_secret(server: Server, options: Any) -> None:
    for reply in (Reply(500), Reply(400), Reply(302), Reply(cut=True)):
        server.script.append(reply)
        with pytest.raises((SinkError, RejectedError)) as caught:
            send(options)
        assert KEY.decode() not in str(caught.value)
        assert "whsec" not in str(caught.value)


def test_a_hook_needs_no_file_of_ours_once_it_is_made(tmp_path: Path) -> None:
    """The user that the shipper becomes may not be able to read where modules, secrets or certificates are."""
    authority = Authority(tmp_path)
    secret = secret_file(tmp_path)
    with serving(authority.context()) as server:
        server.script.extend(
            [Reply(204), Reply(503, {"Retry-After": formatdate(usegmt=True)}), Reply(cut=True)]
        )
        made = {
            "type": "webhook",
            "url": server.url,
            "secret_file": str(secret),
            "ca_file": str(authority.ca),
        }
        code = (
            "import asyncio, json, sys, pathlib\n"
            "from gatewatch.daemon.sinks import jsonl, shipper\n"
            "from gatewatch.daemon.sinks.contract import Row, SinkError\n"
            "from gatewatch.daemon.sinks.registry import make_sink\n"
            "import msgspec\n"
            "options = json.loads(sys.argv[1])\n"
            "sink = make_sink('h', options)\n"
            "pathlib.Path(options['secret_file']).unlink()\n"
            "pathlib.Path(options['ca_file']).unlink()\n"
            "def refuse(event, arguments):\n"
            "    if event == 'import' and arguments[0] not in sys.modules:\n"
            "        sys.stderr.write(f'imports {arguments[0]}\\n')\n"
            "sys.addaudithook(refuse)\n"
            "async def work():\n"
            "    for number in range(3):\n"
            "        try:\n"
            "            await sink.write([Row('h', number, 'k', msgspec.Raw(b'{}'))])\n"
            "        except SinkError: pass\n"
            "    await sink.close()\n"
            "asyncio.run(work())\n"
        )
        done = subprocess.run([sys.executable, "-c", code, json.dumps(made)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(server.requests) >= 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_shipper_of_another_user_signs_with_a_secret_that_root_alone_can_read(
    server: Server, options: Any, tmp_path: Path
) -> None:
    from gatewatch.daemon.service import become
    from gatewatch.daemon.sinks.shipper import run_shipper
    from gatewatch.daemon.supervisor import Identity, fork

    line = Line(tmp_path, {})
    line.store.hooks = frozenset({"h"})
    line.store.add_to_outbox("a1", document(), 1, "h")
    who, parent = Identity(61_903, 61_903), os.getpid()

    def work() -> int:
        return run_shipper(path, {"h": options}, give_up_rights=lambda: become(who, parent))

    async def until_told(listening: socket.socket) -> None:
        line.server = OutboxServer(line.store, who.uid, delivered=lambda *told: line.told.append(told))
        serve = asyncio.create_task(line.server.serve(listening))
        async with asyncio.timeout(LIMIT_S):
            while not line.told:  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.005)
        serve.cancel()
        await asyncio.gather(serve, return_exceptions=True)

    with tempfile.TemporaryDirectory() as open_folder, socket.socket(socket.AF_UNIX) as listening:
        Path(open_folder).chmod(0o755)
        path = Path(open_folder) / "outbox.sock"
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        pid = fork(work, "shipper", [listening])
        try:
            asyncio.run(until_told(listening))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert line.told == [("h", "a1", None)]
    assert server.requests[0].headers["webhook-signature"].startswith("v1,")


def test_retries_wait_as_long_as_the_receiver_says() -> None:
    """With a first pause of a tenth of a second a second attempt within it would be seen."""
    calls: list[float] = []

    class Busy:
        async def write(self, rows: Sequence[Row]) -> None:
            calls.append(time.monotonic())
            if len(calls) == 1:
                raise SinkError("busy", wait_s=1.0)

        async def close(self) -> None: ...

    class Writer:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def write(self, data: bytes) -> None:
            self.told.append(json.loads(data))

        async def drain(self) -> None: ...

    async def scenario() -> None:
        lane = _Lane("h", Busy(), lambda text: None, Backoff(0.001, 0.001))
        writer: Any = Writer()
        lane.connect(writer)
        lane.put(row(), writer)
        task = asyncio.create_task(lane.run())
        async with asyncio.timeout(LIMIT_S):
            while len(writer.told) < 2:  # noqa: ASYNC110 - another task brings it about
                await asyncio.sleep(0.01)
        task.cancel()
        assert [sorted(m)[0] for m in writer.told] == ["error", "ack"]

    asyncio.run(scenario())
    assert calls[1] - calls[0] >= 1.0


class Line:
    """Store, the analyser's end, and a shipper in one loop."""

    def __init__(self, folder: Path, hooks: dict[str, dict[str, Any]]) -> None:
        self.store = Store.open(folder / "gatewatch.db")
        self.store.hooks = frozenset(hooks)
        self.told: list[tuple[str, str, str | None]] = []
        self.server = OutboxServer(self.store, delivered=lambda *told: self.told.append(told))
        self._path = folder / "outbox.sock"
        self._hooks = hooks
        self._alerts = folder / "alerts.jsonl"

    async def run(self, until: Callable[[], bool]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            self._path.unlink(missing_ok=True)
            listening.bind(str(self._path))
            listening.listen()
            sinks = {name: make_sink(name, options) for name, options in self._hooks.items()}
            sinks["alerts"] = make_sink("alerts", self._alerts)
            tasks = [
                asyncio.create_task(self.server.serve(listening)),
                asyncio.create_task(ship(self._path, sinks, lambda text: None, most_retry_s=0.2)),
            ]
            async with asyncio.timeout(LIMIT_S):
                while not until():  # noqa: ASYNC110 - other tasks bring it about
                    await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def alerts(self) -> list[str]:
        if not self._alerts.exists():
            return []
        return [json.loads(line)["key"] for line in self._alerts.read_text().splitlines()]


def test_only_what_is_addressed_goes_to_a_hook_and_the_analyser_hears_what_became_of_it(
    server: Server, options: Any, tmp_path: Path
) -> None:
    line = Line(tmp_path, {"h": options})
    server.script.extend([Reply(204), Reply(422, body=b"who?"), Reply(503), Reply(204)])
    line.store.add_to_outbox("alert", {"event": "incident"}, 1)
    for number in (1, 2, 3):
        line.store.add_to_outbox(f"a{number}", document(id=f"a{number}"), number, "h")
    line.store.add_to_outbox("later", {"event": "incident"}, 1)
    asyncio.run(line.run(lambda: len(line.told) == 3 and len(line.alerts()) == 2))
    assert [(hook, key) for hook, key, _ in line.told] == [("h", "a1"), ("h", "a2"), ("h", "a3")]
    assert [problem and problem.endswith("422: who?") for *_, problem in line.told] == [None, True, None]
    assert [r.headers["webhook-id"] for r in server.requests] == ["a1", "a2", "a3", "a3"]
    assert line.alerts() == ["alert", "later"]
    assert line.store.lags(["h", "alerts"]) == {"h": 0, "alerts": 0}
    assert "422" in line.store.dead_letters("h")[0][1]


def test_what_could_not_be_noted_is_told_again(server: Server, options: Any, tmp_path: Path) -> None:
    """The analyser's own note may fail on a full disk; the hook then hears of it twice, and the analyser too."""
    line = Line(tmp_path, {"h": options})
    line.store.add_to_outbox("a1", document(), 1, "h")
    told: list[str] = []

    def note(hook: str, key: str, problem: str | None) -> None:
        told.append(key)
        if len(told) == 1:
            raise OSError("no space")

    line.server.delivered = note
    asyncio.run(line.run(lambda: line.store.lags(["h"]) == {"h": 0}))
    assert told == ["a1", "a1"]
    assert [r.headers["webhook-id"] for r in server.requests] == ["a1", "a1"]


def test_a_hook_that_cannot_be_made_does_not_stop_the_sinks(tmp_path: Path) -> None:
    from gatewatch.daemon.sinks.shipper import _make

    hook = _make("h", {"type": "webhook", "url": "http://localhost/", "secret_file": str(tmp_path / "none")})
    with pytest.raises(SinkError, match=r"hooks\.h: .*No such file.*start Gatewatch again"):
        asyncio.run(hook.write([row()]))


def config(text: str) -> Config:
    return validated(Config, parse_document(text, "f.yaml"), base=Path("/etc/gatewatch"))


def test_hooks_are_configured_by_template() -> None:
    found = config(
        "hooks:\n"
        "  pager: {type: webhook, url: 'https://h.example/x', secret_file: pager.secret}\n"
        "  idp: {type: webhook, template: keycloak, url: 'https://id.example', realm: staff, client_id: gatewatch,\n"
        "    secret_file: idp.secret}\n"
        "  hr: {template: scim, url: 'http://127.0.0.1:8080/v2', secret_file: /run/scim}\n"
    )
    assert found.hook_options("idp", ("root",)) | {"holds": ""} == {
        "type": "webhook", "template": "keycloak", "url": "https://id.example", "realm": "staff",
        "client_id": "gatewatch", "secret_file": "/etc/gatewatch/idp.secret", "token_url": None,
        "kinds": ["subject"], "subject_is": "id", "ca_file": None, "client_certificate": None, "client_key": None,
        "timeout_s": 10, "give_up_s": 86_400, "protected": ("root",), "holds": "",
    }  # fmt: skip
    assert found.hooks["pager"].template == "generic"
    assert "notify" in found.hooks["pager"].does
    assert "notify" not in found.hooks["hr"].does


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ("{template: okta, url: 'https://h/', secret_file: s}", "hooks.h: unknown"),
        (
            "{url: 'http://h.example/', secret_file: s}",
            "hooks.h: url: must be https; `insecure: true` permits",
        ),
        ("{url: 'http://127.0.0.1.example.org/', secret_file: s}", "must be https"),
        ("{url: 'ftp://h/', secret_file: s}", "hooks.h.url: 'ftp://h/' is no URL"),
        ("{url: 'https://me:pw@h/', secret_file: s}", "hooks.h.url: must not hold a user or a password"),
        ("{url: 'https://h/ x', secret_file: s}", "hooks.h.url: must be printable"),
        ("{url: 'https://h/'}", "hooks.h.secret_file: is missing"),
        ("{url: 'https://h/', secret: abc, secret_file: s}", "hooks.h.secret: unknown key"),
        ("{url: 'https://h/', secret_file: s, client_key: k}", "client_key: needs client_certificate"),
        (
            "{template: keycloak, url: 'https://h/', secret_file: s, client_id: c}",
            "hooks.h.realm: is missing",
        ),
        (
            "{template: keycloak, url: 'https://h/', secret_file: s, client_id: c, realm: ../master}",
            "hooks.h.realm: ",
        ),
        (
            "{template: keycloak, url: 'https://h', realm: r, secret_file: s, client_id: c, token_url: 'http://h/'}",
            "token_url: must be https",
        ),
        (
            "{template: scim, url: 'https://h/', secret_file: s, kinds: [key]}",
            "hooks.h.kinds.0: must be one of",
        ),
        (
            "{template: scim, url: 'https://h/', secret_file: s, client_id: x}",
            "token_url: and client_id belong",
        ),
    ],
)
def test_a_wrong_hook_is_named_with_line_and_key(hook: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(f"mode: observe\nhooks:\n  h: {hook}\n")
    assert str(caught.value).startswith("f.yaml:3: ")
    assert problem in str(caught.value)


def test_a_hook_and_a_sink_do_not_share_a_name() -> None:
    with pytest.raises(ConfigError, match=r"hooks\.alerts: a sink has this name"):
        config("hooks: {alerts: {url: 'https://h/', secret_file: s}}")


def gatewatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def written(folder: Path, server: Server) -> Path:
    secret_file(folder)
    path = folder / "gatewatch.yaml"
    path.write_text(
        f"state: {folder / 'state'}\nhooks:\n  pager:\n    url: {server.url}\n    secret_file: secret\n"
    )
    return path


def test_config_check_names_line_and_key_of_a_secret_file_that_is_missing(
    server: Server, tmp_path: Path
) -> None:
    path = written(tmp_path, server)
    good = gatewatch("config", "check", str(path))
    assert "hooks: ok, pager" in good.stdout
    (tmp_path / "secret").unlink()
    bad = gatewatch("config", "check", str(path))
    assert bad.returncode == 2
    assert f"{path}:5: hooks.pager.secret_file: " in bad.stderr


def test_hooks_test_sends_a_signed_document_and_shows_the_answer(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path, server)
    server.script.extend([Reply(200, body=b"thanks"), Reply(403, body=b"bad signature")])
    good = gatewatch("hooks", "test", "pager", "--config", str(path))
    assert (good.returncode, good.stdout) == (0, "pager: taken, 200: thanks\n")
    request = server.requests[0]
    assert json.loads(request.body)["do"] == "test"
    expected = signed_headers(
        (KEY,), request.headers["webhook-id"], int(request.headers["webhook-timestamp"]), request.body
    )
    assert request.headers["webhook-signature"] == expected["webhook-signature"]
    bad = gatewatch("hooks", "test", "pager", "--config", str(path), "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout) == {"name": "pager", "ok": False, "status": 403, "answer": "bad signature"}
    assert gatewatch("hooks", "test", "other", "--config", str(path)).returncode == 2


def test_hooks_list_shows_what_waits_and_what_failed_last(server: Server, tmp_path: Path) -> None:
    path = written(tmp_path, server)
    store = Store.open(load(path).state_folder() / "analyser" / "gatewatch.db")
    for number in (1, 2, 3):
        store.add_to_outbox(f"a{number}", document(), number, "pager")
    store.dead("pager", 1, "refused")
    store.close()
    found = gatewatch("hooks", "list", "--config", str(path), "--json")
    assert found.returncode == 0, found.stderr
    listed = json.loads(found.stdout)
    assert (listed["name"], listed["waiting"]) == ("pager", 2)
    assert listed["failed"].endswith(": refused")


def test_the_examples_of_the_documentation_verify_what_is_sent(
    server: Server, options: Any, tmp_path: Path
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "hooks.md").read_text()
    send(options)
    [request] = server.requests
    headers = {
        name: request.headers[name] for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
    }
    python = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(python, "docs/hooks.md", "exec"), names)
    assert names["verify"](SECRET, headers, request.body)
    assert not names["verify"](SECRET, headers, request.body + b" ")
    old = headers | {"webhook-timestamp": str(int(time.time()) - 3600)}
    assert not names["verify"](SECRET, old, request.body)
    shell = page.split("```sh\n")[1].split("```")[0]
    (tmp_path / "body").write_bytes(request.body)
    given = {
        "SECRET": SECRET, "ID": headers["webhook-id"], "TIMESTAMP": headers["webhook-timestamp"],
        "SIGNATURE": headers["webhook-signature"], "PATH": os.environ["PATH"],
    }  # fmt: skip
    good = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "genuine\n"), good.stderr
    (tmp_path / "body").write_bytes(b"{}")
    bad = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert bad.stdout == "forged\n"


def test_the_tls_of_a_hook_is_at_least_1_2() -> None:
    from gatewatch.daemon.sinks.hook_files import tls

    context = tls({})
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
