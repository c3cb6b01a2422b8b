"""Which year and which offset a time has whose line names neither, and how a parser is chosen."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from gatewatch.daemon.collectors.parsers.registry import FORMATS, ParserOptions, detect_format, make_parser
from gatewatch.daemon.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parent / "data" / "parsers"


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


def times(stamps: list[str], **options: object) -> list[str]:
    chunk = "".join(
        f"{stamp} gw sshd[1]: Server listening on 0.0.0.0 port 22.\n" for stamp in stamps
    ).encode()
    options.setdefault("now_ns", ns("2026-03-05T12:00:00"))
    options.setdefault("timezone", "UTC")
    parsed = make_parser("sshd", ParserOptions(**options)).parse(chunk)  # type: ignore[arg-type]
    return [
        datetime.fromtimestamp(t // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        for t in parsed.events.time_ns.tolist()
    ]


def test_without_a_year_a_line_is_of_the_newest_year_that_is_not_in_the_future() -> None:
    found = times(
        ["Mar  5 12:00:00", "Mar  6 11:59:59", "Mar  6 12:00:00", "Mar  6 12:00:01", "Dec 31 23:59:59"]
    )
    assert found == [
        "2026-03-05T12:00:00",
        "2026-03-06T11:59:59",
        "2026-03-06T12:00:00",
        "2025-03-06T12:00:01",
        "2025-12-31T23:59:59",
    ]


def test_without_a_year_the_leap_day_is_of_the_newest_leap_year() -> None:
    assert times(["Feb 29 10:00:00"]) == ["2024-02-29T10:00:00"]


def test_without_a_year_a_line_of_december_read_in_january_is_of_last_year() -> None:
    found = times(["Dec 31 23:59:59", "Jan  1 00:00:01"], now_ns=ns("2026-01-01T00:01:00"))
    assert found == ["2025-12-31T23:59:59", "2026-01-01T00:00:01"]


def test_a_given_year_is_that_of_the_first_line_and_rolls_over() -> None:
    found = times(
        ["Nov 30 10:00:00", "Dec 31 23:59:59", "Jan  1 00:00:00", "Dec 31 23:59:58", "Jun  1 00:00:00"],
        year=2016,
    )
    assert found == [
        "2016-11-30T10:00:00",
        "2016-12-31T23:59:59",
        "2017-01-01T00:00:00",
        "2016-12-31T23:59:58",
        "2017-06-01T00:00:00",
    ]


def test_a_given_year_is_remembered_over_a_restart() -> None:
    options = ParserOptions(year=2016, timezone="UTC")
    line = b"%s gw sshd[1]: Server listening on 0.0.0.0 port 22.\n"
    before, after = make_parser("sshd", options), make_parser("sshd", options)
    before.parse(line % b"Dec 31 23:59:59")
    after.load(before.save())
    assert after.parse(line % b"Jan  1 00:00:00").events.time_ns.tolist() == [ns("2017-01-01T00:00:00")]


def test_the_receive_time_of_a_chunk_decides_the_year() -> None:
    parser = make_parser("sshd", ParserOptions(now_ns=ns("2026-03-05T12:00:00"), timezone="UTC"))
    line = b"Mar  5 12:00:00 gw sshd[1]: Server listening on 0.0.0.0 port 22.\n"
    assert parser.parse(line, 1, ns("2024-03-05T12:00:00")).events.time_ns.tolist() == [
        ns("2024-03-05T12:00:00")
    ]
    assert parser.parse(line, 2).events.time_ns.tolist() == [ns("2026-03-05T12:00:00")]


def test_local_times_follow_summer_time() -> None:
    found = times(["Mar 29 01:59:59", "Mar 29 03:00:00"], timezone="Europe/Berlin", year=2026)
    assert found == ["2026-03-29T00:59:59", "2026-03-29T01:00:00"]


def test_the_hour_that_comes_twice_is_told_apart_by_the_order_of_lines() -> None:
    stamps = ["Oct 25 02:00:00", "Oct 25 02:59:59", "Oct 25 02:00:00", "Oct 25 02:30:00", "Oct 25 03:00:00"]
    found = times(stamps, timezone="Europe/Berlin", year=2026)
    assert found == [
        "2026-10-25T00:00:00",
        "2026-10-25T00:59:59",
        "2026-10-25T01:00:00",
        "2026-10-25T01:30:00",
        "2026-10-25T02:00:00",
    ]


def test_a_zone_off_by_half_an_hour_is_followed_to_the_second() -> None:
    found = times(["Apr  5 01:45:00", "Apr  5 01:15:00"], timezone="Australia/Lord_Howe", year=2026)
    assert found == ["2026-04-04T14:45:00", "2026-04-04T14:15:00"]


@settings(max_examples=200, deadline=None)
@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), st.integers(-839, 839))
def test_a_time_with_an_offset_is_what_the_standard_library_says(moment: datetime, minutes: int) -> None:
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S.%f}{sign}{hours:02d}:{rest:02d}"
    line = f"{stamp} gw sshd[1]: Server listening on 0.0.0.0 port 22.\n".encode()
    events = make_parser("sshd", ParserOptions(timezone="UTC")).parse(line).events
    expected = datetime.fromisoformat(stamp) - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = expected.days * 86_400 + expected.seconds
    assert events.time_ns.tolist() == [seconds * 10**9 + expected.microseconds * 1000]


@settings(max_examples=100, deadline=None)
@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1)),
    st.sampled_from(["Europe/Berlin", "America/New_York"]),
)
def test_a_local_time_is_what_the_standard_library_says(moment: datetime, zone: str) -> None:
    from zoneinfo import ZoneInfo

    moment = moment.replace(microsecond=0)
    expected = moment.replace(tzinfo=ZoneInfo(zone)).timestamp()
    found = times([f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S}"], timezone=zone, year=moment.year)
    assert found == [datetime.fromtimestamp(expected, UTC).strftime("%Y-%m-%dT%H:%M:%S")]


def test_an_unknown_zone_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match=r"Mars/Olympus.*IANA"):
        make_parser("sshd", ParserOptions(timezone="Mars/Olympus"))


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="nginx, sshd"):
        make_parser("apache", ParserOptions())


def test_a_proxy_that_is_no_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.300"):
        make_parser("nginx", ParserOptions(trusted_proxies=("10.0.0.300",)))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.log")), ids=lambda path: path.stem)
def test_a_sample_names_its_format(path: Path) -> None:
    assert detect_format(path.read_bytes()) == ("nginx" if path.stem.startswith("nginx") else "sshd")


@pytest.mark.parametrize("sample", [b"", b"\n\n", b"\xd4\xc3\xb2\xa1" * 500, b"hello\nworld\n", b"{}\n"])
def test_what_is_no_log_has_no_format(sample: bytes) -> None:
    assert detect_format(sample) is None


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_empty_chunk_has_no_lines(name: str) -> None:
    parsed = make_parser(name, ParserOptions()).parse(b"")
    assert (parsed.lines, len(parsed.events), len(parsed.unparsed)) == (0, 0, 0)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_provenance_is_what_the_collector_says(name: str) -> None:
    chunk = (DATA / ("nginx.log" if name == "nginx" else "sshd-old.log")).read_bytes()
    from gatewatch.daemon.events import Provenance

    events = make_parser(name, ParserOptions(provenance=Provenance.JOURNAL)).parse(chunk).events
    assert set(events.provenance.tolist()) == {Provenance.JOURNAL}
