"""The picture of the README is that of the printed figures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality import OURS, caption, curves, printed


def test_the_picture_is_drawn_from_the_printed_summary():
    text = Path("benchmarks/QUALITY.md").read_text()
    budgets, means = printed(text)
    drawn = curves(means)
    assert budgets == [16, 32, 64, 128]
    assert [protocol for protocol, _ in drawn.values()][:2] == ["all", "unseen"]
    assert len(drawn) == 2 + 3, "ours in both protocols, and three peers"
    picture, about = caption(drawn)
    assert picture in text
    assert about in text
    bold = [f"**{share}**" for share in drawn[OURS][1]]
    assert all(share in text for share in bold)
