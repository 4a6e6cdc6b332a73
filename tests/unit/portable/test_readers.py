"""The table of readers in docs/serving.md is that of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from st_dimreduce.enums import Outcome
from st_dimreduce.portable.graphs import Graph
from st_dimreduce.portable.readers import READERS, RULES, Facts, Problem, readings

PAGE = Path("docs/serving.md")
PORTABLE = Facts(8)
EXPORTED = Facts(8, graphs={"onnx/model.onnx": Graph("onnx/model.onnx", 8, 8)}, weights=False)


def cell(reader, reading):
    hint = f"with {reader.hint}" if reader.hint else ""
    if reading.outcome is Outcome.RIGHT:
        return f"yes, {hint}" if "with" in reading.why else "yes"
    if reading.outcome is Outcome.FAILS:
        return "no"
    return f"**no, without a word**, unless {hint}" if hint else "**no, without a word**"


def table():
    """The table as the page has it: print it where it differs."""
    lines = [
        "| reader | what it reads | portable folder | exported folder | verified |",
        "| --- | --- | --- | --- | --- |",
    ]
    for reader, portable, exported in zip(READERS, readings(PORTABLE), readings(EXPORTED), strict=True):
        cells = [cell(reader, portable), cell(reader, exported), "ran" if reader.tested else "source"]
        lines.append(f"| {' | '.join([reader.name, reader.reads, *cells])} |")
    return "\n".join(lines)


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), table()


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"onnx"}))
def test_the_worst_problem_decides_for_those_who_follow_a_rule(rule):
    hurt = [Problem("a", "b", "c", {rule: outcome}) for outcome in (Outcome.FAILS, Outcome.DIFFERENT)]
    found = {reading.reader: reading.outcome for reading in readings(Facts(8, hurt))}
    followers = {reader.name for reader in READERS if reader.modules == rule}
    assert followers
    assert {found[name] for name in followers} == {Outcome.DIFFERENT}, "other vectors without a word are worse"
    others = {reader.name for reader in READERS if reader.modules in set(RULES) - {rule}}
    assert {found[name] for name in others} == {Outcome.RIGHT}
