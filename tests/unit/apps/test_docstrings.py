from __future__ import annotations

import gc

from st_dimreduce.apps.docstrings import package_pairs


def test_a_definition_is_found_in_any_block(tmp_path, monkeypatch):
    blocks = ["if 0:", "if 1:\n    pass\nelse:", "try:\n    pass\nexcept OSError:", "try:\n    pass\nfinally:"]
    blocks += ["match 0:\n    case 0:", "with x:", "for x in y:", "class A:", "async def f():", "def f():"]
    definition = 'def g(): "Says what number {} does. It says so in no fewer words than eight of them."'
    sources = [f"{block}\n        {definition.format(number)}\n" for number, block in enumerate(blocks)]
    (tmp_path / "docstringed").mkdir()
    (tmp_path / "docstringed" / "__init__.py").write_text("".join(sources))
    (tmp_path / "docstringed" / "newer.py").write_text("a syntax of tomorrow")
    monkeypatch.syspath_prepend(tmp_path)
    expected = {f"Says what number {number} does." for number in range(len(blocks))}
    assert {sentence for sentence, _ in package_pairs("docstringed")} == expected
    assert gc.isenabled()
