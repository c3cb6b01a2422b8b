"""What the analyser remembers when it starts: detectors, places in the logs, incidents, and what was read since.

Whatever a damaged disk or another version left behind costs memory at most: it must never keep detection from
starting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..detectors.finding import Finding
from .benign import Benign
from .detection import Detection
from .errors import StoreError
from .feeds import Feed, Reading
from .incidents import Incident
from .store import Store
from .successes import Successes

Say = Callable[[str], None]


def remember(
    store: Store, detection: Detection, feeds: Mapping[str, Feed], successes: Successes, say: Say
) -> bool:
    """Loads the last snapshot. False where it cannot be used: detection and feeds are then to be made afresh.

    Who succeeded lately is kept whatever becomes of these: else the circuit breaker would protect nobody for a day.
    """
    try:
        state = store.snapshot()
        if state is not None:
            _remember_successes(state, successes, say)
            detection.load(state["detection"])
            for name, feed in feeds.items():
                if name in state["feeds"]:
                    feed.load(state["feeds"][name])
    except Exception as error:  # a state of any shape may have been written by any version
        said = error if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        say(f"what the detectors remembered cannot be used, they start afresh: {said}")
        return False
    return True


def _remember_successes(state: Mapping[str, Any], successes: Successes, say: Say) -> None:
    try:
        successes.load(state.get("successes") or {"clients": [], "users": []})
    except Exception as error:  # of any shape, as above
        say(f"who lately succeeded is not known any more: {type(error).__name__}: {error}")


def go_on(store: Store, feeds: Mapping[str, Feed], say: Say) -> None:
    """Puts each feed at its checkpoint."""
    for name, checkpoint in store.checkpoints().items():
        if name not in feeds:
            continue
        try:
            feeds[name].resume(checkpoint)
        except (KeyError, TypeError, ValueError) as error:
            say(f"{name}: its checkpoint cannot be used, it is read from the beginning: {error}")


def incidents(store: Store, since_ns: int, most: int, say: Say) -> list[Incident]:
    """The incidents that changed since then, at most so many, the oldest first."""
    found, lost = [], 0
    for state, closed in store.recent_states(since_ns, most):
        try:
            found.append(Incident.from_state(state, closed))
        except (KeyError, TypeError, ValueError, IndexError):
            lost += 1
    if lost:
        say(f"{lost} incidents of another version of Gatewatch cannot grow any more")
    return sorted(found, key=lambda i: i.end_ns)


def exceptions(store: Store, say: Say) -> list[Benign]:
    """What was closed as benign before."""
    found, lost = [], 0
    for state in store.exceptions():
        try:
            found.append(Benign.from_state(state))
        except (KeyError, TypeError, ValueError):
            lost += 1
    if lost:
        say(f"{lost} exceptions of another version of Gatewatch are no longer in force")
    return found


def read_again(
    store: Store, feeds: Mapping[str, Feed], judge: Callable[[str, Reading], list[Finding]], say: Say
) -> list[Finding]:
    """What was read since the snapshot, once more; the last version of each finding, in the order of the first."""
    findings: dict[str, Finding] = {}
    lost = 0
    for note in store.batches():
        feed = feeds.get(note.source)
        if feed is None:
            continue
        try:
            reading = feed.again(note.range, note.receive_ns)
        except (KeyError, TypeError, ValueError, OSError):
            reading = None
        if reading is None:
            lost += 1
            continue
        findings |= {f.id: f for f in judge(note.source, reading)}
    if lost:
        say(f"{lost} pieces of logs read before the restart are gone and were not read again")
    return list(findings.values())
