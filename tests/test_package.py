"""The package as it is installed: one name for each module, no heavy import where the design forbids it."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

EVERY_MODULE = """
import importlib, json, pkgutil, sys
import gatewatch
names = [m.name for m in pkgutil.walk_packages(gatewatch.__path__, 'gatewatch.')
         if m.name.split('.')[1] in ('daemon', 'detectors', 'playbooks', 'config') and not m.name.endswith('__main__')]
for name in names:
    importlib.import_module(name)
files = {}
for name, module in list(sys.modules.items()):
    file = getattr(module, '__file__', None)
    if file:
        files.setdefault(file, []).append(name)
print(json.dumps({'imported': names, 'twice': [n for n in files.values()
      if len(n) > 1 and any(x.startswith('gatewatch') for x in n)]}))
"""


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_every_module_imports_and_none_is_loaded_under_two_names() -> None:
    found = json.loads(python(EVERY_MODULE))
    assert "gatewatch.daemon.analyser" in found["imported"]
    assert found["twice"] == []


def test_no_module_named_plainly_daemon_or_config_is_installed() -> None:
    code = (
        "import importlib.metadata as m; "
        "print([str(f) for f in m.files('gatewatch') or [] if str(f).split('/')[0] in "
        "('daemon', 'config', 'detectors', 'playbooks', 'tests')])"
    )
    try:
        assert python(code).strip() == "[]"
    except subprocess.CalledProcessError as error:  # a linked source tree has no metadata to ask
        assert "PackageNotFoundError" in error.stderr


def test_the_enforcer_loads_nothing_heavy() -> None:
    code = (
        "import sys, gatewatch.daemon.enforcer.server; "
        "print(sorted(m for m in ('numpy', 'pydantic', 'pandas', 'typer', 'scapy', 'asyncio', 'yaml') "
        "if m in sys.modules))"
    )
    assert python(code).strip() == "[]"


def test_detectors_import_neither_clock_nor_file_nor_socket() -> None:
    folder = Path(importlib.import_module("gatewatch.detectors").__path__[0])
    used = {
        (file.name, name.split(".")[0])
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    }
    assert used
    forbidden = {
        "asyncio",
        "io",
        "logging",
        "os",
        "pathlib",
        "random",
        "socket",
        "sqlite3",
        "subprocess",
        "time",
    }
    assert {u for u in used if u[1] in forbidden} == set()
