"""Restricting an endpoint to its allowed networks, lifting that, and cutting connections without a block."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, BACK, FRONT, OTHER, RAILS, Rig, flows, stopped
from gatewatch.daemon.denied import DenyList
from gatewatch.daemon.enforcer.protocol import MalformedError, parse
from gatewatch.daemon.enforcer.rails import parse as parse_rails
from gatewatch.daemon.enforcer.state import Moment, State
from gatewatch.daemon.errors import ConfigError, RefusedError
from lab.lab import HOSTS, Lab, wait_for

CLIENT, ATTACKER, OUTSIDE = HOSTS["client"], HOSTS["attacker"], HOSTS["outside"]
AUTOMATIC = 8600
ALLOWED = '["198.51.100.0/25", "2001:db8:0:3::/64"]'
CLOSABLE = RAILS.replace(
    f'backs = ["127.0.0.1:{BACK}/tcp"]', f'backs = ["127.0.0.1:{BACK}/tcp"]\nallowed = {ALLOWED}'
).replace(
    "kill_without_person = true",
    'kill_without_person = true\nrestrict_without_person = true\nallowed = ["198.51.100.20/32"]',
)
CLOSABLE = CLOSABLE.replace("kill_switch = false", 'kill_switch = false\nallowed = ["192.0.2.0/24"]')
CLOSABLE = CLOSABLE.replace('fronts = ["*:22/tcp"]', 'fronts = ["*:22/tcp"]\nallowed = ["192.0.2.0/24"]')


@pytest.fixture
def rig(bare: Lab, request: pytest.FixtureRequest) -> Iterator[Rig]:
    marker = request.node.get_closest_marker("rails")
    with Rig(bare, marker.args[0] if marker else CLOSABLE) as rig:
        yield rig


def restrict(*endpoints: str, **fields: Any) -> dict[str, Any]:
    return {"request": "restrict", "endpoints": list(endpoints), "reason": "test", **fields}


def lift(*endpoints: str) -> dict[str, Any]:
    return {"request": "lift", "endpoints": list(endpoints), "reason": "over"}


def restricted(rig: Rig) -> list[str]:
    return [r["endpoint"] for r in rig.enforcer().status()["restrictions"]]


MANY = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(20_000)]


@pytest.mark.lab
@pytest.mark.rails(CLOSABLE.replace(ALLOWED, json.dumps(MANY)))
def test_thousands_of_allowed_networks_are_published_and_told_to_who_follows(rig: Rig) -> None:
    answer = rig.enforcer().restrict(["models"], "leak")
    assert answer["proven"] and answer["allowed_count"] == len(MANY)
    news = rig.enforcer().follow(0)
    next(news)
    told = [entry["entry"] for entry in news]
    (said,) = [entry for entry in told if entry["do"] == "restrict"]
    assert list(said["endpoints"]) == ["models"] and said["reason"] == "leak"
    denied = DenyList(rig.state / "run" / "denied")
    denied.refresh(1)
    while denied.behind:
        denied.refresh(1)
    assert denied.known and set(map(str, denied.restricted("models") or ())) >= set(MANY)
    denied.close()


EVERY = [f"e{n}" for n in range(40)]


@pytest.mark.lab
@pytest.mark.rails(
    RAILS
    + "".join(
        f'[[endpoint]]\nname = "{name}"\nfronts = ["*:{9000 + n}/tcp"]\nallowed = {json.dumps(MANY[:400:2])}\n'
        "restrict_without_person = true\nkill_without_person = true\n"
        for n, name in enumerate(EVERY)
    )
)
def test_long_reasons_of_the_analyser_keep_nobody_from_the_status(rig: Rig) -> None:
    reason = "\U0001f600" * 500
    restricting, killing = rig.ask_as(
        ANALYSER_UID,
        restrict(*EVERY, reason=reason),
        {"request": "kill", "endpoints": EVERY, "reason": reason, "probe": 0},
    )
    assert restricting["restricted"] == EVERY and killing["engaged"] == EVERY
    status = rig.enforcer().status()
    assert [r["endpoint"] for r in status["restrictions"]] == EVERY
    assert [k["endpoint"] for k in status["kills"]] == EVERY
    assert all(r["allowed_count"] == 200 and r["by"] == "analyser" for r in status["restrictions"])


def noted(rig: Rig, do: str) -> list[dict[str, Any]]:
    return [entry for entry in rig.journal() if entry["do"] == do]


@pytest.mark.lab
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_the_allowed_stream_on_and_all_others_are_cut_and_kept_out(rig: Rig, family: str) -> None:
    allowed, other = getattr(CLIENT, family), getattr(ATTACKER, family)
    with rig.serving(FRONT), rig.connect(FRONT, allowed) as kept, rig.connect(FRONT, other) as ended:
        assert flows(kept) and flows(ended)
        answer = rig.enforcer().restrict(["models"], "leak")
        assert answer["proven"], answer
        assert (answer["restricted"], answer["already"], answer["cut"]) == (["models"], [], 1)
        assert answer["allowed"] == ["198.51.100.0/25", "2001:db8:0:3::/64"]
        assert stopped(ended)
        assert flows(kept)
        assert rig.reaches(FRONT, allowed)
        assert rig.unreachable(FRONT, other)
        assert rig.enforcer().lift(["models"], "over")["lifted"] == ["models"]
        assert rig.reaches(FRONT, other)


@pytest.mark.lab
def test_management_proxies_and_this_machine_always_pass(rig: Rig) -> None:
    rig.enforcer().restrict(["models"], "test")
    with rig.serving(FRONT), rig.serving(BACK, "127.0.0.1"):
        assert rig.reaches(FRONT, HOSTS["management"].v4)
        assert rig.reaches(FRONT, HOSTS["balancer"].v4)
        assert rig.reaches(FRONT, HOSTS["gateway"].v4)
        assert rig.unreachable(FRONT, OUTSIDE.v4)
        with (
            rig.lab.inside("gateway"),
            socket.create_connection(("127.0.0.1", BACK), timeout=5) as connection,
        ):
            assert connection.recv(1)


@pytest.mark.lab
def test_other_ports_are_not_touched(rig: Rig) -> None:
    with rig.serving(OTHER), rig.connect(OTHER, ATTACKER.v4) as connection:
        rig.enforcer().restrict(["models"], "test")
        assert flows(connection)
        assert rig.reaches(OTHER, ATTACKER.v4)


@pytest.mark.lab
def test_what_cannot_be_restricted_is_refused_with_its_reason(rig: Rig) -> None:
    for name, rail, said in (
        ("nothing", "endpoint", "there are models, automatic, spared, door"),
        ("spared", "kill_switch", "kill_switch = false"),
        ("door", "management", "the way in for management"),
    ):
        with pytest.raises(RefusedError, match=said) as refused:
            rig.enforcer().restrict([name], "test")
        assert refused.value.rail == rail
    with pytest.raises(RefusedError, match="name an endpoint"):
        rig.enforcer().restrict([], "test")
    assert restricted(rig) == []


@pytest.mark.lab
@pytest.mark.rails(RAILS)
def test_without_allowed_networks_in_the_rails_it_is_refused_and_says_where_to_name_them(rig: Rig) -> None:
    with pytest.raises(RefusedError, match="names no allowed networks") as refused:
        rig.enforcer().restrict(["models"], "test")
    assert refused.value.rail == "allowed"
    assert str(rig.rails) in refused.value.message


@pytest.mark.lab
def test_of_several_endpoints_those_that_can_be_are_restricted_and_the_rest_is_said(rig: Rig) -> None:
    answer = rig.enforcer().restrict(["models", "spared"], "test")
    assert answer["restricted"] == ["models"]
    assert not answer["proven"]
    assert "kill_switch = false" in answer["not_proven"][0]


@pytest.mark.lab
def test_it_is_there_after_a_crash_and_before_the_network_at_boot(rig: Rig) -> None:
    rig.enforcer().restrict(["models"], "leak", incident="INC-7")
    rig.stop(signal.SIGKILL)
    rig.nft("flush ruleset")
    with rig.serving(FRONT):
        assert rig.reaches(FRONT, ATTACKER.v4)
        words = ["--restore-only", "--state", str(rig.state), "--rails", str(rig.rails)]
        done = rig.lab.run_in("gateway", [sys.executable, "-m", "gatewatch.daemon.enforcer", *words])
        assert "restored 1 restrictions" in done.stderr
        assert rig.unreachable(FRONT, ATTACKER.v4)
        assert rig.reaches(FRONT)
        rig.nft("flush ruleset")
        rig.start()
        assert rig.unreachable(FRONT, ATTACKER.v4)
        assert rig.reaches(FRONT)
    (said,) = rig.enforcer().status()["restrictions"]
    assert (said["reason"], said["incident"], said["by"], said["owner"]) == (
        "leak",
        "INC-7",
        "uid 0",
        "operator",
    )
    assert said["kernel"] and said["ends_s"] is None


@pytest.mark.lab
@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table inet gatewatch_restrict",
        "flush chain inet gatewatch_restrict requests",
        "insert rule inet gatewatch_restrict from_0 ip saddr 203.0.113.0/24 return",
        "add table inet gatewatch_restrict { flags dormant; }",
    ],
)
def test_what_others_do_to_its_table_is_mended_at_once(rig: Rig, damage: str) -> None:
    rig.enforcer().restrict(["models"], "test")
    rig.nft(damage)
    wait_for("the mending", lambda: noted(rig, "healed"))
    assert any("gatewatch_restrict" in what for what in noted(rig, "healed")[0]["what"])
    wait_for("the rules", lambda: rig.enforcer().status()["restrictions"][0]["kernel"])
    with rig.serving(FRONT):
        assert rig.unreachable(FRONT, ATTACKER.v4)
        assert rig.reaches(FRONT)


@pytest.mark.lab
def test_a_foreign_table_of_that_name_restricts_nothing(rig: Rig) -> None:
    rig.nft("add table inet gatewatch_restrict")
    wait_for("the mending", lambda: noted(rig, "healed"))
    assert "gatewatch_restrict" not in rig.nft("list tables")


@pytest.mark.lab
def test_the_kill_switch_wins_and_its_release_leaves_the_restriction(rig: Rig) -> None:
    with rig.serving(FRONT):
        rig.enforcer().restrict(["models"], "test")
        rig.enforcer().kill(["models"], "worse")
        assert rig.unreachable(FRONT)
        again = rig.enforcer().restrict(["models"], "test")
        assert again["killed"] == ["models"]
        assert rig.unreachable(FRONT)
        rig.enforcer().release(["models"], "better")
        assert rig.reaches(FRONT)
        assert rig.unreachable(FRONT, ATTACKER.v4)
        assert restricted(rig) == ["models"]


@pytest.mark.lab
def test_it_ends_by_itself_after_its_time(rig: Rig) -> None:
    with rig.serving(FRONT):
        answer = rig.enforcer().restrict(["models"], "test", ttl_s=1)
        assert answer["ends_s"] in (0, 1)
        wait_for("the end", lambda: noted(rig, "lift"))
        assert noted(rig, "lift")[0]["by"] == "enforcer"
        assert restricted(rig) == []
        assert rig.reaches(FRONT, ATTACKER.v4)
    assert "gatewatch_restrict" not in rig.nft("list tables")


@pytest.mark.lab
def test_asking_again_lengthens_and_never_shortens(rig: Rig) -> None:
    ends = [rig.enforcer().restrict(["models"], "test", ttl_s=ttl_s)["ends_s"] for ttl_s in (600, 60, 1200)]
    assert [round(e / 60) for e in ends] == [10, 10, 20]
    assert rig.enforcer().restrict(["models"], "test")["ends_s"] is None
    assert rig.enforcer().restrict(["models"], "test", ttl_s=60)["ends_s"] is None
    assert len(noted(rig, "restrict")) == 3


@pytest.mark.lab
def test_lifting_what_is_not_restricted_is_harmless_and_an_unknown_name_is_said(rig: Rig) -> None:
    answer = rig.enforcer().lift(["models"], "test")
    assert (answer["lifted"], answer["restricted"], answer["not_proven"]) == ([], [], [])
    assert noted(rig, "lift") == []
    with pytest.raises(RefusedError, match="there are models"):
        rig.enforcer().lift(["nothing"], "test")


@pytest.mark.lab
def test_the_analyser_restricts_where_the_rails_grant_it_and_lifts_its_own_alone(rig: Rig) -> None:
    filed, done = rig.ask_as(
        ANALYSER_UID, restrict("models"), restrict("automatic", ttl_s=600, incident="INC-1", playbook="leak")
    )
    assert filed["needs"] == 1
    assert done["restricted"] == ["automatic"]
    both, never = rig.ask_as(ANALYSER_UID, restrict("automatic", "models"), restrict("spared"))
    assert both["pending"] != filed["pending"]
    assert never["rail"] == "kill_switch"  # nobody is asked for what nobody may do
    (said,) = rig.enforcer().status()["restrictions"]
    assert (said["owner"], said["incident"], said["playbook"]) == ("analyser", "INC-1", "leak")
    (lifted,) = rig.ask_as(ANALYSER_UID, lift("automatic"))
    assert lifted["lifted"] == ["automatic"]
    rig.enforcer().restrict(["automatic"], "by hand")
    again, kept = rig.ask_as(ANALYSER_UID, restrict("automatic", ttl_s=5), lift("automatic"))
    assert again["ends_s"] is None  # it does not shorten what a person did
    assert kept["rail"] == "owner"


@pytest.mark.lab
def test_what_a_person_granted_the_analyser_may_take_back(rig: Rig) -> None:
    (filed,) = rig.ask_as(ANALYSER_UID, restrict("models", ttl_s=600, hits="alice, bob"))
    assert restricted(rig) == []
    done = rig.enforcer().call({"request": "grant", "id": filed["pending"]})
    assert (done["restricted"], done["proven"]) == (["models"], True)
    (entry,) = noted(rig, "restrict")
    assert (entry["approval"], entry["owner"]) == (filed["pending"], "analyser")
    (lifted,) = rig.ask_as(ANALYSER_UID, lift("models"))
    assert lifted["lifted"] == ["models"]


@pytest.mark.lab
def test_a_cut_for_which_a_person_is_wanted_waits_for_one(rig: Rig) -> None:
    (filed,) = rig.ask_as(
        ANALYSER_UID, {"request": "cut", "address": ATTACKER.v4, "reason": "x", "approval": 1}
    )
    assert noted(rig, "cut") == []
    rig.enforcer().call({"request": "grant", "id": filed["pending"]})
    assert noted(rig, "cut")[0]["approval"] == filed["pending"]


@pytest.mark.lab
def test_the_published_deny_list_says_who_passes_and_until_when(rig: Rig) -> None:
    denied = DenyList(rig.state / "run" / "denied")
    rig.enforcer().restrict(["models"], "test", ttl_s=600)
    rig.enforcer().restrict(["automatic"], "test")
    denied.refresh()
    passes = denied.restricted("models")
    assert denied.known and passes is not None
    assert {"198.51.100.0/25", "2001:db8:0:3::/64", f"{HOSTS['management'].v4}/32"} <= set(map(str, passes))
    ends = {name: ends_ns for kind, name, ends_ns in denied.entries() if kind == "restricted"}
    assert ends["automatic"] == 0 < ends["models"]
    rig.stop()
    rig.start()
    rig.enforcer().lift(["models"], "over")
    denied.refresh()
    assert denied.restricted("models") is None
    assert denied.restricted("automatic") is not None


@pytest.mark.lab
def test_a_person_who_restricts_what_the_analyser_did_takes_it_over(rig: Rig) -> None:
    rig.ask_as(ANALYSER_UID, restrict("automatic", ttl_s=600))
    rig.enforcer().restrict(["automatic"], "mine", ttl_s=60)
    (refused,) = rig.ask_as(ANALYSER_UID, lift("automatic"))
    assert refused["rail"] == "owner"
    assert rig.enforcer().status()["restrictions"][0]["ends_s"] > 500


@pytest.mark.lab
def test_new_rails_change_who_is_allowed(rig: Rig) -> None:
    with rig.serving(FRONT), rig.connect(FRONT) as connection:
        rig.enforcer().restrict(["models"], "test")
        assert flows(connection)
        rig.rails.write_text(CLOSABLE.replace(ALLOWED, '["203.0.113.0/25"]'))
        assert rig.process is not None
        rig.process.send_signal(signal.SIGHUP)
        wait_for("the new rails", lambda: noted(rig, "adjust"))
        assert rig.reaches(FRONT, ATTACKER.v4)
        assert stopped(connection)
        assert rig.unreachable(FRONT)


@pytest.mark.lab
def test_the_command_says_what_it_did_and_exits_with_0_where_it_is_proven(rig: Rig) -> None:
    state = ["--state", str(rig.state)]
    done = rig.run("restrict", "models", "--reason", "leak", "--for", "30m", *state)
    assert done.returncode == 0, done.stderr
    for words in (
        "RESTRICTED",
        "yes: rules read back",
        "198.51.100.0/25",
        "this machine",
        "gatewatch lift models",
    ):
        assert words in done.stdout
    assert "RESTRICTED models" in rig.run("kill-switch", "status", *state).stdout
    assert "restricted  models to 198.51.100.0/25" in rig.run("status", *state).stdout
    assert rig.run("restrict", "spared", "--reason", "x", *state).returncode == 1
    assert rig.run("restrict", "models", "--reason", "x", "--for", "8d", *state).returncode == 2
    said = json.loads(rig.run("lift", "models", "--json", *state).stdout)
    assert said["lifted"] == ["models"]
    assert "nothing was restricted" in rig.run("lift", "models", *state).stdout


@pytest.mark.lab
def test_without_an_enforcer_the_command_does_it_and_the_enforcer_carries_it_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.stop()
    monkeypatch.setenv("GATEWATCH_RAILS", str(rig.rails))
    done = rig.run("restrict", "models", "--reason", "leak", "--state", str(rig.state))
    assert done.returncode == 0, done.stderr
    assert "done by this command" in done.stdout
    with rig.serving(FRONT):
        assert rig.unreachable(FRONT, ATTACKER.v4)
        rig.start()
        assert restricted(rig) == ["models"]
        assert rig.unreachable(FRONT, ATTACKER.v4)


@pytest.mark.lab
def test_a_cut_ends_the_connections_of_an_address_and_takes_new_ones(rig: Rig) -> None:
    with rig.serving(FRONT), rig.connect(FRONT, ATTACKER.v4) as ended, rig.connect(FRONT) as kept:
        assert flows(ended) and flows(kept)
        answer = rig.enforcer().cut(ATTACKER.v4, "test", incident="INC-1")
        assert answer["cut"] == 1
        wait_for("the end", lambda: not flows(ended))
        assert flows(kept)
        assert rig.reaches(FRONT, ATTACKER.v4)
    (entry,) = noted(rig, "cut")
    assert (entry["address"], entry["incident"], entry["by"]) == (ATTACKER.v4, "INC-1", "uid 0")
    assert rig.enforcer().status()["blocks"] == 0


@pytest.mark.lab
def test_nobody_is_cut_who_is_never_blocked(rig: Rig) -> None:
    management = HOSTS["management"].v4
    with rig.serving(FRONT), rig.connect(FRONT, management) as session:
        for address, rail in (
            (management, "management"),
            (HOSTS["balancer"].v4, "proxies"),
            ("0.0.0.0/0", "smallest_prefix_ipv4"),
            ("nobody", "address"),
        ):
            with pytest.raises(RefusedError) as refused:
                rig.enforcer().cut(address, "test")
            assert refused.value.rail == rail
        rig.enforcer().cut("192.0.2.0/24", "a network around it")
        assert flows(session)


@pytest.mark.lab
def test_the_analyser_cuts_so_many_a_minute(rig: Rig) -> None:
    asked = [{"request": "cut", "address": f"198.18.0.{n}", "reason": "test"} for n in range(21)]
    answers = rig.ask_as(ANALYSER_UID, *asked)
    assert [a["ok"] for a in answers] == [True] * 20 + [False]
    assert answers[-1]["rail"] == "most_new_per_minute"


def entry(do: str, at_s: int, boot: str = "a", **fields: Any) -> dict[str, Any]:
    return {"do": do, "wall": at_s * 10**9, "boot": at_s * 10**9, "boot_id": boot, **fields}


DOOR = [["*:443/tcp"], ["198.51.100.0/24"], ["192.0.2.1"]]
SAID = {"owner": "operator", "by": "uid 0", "reason": "test"}


def test_its_time_runs_as_that_of_a_block_and_is_never_longer_after_a_reboot() -> None:
    state = State()
    state.apply(entry("restrict", 1000, endpoints={"models": DOOR}, ttl_s=600, **SAID))
    kept = State()
    kept.apply(entry("state", 1100, broken="", **state.said()))
    for which in (state, kept):
        which.advance(Moment(1300 * 10**9, 5 * 10**9, "b"))  # off for a while: the wall clock counts
    assert state.restrictions["models"].ends_ns - state.elapsed_ns == 300 * 10**9
    assert kept.restrictions["models"].ends_ns - kept.elapsed_ns <= 600 * 10**9
    assert kept.restrictions["models"]._replace(ends_ns=0) == state.restrictions["models"]._replace(ends_ns=0)


def test_after_a_break_of_the_journal_a_restriction_counts_and_its_end_does_not() -> None:
    state = State()
    state.apply(entry("restrict", 1, endpoints={"models": DOOR}, **SAID), trusted=False)
    state.apply(entry("lift", 2, endpoints=["models"], **SAID), trusted=False)
    state.apply(entry("restrict", 3, endpoints={"other": [["nonsense"], [], []]}, **SAID), trusted=False)
    assert list(state.restrictions) == ["models"]


@pytest.mark.parametrize(
    "field",
    [
        '"endpoints":"models"',
        '"endpoints":["models"],"ttl_s":-1',
        '"endpoints":["models"],"ttl_s":604801',
        "",
    ],
)
def test_a_malformed_request_is_none(field: str) -> None:
    with pytest.raises(MalformedError):
        parse(f'{{"request":"restrict","reason":"x"{"," if field else ""}{field}}}'.encode())


def test_allowed_networks_in_the_rails_are_literal() -> None:
    endpoint = '[[endpoint]]\nname = "models"\nfronts = ["*:443/tcp"]\n'
    rails = parse_rails(
        endpoint + 'allowed = ["198.51.100.0/24", "2001:db8::/32"]\nrestrict_without_person = true\n'
    )
    assert list(map(str, rails.endpoints[0].allowed)) == ["198.51.100.0/24", "2001:db8::/32"]
    assert rails.endpoints[0].restrict_without_person
    for wrong in ('allowed = ["example.org"]', 'allowed = "198.51.100.0/24"', "restrict_without_person = 1"):
        with pytest.raises(ConfigError, match=wrong.split()[0]):
            parse_rails(endpoint + wrong)
