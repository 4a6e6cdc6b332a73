"""The notebook runs top to bottom in a kernel of its own."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

TOUR = Path("examples/0_tour.ipynb")
LOOK = """
import json
import numpy as np
before, *_, after = comparison.rows
same = bool(np.abs(loaded.encode(corpus[:20]) - reduced.encode(corpus[:20])).max() < 1e-6)
common = len({*found["full"][1][0]} & {*found["reduced"][1][0]})
sizes = [codes.values.shape, str(codes.values.dtype), len(fitted_on), after.bytes_per_vector]
print(json.dumps([*sizes, after.ndcg / before.ndcg, same, common]))
"""


def test_the_tour_is_stored_without_outputs():
    tour = nbformat.read(TOUR, as_version=4)
    nbformat.validate(tour)
    assert len(tour.cells) <= 12
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


@pytest.mark.wings("examples/0_tour.ipynb", "recipe.py", "evaluation")
def test_the_tour_runs_top_to_bottom(tmp_path):
    tour = nbformat.read(TOUR, as_version=4)
    tour.cells.append(new_code_cell(LOOK))
    NotebookClient(tour, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    *said, figures = [
        "".join(
            output.get("text") or output.data["text/html"] for output in cell.outputs if output.get("name") != "stderr"
        )
        for cell in tour.cells
        if cell.cell_type == "code"
    ]
    shape, kind, fitted, size, kept, same, common = json.loads(figures)
    assert (shape, kind, fitted, size, same) == ([300, 64], "uint8", 300, 64, True)
    assert kept > 0.93, "64 bytes keep at least 93 % of what 1,536 find"
    assert common >= 1
    assert "1,536 -> 64 bytes per text" in said[2]
    assert "retention" in said[3]
    assert "<pre" in said[3]
    assert Path(tmp_path, "tour-model", "modules.json").exists()
