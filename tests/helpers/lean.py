"""A plugin of pytest for `make test`: what its extra does not install cannot be imported, wherever more is installed.

Without it, a test that needs FAISS passes in CI and fails where somebody calls `make test` in a fresh clone.
"""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_by(name, extra="", known=None):
    """Return the names of a distribution and of all that it requires, with one of its extras."""
    known = set() if known is None else known
    if (name, extra) not in known:
        known.add((name, extra))
        try:
            requirements = [Requirement(line) for line in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            return set()
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                for further in ("", *each.extras):
                    installed_by(canonicalize_name(each.name), further, known)
    return {each for each, _ in known}


class Lean:
    """A finder of modules that does not find those of other distributions."""

    def __init__(self, finder, refused):
        self._finder, self._refused = finder, refused

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self._refused:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def refused_modules():
    wanted = installed_by("st-dimreduce", "test") | {"pip"}
    owners = {module: set(map(canonicalize_name, names)) for module, names in metadata.packages_distributions().items()}
    return {module for module, names in owners.items() if not names & wanted}


def pytest_configure():
    """Begin when the plugins of others, which may need what they like, are loaded."""
    refused = refused_modules()
    sys.meta_path[:] = [Lean(finder, refused) for finder in sys.meta_path]
