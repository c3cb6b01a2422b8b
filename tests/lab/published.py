"""A model server behind the gateway, as a container is: in a namespace of its own, published by DNAT on the gateway.

Its namespace is named like the lab's own, so that the janitor removes it with them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from .lab import Lab, answers, read, wait_for
from .services import KEYS

SERVER = Path(__file__).with_name("model_server.py")
HOST = "models"
FRONT, BACK = 8090, 9000
V4, V4_GATEWAY, V4_LENGTH = "192.0.2.66", "192.0.2.65", 26
V6, V6_GATEWAY = "2001:db8:0:7::66", "2001:db8:0:7::1"

DNAT = f"""
table inet published {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname "eth0" fib daddr type local meta nfproto ipv4 tcp dport {FRONT} dnat ip to {V4}:{BACK}
    iifname "eth0" fib daddr type local meta nfproto ipv6 tcp dport {FRONT} dnat ip6 to [{V6}]:{BACK}
  }}
}}
"""


class ModelServer:
    """`with ModelServer(lab, host, address, port) as server:` runs one of the lab's model servers there, for `keys`."""

    def __init__(
        self, lab: Lab, host: str, address: str, port: int, keys: Iterable[str] = KEYS.values()
    ) -> None:
        self.keys = tuple(keys)
        self.lab, self.host, self.address, self.port = lab, host, address, port
        self.output = lab.folder / f"model-{host}-{port}.out"
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> ModelServer:
        command: list[str | Path] = [sys.executable, SERVER, self.address, str(self.port), *self.keys]
        with open(self.output, "wb") as said:
            self._process = self.lab.popen_in(self.host, command, stdout=said, stderr=said)
        with self.lab.inside(self.host):
            wait_for(f"the model server on {self.host}", lambda: answers("127.0.0.1", self.port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def ends(self) -> list[str]:
        """How each answer that could not be finished ended, by the name of its error."""
        return ends_of(self.output, self.port)


def ends_of(output: Path, port: int) -> list[str]:
    """The same of any of the lab's model servers, from what it said."""
    said = (line.split() for line in read(output).splitlines())
    return [words[2] for words in said if len(words) == 3 and words[:2] == [str(port), "ended:"]]


class Published:
    """`with Published(lab) as published:` port FRONT of the gateway leads to a model server behind it.

    The gateway's ruleset is added to; whoever flushes it publishes no longer (`publish` does so again).
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server = ModelServer(lab, HOST, "::", BACK)

    def __enter__(self) -> Published:
        lab, there = self.lab, self.lab.namespace(HOST)
        subprocess.run(["ip", "netns", "add", there], check=True)
        for name in (HOST, "gateway"):
            with lab.inside(name):
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        self._ip("gateway", f"link add {HOST} type veth peer name eth0 netns {there}")
        self._ip("gateway", f"addr add {V4_GATEWAY}/{V4_LENGTH} dev {HOST}")
        self._ip("gateway", f"addr add {V6_GATEWAY}/64 dev {HOST} nodad")
        self._ip("gateway", f"link set {HOST} up")
        for words in (
            "link set lo up",
            f"addr add {V4}/{V4_LENGTH} dev eth0",
            f"addr add {V6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {V4_GATEWAY}",
            f"-6 route add default via {V6_GATEWAY}",
        ):
            self._ip(HOST, words)
        self._forward("1")
        self.server.__enter__()
        with lab.inside("gateway"):
            for address in (V4, V6):
                wait_for(f"the way to {address}", lambda address=address: answers(address, BACK))  # type: ignore[misc]
        self.publish()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.__exit__(kind, error, trace)
        self._forward("0")
        self._ip("gateway", f"link del {HOST}")  # the namespace lives as long as its sockets send again
        subprocess.run(["ip", "netns", "del", self.lab.namespace(HOST)], check=True)

    def publish(self) -> None:
        self.lab.run_in("gateway", ["nft", "-f", "-"], input=DNAT)

    def _forward(self, on: str) -> None:
        with self.lab.inside("gateway"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text(on)
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text(on)

    def _ip(self, host: str, words: str) -> None:
        subprocess.run(["ip", "-n", self.lab.namespace(host), *words.split()], check=True)
