"""`never_block` in the text of a rails file: it grows, and nothing else changes by a character."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from gatewatch.config import rails_edit
from gatewatch.config.rails_edit import difference, with_never_block, write
from gatewatch.daemon.errors import ConfigError, PrivilegeError
from hypothesis import given, settings
from hypothesis import strategies as st

ADDED = [
    ("203.0.113.0/24", "from fail2ban: jail sshd"),
    ("2001:db8::1/128", 'with "quotes" # and\x1b\n lines'),
]
NETWORKS = [network for network, _ in ADDED]

FORMS = {
    "empty": "never_block = []\n",
    "empty over lines": "never_block = [\n]\n",
    "a remark alone": "never_block = [ # nobody yet ]\n]\n",
    "one line": 'never_block = ["192.0.2.0/24", "192.0.2.7"]  # offices\n',
    "one line, comma at the end": 'never_block = ["192.0.2.0/24",]\n',
    "spaces": '  never_block=[ "192.0.2.0/24" ]   \n',
    "lines": 'never_block = [\n  "192.0.2.0/24",  # a, b ]\n  "192.0.2.7",\n]\n',
    "lines, no comma at the end": 'never_block = [\n  "192.0.2.0/24",\n  "192.0.2.7"  # "last", [\n  # bye\n]\n',
    "bracket behind a value": 'never_block = [\n  "192.0.2.0/24",\n  "192.0.2.7"]\n',
    "quoted key": "\"never_block\" = ['192.0.2.0/24']\n",
    "multi-line text": "never_block = [\"\"\"192.0.2.0/24\"\"\", '''192.0.2.7''']\n",
    "line ends of another system": 'never_block = [\r\n  "192.0.2.0/24"\r\n]\r\n',
    "no line end": 'never_block = ["192.0.2.0/24"]',
    "absent": "",
    "absent, with remarks": "# never_block = [\n# nothing here\n",
}
BEFORE = (
    '# never_block = ["198.51.100.1"]\nmanagement = ["198.51.100.0/24"]\noperators = "never_block = [] # ["\n'
)
AFTER = '[limits]\nmost_blocks = 7 # never_block = []\n\n# models\n[[endpoint]]\nname = "m"\nfronts = ["*:443/tcp"]\n'


@pytest.mark.parametrize("before", ["", BEFORE], ids=["first", "later"])
@pytest.mark.parametrize("after", ["", "\n\n" + AFTER], ids=["last", "earlier"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_it_grows_in_every_way_of_writing_it(before: str, form: str, after: str) -> None:
    text = before + form + after
    made = with_never_block(text, ADDED, "rails.toml")
    was, now = tomllib.loads(text), tomllib.loads(made)
    assert now.pop("never_block") == [*was.pop("never_block", []), *NETWORKS]
    assert now == was
    assert is_subsequence(text, made), "not a character is lost"
    assert "# from fail2ban: jail sshd" in made
    assert "\x1b" not in made


def is_subsequence(text: str, made: str) -> bool:
    rest = iter(made)
    return all(c in rest for c in text)


def test_it_is_written_before_the_first_table_where_it_is_absent() -> None:
    made = with_never_block(BEFORE + "\n" + AFTER, ADDED[:1], "rails.toml")
    line = '    "203.0.113.0/24",  # from fail2ban: jail sshd\n'
    assert made == BEFORE + "never_block = [\n" + line + "]\n" + "\n" + AFTER


def test_the_shipped_file_can_be_changed_twice() -> None:
    text = Path(rails_edit.__file__).with_name("rails.toml").read_text()
    once = with_never_block(text, ADDED, "rails.toml")
    twice = with_never_block(once, [("192.0.2.1", "x")], "rails.toml")
    assert tomllib.loads(twice)["never_block"] == [*NETWORKS, "192.0.2.1"]
    removed = [
        line for line in difference(once, twice, "rails.toml").splitlines() if line[:2] in ("- ", "-n")
    ]
    assert removed == []


def test_nothing_to_add_changes_nothing() -> None:
    assert with_never_block("x = ", [], "rails.toml") == "x = "


@pytest.mark.parametrize(
    "text",
    [
        'never_block = "192.0.2.1"\n',
        "[never_block]\nx = 1\n",
        "never_block.x = []\n",
        "[[never_block]]\n",
    ],
)
def test_what_is_no_array_is_not_touched(text: str) -> None:
    with pytest.raises(ConfigError, match="by hand"):
        with_never_block(text, ADDED, "rails.toml")


def test_what_the_enforcer_would_not_read_is_not_written() -> None:
    with pytest.raises(ConfigError, match="never_block"):
        with_never_block("never_block = []\n", [("no address", "")], "rails.toml")


def test_an_edit_that_went_wrong_is_found_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'never_block = []\nproxies = ["192.0.2.1"]\n'
    for wrong in (
        text,
        text.replace("[]", '["203.0.113.0/24"]'),
        "never_block = [",
        'never_block = ["203.0.113.0/24"]',
    ):
        monkeypatch.setattr(rails_edit, "_inserted", lambda *_, wrong=wrong: wrong)
        with pytest.raises(ConfigError, match="by hand"):
            with_never_block(text, ADDED, "rails.toml")


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*FORMS.values(), BEFORE, AFTER, "[", "]", '"', "'''", '"""', "\\", "#", "\n", "\r\n"]
            ),
            st.text(max_size=8),
        ),
        max_size=8,
    ).map("".join)
)
def test_any_text_grows_by_the_networks_alone_or_is_refused(text: str) -> None:
    try:
        was = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        made = with_never_block(text, ADDED, "rails.toml")
    except ConfigError:
        return
    now = tomllib.loads(made)
    assert now.pop("never_block") == [*was.pop("never_block", []), *NETWORKS]
    assert now == was


def test_owner_mode_and_link_stay_and_no_other_file_is_left(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text("never_block = []\n")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 12, 34)
    owner = real.stat()
    link = tmp_path / "rails.toml"
    link.symlink_to(real.name)
    write(link, "never_block = []\n", "never_block = [] # new\n")
    assert link.is_symlink()
    assert real.read_text() == "never_block = [] # new\n"
    now = real.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (owner.st_uid, owner.st_gid, 0o640)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rails.toml", "real.toml"]


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rails.toml"
    path.write_text("somebody else's\n")
    with pytest.raises(ConfigError, match="changed meanwhile"):
        write(path, "before\n", "after\n")
    assert path.read_text() == "somebody else's\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(PrivilegeError, match="nothing was changed"):
        write(tmp_path / "nowhere" / "rails.toml", "before\n", "after\n")
