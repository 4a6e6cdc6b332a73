from __future__ import annotations

from st_dimreduce.untrusted import printable


def test_a_name_is_shown_as_it_is_and_what_acts_is_escaped():
    assert printable("[/x] $\\frac$ 한 é") == "[/x] $\\frac$ 한 é"
    assert printable("\x1b[31mred\n\u202e\udcff\x7f") == r"\x1b[31mred\n\u202e\udcff\x7f"
