"""What holds for any input: nobody forges a field, nothing raises, and neither chunks nor the compiler matter."""

from __future__ import annotations

import importlib.util
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gatewatch.daemon.collectors.parsers.nginx as nginx_module
import gatewatch.daemon.collectors.parsers.scan as scan_module
import gatewatch.daemon.collectors.parsers.sshd as sshd_module
import numpy as np
import pytest
from gatewatch.daemon.collectors.parsers.registry import FORMATS, Parsed, Parser, ParserOptions, make_parser
from gatewatch.daemon.events import AuthBatch, Outcome, address_columns
from hypothesis import example, given, settings
from hypothesis import strategies as st

OPTIONS = ParserOptions(
    now_ns=1_770_000_000 * 10**9, timezone="UTC", trusted_proxies=("10.0.0.0/8", "fd00::/8")
)
DATA = Path(__file__).parent / "data" / "parsers"

forging = st.sampled_from(
    [
        b" from 192.0.2.1 port 22 ssh2", b" from 192.0.2.1 port 22", b" from 192.0.2.1", b" 192.0.2.1 port 22",
        b" [preauth]", b"Failed password for root", b"invalid user ", b"sshd[1]: ", b": ", b" ssh2: RSA SHA256:a",
        b" ssh2", b" port 1", b"user ", b" by (uid=0)", b"message repeated 2 times: [ ", b" rhost=192.0.2.1", b"]",
        b" ", b"(uid=0)", b" for ", b" not allowed because x",
    ]
)  # fmt: skip
names = st.lists(forging | st.binary(max_size=8), max_size=8).map(
    lambda parts: b"".join(parts).replace(b"\n", b"").replace(b"\r", b"")[:100]
)
few = settings(max_examples=50, deadline=None)
many = settings(max_examples=300, deadline=None)
PREFIX = b"Mar  2 10:00:00 gw sshd[9]: "
FORGED = b" from 192.0.2.1 port 22 ssh2"
SHAPES = [
    b"Failed password for invalid user %s from 203.0.113.7 port 40022 ssh2",
    b"Failed keyboard-interactive/pam for invalid user %s from 203.0.113.7 port 40022 ssh2",
    b"Failed publickey for invalid user %s from 203.0.113.7 port 40022 ssh2: RSA SHA256:abc",
    b"Failed publickey for invalid user %s from 203.0.113.7 port 40022 ssh2",
    b"Invalid user %s from 203.0.113.7 port 40022",
    b"error: maximum authentication attempts exceeded for invalid user %s from 203.0.113.7 port 4 ssh2 [preauth]",
    b"error: PAM: Authentication failure for illegal user %s from 203.0.113.7",
    b"Connection closed by invalid user %s 203.0.113.7 port 40022 [preauth]",
    b"Connection reset by invalid user %s 203.0.113.7 port 40022 [preauth]",
    b"Disconnected from invalid user %s 203.0.113.7 port 40022 [preauth]",
    b"Disconnecting invalid user %s 203.0.113.7 port 4: Too many authentication failures [preauth]",
    b"message repeated 2 times: [ Failed password for invalid user %s from 203.0.113.7 port 40022 ssh2]",
]


def columns_of(batch: AuthBatch) -> list[tuple[object, ...]]:
    """Every row as plain values, with its texts; spans, which depend on the chunk, are left out."""
    plain = [name for name in AuthBatch._columns() if name != "spans"]
    texts = ("raw", "user", "service", "method", "key", "host", "path")
    return [
        (*(getattr(batch, name)[i].tolist() for name in plain), *(batch.text_of(i, text) for text in texts))
        for i in range(len(batch))
    ]


