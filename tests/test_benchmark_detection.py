"""The benchmark of login detection itself: the generator, its labels, the frozen scenarios and the scorer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from detection import networks, peers, scenarios  # noqa: E402
from detection.generate import Log, write  # noqa: E402
from detection.kinds import KINDS  # noqa: E402
from detection.labels import microseconds, read_labels  # noqa: E402
from detection.score import MEDIUM, PRIORITIES, Claim, Score, gatewatch_claims, rows, score, wilson  # noqa: E402
from detection.site import Options  # noqa: E402

SMALL = scenarios.load("small").options
LOW = PRIORITIES.index("low")


class Made:
    """A log on disk, its lines and its labels."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.log, labels = folder / "auth.log", folder / "labels.jsonl"
        self.checksum = write(options, self.log, labels)
        self.lines = self.log.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        self.labels = read_labels(labels)
        self.episodes = [row for row in self.labels if row["label"] == "episode"]
        self.actors = [row for row in self.labels if row["label"] == "actor"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("small"), SMALL)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made: Made, tmp_path: Path) -> None:
    assert Made(tmp_path, SMALL).checksum == made.checksum
    assert write(replace(SMALL, seed=4711), tmp_path / "other.log", tmp_path / "other.jsonl") != made.checksum


@pytest.mark.parametrize("name", ["small", "rotation"])
def test_a_frozen_scenario_is_what_it_was_when_it_was_frozen(name: str, tmp_path: Path) -> None:
    frozen = scenarios.load(name)
    assert write(frozen.options, tmp_path / "auth.log", tmp_path / "labels.jsonl") == frozen.checksum


@pytest.mark.parametrize("name", scenarios.NAMES)
def test_every_scenario_has_a_source_a_checksum_and_kinds_that_exist(name: str) -> None:
    frozen = scenarios.load(name)
    assert frozen.published and frozen.because.strip() and len(frozen.checksum) == 64


def test_the_plain_day_has_43_episodes_and_the_harder_ones_55() -> None:
    for name, count in (("day", 43), ("hard", 55)):
        episodes = [a for a in Log(scenarios.load(name).options).site.actors if a.nature == "hostile"]
        assert len(episodes) == count


def test_every_labelled_line_exists_and_is_of_that_source_and_user(made: Made) -> None:
    for episode in made.episodes:
        assert episode["attempts"]
        for line, time, source, user in episode["attempts"]:
            text = made.lines[line - 1]
            assert text.startswith(time.removesuffix("Z"))
            assert episode["sources"][source] in text and episode["users"][user] in text
            assert "Failed" in text or "Accepted" in text or "PAM: Authentication failure" in text
        if episode["compromise"]:
            line = episode["compromise"]["line"]
            assert (
                f"for {episode['compromise']['user']} from {episode['compromise']['source']} "
                in made.lines[line - 1]
            )
            assert "Accepted" in made.lines[line - 1]


def test_the_log_is_in_the_order_of_time(made: Made) -> None:
    times = [line[:26] for line in made.lines]
    assert times == sorted(times)


def test_whoever_fails_from_an_address_is_labelled(made: Made) -> None:
    labelled = {source for row in (*made.episodes, *made.actors) for source in row["sources"]}
    failing = {
        line.rsplit(" port ", 1)[0].rsplit(" ", 1)[1]
        for line in made.lines
        if "]: Failed password for " in line
    }
    assert failing and failing <= labelled


def test_traditional_times_and_repeated_messages_keep_their_labels(tmp_path: Path) -> None:
    options = replace(SMALL, days=1, iso=False, repeated=True, attacks=(("brute_force_burst", 3),))
    made = Made(tmp_path, options)
    assert any("message repeated" in line for line in made.lines)
    for episode in made.episodes:
        for line, time, _, _ in episode["attempts"]:
            day, clock = time.removesuffix("Z").split("T")
            assert made.lines[line - 1].startswith(f"Mar {int(day[-2:]):2d} {clock}")


def test_half_the_size_has_half_the_attempts(tmp_path: Path) -> None:
    options = replace(SMALL, attacks=(("brute_force_slow", 1), ("distributed_hour", 1)))
    for size, attempts, sources in ((1.0, 120, 70), (0.5, 60, 35)):
        slow, distributed = Made(tmp_path, scenarios.sized(options, size)).episodes
        assert len(slow["attempts"]) == attempts and len(distributed["sources"]) == sources


def test_the_invented_internet_covers_every_address_that_is_not_internal(made: Made) -> None:
    prefixes = tuple(n.prefix + ("." if n.family == 4 else ":") for n in networks.NETWORKS)
    assert len({row["network"] for row in networks.table()}) == len(networks.NETWORKS)
    for row in (*made.episodes, *made.actors):
        for source in row["sources"]:
            assert source.startswith((*prefixes, "10.")) or not source


