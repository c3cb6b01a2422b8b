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


@pytest.mark.parametrize("tries", [4, 6, 9])
def test_sources_that_use_up_a_connection_each_guess_one_account_together(tries: int) -> None:
    """An sshd lets each connection fail six times (MaxAuthTries); no source does what brute force takes."""
    guesses = [
        fail(60 * n + 2 * t, source=f"{11 + n}.3.7.7", user="ann") for n in range(40) for t in range(tries)
    ]
    assert kinds(run(guesses)) == ["distributed_brute_force"]


def test_a_user_who_comes_by_a_key_from_where_somebody_guesses_passwords_is_not_accused() -> None:
    """A hotel, a carrier's address: the guesser there is somebody else."""
    home = [login(-2 * DAY + HOUR * n, source="192.0.2.7", user="ann", method="publickey") for n in range(20)]
    guesses = [fail(n, source="203.0.113.9", user="root") for n in range(12)]
    by_key = login(100, source="203.0.113.9", user="ann", method="publickey")
    by_password = login(200, source="203.0.113.9", user="bob", method="password")
    assert "account_compromise" not in kinds(run([*home, *guesses, by_key]))
    assert "account_compromise" in kinds(run([*home, *guesses, by_key, by_password]))
