"""One generated log of a small site, replayed: every attack of many sources or many tries is caught, nobody accused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from detection import peers  # noqa: E402
from detection.generate import write  # noqa: E402
from detection.kinds import KINDS  # noqa: E402
from detection.labels import read_labels  # noqa: E402
from detection.score import Score, score  # noqa: E402
from detection.site import Options  # noqa: E402

ATTACKS = (
    "brute_force_burst",
    "brute_force_minutes",
    "brute_force_slow",
    "spray_fast",
    "spray_slow",
    "rotation_64",
    "rotation_48",
    "distributed_hour",
    "stuffing",
    "compromise_guessed",
)
OPTIONS = Options(
    seed=7002, days=2, people=40, jobs=5, noise=0.2, size=0.5, attacks=tuple((name, 1) for name in ATTACKS)
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Score:
    folder = tmp_path_factory.mktemp("site")
    log, labels = folder / "auth.log", folder / "labels.jsonl"
    write(OPTIONS, log, labels)
    return score(read_labels(labels), peers.gatewatch(log))


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_of_half_the_usual_size_is_caught(scored: Score, kind: str) -> None:
    (episode,) = [e for e in scored.episodes if e.kind == kind]
    assert episode.caught


@pytest.mark.parametrize("kind", [k for k in ATTACKS if KINDS[k].family not in ("compromise",)])
def test_it_is_called_what_it_is(scored: Score, kind: str) -> None:
    (episode,) = [e for e in scored.episodes if e.kind == kind]
    assert episode.exact


def test_a_login_of_a_guesser_is_caught_at_once(scored: Score) -> None:
    (episode,) = [e for e in scored.episodes if e.kind == "compromise_guessed"]
    assert (episode.events, episode.seconds) == (0, 0)


def test_nobody_who_works_there_is_accused(scored: Score) -> None:
    assert scored.accused_sources == {}
    assert scored.accused_users == {}
    assert scored.blockable == {}


def test_the_log_has_people_and_noise_to_tell_apart(scored: Score) -> None:
    assert scored.benign_logins > 500
    assert scored.lines > 3000
