"""An invented internet: which network is whose, in which country, at which place.

The networks exist; that they belong to these countries and numbers is made up, so that no real operator is
accused. `table()` is what a test puts into a MaxMind-format database.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .chance import Chance

Use = Literal["residential", "mobile", "hosting", "business"]

PLACES: dict[str, tuple[str, float, float]] = {
    "berlin": ("DE", 52.52, 13.40),
    "munich": ("DE", 48.14, 11.58),
    "paris": ("FR", 48.86, 2.35),
    "london": ("GB", 51.51, -0.13),
    "madrid": ("ES", 40.42, -3.70),
    "warsaw": ("PL", 52.23, 21.01),
    "newyork": ("US", 40.71, -74.01),
    "dallas": ("US", 32.78, -96.80),
    "saopaulo": ("BR", -23.55, -46.63),
    "lagos": ("NG", 6.52, 3.38),
    "mumbai": ("IN", 19.08, 72.88),
    "hanoi": ("VN", 21.03, 105.85),
    "jakarta": ("ID", -6.21, 106.85),
    "shanghai": ("CN", 31.23, 121.47),
    "tokyo": ("JP", 35.68, 139.69),
    "sydney": ("AU", -33.87, 151.21),
    "moscow": ("RU", 55.76, 37.62),
    "amsterdam": ("NL", 52.37, 4.90),
}
HOME_PLACES = ("berlin", "munich")
ABROAD = tuple(place for place in PLACES if place not in HOME_PLACES)


@dataclass(frozen=True, slots=True)
class Network:
    """One row. `prefix` is the first two numbers of an IPv4 /16, or the first two groups of an IPv6 /32."""

    prefix: str
    family: Literal[4, 6]
    use: Use
    place: str
    asn: int

    @property
    def cidr(self) -> str:
        return f"{self.prefix}.0.0/16" if self.family == 4 else f"{self.prefix}::/32"


def _rows() -> tuple[Network, ...]:
    rows = [
        Network("91.33", 4, "residential", "berlin", 64601),
        Network("91.34", 4, "residential", "munich", 64601),
        Network("93.192", 4, "residential", "berlin", 64602),
        Network("188.96", 4, "residential", "munich", 64602),
        Network("109.40", 4, "mobile", "berlin", 64603),
        Network("109.41", 4, "mobile", "munich", 64603),
        Network("217.86", 4, "business", "berlin", 64604),
        Network("62.156", 4, "business", "munich", 64604),
        Network("2a02:8109", 6, "residential", "berlin", 64601),
        Network("2a02:810d", 6, "residential", "munich", 64602),
        Network("2a01:598", 6, "mobile", "berlin", 64603),
        Network("2a0a:a540", 6, "business", "berlin", 64604),
    ]
    for at, place in enumerate(ABROAD):
        rows += [
            Network(f"{41 + at}.{17 + 7 * at}", 4, "residential", place, 64700 + at),
            Network(f"{103 + at}.{29 + 5 * at}", 4, "residential", place, 64720 + at),
            Network(f"{177 + at}.{11 + 9 * at}", 4, "mobile", place, 64740 + at),
            Network(f"{141 + at}.{98 + 3 * at}", 4, "hosting", place, 64760 + at),
            Network(f"2a0{4 + at % 6}:{0x1A00 + 0x111 * at:x}", 6, "hosting", place, 64760 + at),
            Network(f"240{at % 10}:{0x4800 + 0x101 * at:x}", 6, "residential", place, 64700 + at),
        ]
    return tuple(rows)


NETWORKS = _rows()


def networks(use: Use | None = None, places: tuple[str, ...] | None = None, family: int = 4) -> list[Network]:
    """The rows of that use, of those places, of that family."""
    return [
        n
        for n in NETWORKS
        if n.family == family and (use is None or n.use == use) and (places is None or n.place in places)
    ]


def table() -> list[dict[str, Any]]:
    """Network, country, autonomous system and coordinates, one row each."""
    rows = []
    for network in NETWORKS:
        country, latitude, longitude = PLACES[network.place]
        row = {k: v for k, v in asdict(network).items() if k not in ("prefix", "family")}
        rows.append(
            {"network": network.cidr, "country": country, "latitude": latitude, "longitude": longitude, **row}
        )
    return rows


class Addresses:
    """Hands out addresses, none twice, so that an address is of one actor, unless an actor is told to share
    it."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def _once(self, draw: Callable[[], str]) -> str:
        while (address := draw()) in self._taken:
            pass
        self._taken.add(address)
        return address

    def v4(self, chance: Chance, network: Network) -> str:
        return self._once(lambda: f"{network.prefix}.{chance.below(256)}.{chance.whole(1, 254)}")

    def slice48(self, chance: Chance, network: Network) -> str:
        """An IPv6 /48 as its three first groups."""
        return self._once(lambda: f"{network.prefix}:{chance.whole(0x1000, 0xFFFF):x}")

    def slice64(self, chance: Chance, network: Network) -> str:
        """An IPv6 /64 as its four first groups, alone in its /48."""
        return f"{self.slice48(chance, network)}:{chance.whole(0x1000, 0xFFFF):x}"

    def source(self, chance: Chance, network: Network) -> str:
        if network.family == 4:
            return self.v4(chance, network)
        return within64(chance, self.slice64(chance, network))


def within64(chance: Chance, slice64: str) -> str:
    """A privacy address (RFC 8981) of a /64."""
    groups = [f"{chance.whole(0x1000, 0xFFFF):x}" for _ in range(4)]
    return f"{slice64}:{':'.join(groups)}"
