"""Finds and reads playbooks: the shipped ones, and those of the folders that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..config.document import Document, read_document, validated
from ..daemon.errors import ConfigError
from .actions.block_source import BlockSource
from .actions.block_user import BlockUser
from .schema import Playbook

SHIPPED = Path(__file__).parent
MOST_PLAYBOOKS = 1000


def load_playbook(path: Path | str) -> Playbook:
    """One playbook. Raises ConfigError that names file, line and key."""
    return read_playbook(path)[0]


def read_playbook(path: Path | str) -> tuple[Playbook, Document]:
    """As `load_playbook`, with the line of each key."""
    document = read_document(Path(path))
    playbook = validated(Playbook, document)
    wrong = [
        document.error(("then", i, "longest"), "must not be shorter than ttl")
        for i, step in enumerate(playbook.then)
        if isinstance(step, BlockSource | BlockUser) and step.longest < step.ttl
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    return playbook, document


def playbook_files(directories: Iterable[Path | str] = (), *, shipped: bool = True) -> list[Path]:
    """Every playbook file in order: shipped first, then folder by folder, by name.

    Raises ConfigError where a folder cannot be listed.
    """
    found = sorted(SHIPPED.glob("*.yaml")) if shipped else []
    for directory in map(Path, directories):
        try:
            found += sorted(p for p in directory.iterdir() if p.suffix in (".yaml", ".yml"))
        except OSError as error:
            raise ConfigError(
                f"{directory}: cannot be listed ({error.strerror})", remedy="see playbooks.directories"
            ) from None
    return found


def load_playbooks(directories: Iterable[Path | str] = (), *, shipped: bool = True) -> list[Playbook]:
    """Every enabled playbook, by name; a later file with the same name replaces the former.

    Raises ConfigError with the problems of all files, one a line.
    """
    return [playbook for playbook, _ in read_playbooks(directories, shipped=shipped)]


def read_playbooks(
    directories: Iterable[Path | str] = (), *, shipped: bool = True
) -> list[tuple[Playbook, Document]]:
    """As `load_playbooks`, with the line of each key."""
    files = playbook_files(directories, shipped=shipped)
    if len(files) > MOST_PLAYBOOKS:
        raise ConfigError(f"{len(files)} playbooks", remedy=f"at most {MOST_PLAYBOOKS} are read")
    found: dict[str, tuple[Playbook, Document, Path]] = {}
    wrong: list[str] = []
    for path in files:
        try:
            playbook, document = read_playbook(path)
        except ConfigError as error:
            wrong.append(str(error))
            continue
        former = found.get(playbook.name)
        if former is not None and former[2].parent == path.parent:
            wrong.append(f"{path}:1: name: {playbook.name!r} is also the name of {former[2].name}")
        found[playbook.name] = playbook, document, path
    if wrong:
        raise ConfigError("\n".join(wrong))
    return [found[name][:2] for name in sorted(found) if found[name][0].enabled]
