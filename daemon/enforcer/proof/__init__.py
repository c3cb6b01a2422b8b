"""Whether the kill switch works: a probe from outside, the drill, and what passes by. Nothing here cuts off."""
