"""A site around the lab's gateway for ways past the kill switch: a client, and a box in which a model runs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gatewatch.daemon.enforcer.kernel import killtable
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.proof import bypass
from gatewatch.daemon.enforcer.proof.bypass import Bypass
from gatewatch.daemon.enforcer.rails import Endpoint
from lab.lab import Lab

FRONT = 8443
NEAR, NEAR_GATEWAY = "192.0.2.194", "192.0.2.193"  # the client's second address, and the gateway's beside it
BESIDE = "192.0.2.195"  # a model in the client's own subnet
NEAR6, NEAR6_GATEWAY, BESIDE6 = "2001:db8:0:8::194", "2001:db8:0:8::193", "2001:db8:0:8::195"
BEHIND, BEHIND_GATEWAY = "192.0.2.226", "192.0.2.225"  # a model behind the gateway


class Site:
    """A client behind `up0` of the gateway, and a box, where a model runs, in a namespace of its own."""

    def __init__(self, lab: Lab, nft: Nft) -> None:
        self.lab, self.nft = lab, nft

    def ip(self, host: str, *lines: str) -> None:
        command = ["ip", "-n", self.lab.namespace(host), "-batch", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True, capture_output=True)

    def join(self, *addresses: str) -> None:
        """The box hangs on `c0` of the gateway."""
        self.ip(
            "gateway",
            f"link add c0 type veth peer name eth0 netns {self.lab.namespace('box')}",
            "link set c0 up",
        )
        self.ip(
            "box",
            "link set eth0 up",
            *(f"addr add {a}/{'64 nodad' if ':' in a else '27'} dev eth0" for a in addresses),
        )

    def cut(self, *endpoints: Endpoint) -> None:
        self.nft.run(killtable.render(killtable.KILL, {e.name: e.services for e in endpoints}))

    def find(self, *endpoints: Endpoint, watch: bypass.Watch | None = None) -> list[Bypass]:
        with self.lab.inside("gateway"):
            return bypass.find(endpoints, self.nft, watch)

    def find_with(self, rights: str, front: str) -> list[str]:
        """What another process finds, that is root but has these capabilities alone (setpriv(1))."""
        limited = ["setpriv", f"--bounding-set=-all{',' + rights if rights else ''}", "--reuid=0"]
        entered = ["nsenter", f"--net=/run/netns/{self.lab.namespace('gateway')}", *limited]
        command = [*entered, sys.executable, "-c", _FIND, front]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


_FIND = """
import sys
from gatewatch.daemon.enforcer.proof import bypass
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.rails import Endpoint, service_of
models = Endpoint("models", "high", (service_of(sys.argv[1]),), (), True, False)
for found in bypass.find([models], Nft()):
    print(found.kind, found.what)
"""


@contextlib.contextmanager
def site_of(lab: Lab) -> Iterator[Site]:
    """Built around the gateway of a bare lab, and taken apart."""
    with lab.inside("gateway"):
        nft = Nft()  # its netlink socket stays there
    subprocess.run(["ip", "netns", "add", lab.namespace("box")], check=True)
    try:
        site = Site(lab, nft)
        site.ip("box", "link set lo up")
        site.ip(
            "gateway",
            f"link add up0 type veth peer name down0 netns {lab.namespace('client')}",
            f"addr add {NEAR_GATEWAY}/27 dev up0",
            f"addr add {NEAR6_GATEWAY}/64 dev up0 nodad",
            "link set up0 up",
        )
        site.ip(
            "client",
            f"addr add {NEAR}/27 dev down0",
            f"addr add {NEAR6}/64 dev down0 nodad",
            "link set down0 up",
            f"route add {BEHIND} via {NEAR_GATEWAY}",
        )
        with lab.inside("gateway"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield site
    finally:
        nft.run("flush ruleset")
        with lab.inside("gateway"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        subprocess.run(["ip", "netns", "delete", lab.namespace("box")], check=True)
        for name in ("br0", "c0", "up0"):
            lab.run_in("gateway", ["ip", "link", "delete", name], check=False)
