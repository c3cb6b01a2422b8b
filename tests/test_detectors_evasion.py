"""What an attacker tries so as not to be seen, or to have somebody else accused."""

from __future__ import annotations

import pytest
from test_detectors_login import fail, kinds, login, run

HOUR, DAY = 3600, 86_400


@pytest.mark.parametrize("gap", [1, 3, 7])
def test_a_guesser_inside_who_never_pauses_keeps_no_period(gap: float) -> None:
    inside = "10.1.2.3"
    guesses = [fail(gap * n, source=inside, user="root") for n in range(600)]
    found = run([*guesses, login(gap * 600, source=inside, user="root", method="password")])
    assert kinds(found) == ["account_compromise", "brute_force"]
    assert all(f.confidence >= 0.9 for f in found.values())


def test_a_guesser_inside_who_tries_many_passwords_once_a_minute_is_no_job() -> None:
    bursts = [fail(60 * n + t, source="10.1.2.3", user="root") for n in range(30) for t in range(10)]
    (finding,) = run(bursts).values()
    assert (finding.kind, finding.confidence) == ("brute_force", 0.9)
