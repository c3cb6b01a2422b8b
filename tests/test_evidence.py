"""Evidence is kept within bounds, and never at the cost of the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from gatewatch.daemon import evidence
from gatewatch.daemon.errors import GatewatchError
from gatewatch.daemon.evidence import Evidence

INCIDENT = {"id": "0123456789abcdef", "findings": [{"samples": ["a line", "another\nline"]}]}


def test_what_is_kept_has_its_lines_and_their_checksums(tmp_path: Path) -> None:
    made = Evidence(tmp_path / "evidence")
    assert made.keep(INCIDENT)["files"] == 2
    assert (
        tmp_path / "evidence" / "0123456789abcdef" / "lines.txt"
    ).read_text() == "a line\nanother\\nline\n"


def test_nothing_is_kept_on_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "LEAST_FREE_BYTES", 1 << 62)
    with pytest.raises(GatewatchError, match="MiB are free"):
        Evidence(tmp_path / "evidence").keep(INCIDENT)
    assert list((tmp_path / "evidence").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", "x" * 65, "\x1b[2J"])
def test_an_id_that_is_none_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(GatewatchError):
        Evidence(tmp_path / "evidence").keep({"id": name})
