"""Build of the one compiled extension; without a C compiler the same files run uncompiled, and slower."""

import sys

from setuptools import Extension, setup

HOT = {
    "gatewatch.detectors.sketches": "detectors/sketches.py",
    "gatewatch.daemon.collectors.parsers.scan": "daemon/collectors/parsers/scan.py",
    "gatewatch.daemon.collectors.decode_layers": "daemon/collectors/decode_layers.py",
    "gatewatch.daemon.collectors.flows_table": "daemon/collectors/flows_table.py",
    "gatewatch.daemon.collectors.capture_records": "daemon/collectors/capture_records.py",
}

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def extensions() -> list[Extension]:
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("gatewatch: Cython is missing; the hot loops stay uncompiled", file=sys.stderr)
        return []
    return cythonize(
        [Extension(name, [path], optional=True, extra_compile_args=["-O3"]) for name, path in HOT.items()],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    )


setup(ext_modules=extensions())