def test_a_held_out_site_is_drawn_from_its_seed_alone() -> None:
    assert scenarios.held_out(3) == scenarios.held_out(3) != scenarios.held_out(4)


def everyone(made: Made) -> Iterator[Claim]:
    """Accuses each source of guessing and each user of being taken over, whenever they show."""
    for row in made.labels:
        if row["label"] == "site":
            continue
        for at in _times(row):
            yield Claim(row["id"] + "s", at, "brute_force", MEDIUM, tuple(row["sources"]), ())
            yield Claim(row["id"] + "u", at, "account_compromise", MEDIUM, (), tuple(row["users"]))


def _times(row: dict[str, Any]) -> list[int]:
    return [microseconds(row["end"])] if row["label"] == "episode" else [microseconds("2026-03-02T12:00:00Z")]


def perfect(made: Made) -> Iterator[Claim]:
    """Says of each episode what kinds.py asks for, at its end."""
    for episode in made.episodes:
        kind = KINDS[episode["kind"]]
        sources = (episode["network"],) if episode["network"] else tuple(episode["sources"])
        yield Claim(
            episode["id"], microseconds(episode["end"]), kind.exact, MEDIUM, sources, tuple(episode["users"])
        )


def test_a_perfect_detector_catches_everything_and_accuses_nobody(made: Made) -> None:
    result = score(made.labels, perfect(made))
    assert result.clean and len(result.episodes) == len(made.episodes)
    assert all(e.exact for e in result.episodes)
    assert result.background == 0 and not result.accused_users and not result.accused_sources


def test_a_detector_that_says_nothing_catches_nothing(made: Made) -> None:
    result = score(made.labels, [])
    assert not any(e.caught for e in result.episodes) and result.per_million() == 0


def test_a_detector_that_accuses_everyone_does_not_win(made: Made) -> None:
    result = score(made.labels, everyone(made))
    assert not result.clean
    benign = {s for a in made.actors if a["nature"] == "benign" for s in a["sources"] if s}
    in_attacks = {s for e in made.episodes for s in e["sources"]}
    assert benign - in_attacks <= set(result.accused_sources)
    assert len(result.accused_users) > 50


def test_one_claim_that_names_everybody_catches_nothing(made: Made) -> None:
    sources = tuple(s for row in made.labels if "sources" in row for s in row["sources"])
    ends = [microseconds(e["end"]) for e in made.episodes]
    claims = [Claim("all", at, "credential_stuffing", MEDIUM, sources, ()) for at in ends]
    assert not any(e.caught for e in score(made.labels, claims).episodes)


def test_a_claim_before_the_episode_or_long_after_it_does_not_count(made: Made) -> None:
    late = [c._replace(raised_us=c.raised_us + 3 * 3_600_000_000) for c in perfect(made)]
    early = [
        c._replace(raised_us=microseconds(e["start"]) - 1)
        for c, e in zip(perfect(made), made.episodes, strict=True)
    ]
    for claims in (late, early):
        assert not any(e.caught for e in score(made.labels, claims).episodes)


def test_low_priority_is_enough_only_where_the_kind_says_so(made: Made) -> None:
    result = score(made.labels, [c._replace(priority=LOW) for c in perfect(made)])
    assert {e.kind for e in result.episodes if e.caught} == {
        k for k in _kinds(result) if KINDS[k].least == "low"
    }


def _kinds(result: Score) -> set[str]:
    return {e.kind for e in result.episodes}


def test_a_compromise_counts_from_the_success_on_and_names_the_user(made: Made) -> None:
    taken = next(e for e in made.episodes if e["kind"] == "compromise_guessed")
    at = microseconds(taken["compromise"]["time"])
    user, source = (taken["compromise"]["user"],), (taken["compromise"]["source"],)
    right = Claim("1", at, "account_compromise", MEDIUM, source, user)
    for claim, caught in (
        (right, True),
        (right._replace(raised_us=at - 1_000_000), False),
        (right._replace(kind="brute_force"), False),
        (right._replace(users=("somebody",)), False),
        (right._replace(kind="ban", users=()), True),
    ):
        found = next(e for e in score(made.labels, [claim]).episodes if e.id == taken["id"])
        assert found.caught == caught, claim
    assert next(e for e in score(made.labels, [right]).episodes if e.id == taken["id"]).seconds == 0


