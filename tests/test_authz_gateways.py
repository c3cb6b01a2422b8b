"""The shipped snippets, in real gateways: whom they refuse, what they log, and what a dead endpoint means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from authz_gateways import ENVOY, NGINX, Envoy, Gateway, Nginx, model
from authz_rig import Authz, wait_for
from gatewatch.daemon.collectors.parsers.common import ParserOptions
from gatewatch.daemon.collectors.parsers.nginx import NginxParser
from gatewatch.daemon.events import Outcome

SETTINGS = {"proxies": []}
FORGED = {
    "x_gatewatch_key_id": "k-forged",
    "x_gatewatch_reason": "forged",
    "x_gatewatch_client": "203.0.113.99",
    "x_gatewatch_subject": "forged",
    "x_gatewatch_certificate": "forged",
}

KINDS = [
    pytest.param(Nginx, marks=pytest.mark.skipif(NGINX is None, reason="needs nginx"), id="nginx"),
    pytest.param(Envoy, marks=pytest.mark.skipif(not Path(ENVOY).exists(), reason="needs envoy"), id="envoy"),
]


@pytest.fixture(params=KINDS)
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Gateway]:
    with (
        model() as model_port,
        Authz(tmp_path, SETTINGS) as authz,
        request.param(tmp_path / "gateway", authz, model_port) as gateway,
    ):
        yield gateway


def test_a_blocked_key_gets_403_and_other_keys_do_not_notice(gateway: Gateway) -> None:
    authz = gateway.authz
    for how in gateway.ports:
        assert gateway.ask(how, authorization="Bearer sk-1")[0] == 200
        assert gateway.ask(how, method="POST", x_api_key="sk-2")[0] == 200
    authz.denied.add("key", authz.key_id("sk-1"))
    wait_for(lambda: gateway.ask(authorization="Bearer sk-1")[0] == 403)
    for how in gateway.ports:
        assert gateway.ask(how, authorization="Bearer sk-1")[0] == 403
        assert gateway.ask(how, api_key="sk-1")[0] == 403
        assert gateway.ask(how, method="POST", x_api_key="sk-2")[0] == 200
        assert gateway.ask(how)[0] == 200
    authz.denied.remove("key", authz.key_id("sk-1"))
    wait_for(lambda: gateway.ask(authorization="Bearer sk-1")[0] == 200)


def test_a_blocked_client_and_a_killed_endpoint_get_403(gateway: Gateway) -> None:
    denied = gateway.authz.denied
    denied.add("address", "127.0.0.0/24")
    wait_for(lambda: gateway.ask()[0] == 403)
    assert gateway.ask(x_gatewatch_client="192.0.2.1", x_forwarded_for="192.0.2.1")[0] == 403
    denied.remove("address", "127.0.0.0/24")
    wait_for(lambda: gateway.ask()[0] == 200)
    denied.add("killed", "chat")
    wait_for(lambda: gateway.ask()[0] == 403)


def test_the_clients_own_headers_reach_neither_the_endpoint_nor_the_model_nor_the_log(
    gateway: Gateway,
) -> None:
    authz = gateway.authz
    for kind, name in (("subject", "forged"), ("certificate", "forged"), ("address", "203.0.113.99")):
        authz.denied.add(kind, name)
    authz.denied.add("key", authz.key_id("sk-1"))
    wait_for(lambda: gateway.ask(x_api_key="sk-1")[0] == 403)
    before = len(gateway.lines(1))
    status, sent = gateway.ask(authorization="Bearer sk-2", **FORGED)
    assert status == 200  # forged names that are blocked do not count
    assert sent["x-gatewatch-key-id"] == authz.key_id("sk-2")
    assert "forged" not in str(sent) and sent.get("x-gatewatch-client") != "203.0.113.99"
    assert gateway.ask(authorization="Bearer sk-1", **FORGED)[0] == 403
    assert gateway.ask(**FORGED)[0] == 200
    lines = gateway.lines(before + 3)[-3:]
    assert [line["api_key_id"] for line in lines] == [authz.key_id("sk-2"), authz.key_id("sk-1"), "-"]
    assert [line["gatewatch_reason"] for line in lines] == ["-", "blocked-key", "-"]
    assert "forged" not in gateway.log.read_text()
    assert "sk-" not in gateway.log.read_text()


def test_the_access_log_is_read_with_key_ids_and_outcomes(gateway: Gateway) -> None:
    authz = gateway.authz
    authz.denied.add("key", authz.key_id("sk-1"))
    wait_for(lambda: gateway.ask(authorization="Bearer sk-1")[0] == 403)
    gateway.ask(authorization="Bearer sk-2")
    wait_for(lambda: authz.key_id("sk-2") in (gateway.log.read_text() if gateway.log.exists() else ""))
    texts = [gateway.log]
    if isinstance(gateway, Nginx):
        texts.append(gateway.folder / "access.log")
    for path in texts:
        parsed = NginxParser(ParserOptions(hash_key=b"k" * 16)).parse(path.read_bytes())
        assert len(parsed.unparsed) == 0
        batch = parsed.events
        last = [batch.text_of(len(batch) - back, "key") for back in (2, 1)]
        assert last == [authz.key_id("sk-1"), authz.key_id("sk-2")]
        assert batch.outcome[-2:].tolist() == [Outcome.FAILURE, Outcome.SUCCESS]
        assert batch.status[-2:].tolist() == [403, 200]
        assert batch.text_of(len(batch) - 1, "path") == "/v1/chat"


def test_with_the_endpoint_dead_fail_open_passes_and_fail_closed_refuses(gateway: Gateway) -> None:
    authz = gateway.authz
    authz.denied.add("key", authz.key_id("sk-1"))
    wait_for(lambda: gateway.ask(x_api_key="sk-1")[0] == 403)
    authz.die()
    wait_for(lambda: gateway.ask("open", x_api_key="sk-1", **FORGED)[0] == 200)
    assert gateway.ask("closed", x_api_key="sk-2", **FORGED)[0] in (500, 503)
    status, sent = gateway.ask("open", **FORGED)
    assert status == 200 and "forged" not in str(sent)
    assert gateway.ask("open", method="POST")[0] == 200
    wait_for(lambda: gateway.log.read_text().count("\n") >= 4)
    assert "forged" not in gateway.log.read_text()


def test_with_the_endpoint_stuck_nobody_waits_long(gateway: Gateway) -> None:
    gateway.authz.kill()  # the port stays open, and nobody answers
    assert gateway.ask("open")[0] == 200
    assert gateway.ask("closed")[0] in (500, 503, 504)
    gateway.authz.path.unlink()
    gateway.authz.start()
    wait_for(lambda: gateway.ask("closed")[0] == 200)
