"""`rails.toml`: what it may say, and what is said of it where it is wrong."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from gatewatch.daemon.enforcer.protocol import REQUESTS, MalformedError, encode
from gatewatch.daemon.enforcer.protocol import parse as parse_message
from gatewatch.daemon.enforcer.rails import (
    PREFIXES,
    ROOT,
    Limits,
    Service,
    load,
    network_of,
    parse,
    refusal,
    service_of,
)
from gatewatch.daemon.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

MANAGED = parse('management = ["192.0.2.0/24", "2001:db8:ffff::/48"]\nnever_block = ["203.0.113.128/25"]')


def test_an_empty_file_has_the_defaults() -> None:
    rails = parse("")
    assert rails.limits == Limits(100_000, 600, 604_800, 24, 48)
    assert (rails.management, rails.never_block, rails.proxies, rails.endpoints) == ((), (), (), ())


def test_the_shipped_file_is_valid_and_every_default_in_it_is_true(repository: Path) -> None:
    text = (repository / "config" / "rails.toml").read_text()
    rails = parse(text)
    assert rails.limits == Limits()
    lines = (line.removeprefix("# ") for line in text.splitlines())
    keys = (
        'management = ["',
        "most_",
        "longest_",
        "smallest_",
        "[",
        "name =",
        "criticality",
        "fronts",
        "backs",
        "kill_",
        "cut_helper",
        "accounts_helper",
        'never_block_users = ["',
        "allowed",
        "restrict_without_person",
        "namespaces =",
        "public_key",
        "run =",
        "undo =",
        "timeout_s",
    )
    shown = parse("\n".join(line for line in lines if line.startswith(keys)))
    assert shown.limits == Limits()
    (endpoint,) = shown.endpoints
    assert endpoint.kill_switch
    assert not endpoint.kill_without_person
    assert endpoint.namespaces == ("/run/netns/models", "/run/docker/netns/*")
    assert [s.name for s in shown.signers] == ["alice"]
    assert [(c.name, c.timeout_s) for c in shown.commands] == [("page", 10)]
    assert not shown.two_people and not shown.cut_helper and not shown.accounts_helper
    assert shown.never_block_users == (ROOT, ("any", "breakglass"), ("key", "k-0011223344556677"))
    assert endpoint.allowed == (ip_network("203.0.113.0/24"),) and not endpoint.restrict_without_person
    assert [str(s) for s in endpoint.services] == ["*:443/tcp", "[2001:db8::1]:443/udp", "127.0.0.1:8000/tcp"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('managment = ["192.0.2.0/24"]', "key managment: unknown key"),
        ('management = "192.0.2.0/24"', "key management: a list"),
        ("management = [7]", "key management: 7"),
        ('management = ["192.0.2.1/24"]', "key management: '192.0.2.1/24'"),
        ('never_block = ["gateway.example"]', "key never_block: 'gateway.example'"),
        ("operators = 7", "key operators: text in quotes"),
        ("[limits]\nmost_blocks = 0", "key limits.most_blocks: a whole number from 1"),
        ("[limits]\nmost_blocks = true", "key limits.most_blocks"),
        ("[limits]\nsmallest_prefix_ipv4 = 8", "key limits.smallest_prefix_ipv4: a whole number from 24"),
        ("[limits]\nmost = 1", "key limits.most: unknown key"),
        ("endpoint = 7", "key endpoint"),
        ("[[endpoint]]", "key endpoint[0].name"),
        ('[[endpoint]]\nname = "a b"', "key endpoint[0].name"),
        ('[[endpoint]]\nname = "a"', "key endpoint[0].fronts: at least one"),
        ('[[endpoint]]\nname = "a"\nfronts = ["*:443"]', "key endpoint[0].fronts: '*:443'"),
        (
            '[[endpoint]]\nname = "a"\nfronts = ["*:0/tcp"]',
            "key endpoint[0].fronts: '*:0/tcp': '0' is no port",
        ),
        ('[[endpoint]]\nname = "a"\nfronts = ["*:443/sctp"]', "key endpoint[0].fronts"),
        ('[[endpoint]]\nname = "a"\nbacks = ["2001:db8::1:443/tcp"]', "key endpoint[0].backs"),
        (
            '[[endpoint]]\nname = "a"\nfronts = ["*:1/tcp"]\nkill_switch = 1',
            "key endpoint[0].kill_switch: true or",
        ),
        (
            '[[endpoint]]\nname = "a"\nfronts = ["*:1/tcp"]\ncriticality = "low"',
            "key endpoint[0].criticality",
        ),
        ('[[endpoint]]\nname = "a"\nfronts = ["*:1/tcp"]\n' * 2, "two are named 'a'"),
        ('operators = ""\nmanagement = =\n', "line 2"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        parse(text, "/etc/gatewatch/rails.toml")
    assert "/etc/gatewatch/rails.toml" in str(wrong.value)
    assert key in str(wrong.value)


@given(st.text(max_size=200))
def test_any_text_is_rails_or_a_configuration_error(text: str) -> None:
    try:
        parse(text)
    except ConfigError:
        pass


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "rails.toml"
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load(path)
    path.chmod(0o644)
    assert load(path).path == str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rails.toml"
    path.write_text("")
    os.chown(path, 65_534, -1)
    with pytest.raises(ConfigError, match="owned by uid 65534"):
        load(path)


def test_a_missing_file_and_bytes_that_are_no_text_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "rails.toml")
    (tmp_path / "rails.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="byte 0"):
        load(tmp_path / "rails.toml")


@given(
    address=st.one_of(st.none(), st.ip_addresses()),
    port=st.integers(1, 65_535),
    protocol=st.sampled_from(["tcp", "udp"]),
)
def test_a_service_reads_back_as_it_is_written(address: object, port: int, protocol: str) -> None:
    if address is not None and "%" in str(address):
        return
    service = Service(address, port, protocol)  # type: ignore[arg-type]
    assert service_of(str(service)) == service


@given(st.ip_addresses(), st.data())
def test_no_block_inside_a_network_that_is_never_blocked_is_let_through(
    address: object, data: st.DataObject
) -> None:
    never = MANAGED.never(((ip_network("198.51.100.7"), "own_address"),))
    network, _ = data.draw(st.sampled_from(never))
    length = data.draw(
        st.sampled_from([p for p in PREFIXES[network.version] if p >= network.prefixlen] or [0])
    )
    if length:
        host = int(network.network_address) | (
            int(ip_address(str(address).partition("%")[0])) & int(network.hostmask)
        )
        inside = ip_network((host, 32 if network.version == 4 else 128)).supernet(new_prefix=length)
        said = refusal(inside, 60, MANAGED, never)
        assert said is not None
        assert said.rail in {w for n, w in never} | {"smallest_prefix_ipv4"}


def test_a_wide_block_around_one_that_is_never_blocked_is_allowed() -> None:
    assert refusal(network_of("203.0.113.0/24"), 60, MANAGED, MANAGED.never()) is None


def test_an_address_with_a_zone_or_mapped_into_ipv6_fools_no_rail() -> None:
    with pytest.raises(ValueError, match="zone"):
        network_of("fe80::1%eth0")
    assert network_of("::ffff:192.0.2.7") == ip_network("192.0.2.7")
    assert network_of("::ffff:192.0.2.0/120") == ip_network("192.0.2.0/24")


@given(st.text(max_size=300))
def test_any_text_reaches_the_enforcer_as_it_was_said_or_is_refused(reason: str) -> None:
    message = {"request": "kill", "endpoints": ["a", "b"], "reason": reason}
    try:
        assert parse_message(encode(message)) == message
    except MalformedError:
        assert not reason or not reason.isprintable() or len(reason) > 500


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        assert parse_message(data)["request"] in REQUESTS
    except MalformedError:
        pass


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists),
    st.sampled_from(list(REQUESTS)),
)
def test_a_field_of_any_type_is_checked(value: object, request: str) -> None:

    for field in (*REQUESTS[request], "other"):
        try:
            parsed = parse_message(json.dumps({"request": request, field: value}).encode())
        except MalformedError:
            continue
        assert type(parsed[field]) in (str, int, list)
