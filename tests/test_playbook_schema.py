"""Playbook files: what they may say, and which of several with one name counts."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml
from gatewatch.config.document import parse_document, validated
from gatewatch.daemon.errors import ConfigError
from gatewatch.playbooks.loader import load_playbook, load_playbooks
from gatewatch.playbooks.schema import Playbook
from hypothesis import given
from hypothesis import strategies as st

MINIMAL = "name: mine\nthen: [{action: notify}]\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_playbook(path)
    return str(caught.value).replace(f"{path}:", "").split("\n")


def test_every_shipped_playbook_is_named_after_its_file() -> None:
    files = sorted(Path(load_playbook.__code__.co_filename).parent.glob("*.yaml"))
    assert [load_playbook(f).name for f in files] == [f.stem for f in files]
    assert [p.name for p in load_playbooks()] == [f.stem for f in files]


def test_no_shipped_playbook_blocks_for_ever_or_widely() -> None:
    for playbook in load_playbooks():
        for step in playbook.then:
            if step.action == "block_source":
                assert step.ttl <= step.longest <= 7 * 86_400
                assert (step.prefix.ipv4, step.prefix.ipv6) == (32, 64)


def test_off_allowlist_traffic_is_only_told() -> None:
    for playbook in load_playbooks():
        if playbook.name.startswith("off-allowlist"):
            assert {step.action for step in playbook.then} <= {"notify", "capture_evidence"}


def test_a_small_playbook_gets_the_defaults(write) -> None:
    playbook = load_playbook(write("name: mine\nthen: [{action: block_source}]\n"))
    (step,) = playbook.then
    assert step.action == "block_source"
    assert (step.ttl, step.longest, step.grow, step.approval) == (3600, 86_400, 2.0, "none")
    assert (playbook.cooldown, playbook.limits.per_minute) == (300, 60)


def test_what_a_playbook_says_can_be_written_and_read_again(write) -> None:
    for playbook in load_playbooks():
        assert load_playbook(write(yaml.safe_dump(playbook.file_form()))) == playbook


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: mine\n", "1: then: is missing"),
        ("name: mine\nthen: []\n", "2: then: needs at least 1 in its list"),
        (
            "name: mine\nthen:\n  - action: blok_source\n",
            "3: then.0: unknown action 'blok_source'; did you mean",
        ),
        ("name: mine\nthen:\n  - ttl: 1h\n", "3: then.0: action is missing"),
        ("name: mine\nthen:\n  - {action: block_source,\n     ttl: 60}\n", "4: then.0.ttl: 60 has no unit"),
        (
            "name: mine\nthen:\n  - {action: block_source, ttl: 2d}\n",
            "3: then.0.longest: must not be shorter",
        ),
        (
            "name: mine\nthen:\n  - {action: block_source, prefix: {ipv4: 16}}\n",
            "3: then.0.prefix.ipv4: must be one of",
        ),
        (
            "name: mine\nthen:\n  - {action: kill_switch, approval: three}\n",
            "3: then.0.approval: must be one of none, one, two",
        ),
        ("name: mine\nthen:\n  - {action: notify, ttl: 1h}\n", "3: then.0.ttl: unknown key"),
        (MINIMAL + "when: {kinds: [brute_forc]}\n", "3: when.kinds.0: 'brute_forc' is unknown; did you mean"),
        (MINIMAL + "when: {confidence: 2}\n", "3: when.confidence: must be 1 or less"),
        (MINIMAL + "cooldown: never\n", "3: cooldown: 'never' is no duration"),
        (MINIMAL + "wehn: {}\n", "3: wehn: unknown key; did you mean 'when'?"),
        ("name: '../x'\nthen: [{action: notify}]\n", "1: name: must be a name of letters"),
    ],
)
def test_a_wrong_playbook_is_explained_with_line_and_key(write, text: str, problem: str) -> None:
    (said,) = problems(write(text))
    assert said.startswith(problem)


def test_a_sites_own_playbook_replaces_the_shipped_one_of_that_name(write, tmp_path: Path) -> None:
    write("name: login-burst\ndescription: ours\nthen: [{action: notify}]\n")
    found = {p.name: p for p in load_playbooks([tmp_path])}
    assert found["login-burst"].description == "ours"
    assert "scan" in found


def test_a_playbook_that_is_not_enabled_is_left_out_and_so_is_the_shipped_one_that_it_replaces(
    write, tmp_path: Path
) -> None:
    write("name: login-burst\nenabled: false\nthen: [{action: notify}]\n")
    assert "login-burst" not in [p.name for p in load_playbooks([tmp_path])]


def test_two_playbooks_of_one_name_in_one_folder_are_an_error(write, tmp_path: Path) -> None:
    write(MINIMAL, "a.yaml")
    write(MINIMAL, "b.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml:1: name: 'mine' is also the name of a\.yaml"):
        load_playbooks([tmp_path], shipped=False)


def test_the_problems_of_all_files_are_told_at_once(write, tmp_path: Path) -> None:
    write("name: a\n", "a.yaml")
    write("name: b\n", "b.yaml")
    with pytest.raises(ConfigError, match=r"(?s)a\.yaml:1: then: is missing.*b\.yaml:1: then: is missing"):
        load_playbooks([tmp_path], shipped=False)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: cannot be listed .*playbooks\.directories"):
        load_playbooks([tmp_path / "nowhere"])


def test_every_prefix_that_a_playbook_may_ask_for_is_one_that_the_enforcer_blocks_at() -> None:
    from typing import get_args

    from gatewatch.daemon.enforcer.rails import PREFIXES
    from gatewatch.playbooks.schema import Prefix

    assert get_args(Prefix.model_fields["ipv4"].annotation) == PREFIXES[4]
    assert get_args(Prefix.model_fields["ipv6"].annotation) == PREFIXES[6]
    assert ipaddress.ip_network("192.0.2.0/24").prefixlen in PREFIXES[4]


_YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["action", "ttl", "kinds", "prefix", "grow", "x"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(Playbook.model_fields)), _YAML))
def test_any_yaml_is_either_a_playbook_or_clear_errors(said: dict[str, Any]) -> None:
    try:
        validated(Playbook, parse_document(yaml.safe_dump(said), "x.yaml"))
    except ConfigError as error:
        for line in str(error).split("\n"):
            assert line.startswith("x.yaml:")
            assert "validation" not in line
