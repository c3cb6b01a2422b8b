"""Runs CrowdSec of Debian over a stored log, with the parsers and the SSH scenarios that its package
enables.

Everything that it writes is in a folder of its own: configuration, database, a credential for its local
API, which listens on loopback while the run lasts. No central API, no service, nothing of the installed
configuration is touched. It may be installed, or unpacked somewhere (`dpkg -x crowdsec_*.deb DIRECTORY`)
that `CROWDSEC_ROOT` names.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
from pathlib import Path

PARSERS = (
    "parsers/s00-raw/crowdsecurity/syslog-logs.yaml",
    "parsers/s01-parse/crowdsecurity/sshd-logs.yaml",
    "parsers/s02-enrich/crowdsecurity/dateparse-enrich.yaml",
    "parsers/s02-enrich/crowdsecurity/whitelists.yaml",
)
SCENARIOS = ("scenarios/crowdsecurity/ssh-bf.yaml", "scenarios/crowdsecurity/ssh-slow-bf.yaml")

CONFIG = """
common: {{daemonize: false, log_media: stdout, log_level: error, working_dir: {folder}}}
config_paths:
  config_dir: {folder}/etc/
  data_dir: {folder}/data/
  simulation_path: {folder}/etc/simulation.yaml
  hub_dir: {folder}/hub/
  index_path: {folder}/hub/.index.json
  notification_dir: {folder}/etc/notifications/
  plugin_dir: {folder}/plugins/
crowdsec_service: {{acquisition_path: {folder}/etc/acquis.yaml, parser_routines: 1}}
cscli: {{output: raw}}
db_config: {{log_level: error, type: sqlite, db_path: {folder}/data/crowdsec.db}}
api:
  client: {{credentials_path: {folder}/etc/local_api_credentials.yaml}}
  server:
    log_level: error
    listen_uri: "127.0.0.1:{port}"
    profiles_path: {folder}/etc/profiles.yaml
    console_path: {folder}/etc/console.yaml
prometheus: {{enabled: false}}
"""


def root() -> Path | None:
    """Where CrowdSec is: an unpacked package, or the system; None where it is neither."""
    named = os.environ.get("CROWDSEC_ROOT")
    place = Path(named) if named else Path("/")
    return (
        place
        if (place / "usr/bin/crowdsec").exists() and (place / "usr/share/crowdsec/hub").exists()
        else None
    )


def prepare(place: Path, folder: Path) -> Path:
    """A configuration of its own in `folder`; where it is."""
    for name in ("etc/notifications", "data", "plugins"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(place / "usr/share/crowdsec/hub", folder / "hub")
    shutil.copytree(place / "etc/crowdsec/patterns", folder / "etc/patterns")
    for name in (*PARSERS, *SCENARIOS):
        stage = name.replace("crowdsecurity/", "")
        (folder / "etc" / stage).parent.mkdir(parents=True, exist_ok=True)
        (folder / "etc" / stage).symlink_to(folder / "hub" / name)
    for name in ("simulation.yaml", "profiles.yaml"):
        shutil.copy(place / "etc/crowdsec" / name, folder / "etc" / name)
    (folder / "etc/console.yaml").write_text(
        "share_manual_decisions: false\nshare_custom: false\nshare_tainted: false\n"
    )
    (folder / "etc/acquis.yaml").write_text("")
    (folder / "etc/local_api_credentials.yaml").write_text("")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, port=free_port()))
    cscli = [str(place / "usr/bin/cscli"), "-c", str(config)]
    run([*cscli, "machines", "add", "benchmark", "--force", "--password", secrets.token_hex(16)])
    return config


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(command: list[str]) -> str:
    """Raises RuntimeError with the last that it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {(done.stdout + done.stderr).strip()[-800:]}")
    return done.stdout


def alerts(place: Path, log: Path, folder: Path) -> list[tuple[str, str, str]]:
    """When, which source, which scenario, of each alert, in the log's own time."""
    config = prepare(place, folder)
    run(
        [
            str(place / "usr/bin/crowdsec"),
            "-c",
            str(config),
            "-dsn",
            f"file://{log}",
            "-type",
            "syslog",
            "-no-capi",
        ]
    )
    with sqlite3.connect(f"file:{folder}/data/crowdsec.db?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT stopped_at, source_value, scenario FROM alerts ORDER BY stopped_at, id"
        )
        return [(str(at), str(source), str(scenario)) for at, source, scenario in rows]


if __name__ == "__main__":
    import sys
    import tempfile

    found = root()
    if found is None:
        sys.exit(
            "CrowdSec is not installed: apt-get install crowdsec, or unpack its package and name it in CROWDSEC_ROOT"
        )
    with tempfile.TemporaryDirectory() as temporary:
        for alert in alerts(found, Path(sys.argv[1]).resolve(), Path(temporary)):
            print(json.dumps(alert))
