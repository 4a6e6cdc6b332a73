"""A choice between a few words."""

from __future__ import annotations

from enum import Enum


class Choice(str, Enum):
    """A string that users give, checked where it comes in: a wrong one is told which there are."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).lstrip("_")
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(choice.value for choice in cls)}")
