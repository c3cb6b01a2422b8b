"""Build of the one compiled extension; without a C compiler the same files run uncompiled, and slower."""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HOT = {
    "gatewatch.detectors.sketches": "detectors/sketches.py",
    "gatewatch.detectors.gateway.paths": "detectors/gateway/paths.py",
    "gatewatch.detectors.profiles_loop": "detectors/profiles_loop.py",
    "gatewatch.daemon.collectors.parsers.scan": "daemon/collectors/parsers/scan.py",
    "gatewatch.daemon.collectors.decode_layers": "daemon/collectors/decode_layers.py",
    "gatewatch.daemon.collectors.flows_table": "daemon/collectors/flows_table.py",
    "gatewatch.daemon.collectors.capture_records": "daemon/collectors/capture_records.py",
    "gatewatch.daemon.collectors.weights": "daemon/collectors/weights.py",
}

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def extensions() -> list[Extension]:
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("gatewatch: Cython is missing; the hot loops stay uncompiled", file=sys.stderr)
        return []
    made: list[Extension] = cythonize(
        [Extension(name, [path], extra_compile_args=["-O2", "-g0"]) for name, path in HOT.items()],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    )
    for extension in made:
        extension.optional = True  # cythonize does not pass it on
    return made


class BuildPackage(build_py):
    """The package's folder is the repository's root: this file stands in it and is no module of the package."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [
            m for m in super().find_package_modules(package, package_dir) if m[:2] != ("gatewatch", "setup")
        ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPackage},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