@few
@given(name=names, ending=st.sampled_from([b"", b": Login request denied."]))
@example(name=b"x' from 192.0.2.1: denied", ending=b"")
def test_a_user_in_quotes_is_taken_whole_or_not_at_all(name: bytes, ending: bytes) -> None:
    for said in (b"Failed", b"Successful", b"Aborted"):
        line = PREFIX + said + b" Duo login for '" + name + b"' from 203.0.113.7" + ending
        events = make_parser("sshd", OPTIONS).parse(line).events
        assert events.source_of(0) in ("", "203.0.113.7")
        start, end = events.spans[0, 1].tolist()
        assert start < 0 or line[start:end] == name
        if name and b"'" not in name:
            assert events.source_of(0) == "203.0.113.7" and start >= 0


@pytest.mark.parametrize("shape", SHAPES)
@few
@given(name=names)
@example(name=b"")
@example(name=b"x from 192.0.2.1 port 22 ssh2")
def test_no_user_name_forges_the_source_or_the_outcome(shape: bytes, name: bytes) -> None:
    parsed = make_parser("sshd", OPTIONS).parse(PREFIX + shape % name + b"\n")
    assert len(parsed.events) == 1
    assert parsed.events.source_of(0) == "203.0.113.7"
    start, end = parsed.events.spans[0, 1].tolist()
    assert (parsed.events.text[start:end] if start >= 0 else b"") == name
    honest = make_parser("sshd", OPTIONS).parse(PREFIX + shape % b"x" + b"\n")
    assert parsed.events.outcome.tolist() == honest.events.outcome.tolist()
    assert parsed.events.count.tolist() == honest.events.count.tolist()


@few
@given(identity=names)
def test_the_name_of_a_certificate_never_accuses_another(identity: bytes) -> None:
    line = b"Failed publickey for root from 203.0.113.7 port 4 ssh2: RSA-CERT SHA256:a ID %s (serial 0) CA RSA SHA256:c"
    parsed = make_parser("sshd", OPTIONS).parse(PREFIX + line % identity)
    assert parsed.events.source_of(0) in ("203.0.113.7", "")


def test_a_certificate_whose_name_was_cut_short_accuses_nobody() -> None:
    line = b"Failed publickey for root from 203.0.113.7 port 4 ssh2: RSA-CERT SHA256:a ID %s" + FORGED
    for tail in (b"", b": RSA SHA256:b"):
        message = line % (b"A" * (1023 - len(line) + 2)) + tail
        parsed = make_parser("sshd", OPTIONS).parse(PREFIX + message)
        assert parsed.events.source_of(0) == ""


@few
@given(text=st.lists(forging | st.sampled_from(SHAPES) | st.binary(max_size=20), max_size=6).map(b"".join))
def test_what_another_program_writes_is_never_an_event_of_sshd(text: bytes) -> None:
    line = b"Mar  2 10:00:00 gw webapp[9]: " + text.replace(b"\n", b"") + b"\n"
    parsed = make_parser("sshd", OPTIONS).parse(line)
    assert parsed.events.outcome.tolist() == [Outcome.OTHER]
    assert parsed.events.text_of(0, "service") == "webapp"


@few
@given(st.binary(max_size=300), st.sampled_from(sorted(FORMATS)))
def test_any_bytes_give_a_row_or_a_number_for_each_line(noise: bytes, name: str) -> None:
    check_lines(noise, make_parser(name, OPTIONS).parse(noise))


@many
@given(st.data())
def test_a_broken_line_gives_a_row_or_a_number(data: st.DataObject) -> None:
    """A good line, cut, with bytes changed, or two joined: the places where an index runs out of the line."""
    name = data.draw(st.sampled_from(["sshd", "nginx"]))
    cut = draw_broken(data, name)
    check_lines(cut, make_parser(name, OPTIONS).parse(cut))


def draw_broken(data: st.DataObject, name: str) -> bytes:
    lines = [line for stem, of in golden() if of == name for line in stem.read_bytes().splitlines()]
    line = bytearray(data.draw(st.sampled_from(lines)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(line)))
        line[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4) | forging)
    return bytes(line[: data.draw(st.integers(0, len(line)))])


def golden() -> list[tuple[Path, str]]:
    return [
        (path, "nginx" if path.stem.startswith("nginx") else "sshd") for path in sorted(DATA.glob("*.log"))
    ]


