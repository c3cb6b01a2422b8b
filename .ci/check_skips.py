"""Fails when a test was skipped that the named list does not allow; each line of the list is `test: reason`."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(report: str, list_file: str) -> int:
    allowed = {}
    for line in Path(list_file).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(": ")
            if not reason:
                print(f"{list_file}: '{line}' gives no reason", file=sys.stderr)
                return 1
            allowed[name.strip()] = reason
    skipped = [
        (f"{case.get('classname')}.{case.get('name')}", skip.get("message", ""))
        for case in ElementTree.parse(report).iter("testcase")
        for skip in case.iter("skipped")
    ]
    bad = [(name, why) for name, why in skipped if not any(name.startswith(a) for a in allowed)]
    for name, why in bad:
        print(f"skipped, and not in {list_file}: {name} ({why})", file=sys.stderr)
    print(f"{len(skipped)} skipped, {len(bad)} of them not allowed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
