"""The header, paragraphs and tables of the result files."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
_LINE = 120


def header(name: str, packages: Sequence[str], about: str = "") -> str:
    """Return the first paragraph of a result file: how, when and where it was printed, and what was measured.

    Args:
        name: Name of the module.
        packages: Packages whose versions matter.
        about: Sentences to add. Defaults to none.
    """
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    return paragraph(f"Printed by `python -m benchmarks.{name}` on {date.today()}: {machine}. {about}")


def paragraph(text: str) -> str:
    """Return a text as one paragraph, in lines of 120 characters at most."""
    return textwrap.fill(" ".join(text.split()), _LINE, break_on_hyphens=False, break_long_words=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table.

    Args:
        head: Names of the columns.
        rows: The cells of each row.
        left: Number of columns, from the first, that are aligned to the left; the others are aligned to the right.
            Defaults to 1.
    """
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(file_name: str, blocks: Sequence[str]) -> None:
    """Write a result file: headings, paragraphs and tables with an empty line between them."""
    (FOLDER / file_name).write_text("\n\n".join(blocks) + "\n")
