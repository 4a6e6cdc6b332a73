"""Code that runs in a process of its own which cannot import torch or this package, and texts for it."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.environments import without

WITHOUT_TORCH = without("torch", "transformers", "sentence_transformers", "st_dimreduce")
KOREAN = ["고양이가 소파에서 잔다", "기차는 몇 시에 출발하나요?", "김치찌개 끓이는 법", "서울의 겨울은 춥다"]
ENGLISH = ["What time does the train leave?", "weather", "", "naïve café, 10 % off!", "An old dog sleeps. " * 99]


def without_torch(code, *arguments):
    """Run the code and return what it printed."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
