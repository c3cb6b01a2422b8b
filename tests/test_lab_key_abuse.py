"""An API key by which somebody runs the model server: refused at nginx and at Envoy at once, and no other key is."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authz_gateways import ENVOY, NGINX, NGINX_MAIN, SNIPPETS, replaced
from gatewatch.daemon.authz.keys import key_id, read_secret
from lab.arrival import Arrival
from lab.lab import HOSTS, Lab, answers, read, wait_for
from lab.published import ModelServer
from lab.running import Gatewatch

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(NGINX is None, reason="needs nginx"),
    pytest.mark.skipif(not Path(ENVOY).exists(), reason="needs envoy"),
]

GATEWAY = HOSTS["gateway"].v4
CLIENT, OTHER = HOSTS["client"].v4, HOSTS["client"].more[0]
ATTACKER = HOSTS["attacker"].v4
PORTS = {"nginx": 8080, "envoy": 8083}
MODEL = 8002
SECRET = "sk-secret-"
ABUSED = [f"{SECRET}abused-{number}" for number in range(10)]
MANY = [f"{SECRET}good-{number}" for number in range(60)]
"""So many others that the ten are no large part of them: the circuit breaker would ask a person."""
GOOD = MANY[0]
LIMIT_S = 30.0
MOST_MS = 2000.0


@pytest.fixture
def gateways(lab: Lab) -> Iterator[Lab]:
    """The documented nginx and Envoy before one model server, on the lab's gateway."""
    folder = lab.folder / "guard"
    for path in (folder, lab.log / "guard", lab.log / "envoy"):
        path.mkdir()
    (folder / "gatewatch-ask.conf").write_text((SNIPPETS / "gatewatch-ask.conf").read_text())
    changes = {
        "listen 8080": f"listen {PORTS['nginx']}", "listen 8081": "listen 8082",
        "127.0.0.1:8000": f"127.0.0.1:{MODEL}", "127.0.0.1:8001": f"127.0.0.1:{MODEL}",
        "/var/log/nginx": "/var/log/guard",
    }  # fmt: skip
    snippet = replaced((SNIPPETS / "nginx.conf").read_text(), changes)
    (folder / "gatewatch.conf").write_text(snippet)
    (folder / "nginx.conf").write_text(NGINX_MAIN.format(folder=folder, user="user www-data;"))
    changes = {
        "port_value: 8080": f"port_value: {PORTS['envoy']}",
        "port_value: 8000": f"port_value: {MODEL}",
    }
    (folder / "envoy.yaml").write_text(replaced((SNIPPETS / "envoy.yaml").read_text(), changes))
    words = ["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "50", "-l", "warn"]
    with ModelServer(lab, "gateway", "127.0.0.1", MODEL, [*ABUSED, *MANY]):
        lab.popen_in("gateway", [NGINX or "nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
        lab.popen_in("gateway", [ENVOY, "-c", f"{folder}/envoy.yaml", *words])
        with lab.inside("gateway"):
            for name, port in PORTS.items():
                wait_for(name, lambda port=port: answers("127.0.0.1", port), LIMIT_S)
        yield lab


def watching(lab: Lab) -> Gatewatch:
    """One log is trusted; of the other the packets have to show that there was a client."""
    logs = [
        {"path": "/var/log/guard/access.json", "format": "nginx"},
        {"path": "/var/log/envoy/access.json", "format": "nginx", "trusted": True},
    ]
    packets = {"enabled": True, "interfaces": ["eth0"]}
    collectors = {"logs": logs, "journal": {"enabled": False}, "packets": packets}
    return Gatewatch(lab, collectors=collectors, authz={"listen": ["127.0.0.1:9180"]})


class Client:
    """A connection to one of the gateways that is kept."""

    def __init__(self, lab: Lab, gateway: str, source: str = CLIENT, host: str = "client") -> None:
        with lab.inside(host):
            place = GATEWAY, PORTS[gateway]
            self._kept = http.client.HTTPConnection(*place, timeout=LIMIT_S, source_address=(source, 0))
            self._kept.connect()

    def ask(self, key: str, path: str = "/v1/models", method: str = "GET") -> int:
        """The status of the answer."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._kept.request(method, path, headers=headers)
        answer = self._kept.getresponse()
        answer.read()
        return answer.status

    def abuse(self, key: str) -> int:
        return self.ask(key, "/collective_rpc", "POST")


def log_of(lab: Lab, gateway: str) -> Path:
    return lab.log / ("guard" if gateway == "nginx" else "envoy") / "access.json"


def refused_after_ms(client: Client, key: str, arrival: Arrival) -> float:
    """From the arrival of the line in the log to the first 403."""
    refused_ns: list[int] = []

    def refused() -> bool:
        status = client.ask(key)
        refused_ns.append(time.time_ns())
        return status == 403

    wait_for("the refusal", refused, LIMIT_S, 0.001)
    return (refused_ns[-1] - arrival.wait()) / 1e6


def block_of(watch: Gatewatch, name: str) -> dict[str, Any]:
    return next(b for b in watch.listing("blocks", "list") if b.get("user") == name)


def files_with(folder: Path, text: bytes) -> list[str]:
    """The files below a folder in which something stands."""
    plain = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(folder)) for path in plain if text in path.read_bytes()]


def test_an_abused_key_is_refused_at_both_gateways_and_other_keys_are_not(gateways: Lab) -> None:
    lab = gateways
    with watching(lab) as watch:
        secret = read_secret(watch.state / "authz" / "key")
        clients = {name: Client(lab, name) for name in PORTS}
        others = {name: Client(lab, name, OTHER) for name in PORTS}
        for client in (*clients.values(), *others.values()):
            wait_for("an answer", lambda client=client: client.ask(GOOD) == 200)
        assert {others["envoy"].ask(key) for key in MANY} == {200}
        took: dict[str, list[float]] = {name: [] for name in PORTS}
        for number, key in enumerate(ABUSED):
            name = list(PORTS)[number % 2]
            assert [client.ask(key) for client in clients.values()] == [200, 200]
            arrival = Arrival(log_of(lab, name), "/collective_rpc")
            assert clients[name].abuse(key) == 200
            took[name].append(refused_after_ms(clients[name], key, arrival))
            for client in (*clients.values(), *others.values()):
                assert client.ask(key) == 403, "whoever uses it, and by whatever way"
                assert client.ask(GOOD) == 200
        for name, figures in took.items():
            print(f"{name}: 403 after {', '.join(f'{ms:.1f}' for ms in figures)} ms")
            assert max(figures) < MOST_MS

        first = key_id(secret, ABUSED[0].encode())
        incident = watch.wait_for_incident("control_endpoint_access", CLIENT)
        assert incident["priority"] in ("critical", "high")
        block = block_of(watch, first)
        assert (block["kind"], block["playbook"]) == ("key", "control-endpoint")
        assert 3 * 3600 < block["ttl_s"] <= 4 * 3600
        assert watch.elements() == set(), "the key is accused, and not the clients that share an address"
        assert "blocked until" in watch.run("explain", f"key:{first}").stdout

        watch.run("unblock", "user", f"key:{first}", "--reason", "renewed")
        for client in clients.values():
            wait_for("the way back", lambda client=client: client.ask(ABUSED[0]) == 200)
        assert clients["nginx"].ask(ABUSED[1]) == 403
        assert {client.ask(key) for key in MANY for client in others.values()} == {200}

        logged = [json.loads(line) for line in read(log_of(lab, "nginx")).splitlines()]
        assert {line["gatewatch_reason"] for line in logged if line["status"] == "403"} == {"blocked-key"}
        assert first in {line["api_key_id"] for line in logged}
        assert first in read(watch.state / "enforcer" / "journal")
        assert files_with(lab.folder, SECRET.encode()) == []
        assert watch.run("audit", "verify").returncode == 0


def test_who_calls_a_control_endpoint_without_a_key_is_dropped_in_the_kernel(gateways: Lab) -> None:
    lab = gateways
    with watching(lab) as watch:
        other = Client(lab, "nginx")
        assert other.ask(GOOD) == 200
        intruder = Client(lab, "nginx", ATTACKER, "attacker")
        assert intruder.abuse("") == 200
        watch.wait_for_block(ATTACKER)
        with lab.inside("attacker"):
            assert not any(answers(GATEWAY, port) for port in PORTS.values())
        assert other.ask(GOOD) == 200
        assert watch.elements() == {ATTACKER}
