"""The flow table: what becomes of a connection, however its packets are divided, sampled, forged or too many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frames import uncompiled
from gatewatch.daemon.collectors import flows, flows_table
from gatewatch.daemon.collectors.capture import Capture
from gatewatch.daemon.collectors.decode import CUT_SHORT, FRAGMENT, MALFORMED, PACKET, TUNNELLED
from gatewatch.daemon.collectors.flows import FlowTable
from gatewatch.daemon.events import Direction, FlowBatch, FlowState, Provenance, address_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SECOND = 10**9
CLIENT, SERVER = "192.0.2.9", "198.51.100.7"


class Wire:
    """Packets between a client and a server, in the order in which they are said, a millisecond apart."""

    def __init__(
        self, client: str = CLIENT, server: str = SERVER, ports: tuple[int, int] = (40000, 443)
    ) -> None:
        self.packets: list[NDArray[np.void]] = []
        self.ends = (client, server)
        self.ports = ports
        self.now = 1_700_000_000 * SECOND

    def say(self, side: int, tcp_flags: int = 0, payload: int = 0, **more: Any) -> Wire:
        """One packet of side 0 (the client) or 1; `more` sets columns of PACKET."""
        row = np.zeros(1, PACKET)
        self.now = min(max(self.now + more.pop("after_ns", 1_000_000), -(2**63)), 2**63 - 1)
        for column, end in (("source", side), ("destination", 1 - side)):
            family, *row[column][0, :] = address_columns(self.ends[end])
            row[f"{column}_port"] = self.ports[end]
        row["family"], row["protocol"], row["weight"] = family, 6, 1
        row["time_ns"], row["frame"] = self.now, len(self.packets) + 1
        row["tcp_flags"], row["payload"] = tcp_flags, payload
        for name, value in more.items():
            row[name] = value
        self.packets.append(row)
        return self

    def handshake(self, ours: int = 100, theirs: int = 900) -> Wire:
        self.say(0, SYN, sequence=ours)
        self.say(1, SYN | ACK, sequence=theirs, acknowledgement=ours + 1)
        return self.say(0, ACK, sequence=ours + 1, acknowledgement=theirs + 1)

    def rows(self, table: FlowTable | None = None) -> FlowBatch:
        return (table or FlowTable()).update(np.concatenate(self.packets))


def states(batch: FlowBatch) -> list[str]:
    return [FlowState(s).name for s in batch.state.tolist()]


def columns(batch: FlowBatch) -> list[tuple[Any, ...]]:
    names = [n for n in FlowBatch._columns() if n != "spans"]
    return list(zip(*(getattr(batch, n).tolist() for n in names), strict=True))


def told(packets: NDArray[np.void], table: FlowTable, *cuts: int) -> list[Any]:
    """All rows of the packets, divided at `cuts`, with those at the end."""
    batches = [table.update(part) for part in np.split(packets, sorted(cuts))]
    return [row for batch in [*batches, table.finish()] for row in columns(batch)]


def test_a_connection_gives_a_row_at_its_beginning_handshake_and_end() -> None:
    wire = Wire().handshake()
    wire.say(0, PSH | ACK, 30, sequence=101, acknowledgement=901)
    wire.say(1, PSH | ACK, 500, sequence=901, acknowledgement=131)
    wire.say(0, FIN | ACK, sequence=131, acknowledgement=1401)
    wire.say(1, FIN | ACK, sequence=1401, acknowledgement=132)
    wire.say(0, ACK, sequence=132, acknowledgement=1402)
    table = FlowTable()
    batch = wire.rows(table)
    assert states(batch) == ["SYN", "ESTABLISHED", "CLOSED"]
    assert batch.frame.tolist() == [1, 3, 7]
    assert {batch.source_of(i) for i in range(3)} == {CLIENT}
    assert {batch.destination_of(i) for i in range(3)} == {SERVER}
    assert (batch.source_port[0], batch.destination_port[0], batch.protocol[0]) == (40000, 443, 6)
    assert (batch.bytes_out[-1], batch.bytes_in[-1]) == (30, 500)
    assert (batch.packets_out[-1], batch.packets_in[-1]) == (4, 3)
    assert len(set(batch.flow.tolist())) == 1
    assert batch.provenance.tolist() == [Provenance.KERNEL] * 3
    assert len(table.finish()) == 0


@pytest.mark.parametrize(
    ("client", "server"), [(CLIENT, SERVER), (SERVER, CLIENT), ("2001:db8::1", "2001:db8::")]
)
def test_the_source_is_who_sent_the_syn_whichever_address_is_lower(client: str, server: str) -> None:
    batch = Wire(client, server, (443, 40000)).handshake().rows()
    assert {batch.source_of(i) for i in range(2)} == {client}
    assert batch.source_port.tolist() == [443, 443]


def test_a_reset_in_answer_to_a_syn_is_a_refusal_and_a_forged_one_is_none() -> None:
    wire = Wire().say(0, SYN, sequence=100).say(1, RST | ACK, acknowledgement=77).say(1, RST)
    assert states(wire.rows()) == ["SYN"]
    wire.say(1, RST | ACK, acknowledgement=101)
    assert states(wire.rows()) == ["SYN", "REFUSED"]


def test_each_new_try_from_a_port_that_was_refused_is_a_flow() -> None:
    wire = Wire()
    for number in range(3):
        wire.say(0, SYN, sequence=number).say(1, RST | ACK, acknowledgement=number + 1)
    batch = wire.rows()
    assert states(batch) == ["SYN", "REFUSED"] * 3
    assert len(set(batch.flow.tolist())) == 3


def test_a_syn_sent_again_is_the_same_flow() -> None:
    wire = Wire().say(0, SYN, sequence=5).say(0, SYN, sequence=5, after_ns=SECOND).handshake(5)
    batch = wire.rows()
    assert states(batch) == ["SYN", "ESTABLISHED"]
    assert batch.packets_out.tolist() == [1, 4]


def test_a_handshake_completes_only_for_who_saw_the_answer() -> None:
    blind = Wire().say(0, SYN, sequence=100)
    blind.say(1, SYN | ACK, sequence=900_000_000, acknowledgement=101)
    beginning = 900_000_001
    for guess in (0, 1, 101, 12345, 2**31, beginning + 1, beginning + 4096, beginning - 1):
        blind.say(0, PSH | ACK, 10, sequence=101, acknowledgement=guess)
    assert states(blind.rows()) == ["SYN"]
    unanswered = Wire().say(0, SYN, sequence=100).say(0, ACK, sequence=101, acknowledgement=901)
    assert states(unanswered.rows()) == ["SYN"]


def test_the_servers_first_payload_completes_a_handshake_whose_last_segment_was_not_sampled() -> None:
    wire = Wire().say(0, SYN, sequence=100).say(1, SYN | ACK, sequence=900, acknowledgement=101)
    wire.say(1, PSH | ACK, 21, sequence=901, acknowledgement=101)
    assert states(wire.rows()) == ["SYN", "ESTABLISHED"]


def test_a_client_that_ends_first_completes_once_the_server_ended_as_well() -> None:
    wire = Wire().say(0, SYN, sequence=100).say(1, SYN | ACK, sequence=900, acknowledgement=101)
    # What the server said in between was not sampled.
    wire.say(0, FIN | ACK, sequence=141, acknowledgement=5901)
    assert states(wire.rows()) == ["SYN"]
    wire.say(1, FIN | ACK, sequence=5901, acknowledgement=142)
    assert states(wire.rows()) == ["SYN", "ESTABLISHED", "CLOSED"]


def test_an_answer_without_its_syn_names_the_one_that_it_answers() -> None:
    wire = Wire().say(1, SYN | ACK, sequence=900, acknowledgement=101)
    wire.say(0, ACK, sequence=101, acknowledgement=901).say(0, RST, sequence=1101)
    batch = wire.rows()
    assert states(batch) == ["SYN", "ESTABLISHED", "CLOSED"]
    assert batch.source_of(0) == CLIENT
    assert batch.bytes_out[-1] == 1000


def test_an_answer_with_another_beginning_is_a_new_connection() -> None:
    wire = Wire().handshake(100, 900).say(0, SYN, sequence=5000)
    wire.say(1, SYN | ACK, sequence=9000, acknowledgement=5001)
    wire.say(0, ACK, sequence=5001, acknowledgement=9001)
    batch = wire.rows()
    assert len(set(batch.flow.tolist())) == 2
    assert states(batch)[-2:] == ["SYN", "ESTABLISHED"]


@pytest.mark.parametrize("last", [FIN, RST])
def test_a_transfer_beyond_four_gigabytes_is_exact_though_one_packet_in_thousands_is_seen(last: int) -> None:
    total, step, ours = 11 * 2**30 + 12345, 2**30 + 17, 2**32 - 50
    wire = Wire().handshake(ours)
    for at in range(step, total, step):
        wire.say(0, ACK, 1448, sequence=(ours + 1 + at - 1448) % 2**32, acknowledgement=901, weight=5000)
        wire.say(0, ACK, 1448, sequence=(ours + 1 + at - 90000) % 2**32, acknowledgement=901, weight=5000)
    wire.say(0, last | ACK, sequence=(ours + 1 + total) % 2**32, acknowledgement=901)
    wire.say(1, FIN | ACK, sequence=901, acknowledgement=(ours + 2 + total) % 2**32)
    wire.say(0, ACK, sequence=(ours + 2 + total) % 2**32, acknowledgement=902)
    batch = wire.rows()
    assert states(batch)[-1] == "CLOSED"
    assert (batch.bytes_out[-1], batch.bytes_in[-1]) == (total, 0)
    assert len(batch) >= total // (2 * step)


def test_a_reset_with_a_made_up_number_adds_no_bytes() -> None:
    wire = Wire().handshake().say(1, RST, sequence=(901 + 3 * 2**29) % 2**32)
    assert wire.rows().bytes_in[-1] == 0


def test_an_acknowledgement_of_what_was_never_sent_adds_no_bytes() -> None:
    wire = Wire().handshake().say(0, ACK, sequence=101, acknowledgement=900_000_000).say(0, RST, sequence=101)
    batch = wire.rows()
    assert (batch.bytes_out[-1], batch.bytes_in[-1]) == (0, 0)


def test_bytes_whose_beginning_was_not_seen_are_payload_times_weight() -> None:
    wire = Wire()
    for _ in range(3):
        wire.say(1, ACK, 1000, sequence=7, acknowledgement=7, weight=10)
    table = FlowTable()
    first, last = wire.rows(table), table.finish()
    assert states(first) == ["OTHER"]
    assert first.source_of(0) == CLIENT
    assert (last.bytes_out[0], last.bytes_in[0], last.packets_in[0], last.frame[0]) == (0, 30000, 3, 3)


@pytest.mark.parametrize(
    ("ports", "sender", "protocol", "source"),
    [
        ((40000, 443), 1, 6, 0),
        ((40000, 443), 0, 6, 0),
        ((40000, 8000), 1, 6, 0),
        ((50000, 40000), 1, 6, 0),
        ((40000, 53), 1, 17, 0),
        ((40000, 50000), 1, 17, 1),
        ((50000, 40000), 1, 17, 1),
        ((0, 0), 1, 1, 1),
    ],
)
def test_without_a_syn_the_end_with_the_services_port_was_called(
    ports: tuple[int, int], sender: int, protocol: int, source: int
) -> None:
    batch = Wire(ports=ports).say(sender, ACK, protocol=protocol).rows()
    assert batch.source_of(0) == (CLIENT, SERVER)[source]


def test_a_long_flow_gives_a_row_every_64_mebibytes_and_every_minute() -> None:
    wire = Wire().handshake()
    for _ in range(10):
        wire.say(1, ACK, 32 << 20, sequence=901 + (len(wire.packets) - 3) * (32 << 20), acknowledgement=101)
    for _ in range(6):
        wire.say(0, ACK, sequence=101, acknowledgement=901, after_ns=20 * SECOND)
    batch = wire.rows()
    assert states(batch) == ["SYN"] + ["ESTABLISHED"] * (1 + 5 + 2)
    assert np.diff(batch.bytes_in).tolist() == [0] + [64 << 20] * 5 + [0, 0]


def test_a_silence_begins_a_new_flow_but_not_for_an_open_connection() -> None:
    wire = Wire(ports=(40000, 53)).say(0, protocol=17).say(0, protocol=17, after_ns=301 * SECOND)
    assert len(set(wire.rows(FlowTable(idle_s=300)).flow.tolist())) == 2
    wire = Wire().handshake().say(0, ACK, 9, sequence=101, acknowledgement=901, after_ns=9000 * SECOND)
    batch = wire.rows(FlowTable(idle_s=300))
    assert len(set(batch.flow.tolist())) == 1
    assert batch.bytes_out[-1] == 9


@pytest.mark.parametrize(
    ("source", "destination", "direction"),
    [
        (CLIENT, SERVER, Direction.INGRESS),
        (SERVER, CLIENT, Direction.EGRESS),
        (SERVER, "198.51.100.8", Direction.LOCAL),
        (CLIENT, "192.0.2.10", Direction.UNKNOWN),
        ("2001:db8:9::1", "2001:db8:1::1", Direction.INGRESS),
        ("::198.51.100.7", CLIENT, Direction.UNKNOWN),
    ],
)
def test_the_direction_is_seen_from_the_local_networks(
    source: str, destination: str, direction: Direction
) -> None:
    table = FlowTable(local=["198.51.100.0/24", "2001:db8:1::/48"])
    ends = (source, destination)
    if ":" in source and ":" not in destination:
        ends = (source, "2001:db8:9::2")
    assert Wire(*ends).say(0, SYN).rows(table).direction.tolist() == [direction]
    assert Wire(*ends).say(0, SYN).rows().direction.tolist() == [Direction.UNKNOWN]


def test_a_tunnels_flows_are_kept_apart_and_trusted_less() -> None:
    wire = Wire().say(0, SYN, sequence=1).say(0, SYN, sequence=1, flags=TUNNELLED)
    batch = wire.rows()
    assert len(set(batch.flow.tolist())) == 2
    assert batch.provenance.tolist() == [Provenance.KERNEL, Provenance.NETWORK]


def test_packets_without_ports_make_no_flow_and_are_counted() -> None:
    table = FlowTable()
    wire = (
        Wire()
        .say(0, ACK, flags=FRAGMENT)
        .say(0, 0, flags=MALFORMED)
        .say(0, 0, flags=CUT_SHORT)
        .say(0, ACK, family=0)
    )
    wire.say(0, ACK, source_port=0, destination_port=0)
    assert len(wire.rows(table)) == 0
    assert table.skipped == 5
    assert len(Wire().say(0, SYN, flags=MALFORMED).rows(table)) == 1


def test_the_table_never_grows_and_an_eviction_tells_what_was_not_told() -> None:
    table = FlowTable(capacity=64)
    assert table.used == 0
    wire = Wire(ports=(1, 53)).say(0, payload=10, protocol=17).say(0, payload=90, protocol=17)
    first = wire.rows(table)
    flood = Wire()
    for number in range(2000):
        flood.say(0, SYN, source_port=1024 + number)
    batch = flood.rows(table)
    assert table.used == 64
    assert first.bytes_out.tolist() == [10]
    gone = [i for i in range(len(batch)) if batch.flow[i] == first.flow[0]]
    assert [batch.bytes_out[i] for i in gone] == [100]
    assert states(batch).count("SYN") == 2000


def test_a_flood_of_openings_pushes_out_openings_before_established_flows() -> None:
    table = FlowTable(capacity=64)
    wire = Wire().handshake()
    wire.rows(table)
    flood = Wire()
    flood.now = wire.now
    for number in range(2000):
        flood.say(0, SYN, source_port=1024 + number, after_ns=1000)
    flood.rows(table)
    closing = Wire()
    closing.now = flood.now
    closing.say(0, RST, sequence=101 + 5000)
    batch = closing.rows(table)
    assert states(batch) == ["CLOSED"]
    assert batch.bytes_out.tolist() == [5000]


def test_what_is_saved_goes_on_where_it_was() -> None:
    wire = Wire().handshake().say(0, ACK, 5, sequence=101, acknowledgement=901)
    packets = np.concatenate(wire.say(1, RST, sequence=901).packets)
    whole = told(packets, FlowTable(hash_key=b"k" * 16))
    for cut in range(len(packets)):
        before, after = FlowTable(hash_key=b"k" * 16), FlowTable(hash_key=b"k" * 16)
        rows = columns(before.update(packets[:cut]))
        state = before.save()
        before.update(packets[cut:])
        after.load(state)
        assert rows + columns(after.update(packets[cut:])) + columns(after.finish()) == whole
    with pytest.raises(ValueError, match="another table"):
        FlowTable().load(state)


def test_rows_come_in_order_of_time_though_packets_do_not_quite() -> None:
    wire = Wire()
    for number in range(10):
        wire.say(0, SYN, source_port=number + 2000, after_ns=-1000 if number % 2 else 5000)
    batch = wire.rows()
    assert (np.diff(batch.time_ns) >= 0).all()
    assert (np.diff(batch.first_ns) < 0).any()


def jumble(seed: int) -> NDArray[np.void]:
    """Packets of few ends with few numbers, so that everything meets everything."""
    made = np.random.default_rng(seed)
    rows = np.zeros(int(made.integers(1, 120)), PACKET)
    n = len(rows)
    ends = made.choice(3, (2, n), p=[0.45, 0.45, 0.1])
    rows["source"][:, 1], rows["destination"][:, 1] = ends
    rows["source_port"] = made.choice([443, 40000, 0], n, p=[0.4, 0.5, 0.1])
    rows["destination_port"] = made.choice([443, 40000], n)
    rows["tcp_flags"] = made.choice([SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, 0, 63], n)
    rows["payload"] = made.choice([0, 0, 1, 1448, 2**32 - 1], n)
    for name in ("sequence", "acknowledgement"):
        rows[name] = made.choice([0, 1, 2, 100, 101, 2**31, 2**32 - 1], n)
    rows["protocol"] = made.choice([6, 17, 1], n, p=[0.8, 0.1, 0.1])
    rows["flags"] = made.choice(
        [0, MALFORMED, FRAGMENT, TUNNELLED, CUT_SHORT], n, p=[0.8, 0.05, 0.05, 0.05, 0.05]
    )
    rows["family"] = made.choice([4, 6, 0], n, p=[0.85, 0.1, 0.05])
    rows["weight"] = made.choice([1, 100, 2**32 - 1], n)
    steps = np.array([0, 1, -5, SECOND, 61 * SECOND, 400 * SECOND, -(2**55), 2**55])
    rows["time_ns"] = np.cumsum(made.choice(steps, n, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.08, 0.01, 0.01]))
    rows["frame"] = np.arange(1, n + 1)
    return rows


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 120), max_size=6), st.sampled_from([8, 16, 1024]))
def test_the_division_into_batches_changes_no_row_compiled_or_not(
    seed: int, cuts: Sequence[int], capacity: int
) -> None:
    packets = jumble(seed)
    whole = told(packets, FlowTable(capacity=capacity))
    assert told(packets, FlowTable(capacity=capacity), *cuts) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "table", CHECKED)
        assert told(packets, FlowTable(capacity=capacity), *cuts) == whole


CHECKED = uncompiled(flows_table)


def test_captures_give_the_same_rows_in_batches_of_any_size(data: Path) -> None:
    for path in sorted((data / "pcap").glob("*.pcap*")):
        if path.suffix == ".json":
            continue
        rows = []
        for size in (65536, 13, 1):
            table = FlowTable(local=["10.0.0.0/8"])
            with Capture(path) as capture:
                batches = [table.update(batch.packets) for batch in capture.batches(size)]
                rows.append([row for batch in [*batches, table.finish()] for row in columns(batch)])
            if len(rows[0]) > 5000:
                break
        assert all(each == rows[0] for each in rows), path.name
