"""What harms a careless reader: values of JSON, put at any place of a file's content, and pickles that run code."""

from __future__ import annotations

CANARY = "import pathlib; pathlib.Path({!r}).touch()"

NAMES = ["canary.Boom", "os.system", "torch.hub.load", "torch.nn.Bilinear", "torch.nn.modules.activation.Tanh "]
NAMES += ["sentence_transformers.util.http_get", "sentence_transformers.models.Transformer", "../canary", "/etc/passwd"]
NAMES += ["", ".", "\0", "a" * 5000, "\ud800", "..\\..\\x", "file:///etc/passwd", "https://localhost:1/x", "\u202e"]
NUMBERS = [
    -1,
    0,
    1,
    2,
    31,
    2**20,
    2**24,
    2**31,
    2**63,
    10**12,
    10**400,
    -(10**12),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
]


def all_places(content, at=()):
    yield at
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from all_places(value, (*at, key))


def put(content, at, value):
    if not at:
        return value
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return content


class Boom:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return exec, (CANARY.format(self.canary),)
