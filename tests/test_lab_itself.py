"""The lab is what it says it is, before anything is concluded from what happens in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import janitor
from lab.lab import HOSTS, PASSWORDS, Lab, answers, read, wait_for

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"]


def test_wrong_passwords_are_logged_with_the_attackers_address(lab: Lab) -> None:
    refused = lab.ssh("attacker", "alice", ["guess"])
    assert refused.returncode != 0
    said = wait_for(
        "the line in auth.log",
        lambda: [line for line in read(lab.log / "auth.log").splitlines() if "Failed password" in line],
    )
    assert f"Failed password for alice from {HOSTS['attacker'].v4} port " in said[0]
    assert "pam_unix(sshd:auth): authentication failure" in read(lab.log / "auth.log")


def test_a_client_who_mistypes_twice_logs_in_at_the_third_try_over_either_family(lab: Lab) -> None:
    for address in (GATEWAY.v4, GATEWAY.v6):
        said = lab.ssh("client", "alice", ["typo", "tpyo", PASSWORDS["alice"]], "hostname", address=address)
        assert said.stdout == "gateway\n", said.stderr
    log = read(lab.log / "auth.log")
    assert f"Accepted password for alice from {HOSTS['client'].v6} port" in log
    assert log.count("Failed password for alice") == 4 or "message repeated" in log


def test_the_model_streams_to_who_has_a_key_and_refuses_who_has_none(lab: Lab) -> None:
    ask = [
        "curl",
        "-sN",
        "-m",
        "10",
        "-w",
        "%{http_code}",
        "-d",
        '{"max_tokens": 20, "tokens_per_second": 500}',
    ]
    address = f"http://{GATEWAY.v4}/v1/completions"
    told = lab.run_in("client", [*ask, "-H", "Authorization: Bearer sk-lab-alice", address]).stdout
    tokens = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert [token["n"] for token in tokens] == list(range(20))
    assert told.endswith("[DONE]\n\n200")
    assert lab.run_in("client", [*ask, address]).stdout.endswith("401")
    log = lab.log / "nginx" / "access.log"
    wait_for("nginx's lines", lambda: len(read(log).splitlines()) == 2)
    lines = read(log).splitlines()
    assert [line.split('"')[2].split()[0] for line in lines] == ["200", "401"]
    assert " key=alice model=lab-7b " in lines[0] and " key=- " in lines[1]
    assert {json.loads(line)["api_key_id"] for line in read(lab.log / "nginx/access.json").splitlines()} == {
        "alice",
        "-",
    }


def test_the_management_session_stays_open(lab: Lab) -> None:
    session = lab.management_session()
    session.say("still here")


def test_nothing_leads_out_of_the_lab(lab: Lab) -> None:
    for host in ("router", *HOSTS):
        links = json.loads(lab.run_in(host, ["ip", "-j", "-d", "link"]).stdout)
        kinds = {link.get("linkinfo", {}).get("info_kind", link["link_type"]) for link in links}
        assert kinds == {"veth", "loopback"}
    ends = json.loads(lab.run_in("router", ["ip", "-j", "link"]).stdout)
    assert {end["ifname"] for end in ends} == {"lo", *(f"to-{host}" for host in HOSTS)}


def test_accounts_and_logs_exist_only_in_the_lab(lab: Lab) -> None:
    assert "alice" in lab.run_in("gateway", ["cat", "/etc/passwd"]).stdout
    assert "/home/alice:" not in Path("/etc/passwd").read_text()
    assert oct((lab.log / "auth.log").stat().st_mode & 0o777) == "0o640"


def test_two_labs_stand_side_by_side_and_leave_nothing(root: None) -> None:
    with Lab(services=False) as one, Lab(services=False) as other:
        prefixes = one.prefix, other.prefix
        with other.inside("gateway"):
            assert not answers(HOSTS["client"].v4, 22)
        assert janitor.namespaces(one.prefix) and janitor.namespaces(other.prefix)
    for prefix in prefixes:
        assert janitor.namespaces(prefix) == []
    assert not one.folder.exists() and not other.folder.exists()


def test_a_lab_does_not_outlive_a_builder_that_was_killed(root: None, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from lab.lab import Lab\n"
        "lab = Lab(services=False); lab.__enter__()\n"
        "print(lab.prefix, lab.folder, flush=True)\n"
        "import signal; signal.pause()\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert builder.stdout is not None
    prefix, folder = builder.stdout.readline().split()
    assert janitor.namespaces(prefix)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    wait_for("the namespaces' end", lambda: not janitor.namespaces(prefix))
    wait_for("the folder's end", lambda: not Path(folder).exists())


def test_a_wait_that_is_not_met_says_what_for() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="the moon"):
        wait_for("the moon", lambda: False, limit_s=0.05)
    assert time.monotonic() - begun >= 0.05
