"""How often something may happen within a minute. The clock is the machine's own: no request moves it."""

from __future__ import annotations

import time
from collections import deque


def room(recent: deque[float], most: int) -> bool:
    """Whether one more may happen within a minute of the last `most`; if so it is counted in `recent`."""
    now = time.monotonic()
    while recent and recent[0] <= now - 60:
        recent.popleft()
    if len(recent) >= most:
        return False
    recent.append(now)
    return True
