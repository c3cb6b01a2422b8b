"""The table `inet gatewatch_cut`: resets what is forwarded in mid-connection though nothing is known of it.

An entry of connection tracking that is deleted comes back with the next packet (loose pickup, nf_conntrack_tcp), and
the connection goes on. Here such a packet, from or to an address that was cut lately, is answered with a TCP reset,
to either end as it speaks. What begins anew has its SYN seen and passes. The table is nobody's to restore: its
elements end by themselves, and whoever flushes it only loses the resets.
"""

from __future__ import annotations

from ipaddress import ip_network

from ..rails import PREFIXES, Network
from .elements import MissingError
from .nft import Nft

CUT = "gatewatch_cut"
LASTING_MS = 3_600_000
"""A connection that is silent for longer survives its cut."""
_PRIORITY = -150  # after connection tracking (-200), before anybody's filter
_MOST = 65_536


def put(nft: Nft, network: Network) -> None:
    """From now on reset what `network` has in mid-connection. Raises EnforcerError."""
    wanted = {f"cut{network.version}_{network.prefixlen}": {network.network_address.packed: LASTING_MS}}
    try:
        nft.elements.put(CUT, wanted)
    except MissingError:
        nft.run(render())
        nft.elements.put(CUT, wanted)


def render() -> str:
    """The table, empty, replacing whatever stands under its name."""
    lengths = [(version, length) for version, those in PREFIXES.items() for length in those]
    sets = "".join(
        f"set cut{version}_{length} {{ type ipv{version}_addr; flags timeout; size {_MOST}; }}\n"
        for version, length in lengths
    )
    rules = ["meta l4proto != tcp accept", "ct state { established, related, untracked } accept"]
    rules.append("tcp flags & (syn | rst) != 0 accept")
    for version, length in lengths:
        family, any_address, full = ("ip", "0.0.0.0", 32) if version == 4 else ("ip6", "::", 128)
        mask = f" & {ip_network(f'{any_address}/{length}').netmask}" if length < full else ""
        rules += [
            f"{family} {side}addr{mask} @cut{version}_{length} counter reject with tcp reset"
            for side in ("s", "d")
        ]
    body = "\n".join((f"type filter hook forward priority {_PRIORITY}; policy accept;", *rules))
    return (
        f"add table inet {CUT}\ndelete table inet {CUT}\n"
        f"table inet {CUT} {{\n{sets}chain forward {{\n{body}\n}}\n}}\n"
    )
