"""Who may do what with the enforcer: two people, signatures, ends that come by themselves, and who is told."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, FRONT, RAILS, Rig, flows, stopped
from gatewatch.daemon.enforcer import signatures
from gatewatch.daemon.enforcer.state import Moment, State
from lab.lab import HOSTS, Lab, wait_for

ALICE, BOB = 61_301, 61_302
GROUP = [0]  # the rig's operators are the group root
ATTACKER = HOSTS["attacker"].v4
SEED = bytes(range(32))
KEY = signatures.public_key(SEED)
TWO = 'two_people = ["release", "unblock"]\n' + RAILS
SIGNERS = RAILS + (
    f'[[signer]]\nname = "carol"\npublic_key = "{KEY}"\n'
    f'[[signer]]\nname = "alice"\npublic_key = "{signatures.public_key(bytes(32))}"\nuid = {ALICE}\n'
)


@pytest.fixture
def rig(bare: Lab, request: pytest.FixtureRequest) -> Iterator[Rig]:
    marker = request.node.get_closest_marker("rails")
    with Rig(bare, marker.args[0] if marker else RAILS) as rig:
        yield rig


def kill(**fields: Any) -> dict[str, Any]:
    return {"request": "kill", "endpoints": ["models"], "reason": "test", "probe": 0, **fields}


RELEASE = {"request": "release", "endpoints": ["models"], "reason": "over"}


@pytest.mark.lab
@pytest.mark.rails(TWO)
def test_a_release_takes_two_different_people(rig: Rig) -> None:
    (engaged,) = rig.ask_as(ALICE, kill(), groups=GROUP)
    assert engaged["ok"] and engaged["proven"]
    (asked,) = rig.ask_as(ALICE, RELEASE, groups=GROUP)
    name = asked["pending"]
    assert asked["needs"] == 1
    again, granted = rig.ask_as(ALICE, RELEASE, {"request": "grant", "id": name}, groups=GROUP)
    assert again["pending"] == name
    assert granted["rail"] == "two_people"
    (analyser,) = rig.ask_as(ANALYSER_UID, {"request": "grant", "id": name})
    assert analyser["rail"] == "two_people"
    assert rig.enforcer().status()["kills"]
    listed, granted = rig.ask_as(
        BOB, {"request": "approvals"}, {"request": "grant", "id": name}, groups=GROUP
    )
    assert [(a["id"], a["by"], a["endpoints"]) for a in listed["approvals"]] == [
        (name, f"uid {ALICE}", ["models"])
    ]
    assert granted["released"] == ["models"]
    assert rig.enforcer().status()["kills"] == []
    by = next(e["by"] for e in rig.journal() if e["do"] == "release")
    assert by == f"uid {ALICE}, granted by uid {BOB}"


@pytest.mark.lab
@pytest.mark.rails(TWO)
def test_the_same_request_by_another_person_is_a_grant_and_a_denied_one_is_gone(rig: Rig) -> None:
    rig.ask_as(ALICE, kill(), groups=GROUP)
    (asked,) = rig.ask_as(ALICE, RELEASE, groups=GROUP)
    denied, late = rig.ask_as(
        BOB,
        {"request": "deny", "id": asked["pending"]},
        {"request": "grant", "id": asked["pending"]},
        groups=GROUP,
    )
    assert denied["denied"] == asked["pending"]
    assert late["rail"] == "approval"
    rig.ask_as(ALICE, RELEASE, groups=GROUP)
    (released,) = rig.ask_as(BOB, {**RELEASE, "reason": "I agree"}, groups=GROUP)
    assert released["released"] == ["models"]


@pytest.mark.lab
@pytest.mark.rails(TWO)
def test_what_waits_survives_a_restart_and_the_commands_show_and_grant_it(rig: Rig) -> None:
    rig.ask_as(ALICE, kill(), groups=GROUP)
    (asked,) = rig.ask_as(ALICE, RELEASE, groups=GROUP)
    rig.stop()
    state = ["--state", str(rig.state)]
    alone = rig.run("approvals", "grant", asked["pending"], *state)
    assert "released models" in alone.stdout, "root is another person, and does it without an enforcer"
    rig.start()
    assert rig.enforcer().status()["kills"] == []
    code, said = rig.command("release", "--endpoint", "models", "--reason", "again")
    assert code == 1 and said["pending"]
    listed = rig.run("approvals", "list", *state)
    assert said["pending"] in listed.stdout
    own = rig.run("approvals", "grant", said["pending"], *state)
    assert own.returncode == 1
    assert "another person" in own.stderr


@pytest.mark.lab
@pytest.mark.rails(TWO)
def test_no_kill_ends_by_itself_where_a_release_takes_two(rig: Rig) -> None:
    (refused,) = rig.ask_as(ALICE, kill(ttl_s=60), groups=GROUP)
    assert refused["rail"] == "two_people"


@pytest.mark.lab
@pytest.mark.rails(TWO)
def test_the_analyser_takes_back_its_own_blocks_alone_and_an_operator_does_not(rig: Rig) -> None:
    block = {"request": "block", "address": ATTACKER, "ttl_s": 600, "reason": "test"}
    unblock = {"request": "unblock", "address": ATTACKER, "reason": "test"}
    _, taken_back, _ = rig.ask_as(ANALYSER_UID, block, unblock, block)
    assert taken_back["unblocked"]
    (asked,) = rig.ask_as(ALICE, unblock, groups=GROUP)
    assert asked["pending"]
    assert rig.enforcer().check(ATTACKER)["blocked"]


@pytest.mark.lab
def test_a_kill_for_a_time_releases_itself_and_says_when(rig: Rig) -> None:
    with rig.serving(FRONT), rig.connect(FRONT) as answer:
        assert flows(answer)
        code, receipt = rig.command("engage", "--endpoint", "models", "--for", "3s", "--reason", "test")
        assert code == 0, receipt
        assert 0 < receipt["ends_s"] <= 3
        assert stopped(answer)
        wait_for("the release", lambda: rig.reaches(FRONT))
    assert rig.journal()[-1]["do"] == "release"
    assert rig.command("status")[1]["kills"] == []


@pytest.mark.lab
def test_a_kill_never_ends_sooner_than_somebody_asked_for(rig: Rig) -> None:
    rig.command("engage", "--endpoint", "models", "--for", "1h", "--reason", "test", "--no-probe")
    rig.command("engage", "--endpoint", "models", "--for", "1s", "--reason", "test", "--no-probe")
    (killed,) = rig.command("status")[1]["kills"]
    assert killed["ends_s"] > 3500
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    rig.command("engage", "--endpoint", "models", "--for", "1s", "--reason", "test", "--no-probe")
    assert rig.command("status")[1]["kills"][0]["ends_s"] is None
    rig.stop()
    rig.start()
    assert rig.command("status")[1]["kills"][0]["ends_s"] is None


def test_the_time_of_a_kill_stands_still_while_the_machine_is_off() -> None:
    state, boots = State(), ("a", "a", "b", "b")
    moments = [
        Moment(wall_s * 10**9, boot_s * 10**9, boot)
        for boot, wall_s, boot_s in zip(
            boots, (0, 10, 500_000_000, 500_000_010), (100, 110, 5, 15), strict=True
        )
    ]
    base = {"by": "x", "reason": "x"}
    state.apply({**moments[0].fields(), "do": "kill", "endpoints": {"m": ["*:1/tcp"]}, "ttl_s": 60, **base})
    for moment, left_s in zip(moments, (60, 50, 50, 40), strict=True):
        assert (state.kills["m"].ends_ns - state.awake_at(moment)) / 10**9 == left_s
        state.apply({**moment.fields(), "do": "tick"})


def signed(rig: Rig, request: dict[str, object], **changed: Any) -> dict[str, object]:
    made = {
        "target": os.uname().nodename if "target" not in changed else changed["target"],
        "sequence": changed.get("sequence", time.time_ns()),
        "nonce": "n",
        "expires": changed.get("expires", int(time.time()) + 60),
        "seed": changed.get("seed", SEED),
    }
    text, signature = signatures.command(request, **made)
    return {
        "request": "signed",
        "command": text,
        "signer": changed.get("signer", "carol"),
        "signature": signature,
    }


@pytest.fixture
def target(rig: Rig) -> str:
    return rig.lab.run_in("gateway", ["uname", "-n"]).stdout.strip()


@pytest.mark.lab
@pytest.mark.rails(SIGNERS)
def test_a_signed_command_is_done_once_whoever_brings_it(rig: Rig, target: str) -> None:
    carried = signed(rig, kill(), target=target)
    first, second = rig.ask_as(ANALYSER_UID, carried, carried)
    assert first["engaged"] == ["models"]
    assert first["by"] == "signer carol"
    assert second["rail"] == "signature"
    assert "used up" in second["refused"]


@pytest.mark.lab
@pytest.mark.rails(SIGNERS)
def test_what_is_not_signed_for_here_and_now_is_refused(rig: Rig, target: str) -> None:
    good = signed(rig, kill(), target=target)
    now = int(time.time())
    wrong = [
        signed(rig, kill(), target="another"),
        signed(rig, kill(), target=target, expires=now - 1),
        signed(rig, kill(), target=target, expires=now + 999_999),
        signed(rig, kill(), target=target, seed=bytes(32)),
        signed(rig, kill(), target=target, signer="mallory"),
        signed(rig, {"request": "status"}, target=target),
        signed(rig, {**kill(), "endpoints": "models"}, target=target),
        {**good, "command": str(good["command"]).replace("models", "spared")},
        {**good, "signature": "AAAA"},
    ]
    answers = rig.ask_as(ANALYSER_UID, *wrong)
    assert [a["rail"] for a in answers] == ["signature"] * len(wrong)
    assert rig.enforcer().status()["kills"] == []
    assert sum(e["do"] == "refused" for e in rig.journal()) == len(wrong)


@pytest.mark.lab
@pytest.mark.rails('two_people = ["release"]\n' + SIGNERS)
def test_a_signer_is_a_second_person_unless_the_account_is_his_own(rig: Rig, target: str) -> None:
    rig.ask_as(ALICE, kill(), groups=GROUP)
    (asked,) = rig.ask_as(ALICE, RELEASE, groups=GROUP)
    grant = {"request": "grant", "id": asked["pending"]}
    (own,) = rig.ask_as(
        ALICE, signed(rig, grant, target=target, signer="alice", seed=bytes(32)), groups=GROUP
    )
    assert own["rail"] == "two_people"
    (other,) = rig.ask_as(ALICE, signed(rig, grant, target=target), groups=GROUP)
    assert other["released"] == ["models"]


@pytest.mark.lab
@pytest.mark.rails(SIGNERS)
def test_a_command_can_be_made_and_carried_by_the_command_line(rig: Rig, target: str, tmp_path: Path) -> None:
    private = tmp_path / "carol.key"
    private.write_bytes(SEED)
    made = rig.run(
        "signed", "make", "kill", "models", "--key", str(private), "--signer", "carol",
        "--target", target, "--reason", "weights are leaving",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    file = tmp_path / "command.json"
    file.write_text(made.stdout)
    done = rig.run("signed", "submit", str(file), "--state", str(rig.state))
    assert done.stdout == "engaged models, proven\n"
    again = rig.run("signed", "submit", str(file), "--state", str(rig.state))
    assert again.returncode == 1
    assert "used up" in again.stderr
    key = rig.run("signed", "key", str(tmp_path / "dave"))
    assert 'name = "dave"' in key.stdout
    assert (tmp_path / "dave").stat().st_mode & 0o777 == 0o600
    twice = rig.run("signed", "key", str(tmp_path / "dave"))
    assert "File exists" in twice.stderr


@pytest.mark.lab
def test_a_receipt_is_signed_and_a_changed_one_shows(rig: Rig, tmp_path: Path) -> None:
    code, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    assert code == 0
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(receipt))
    key = rig.command("status")[1]["receipt_key"]
    good = rig.run("kill-switch", "verify", str(file), "--key", key)
    assert good.returncode == 0, good.stderr
    assert "models engaged on" in good.stdout
    other = rig.run("kill-switch", "verify", str(file), "--key", KEY)
    assert other.returncode == 1
    assert "another key" in other.stderr
    file.write_text(json.dumps({**receipt, "connections_after": 7}))
    changed = rig.run("kill-switch", "verify", str(file))
    assert changed.returncode == 1
    assert "does not fit" in changed.stderr
    assert len(base64.b64decode(receipt["signature"])) == 64
    file.write_text("no receipt")
    assert "no JSON object" in rig.run("kill-switch", "verify", str(file)).stderr


@pytest.mark.lab
def test_who_follows_is_told_everything_notable_once_and_in_order(rig: Rig) -> None:
    enforcer = rig.enforcer()
    enforcer.block(ATTACKER, ttl_s=60, reason="by a person")
    news = rig.enforcer().follow(0)
    first = next(news)
    assert (first["ok"], first["oldest"]) == (True, 1)
    assert [next(news)["entry"]["do"] for _ in range(3)] == ["rails", "start", "block"]
    rig.ask_as(
        ANALYSER_UID,
        {"request": "block", "address": "203.0.113.68", "ttl_s": 60, "reason": "its own"},
        {"request": "block", "address": "0.0.0.0/0", "ttl_s": 60, "reason": "a lie"},
        b"no request",
    )
    told = [next(news) for _ in range(2)]
    assert [(t["entry"]["do"], t["entry"]["rail"]) for t in told] == [
        ("refused", "smallest_prefix_ipv4"),
        ("refused", "protocol"),
    ]
    assert told[0]["entry"]["asked"]["address"] == "0.0.0.0/0"
    rig.nft("flush ruleset")
    healed = next(news)
    assert healed["entry"]["do"] == "healed"
    again = rig.enforcer().follow(told[1]["entry"]["seq"])
    next(again)
    assert next(again) == healed
    assert healed["head"] == rig.enforcer().status()["journal"]["head"]


@pytest.mark.lab
def test_strangers_are_noted(rig: Rig) -> None:
    (answer,) = rig.ask_as(60_999, {"request": "status"})
    assert answer["rail"] == "authority"
    (noted,) = [e for e in rig.journal() if e["do"] == "refused"]
    assert (noted["by"], noted["rail"]) == ("uid 60999", "authority")


@pytest.mark.lab
def test_one_who_follows_and_never_reads_holds_nobody_up(rig: Rig) -> None:
    deaf = rig.enforcer()
    deaf.call({"request": "follow", "after": 0})
    for n in range(300):
        rig.enforcer().block(
            f"198.51.{n // 250}.{n % 250 + 1}", ttl_s=60, reason="x" * 400
        ) if n < 40 else None
        if n >= 40:
            with pytest.raises(Exception, match="wider"):
                rig.enforcer().block("0.0.0.0/0", ttl_s=60, reason="x" * 400)
    assert rig.enforcer().status()["blocks"] == 40


@pytest.mark.lab
def test_an_operator_imports_many_blocks_and_each_is_judged(rig: Rig) -> None:
    wanted = [(f"198.51.100.{n}", 600) for n in range(1, 41)]
    wanted += [("203.0.113.70", 60), ("10.0.0.0/8", 60), ("nonsense", 60), ("198.51.100.0/24", 10**9)]
    answer = rig.enforcer().import_blocks(wanted, "from another program")
    assert (answer["imported"], answer["already"], answer["shortened"]) == (41, 0, 1)
    assert [address for address, _ in answer["refused"]] == ["203.0.113.70", "10.0.0.0/8", "nonsense"]
    listed = {b["address"]: b for b in rig.enforcer().blocks()}
    assert len(listed) == 41
    assert 3500 < listed["198.51.100.0/24"]["ttl_s"] <= 3600
    assert "198.51.100.7 " in rig.nft("list set inet gatewatch block4_32")
    again = rig.enforcer().import_blocks([(address, 30) for address, _ in wanted[:5]], "again")
    assert (again["imported"], again["already"]) == (0, 5)
    rig.stop()
    rig.start()
    assert len(list(rig.enforcer().blocks())) == 41
    more = rig.enforcer().import_blocks([(f"192.0.2.{n}", 60) for n in range(201, 230)], "too many")
    assert more["imported"] == 9
    assert {why for _, why in more["refused"]} == {"50 blocks are in force"}
    (refused,) = rig.ask_as(ANALYSER_UID, {"request": "import", "blocks": [], "reason": "x"})
    assert refused["rail"] == "import"


@pytest.mark.lab
def test_while_a_probe_runs_others_are_answered(rig: Rig) -> None:
    done: list[tuple[int, dict[str, Any]]] = []
    with rig.serving(FRONT):
        thread = threading.Thread(
            target=lambda: done.append(rig.command("engage", "--endpoint", "models", "--reason", "test"))
        )
        thread.start()
        wait_for("the rules", lambda: "8443" in rig.nft("list ruleset"))
        assert rig.enforcer().status()["kills"]
        thread.join()
    code, receipt = done[0]
    assert code == 0, receipt
    assert {p["verdict"] for p in receipt["probes"]} == {"dropped", "not probed"}, receipt["probes"]