def check_lines(chunk: bytes, parsed: Parsed) -> None:
    count = chunk.count(b"\n") + (0 if not chunk or chunk.endswith(b"\n") else 1)
    assert parsed.lines == count
    assert sorted([*parsed.events.line.tolist(), *parsed.unparsed.tolist()]) == list(range(1, count + 1))
    assert (np.diff(parsed.events.line) > 0).all()
    spans = parsed.events.spans
    assert ((spans[..., 0] <= spans[..., 1]) & (spans[..., 1] <= len(parsed.events.text))).all()


@few
@given(st.data())
def test_chunks_do_not_matter(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["sshd", "nginx"]))
    lines = [
        line for stem, of in golden() if of == name for line in stem.read_bytes().splitlines(keepends=True)
    ]
    lines = data.draw(st.lists(st.sampled_from(lines), min_size=1, max_size=30))
    options = ParserOptions(
        now_ns=OPTIONS.now_ns, timezone="Europe/Berlin", year=data.draw(st.sampled_from([None, 2024]))
    )
    whole = make_parser(name, options).parse(b"".join(lines), 5)
    cut = data.draw(st.integers(0, len(lines)))
    first, second = make_parser(name, options), make_parser(name, options)
    one = first.parse(b"".join(lines[:cut]), 5)
    second.load(first.save())
    two = second.parse(b"".join(lines[cut:]), 5 + one.lines)
    assert columns_of(one.events) + columns_of(two.events) == columns_of(whole.events)
    assert [*one.unparsed, *two.unparsed] == whole.unparsed.tolist()


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[ModuleType]:
    """The same source, run by the interpreter."""
    spec = importlib.util.spec_from_file_location(
        "gatewatch_uncompiled_scan", Path(scan_module.__file__).with_name("scan.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop(spec.name, None)


def of_source(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Parser:
    with monkeypatch.context() as patch:
        patch.setattr(sshd_module, "Scanner", module.Scanner)
        patch.setattr(nginx_module, "Scanner", module.Scanner)
        return make_parser(name, OPTIONS)


@pytest.mark.parametrize(("path", "name"), golden())
def test_compiled_and_uncompiled_give_the_same(
    path: Path, name: str, uncompiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = path.read_bytes()
    usual = make_parser(name, OPTIONS).parse(chunk)
    plain = of_source(name, uncompiled, monkeypatch).parse(chunk)
    assert columns_of(plain.events) == columns_of(usual.events)
    assert plain.unparsed.tolist() == usual.unparsed.tolist()


class Guarded(bytes):
    """Bytes that no index may leave, not even backwards: what the compiled loop does not check."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and not 0 <= index < len(self):
            raise IndexError(f"index {index} leaves a line of {len(self)} bytes")
        return super().__getitem__(index)


@many
@given(st.data())
def test_no_index_leaves_the_line(uncompiled: ModuleType, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["sshd", "nginx"]))
    with pytest.MonkeyPatch.context() as patch:
        parser = of_source(name, uncompiled, patch)
    line = Guarded(draw_broken(data, name))
    batch, unparsed = AuthBatch.blank(line.count(b"\n") + 1, line), np.zeros(line.count(b"\n") + 1, np.int64)
    if name == "sshd":
        parser._scanner.syslog(line, 1, 0, batch, unparsed)  # type: ignore[attr-defined]
    else:
        forwarded = np.zeros((len(unparsed), 2), np.int32)
        parser._scanner.access(line, 1, batch, unparsed, forwarded)  # type: ignore[attr-defined]


def test_a_long_chunk_is_read_uncompiled_as_it_is_compiled(
    uncompiled: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = b"".join(
        b"Dec 10 06:55:46 gw sshd[%d]: Failed password for root from 203.0.113.7 port 4711 ssh2\n" % n
        for n in range(1000)
    )
    assert len(chunk) > 1 << 16
    usual = make_parser("sshd", OPTIONS).parse(chunk)
    plain = of_source("sshd", uncompiled, monkeypatch).parse(chunk)
    assert columns_of(plain.events) == columns_of(usual.events)


def test_the_uncompiled_hash_is_the_compiled_one(uncompiled: ModuleType) -> None:
    for size in range(40):
        data = bytes(range(size))
        assert uncompiled.keyed_hash(data, b"k" * 16) == scan_module.keyed_hash(data, b"k" * 16)


def test_the_hash_is_siphash_1_3() -> None:
    """Against the interpreter's own, where it is SipHash-1-3 without a key (PYTHONHASHSEED=0 means a key of zeros)."""
    program = "import sys; print(sys.hash_info.algorithm, *(hash(bytes(range(n))) for n in range(1, 30)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    algorithm, *numbers = done.stdout.split()
    if algorithm != "siphash13":
        pytest.skip("the interpreter does not use SipHash-1-3")
    for n, number in enumerate(numbers, 1):
        assert scan_module.keyed_hash(bytes(range(n)), b"\0" * 16) == int(number) % (1 << 64)


addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
    st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}"),
    st.ip_addresses(v=4).map(lambda address: f"64:ff9b::{address}"),
    st.ip_addresses(v=6).map(lambda address: f"{address}%eth0"),
    st.text("0123456789abcdf:.", min_size=1, max_size=20),
    st.lists(
        st.sampled_from(["0", "1", "::", ":", "ffff", "10", "255", "256", ".", "1.2.3.4", "01"]), max_size=10
    ).map("".join),
)


@many
@given(addresses)
def test_an_address_is_what_the_standard_library_says(text: str) -> None:
    line = f"Invalid user x from {text} port 1\n".encode()
    events = make_parser("sshd", OPTIONS).parse(PREFIX + line).events
    try:
        ipaddress.ip_address(text)
        expected = address_columns(text)
    except ValueError:
        expected = (0, 0, 0)
    if len(events):
        assert (int(events.peer_family[0]), *events.peer[0].tolist()) == expected


def test_pam_and_sshd_lines_of_one_process_share_their_session() -> None:
    chunk = b"".join(
        b"Mar  2 10:00:00 %s: check\n" % tag
        for tag in (
            b"gw sshd[9]", b"gw sshd-session[9]", b"gw sshd(pam_unix)[9]", b"gw2 sshd[9]", b"gw sshd[8]", b"gw sudo[9]",
        )
    ).replace(b": check", b": pam_unix(x:auth): check pass; user unknown")  # fmt: skip
    chunk = chunk.replace(b"(pam_unix)[9]: pam_unix(x:auth): ", b"(pam_unix)[9]: ")
    session = make_parser("sshd", OPTIONS).parse(chunk).events.session.tolist()
    assert session[0] == session[1] == session[2] != 0
    assert len(set(session)) == 4


def test_every_line_of_a_real_sshd_under_attack_is_understood(data: Path) -> None:
    chunk = (data / "logs" / "loghub-openssh-2k.log").read_bytes()
    parsed = make_parser("sshd", ParserOptions(year=2016, timezone="UTC")).parse(chunk)
    assert parsed.lines == len(parsed.events) == 2000
    failures = parsed.events.outcome == Outcome.FAILURE
    assert int(parsed.events.count[failures].sum()) == 528
    assert (parsed.events.client_family[failures] == 4).all()


def test_all_that_an_old_linux_says_about_logins_is_understood(data: Path) -> None:
    chunk = (data / "logs" / "loghub-linux-2k.log").read_bytes()
    parsed = make_parser("sshd", ParserOptions(year=2005, timezone="UTC")).parse(chunk)
    assert len(parsed.unparsed) == 0
    telling = [
        (line, outcome)
        for line, outcome in zip(chunk.splitlines(), parsed.events.outcome.tolist(), strict=True)
        if b"authentication failure; " in line
    ]
    assert len(telling) == 490
    assert {outcome for _, outcome in telling} == {Outcome.PAM_FAILURE}
