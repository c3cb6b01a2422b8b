"""Networks of an autonomous system: which are told, how many, and what a damaged or hostile database does."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path
from typing import Any

import maxminddb
import mmdb_writer
import netaddr
import pytest
from gatewatch.daemon.geography import Geography
from gatewatch.daemon.systems import MOST_ROWS, Systems
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import TreeWriter
from test_geography import database


def system(number: int) -> dict[str, Any]:
    return {"autonomous_system_number": number, "autonomous_system_organization": f"AS {number}"}


ROWS = {
    "192.0.2.0/24": system(64500),
    "198.51.100.0/23": system(64500),
    "203.0.113.0/25": system(64501),
    "203.0.113.128/25": system(64502),
    "10.0.0.0/8": system(64503),
    "2001:db8::/47": system(64500),
    "2001:db8:7::/48": system(64501),
    "2a00::/16": system(64503),
}


@pytest.fixture(params=[24, 28, 32])
def places(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Geography:
    """With records of each size that the format knows."""
    size = request.param
    monkeypatch.setattr(TreeWriter, "_adjust_record_size", lambda tree: setattr(tree, "record_size", size))
    writer = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test")
    for network, record in ROWS.items():
        writer.insert_network(netaddr.IPSet([network]), record)
    path = tmp_path / "asn.mmdb"
    writer.to_db_file(str(path))
    assert maxminddb.open_database(path, maxminddb.MODE_FILE).metadata().record_size == size
    return Geography(None, path, index_systems=True)


def test_all_networks_of_its_system_are_told_its_own_first(places: Geography) -> None:
    found = places.networks_around("198.51.101.7", 256)
    assert found == ["198.51.101.0/24", "192.0.2.0/24", "198.51.100.0/24"]
    assert places.networks_around("192.0.2.0/24", 256) == [
        "192.0.2.0/24",
        "198.51.100.0/24",
        "198.51.101.0/24",
    ]


def test_a_family_is_answered_with_networks_of_that_family(places: Geography) -> None:
    assert places.networks_around("2001:db8:1::5", 256) == ["2001:db8:1::/48", "2001:db8::/48"]
    assert places.networks_around("2001:db8:7:9::/64", 256) == ["2001:db8:7::/48"]


def test_whose_system_nobody_knows_has_none(places: Geography) -> None:
    assert places.networks_around("172.16.0.1", 256) is None
    assert places.networks_around("2001:db9::1", 256) is None
    assert places.networks_around("attacker", 256) is None


def test_a_network_that_two_systems_share_is_told_for_who_asks_alone(places: Geography) -> None:
    assert places.networks_around("203.0.113.1", 256) == ["203.0.113.0/24"]


@pytest.mark.parametrize("address", ["10.1.2.3", "2a00:1::1"])
def test_a_system_that_is_too_large_is_cut_so_that_it_is_seen(places: Geography, address: str) -> None:
    found = places.networks_around(address, 256)
    assert found is not None
    assert len(found) == len(set(found)) == 257


def test_a_database_of_ipv4_alone_knows_nothing_of_ipv6(tmp_path: Path) -> None:
    path = database(tmp_path / "asn.mmdb", {"192.0.2.0/24": system(64500)}, version=4)
    places = Geography(None, path, index_systems=True)
    assert places.networks_around("192.0.2.9", 256) == ["192.0.2.0/24"]
    assert places.networks_around("2001:db8::1", 256) is None


def test_who_did_not_ask_for_the_index_gets_no_answer(tmp_path: Path) -> None:
    path = database(tmp_path / "asn.mmdb", {"192.0.2.0/24": system(64500)})
    assert Geography(None, path).networks_around("192.0.2.9", 256) is None
    assert Geography(path, None, index_systems=True).networks_around("192.0.2.9", 256) is None


def test_a_replaced_database_is_listed_anew(tmp_path: Path) -> None:
    path = database(tmp_path / "asn.mmdb", {"192.0.2.0/24": system(64500)})
    places = Geography(None, path, patient=True, index_systems=True)
    assert places.networks_around("192.0.2.9", 256) is None
    assert places.refresh() == []
    assert places.networks_around("192.0.2.9", 256) == ["192.0.2.0/24"]
    database(tmp_path / "new", {"192.0.2.0/23": system(64500)}).replace(path)
    assert places.refresh() == []
    assert places.networks_around("192.0.2.9", 256) == ["192.0.2.0/24", "192.0.3.0/24"]
    path.write_bytes(b"half a download")
    (said,) = places.refresh()
    assert "stays in use" in said
    assert places.networks_around("192.0.2.9", 256) == ["192.0.2.0/24", "192.0.3.0/24"]


_networks = st.dictionaries(
    st.tuples(st.integers(0, (1 << 24) - 1), st.integers(8, 24)).map(
        lambda n: str(ipaddress.ip_network((n[0] << 8, n[1]), strict=False))
    ),
    st.integers(1, 4),
    min_size=1,
    max_size=12,
)


@given(_networks, st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_what_is_told_is_what_a_look_up_of_each_network_says(rows: dict[str, int], most: int) -> None:
    import io
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = database(Path(folder) / "asn.mmdb", {n: system(s) for n, s in rows.items()}, version=4)
        places = Geography(None, path, index_systems=True)
        content = path.read_bytes()
    stream = io.BytesIO(content)
    stream.name = "asn"
    reader = maxminddb.open_database(stream, maxminddb.MODE_FD)
    for network in rows:
        number = reader.get(network.split("/")[0])["autonomous_system_number"]
        found = places.networks_around(network.split("/")[0], most)
        assert found is not None
        assert len(found) == len(set(found)) <= most + 1
        for told in found:
            assert reader.get(told.split("/")[0])["autonomous_system_number"] == number


def test_damage_anywhere_is_an_error_or_an_answer_and_never_a_hang(tmp_path: Path) -> None:
    path = database(tmp_path / "asn.mmdb", ROWS)
    good = path.read_bytes()
    chance = random.Random(11)
    answered = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            bad[chance.randrange(len(bad) // 2)] = chance.randrange(256)
        path.write_bytes(bad)
        places = Geography(None, path, patient=True, index_systems=True)
        places.refresh()
        found = places.networks_around("192.0.2.1", 256)
        answered += found is not None
        assert found is None or len(found) <= 257
    assert answered


def test_a_tree_whose_branches_lead_back_is_an_error_and_not_walked_for_ever() -> None:
    back = (0).to_bytes(3, "big") * 2
    with pytest.raises(ValueError, match=f"more than {MOST_ROWS:,} networks"):
        Systems(back, nodes=1, record_bits=24, version=4, system=lambda address: 1)
    with pytest.raises(ValueError, match="larger than the file"):
        Systems(back, nodes=2, record_bits=24, version=4, system=lambda address: 1)
    with pytest.raises(ValueError, match="unknown kind"):
        Systems(back, nodes=1, record_bits=23, version=4, system=lambda address: 1)
