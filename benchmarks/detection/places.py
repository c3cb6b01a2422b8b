"""The invented internet of `networks.py` as a database in MaxMind's format, and a configuration that names it."""

from __future__ import annotations

from pathlib import Path

from .networks import table

ACCURACY_KM = 50


def write_database(path: Path) -> None:
    """Countries, places and autonomous systems in one file. Raises ImportError where mmdb_writer is missing."""
    import mmdb_writer
    import netaddr

    writer = mmdb_writer.MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Invented-City-ASN")
    for row in table():
        writer.insert_network(
            netaddr.IPSet([row["network"]]),
            {
                "country": {"iso_code": row["country"]},
                "location": {
                    "latitude": row["latitude"],
                    "longitude": row["longitude"],
                    "accuracy_radius": ACCURACY_KM,
                },
                "autonomous_system_number": row["asn"],
            },
        )
    writer.to_db_file(str(path))


def write_config(folder: Path) -> Path:
    """Both files, in that folder."""
    database, config = folder / "places.mmdb", folder / "gatewatch.yaml"
    write_database(database)
    config.write_text(f"detection:\n  geo:\n    city: {database.name}\n", encoding="utf-8")
    return config
