"""A kernel that only records, for the fuzz loop and nothing else: the lab's tests have the real one.

It takes what the enforcer renders, gives it back as libnftables-json(5) would, and fails where the real one would
for want of a table. Netlink answers nothing: this machine has no connection, and the addresses below.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

OWN = ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1")
GATEWAY, NAME_SERVER = "192.0.2.254", "198.51.100.53"
_CHAIN = re.compile(r"chain (\w+) \{\n(.*?)\n?\}\n", re.DOTALL)
_BASE = re.compile(r"type (\w+) hook (\w+) priority (-?\d+); policy (\w+);")
_SET = re.compile(r"set (\w+) \{(.*)\}\n")
_COUNTER = re.compile(r"counter (\w+) \{ \}\n")
_ADD = re.compile(r"add element inet (\w+) (\w+) \{ (.*) \}")


class KernelDouble:
    """Stands where `Nft` does; `elements` where `Elements` does."""

    def __init__(self) -> None:
        self.elements = self
        self._tables: dict[str, str] = {}
        self._sets: dict[tuple[str, str], dict[bytes, int]] = {}

    def run(self, commands: str) -> None:
        commands.encode("ascii")  # as `Nft` does
        rest = commands
        while rest:
            line, _, rest = rest.partition("\n")
            words = line.split()
            if words[:2] == ["add", "table"]:
                self._tables.setdefault(words[3], "")
            elif words[:2] == ["delete", "table"]:
                self.lose(words[3])
            elif words[0] == "table":
                body, end, rest = rest.partition("\n}\n}\n")
                assert end, "a table that nothing closes"
                self._tables[words[2]] = body + "\n}\n"
                for name, inside in _SET.findall(body):
                    if "interval" not in inside:
                        self._sets.setdefault((words[2], name), {})
            elif found := _ADD.match(line):
                table, name, elements = found.groups()
                if "timeout" in elements:
                    for element in elements.split(", "):
                        key, _, timeout = element.partition(" timeout ")
                        self._held(table, name)[ip_address(key).packed] = int(timeout[:-1]) * 1000
            elif words[:2] != ["flush", "set"]:
                raise AssertionError(f"the enforcer told the kernel: {line}")

    def lose(self, table: str) -> None:
        """As another program that flushes the ruleset."""
        self._tables.pop(table, None)
        self._sets = {place: held for place, held in self._sets.items() if place[0] != table}

    def table(self, name: str) -> list[dict[str, Any]] | None:
        if name not in self._tables:
            return None
        body = self._tables[name]
        listed: list[dict[str, Any]] = [{"metainfo": {}}, {"table": {"name": name}}]
        listed += [{"counter": {"name": c, "packets": 1}} for c in _COUNTER.findall(body)]
        for chain, inside in _CHAIN.findall(body):
            base = _BASE.search(inside)
            kind, hook, priority, policy = base.groups() if base else (None, None, None, None)
            said = {"hook": hook, "type": kind, "prio": int(priority or 0), "policy": policy} if base else {}
            listed.append({"chain": {"name": chain, **said}})
            for line in inside.splitlines():
                if line and not line.startswith("type "):
                    rule, _, comment = line.partition(" comment ")
                    named = {"comment": comment.strip('"')} if comment else {}
                    listed.append({"rule": {"chain": chain, "expr": list(_expressions(rule)), **named}})
        return listed

    def ruleset(self) -> list[dict[str, Any]]:
        """Somebody publishes the port 8443 by DNAT."""
        match = {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8443}
        expressions = [{"match": match}, {"dnat": {"addr": "10.0.0.2", "port": 8000}}]
        return [{"rule": {"family": "ip", "table": "nat", "chain": "pre", "handle": 1, "expr": expressions}}]

    def put(self, table: str, wanted: Mapping[str, Mapping[bytes, int]]) -> None:
        for name, keys in wanted.items():
            self._held(table, name).update(keys)

    def remove(self, table: str, name: str, key: bytes) -> None:
        self._held(table, name).pop(key, None)

    def dump(self, table: str, name: str) -> list[tuple[bytes, int]]:
        return list(self._held(table, name).items())

    def parts(self, table: str, fixed: Sequence[str]) -> list[str] | None:
        return [self._tables[table]] if table in self._tables else None

    def _held(self, table: str, name: str) -> dict[bytes, int]:
        from gatewatch.daemon.enforcer.kernel.elements import MissingError

        if (table, name) not in self._sets:
            raise MissingError(f"table inet {table}: No such file or directory")
        return self._sets[table, name]


class NetlinkDouble:
    """Nobody is connected, nothing is tracked, and whatever is asked for is done."""

    interrupted = False

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> NetlinkDouble:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, *_: object) -> Iterator[tuple[int, bytes]]:
        return iter(())

    def tell(self, kind: int, payloads: Sequence[bytes]) -> list[int]:
        return [0] * len(payloads)


class ProbeDouble:
    """A probe that nobody can send."""

    def __init__(self, *_: object) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def finish(self) -> list[Any]:
        return []


def replace_kernel() -> None:
    """From now on nothing in this process asks or changes the real kernel's network, in no module of the enforcer."""
    import gatewatch.daemon.enforcer as package

    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith(".__main__"):
            module: Any = importlib.import_module(found.name)
            for name, double in (("Netlink", NetlinkDouble), ("Probe", ProbeDouble), ("Nft", KernelDouble)):
                if hasattr(module, name):
                    setattr(module, name, double)
    host: Any = importlib.import_module(f"{package.__name__}.kernel.host")
    bypass: Any = importlib.import_module(f"{package.__name__}.proof.bypass")
    bypass.find = lambda *_: []  # it walks through this machine's processes
    own, around = tuple(map(ip_address, OWN)), tuple(map(ip_address, (GATEWAY, NAME_SERVER)))
    host.own_addresses = lambda: own
    host.gateways = lambda: around[:1]
    host.name_servers = lambda: around[1:]


def _expressions(rule: str) -> Iterator[dict[str, Any]]:
    words = rule.split()
    while words:
        match words:
            case ["fib", flags, "type", "local", *words]:
                fib = {"fib": {"result": "type", "flags": flags}}
                yield {"match": {"op": "==", "left": fib, "right": "local"}}
            case ["meta", key, value, *words]:
                yield {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}
            case ["tcp", "flags", "&", "rst", "==", "rst", *words]:
                left = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, 4]}
                yield {"match": {"op": "==", "left": left, "right": 4}}
            case [("ip" | "ip6" | "tcp" | "udp") as protocol, field, value, *words]:
                payload = {"payload": {"protocol": protocol, "field": field}}
                place, slash, length = value.partition("/")
                prefix = {"prefix": {"addr": place, "len": int(length)}} if slash else None
                right = prefix or (int(value) if value.isdigit() else value)
                yield {"match": {"op": "==", "left": payload, "right": right}}
            case ["counter", "name", name, *words]:
                yield {"counter": name.strip('"')}
            case ["counter", *words]:
                yield {"counter": {"packets": 0, "bytes": 0}}
            case ["jump", target, *words]:
                yield {"jump": {"target": target}}
            case ["reject", "with", "tcp", "reset", *words]:
                yield {"reject": {"type": "tcp reset"}}
            case [word, *words]:
                yield {word: None}
