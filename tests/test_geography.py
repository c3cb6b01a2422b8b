"""Databases of places: what is read of them, what hostile and damaged ones do, and how a new file is taken."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import mmdb_writer
import netaddr
import numpy as np
import pytest
from gatewatch.config.loader import load
from gatewatch.config.schema import Config
from gatewatch.daemon.assembly import build_geography
from gatewatch.daemon.doctor import examine
from gatewatch.daemon.errors import ConfigError
from gatewatch.daemon.events import address_columns
from gatewatch.daemon.geography import ACCURACY_KM, MOST_CACHED, Geography, country_number, country_text
from gatewatch.detectors.profiles import unpacked

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from detection.places import write_config, write_database


def database(path: Path, rows: dict[str, Any], version: int = 6) -> Path:
    writer = mmdb_writer.MMDBWriter(ip_version=version, ipv4_compatible=version == 6, database_type="Test")
    for network, record in rows.items():
        writer.insert_network(netaddr.IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def place(country: str, latitude: Any = 10.5, longitude: Any = -20.25, **more: Any) -> dict[str, Any]:
    return {
        "country": {"iso_code": country},
        "location": {"latitude": latitude, "longitude": longitude, **more},
    }


def look(geography: Geography, *addresses: str) -> list[tuple[str, int, Any, int]]:
    """Country, autonomous system, place in degrees (None where unknown), accuracy of each address."""
    columns = [address_columns(text) for text in addresses]
    address = np.array([[high, low] for _, high, low in columns], np.uint64).reshape(-1, 2)
    country, system, places = geography.columns(address, np.array([f for f, _, _ in columns], np.uint8))
    made = []
    for at in range(len(addresses)):
        latitude, longitude = unpacked(int(places[at, 0]))
        where = (latitude / 1e4, longitude / 1e4) if places[at, 0] else None
        made.append((country_text(int(country[at])), int(system[at]), where, int(places[at, 1])))
    return made


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    rows = {"192.0.2.0/24": place("DE", accuracy_radius=20), "2001:db8::/32": place("FR", 48.85, 2.35)}
    systems = {"192.0.2.0/25": {"autonomous_system_number": 64500}}
    return database(tmp_path / "city.mmdb", rows), database(tmp_path / "asn.mmdb", systems, version=4)


def test_both_databases_answer(two: tuple[Path, Path]) -> None:
    found = look(
        Geography(*two), "192.0.2.1", "192.0.2.200", "198.51.100.1", "2001:db8:5::1", "0:0:c000:201::"
    )
    assert found == [
        ("DE", 64500, (10.5, -20.25), 20),
        ("DE", 0, (10.5, -20.25), 20),
        ("", 0, None, 0),
        ("FR", 0, (48.85, 2.35), ACCURACY_KM),
        ("", 0, None, 0),
    ]


def test_either_may_be_left_out(two: tuple[Path, Path]) -> None:
    assert look(Geography(two[0], None), "192.0.2.1") == [("DE", 0, (10.5, -20.25), 20)]
    assert look(Geography(None, two[1]), "192.0.2.1") == [("", 64500, None, 0)]
    assert look(Geography(None, two[1]), "2001:db8::1") == [("", 0, None, 0)]
    assert look(Geography(*two)) == []


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"country": "DE", "location": []},
        {"country": {"iso_code": "de"}, "location": {"latitude": "1", "longitude": 2.0}},
        {"country": {"iso_code": "DEU"}, "location": {"latitude": 91.0, "longitude": 2.0}},
        {"country": {"iso_code": 7}, "location": {"latitude": 1.0}},
        {"country": {"iso_code": "\x1b["}, "location": {"latitude": float("nan"), "longitude": 2.0}},
        {"country": {"iso_code": "ÄÖ"}, "autonomous_system_number": 1 << 40},
        {
            "country": [],
            "autonomous_system_number": "64500",
            "location": {"latitude": float("inf"), "longitude": 0.0},
        },
        ["DE"],
        "DE",
    ],
)
def test_what_makes_no_sense_in_a_record_is_unknown(tmp_path: Path, record: Any) -> None:
    path = database(tmp_path / "odd.mmdb", {"192.0.2.0/24": record})
    assert look(Geography(path, path), "192.0.2.1") == [("", 0, None, 0)]


def test_an_accuracy_that_makes_no_sense_is_a_hundred_kilometres(tmp_path: Path) -> None:
    rows = {f"192.0.{n}.0/24": place("DE", accuracy_radius=a) for n, a in enumerate((0, 30_000, "5", 7))}
    found = look(Geography(database(tmp_path / "c.mmdb", rows), None), *(f"192.0.{n}.1" for n in range(4)))
    assert [accuracy for _, _, _, accuracy in found] == [100, 100, 100, 7]


@pytest.mark.parametrize(
    "content",
    [b"", b"no database", b"\xab\xcd\xefMaxMind.com", b"\xab\xcd\xefMaxMind.com\xe0", os.urandom(5000)],
)
def test_a_file_that_is_none_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mmdb"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.mmdb") as caught:
        Geography(path, None)
    assert caught.value.remedy


def test_a_file_that_is_not_there_or_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.mmdb: No such file"):
        Geography(None, tmp_path / "none.mmdb")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Geography(tmp_path, None)


def test_damage_anywhere_is_an_error_or_an_unknown_place_and_nothing_worse(two: tuple[Path, Path]) -> None:
    good = two[0].read_bytes()
    chance = random.Random(7)
    opened = 0
    for _ in range(600):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        two[0].write_bytes(bad[: chance.randint(len(bad) // 2, len(bad))] if chance.random() < 0.2 else bad)
        try:
            geography = Geography(two[0], None)
        except ConfigError as error:
            assert "city.mmdb" in error.message
            continue
        opened += 1
        found = look(geography, "192.0.2.1", "203.0.113.1", "2001:db8::1", "ffff:ffff::1")
        assert all(len(country) in (0, 2) and system >= 0 for country, system, _, _ in found)
    assert opened > 50


def test_damage_is_said_once(two: tuple[Path, Path]) -> None:
    good = bytearray(two[0].read_bytes())
    at = good.index(b"iso_code")
    good[at - 1] = 0x5E  # the length of the text: more than there is
    two[0].write_bytes(good)
    geography = Geography(two[0], None)
    assert look(geography, "192.0.2.1") == [("", 0, None, 0)]
    (said,) = geography.refresh()
    assert "city.mmdb: damaged" in said
    look(geography, "192.0.2.2")
    assert geography.refresh() == []


def test_a_replaced_file_is_taken_and_a_bad_one_is_not(two: tuple[Path, Path], tmp_path: Path) -> None:
    geography = Geography(two[0], None)
    assert look(geography, "192.0.2.1")[0][0] == "DE"
    database(tmp_path / "new", {"192.0.2.0/24": place("SE")}).replace(two[0])
    assert look(geography, "192.0.2.1")[0][0] == "DE"
    assert geography.refresh() == []
    assert look(geography, "192.0.2.1")[0][0] == "SE"
    (tmp_path / "new").write_bytes(b"half a download")
    (tmp_path / "new").replace(two[0])
    (said,) = geography.refresh()
    assert "city.mmdb" in said and "stays in use" in said
    assert geography.refresh() == []
    assert look(geography, "192.0.2.1")[0][0] == "SE"
    two[0].unlink()
    (said,) = geography.refresh()
    assert "No such file" in said
    database(two[0], {"192.0.2.0/24": place("NO")})
    assert geography.refresh() == []
    assert look(geography, "192.0.2.1")[0][0] == "NO"


def test_a_patient_one_waits_for_its_file(two: tuple[Path, Path], tmp_path: Path) -> None:
    late = tmp_path / "late.mmdb"
    geography = Geography(late, two[1], patient=True)
    (said,) = geography.refresh()
    assert "late.mmdb: No such file" in said and "no place is known from it" in said
    assert look(geography, "192.0.2.1") == [("", 64500, None, 0)]
    assert geography.refresh() == []
    two[0].rename(late)
    assert geography.refresh() == []
    assert look(geography, "192.0.2.1") == [("DE", 64500, (10.5, -20.25), 20)]


def test_a_file_that_shrinks_while_it_is_in_use_ends_nothing(two: tuple[Path, Path]) -> None:
    geography = Geography(two[0], None)
    os.truncate(two[0], 0)
    assert look(geography, "192.0.2.1")[0][0] == "DE"


def test_the_cache_is_bounded(two: tuple[Path, Path]) -> None:
    geography = Geography(two[0], None)
    n = MOST_CACHED + 5000
    address = np.stack([np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)], axis=1)
    geography.columns(address, np.full(n, 4, np.uint8))
    assert len(geography._cache) == MOST_CACHED


def test_a_country_is_a_number_of_sixteen_bits() -> None:
    assert country_text(country_number("DE")) == "DE"
    assert country_number("ZZ") < 1 << 16
    assert country_number("") == 0


def configured(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "gatewatch.yaml"
    file.write_text(text)
    return load(file)


def test_the_configuration_names_the_files_relative_to_itself(two: tuple[Path, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, "detection:\n  geo:\n    city: city.mmdb\n    asn: asn.mmdb\n")
    geography = build_geography(config)
    assert geography is not None
    assert list(geography.built()) == list(two)
    assert build_geography(None) is None
    assert build_geography(configured(tmp_path, "mode: observe\n")) is None


def test_doctor_says_that_there_is_none_and_that_one_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(config: Config) -> list[tuple[str, str]]:
        checks = examine(config, socket=tmp_path / "none.sock")
        return [(c.state, c.detail) for c in checks if c.check == "places" or "mmdb" in c.detail]

    ((state, detail),) = said(configured(tmp_path, "mode: observe\n"))
    assert state == "ok" and "no database" in detail
    config = configured(tmp_path, "detection:\n  geo:\n    city: city.mmdb\n")
    assert [state for state, _ in said(config)] == ["fail"]
    database(tmp_path / "city.mmdb", {"192.0.2.0/24": place("DE")})
    ((state, detail),) = said(config)
    assert state == "ok" and "city.mmdb, made 0 days ago" in detail
    later = time.time() + 61 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert [state for state, _ in said(config)] == ["warn"]


def test_the_invented_internet_of_the_benchmark_is_such_a_database(tmp_path: Path) -> None:
    write_database(tmp_path / "places.mmdb")
    found = look(Geography(tmp_path / "places.mmdb", None), "91.33.7.7", "2a02:8109:1:2::3", "10.20.0.1")
    assert found == [("DE", 64601, (52.52, 13.4), 50)] * 2 + [("", 0, None, 0)]
    config = load(write_config(tmp_path))
    assert build_geography(config) is not None
