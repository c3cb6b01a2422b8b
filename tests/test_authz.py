"""What the authorisation endpoint answers: principals, clients, kill switches, and an unknown deny list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from authz_rig import Authz, ask, wait_for
from gatewatch.daemon.authz.keys import key_id, make_secret, read_secret
from gatewatch.daemon.errors import ConfigError

SETTINGS = {"proxies": ["198.51.100.128/25"], "endpoints": {"vault": {"when_unknown": "closed"}}}


@pytest.fixture
def authz(tmp_path: Path) -> Iterator[Authz]:
    with Authz(tmp_path, SETTINGS) as authz:
        yield authz


def test_a_key_is_known_by_its_keyed_hash(tmp_path: Path) -> None:
    make_secret(tmp_path / "key", None, None)
    secret = read_secret(tmp_path / "key")
    assert key_id(secret, b"sk-1") == "k-" + blake2b(b"sk-1", key=secret, digest_size=8).hexdigest()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o400
    make_secret(tmp_path / "key", None, None)
    assert read_secret(tmp_path / "key") == secret


def test_a_secret_that_others_may_read_or_that_is_too_short_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(key)
    key.write_bytes(b"x" * 32)
    key.chmod(0o440)
    with pytest.raises(ConfigError, match="others than its owner"):
        read_secret(key)
    key.chmod(0o400)
    key.unlink()
    key.write_bytes(b"x" * 31)
    key.chmod(0o400)
    with pytest.raises(ConfigError, match="32 bytes"):
        read_secret(key)


def test_whoever_is_not_blocked_passes_and_the_answer_names_the_key(authz: Authz) -> None:
    answer = authz.ask(authorization="Bearer sk-1")
    assert (answer.status, answer.key_id, answer.reason) == (200, authz.key_id("sk-1"), "-")
    assert authz.ask().key_id == "-"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-1"},
        {"authorization": "bearer   sk-1 "},
        {"authorization": "Bearer\tsk-1"},
        {"authorization": "Bearer \t sk-1\t"},
        {"x_api_key": "sk-1"},
        {"x_api_key": "Bearer sk-1"},
        {"api_key": "sk-1"},
        {"authorization": "Bearer another", "x_api_key": "sk-1"},
        {"authorization": "Basic YTpi", "api_key": "sk-1"},
    ],
)
def test_a_blocked_key_is_refused_wherever_it_stands(authz: Authz, headers: dict[str, str]) -> None:
    assert authz.ask(**headers).status == 200
    authz.denied.add("key", authz.key_id("sk-1"))
    wait_for(lambda: authz.ask(**headers).status == 403)
    answer = authz.ask(**headers)
    assert answer.reason == "blocked-key"
    assert answer.body == b""
    assert authz.ask(authorization="Bearer sk-2").status == 200
    authz.denied.remove("key", authz.key_id("sk-1"))
    wait_for(lambda: authz.ask(**headers).status == 200)


def test_a_password_is_no_api_key(authz: Authz) -> None:
    assert authz.ask(authorization="Basic YTpi").key_id == "-"
    assert authz.ask(authorization="Digest username=a").key_id == "-"
    assert authz.ask(authorization="Digest\tusername=a").key_id == "-"
    assert authz.ask(authorization="Bearer").key_id == "-"
    assert authz.ask(authorization="").key_id == "-"


@pytest.mark.parametrize(
    ("kind", "name", "headers", "reason"),
    [
        ("subject", "alice", {"x_gatewatch_subject": "alice"}, "blocked-subject"),
        ("any", "alice", {"x_gatewatch_subject": "alice"}, "blocked-subject"),
        ("certificate", "CN=a b:c", {"x_gatewatch_certificate": "CN=a b:c"}, "blocked-certificate"),
        ("address", "203.0.113.7", {"x_gatewatch_client": "203.0.113.7"}, "blocked-client"),
        ("address", "203.0.113.0/24", {"x_gatewatch_client": "203.0.113.9"}, "blocked-client"),
        ("address", "2001:db8::/64", {"x_gatewatch_client": "[2001:db8::5]:443"}, "blocked-client"),
        ("killed", "chat", {}, "kill-switch"),
    ],
)
def test_each_kind_of_block_refuses_and_says_why(
    authz: Authz, kind: str, name: str, headers: dict[str, str], reason: str
) -> None:
    assert authz.ask(**headers).status == 200
    authz.denied.add(kind, name)
    wait_for(lambda: authz.ask(**headers).status == 403)
    assert authz.ask(**headers).reason == reason
    assert authz.ask("other", x_gatewatch_subject="bob", x_gatewatch_client="192.0.2.1").status == 200


def test_the_client_is_named_by_trusted_proxies_alone(authz: Authz) -> None:
    authz.denied.add("address", "203.0.113.7")
    wait_for(lambda: authz.ask(x_gatewatch_client="203.0.113.7").status == 403)
    proxy = "198.51.100.140"
    refused = [
        {"x_gatewatch_client": proxy, "x_forwarded_for": "203.0.113.7"},
        {"x_gatewatch_client": proxy, "x_forwarded_for": "192.0.2.5, 203.0.113.7"},
        {"x_gatewatch_client": proxy, "x_forwarded_for": f"203.0.113.7, {proxy}, 198.51.100.141"},
        {"x_forwarded_for": f"203.0.113.7, {proxy}"},
        {"x_forwarded_for": "1.2.3.4, 203.0.113.7"},
        {"x_gatewatch_client": "::ffff:203.0.113.7"},
    ]
    passed = [
        {"x_gatewatch_client": "192.0.2.5", "x_forwarded_for": "203.0.113.7"},
        {"x_gatewatch_client": proxy, "x_forwarded_for": "203.0.113.7, 192.0.2.5"},
        {"x_gatewatch_client": proxy, "x_forwarded_for": "203.0.113.7, rubbish"},
        {"x_forwarded_for": "203.0.113.7, 192.0.2.5"},
        {"x_gatewatch_client": proxy},
        {"x_gatewatch_client": "-"},
        {"x_gatewatch_client": "rubbish"},
    ]
    assert [authz.ask(**headers).status for headers in refused] == [403] * len(refused)
    assert [authz.ask(**headers).status for headers in passed] == [200] * len(passed)


def test_a_long_forwarding_chain_does_not_hide_its_last_address(authz: Authz) -> None:
    authz.denied.add("address", "203.0.113.7")
    chain = ", ".join(["192.0.2.1"] * 3000 + ["203.0.113.7"])
    wait_for(lambda: authz.ask(x_forwarded_for=chain).status == 403)


def test_a_restricted_endpoint_is_for_its_networks_alone(authz: Authz) -> None:
    authz.denied.add("restricted", "chat", 0, ["192.0.2.0/24", "2001:db8::/32"])
    wait_for(lambda: authz.ask(x_gatewatch_client="203.0.113.7").status == 403)
    assert authz.ask(x_gatewatch_client="203.0.113.7").reason == "restricted"
    assert authz.ask().status == 403  # nobody says from whom it is
    assert authz.ask(x_gatewatch_client="192.0.2.9").status == 200
    assert authz.ask(x_gatewatch_client="2001:db8::9").status == 200
    assert authz.ask("embeddings", x_gatewatch_client="203.0.113.7").status == 200
    authz.denied.add("killed", "chat")
    wait_for(lambda: authz.ask(x_gatewatch_client="192.0.2.9").reason == "kill-switch")


def test_a_block_ends_by_itself(authz: Authz) -> None:
    authz.denied.add("subject", "alice", time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_500_000_000)
    wait_for(lambda: authz.ask(x_gatewatch_subject="alice").status == 403)
    wait_for(lambda: authz.ask(x_gatewatch_subject="alice").status == 200)


def test_of_a_header_that_comes_twice_no_value_hides_the_other(authz: Authz) -> None:
    authz.denied.add("subject", "alice")
    wait_for(lambda: authz.ask(x_gatewatch_subject="alice").status == 403)
    for first, second in (("alice", "bob"), ("bob", "alice")):
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", authz.port, timeout=30)
        connection.putrequest("GET", "/authz/chat")
        connection.putheader("X-Gatewatch-Subject", first)
        connection.putheader("X-Gatewatch-Subject", second)
        connection.endheaders()
        assert connection.getresponse().status == 403
        connection.close()


def test_an_unknown_list_lets_pass_or_refuses_as_configured_and_what_was_known_holds(authz: Authz) -> None:
    authz.denied.add("subject", "alice")
    wait_for(lambda: authz.ask(x_gatewatch_subject="alice").status == 403)
    authz.denied.replace(boot_id="another")
    wait_for(lambda: authz.ask("vault").status == 403)
    assert authz.ask("vault").reason == "unknown"
    opened = authz.ask("chat")
    assert (opened.status, opened.reason) == (200, "unknown")
    assert authz.ask("chat", x_gatewatch_subject="alice").reason == "blocked-subject"
    health = ask(authz.port, path="/healthz")
    assert health.status == 503
    document = json.loads(health.body)
    assert not document["deny_list"]["known"]
    assert "before this machine started" in document["deny_list"]["problem"]
    assert document["endpoints"]["chat"]["allowed while unknown"] >= 1
    authz.denied.replace()
    wait_for(lambda: authz.ask("vault").status == 200)


def test_health_counts_what_was_answered_and_why(authz: Authz) -> None:
    authz.denied.add("killed", "vault")
    wait_for(lambda: authz.ask("vault").status == 403)
    authz.ask("chat")
    health = authz.health()
    assert health["deny_list"]["known"]
    assert health["deny_list"]["entries"] == {"killed": 1}
    assert health["deny_list"]["written_s_ago"] >= 0
    assert health["endpoints"]["chat"] == {"allowed": 1}
    assert health["answered"]["kill-switch"] >= 1
    assert health["connections"] >= 1


def test_the_table_of_endpoints_is_bounded(authz: Authz) -> None:
    for number in range(300):
        assert authz.ask(f"e{number}").status == 200
    endpoints = authz.health()["endpoints"]
    assert len(endpoints) <= 257
    assert endpoints["(others)"]["allowed"] >= 40


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/authz/", 404),
        ("/authz/" + "x" * 65, 404),
        ("/authz/chat?a=b", 200),
        ("/authz/chat/v1/completions", 200),
        ("/authz/chat//v1?x", 200),
        ("/healthz?x", 200),
    ],
)
def test_the_endpoint_is_the_second_part_of_the_path(authz: Authz, path: str, status: int) -> None:
    assert ask(authz.port, path=path).status == status


def test_what_follows_the_endpoint_in_the_path_changes_nothing(authz: Authz) -> None:
    authz.denied.add("killed", "chat")
    wait_for(lambda: authz.ask("chat").status == 403)
    for path in (
        "/authz/chat/",
        "/authz/chat/../other",
        "/authz/chat/*",
        "/authz/chat/?other",
        "/authz/chat//other",
    ):
        assert ask(authz.port, path=path).status == 403


def test_any_method_is_answered_without_a_body(authz: Authz) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE", "PATCH"):
        answer = ask(authz.port, method=method)
        assert (answer.status, answer.body) == (200, b"")


def test_header_names_are_the_configured_ones(tmp_path: Path) -> None:
    headers = {"key": ["X-Token"], "subject": ["X-User"], "client": [], "key_id": "X-Key", "reason": ""}
    with Authz(tmp_path, {"headers": headers}) as authz:
        authz.denied.add("subject", "alice")
        wait_for(lambda: authz.ask(x_user="alice").status == 403)
        answer = authz.ask(x_token="sk-1", authorization="Bearer sk-2", x_gatewatch_subject="alice")
        assert answer.status == 200
        assert answer.headers["x-key"] == authz.key_id("sk-1")
        assert answer.reason is None and answer.key_id is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--settings", "[]"], "--settings"),
        (["--settings", '{"when_unknown": "perhaps"}'], "when_unknown"),
        (["--settings", '{"proxies": ["x"]}'], "proxies|does not appear"),
        (["--settings", '{"colour": 1}'], "unknown key colour"),
        (["--settings", '{"headers": {"colour": []}}'], "colour"),
        (["--listen", "nowhere"], "authz.listen"),
        (["--listen", "unix:relative"], "absolute path"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(tmp_path: Path, words: list[str], says: str) -> None:
    make_secret(tmp_path / "key", None, None)
    given = ["--denied", str(tmp_path / "denied"), "--key-file", str(tmp_path / "key"), *words]
    if "--listen" not in words:
        given += ["--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-m", "gatewatch.daemon.authz", *given], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert any(word in done.stderr for word in says.split("|"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
def test_it_gives_up_root_and_still_reads_what_its_group_may(tmp_path: Path) -> None:
    number = 61_905
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    with Authz(tmp_path, SETTINGS, "--user", str(number), "--parent", str(os.getpid())) as authz:
        assert authz.process is not None
        status = Path(f"/proc/{authz.process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {str(number)}
        assert fields["Groups"].strip() == ""
        assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert fields["NoNewPrivs"] == "1"
        assert not authz.health()["deny_list"]["known"]  # its group may not read it
        os.chown(authz.denied.path, 0, number)
        wait_for(lambda: bool(authz.health()["deny_list"]["known"]))


def test_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, gatewatch.daemon.authz.__main__;"
        "print([m for m in ('numpy', 'pydantic', 'typer', 'msgspec', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_reads_a_key_from_its_input_and_prints_its_id(tmp_path: Path) -> None:
    (tmp_path / "authz").mkdir()
    make_secret(tmp_path / "authz" / "key", None, None)

    def run(given: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
        code = "import sys; from gatewatch.daemon.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "authz", "key-id", "--state", str(tmp_path), *words]
        return subprocess.run(command, input=given, capture_output=True, timeout=60)

    wanted = key_id(read_secret(tmp_path / "authz" / "key"), b"sk-1")
    assert run(b"sk-1\n").stdout.decode() == f"{wanted}\n"
    assert json.loads(run(b" sk-1", "--json").stdout) == {"key_id": wanted, "user": f"key:{wanted}"}
    for given in (b"", b"\n", b"a\nb\n", b"x" * 70_000):
        assert run(given).returncode == 2
    assert run(b"", "sk-1").returncode == 2  # never from the arguments
    (tmp_path / "authz" / "key").unlink()
    missing = run(b"sk-1")
    assert missing.returncode == 2 and b"authz.listen" in missing.stderr