def test_an_office_may_be_named_while_somebody_attacks_from_it_and_not_otherwise(made: Made) -> None:
    episode = next(e for e in made.episodes if e["kind"] == "brute_force_nat")
    during = Claim("1", microseconds(episode["end"]), "brute_force", MEDIUM, tuple(episode["sources"]), ())
    assert not score(made.labels, [during]).accused_sources
    later = during._replace(raised_us=during.raised_us + 2 * 3_600_000_000)
    assert set(score(made.labels, [later]).accused_sources) == set(episode["sources"])
    blocked = score(made.labels, [during._replace(blockable=during.sources)])
    assert set(blocked.blockable) == set(episode["sources"])


def test_a_finding_that_goes_on_into_the_next_attack_of_its_source_catches_that_one_too(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path, replace(SMALL, attacks=(("brute_force_nat", 6),)))
    first, later = next(
        (a, b)
        for a in made.episodes
        for b in made.episodes
        if a["sources"] == b["sources"] and microseconds(a["end"]) + 3_600_000_000 < microseconds(b["start"])
    )
    at = microseconds(first["end"])
    claim = Claim("1", at, "brute_force", MEDIUM, tuple(first["sources"]), (), (), microseconds(later["end"]))
    for said, caught in ((claim, {first["id"], later["id"]}), (claim._replace(until_us=at), {first["id"]})):
        found = {e.id for e in score(made.labels, [said]).episodes if e.caught}
        assert found & {first["id"], later["id"]} == caught
    wrongly = claim._replace(raised_us=microseconds(first["start"]) - 1)
    assert first["id"] not in {e.id for e in score(made.labels, [wrongly]).episodes if e.caught}


def test_noise_accuses_nobody_and_is_counted_by_itself(made: Made) -> None:
    noise = next(a for a in made.actors if a["kind"] == "background_guessing")
    claim = Claim(
        "1", microseconds("2026-03-02T12:00:00Z"), "brute_force", MEDIUM, tuple(noise["sources"][:3]), ()
    )
    result = score(made.labels, [claim])
    assert (
        result.background == 1 and not result.accused_sources and not any(e.caught for e in result.episodes)
    )


def test_a_network_accuses_whoever_lives_in_it(made: Made) -> None:
    six = next(s for a in made.actors if a["kind"] == "person" for s in a["sources"] if ":" in s)
    network = ":".join(six.split(":")[:4]) + "::/64"
    claim = Claim("1", microseconds("2026-03-02T12:00:00Z"), "brute_force", MEDIUM, (network,), ())
    assert six in score(made.labels, [claim]).accused_sources


def test_the_wilson_interval_is_the_published_one() -> None:
    low, high = wilson(29, 43)
    assert (round(low, 3), round(high, 3)) == (0.525, 0.795)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(5, 5)[1] == pytest.approx(1.0)


def test_a_finding_counts_at_medium_from_when_its_incident_was_medium() -> None:
    times = [f"2026-03-02T0{hour}:00:00Z" for hour in range(1, 4)]
    finding = {
        "kind": "brute_force",
        "entity_type": "source",
        "entity": "192.0.2.1",
        "sources": [],
        "users": [],
    }
    incident = {
        "id": "i",
        "priority": "critical",
        "reached": {"info": times[0], "low": times[0], "medium": times[1], "critical": times[2]},
        "findings": [finding | {"time": time, "end": times[2]} for time in times],
    }
    claims = [(c.raised_us, PRIORITIES[c.priority]) for c in gatewatch_claims([incident])]
    first, second, third = map(microseconds, times)
    assert claims == [(first, "low"), (second, "critical"), (second, "critical"), (third, "critical")]
    incident |= {"priority": "low", "reached": {"low": times[0]}}
    assert [c.priority for c in gatewatch_claims([incident])] == [LOW] * 3


def test_gatewatch_is_scored_end_to_end(made: Made) -> None:
    result = score(made.labels, peers.gatewatch(made.log))
    caught = {row.kind: row.caught for row in rows(result)}
    assert caught["brute_force_burst"] == caught["spray_fast"] == caught["compromise_guessed"] == 1
    assert json.dumps(result.incidents)


def test_a_peer_is_scored_end_to_end_or_named_as_missing(made: Made) -> None:
    try:
        claims = peers.fail2ban(made.log)
    except peers.Missing as missing:
        assert "apt-get install fail2ban" in str(missing)
        return
    caught = {row.kind: row.caught for row in rows(score(made.labels, claims))}
    assert caught["brute_force_burst"] == 1 and caught["stuffing"] == 0


def test_a_missing_crowdsec_is_named_with_its_remedy(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROWDSEC_ROOT", str(tmp_path))
    with pytest.raises(peers.Missing, match="apt-get install crowdsec"):
        peers.crowdsec(made.log)
