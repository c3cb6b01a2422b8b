"""The names that strangers guess everywhere, as the columns of a batch hold them."""

from __future__ import annotations

import numpy as np
from gatewatch.daemon.collectors.parsers.registry import ParserOptions, make_parser
from gatewatch.detectors.login.guessed_names import GUESSED_NAMES, guessed_names
from gatewatch.detectors.registry import login_detectors
from test_detectors_login import KEY, batch_of, fail

NOW_NS = 1_772_700_000 * 10**9


def parsed(names: list[str]) -> np.ndarray:
    """The users of a line for each, as the parser tells them."""
    lines = "".join(
        f"2026-03-05T08:00:00.000000+00:00 gateway1 sshd[{100 + n}]: "
        f"Failed password for {name} from 203.0.113.7 port 4022 ssh2\n"
        for n, name in enumerate(names)
    )
    options = ParserOptions(now_ns=NOW_NS, timezone="UTC", hash_key=KEY)
    found = make_parser("sshd", options).parse(lines.encode())
    assert [found.events.text_of(row, "user") for row in range(len(names))] == names
    return found.events.user


def test_the_hashes_are_those_of_the_parser() -> None:
    names = sorted(GUESSED_NAMES)
    assert (np.sort(parsed(names)) == guessed_names(KEY)).all()
    assert not np.isin(parsed(["ann", "Root", "roots", "admin9"]), guessed_names(KEY)).any()


def test_they_ascend_and_each_is_there_once() -> None:
    hashes = guessed_names(KEY)
    assert hashes.dtype == np.uint64
    assert len(hashes) == len(GUESSED_NAMES)
    assert (hashes[1:] > hashes[:-1]).all() and hashes[0] > 0


def test_another_key_gives_others() -> None:
    assert not np.isin(guessed_names(b"another such key"), guessed_names(KEY)).any()


def test_the_names_are_single_words_in_lower_case_without_a_person_s() -> None:
    assert all(name == name.strip().lower() and name.isascii() for name in GUESSED_NAMES)
    assert not {"ann", "peter", "maria", "john"} & GUESSED_NAMES
    assert {"root", "admin", "test", "ubuntu", "oracle", "postgres", "git", "pi"} <= GUESSED_NAMES


def test_the_attempts_say_of_each_whether_its_name_is_one() -> None:
    names = ["root", "ann", "zookeeper", "p1", "admin", ""]
    stage = login_detectors({}, KEY)._stage
    attempts = stage.update(batch_of([fail(n, user=name, line=n + 1) for n, name in enumerate(names)]))
    assert attempts.popular.tolist() == [True, False, True, False, True, False]
