"""Values out of a record that may say anything: every access checks what it finds, and names the place where it is not.

Must not know: the rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from vit24h.errors import UserError


class UnfitError(UserError):
    """A value of a record is missing or impossible; the message says where and what was expected."""


class Fields:
    """A mapping of a record, and what it is called in a message, such as `log.jsonl line 7`."""

    def __init__(self, values: Mapping[Any, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def get(self, key: str) -> Any:
        """Whatever is there; None where nothing is."""
        return self.values.get(key)

    def section(self, key: str) -> Fields:
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise self.unfit(key, "a section")
        return Fields(value, f"{self.where}: {key}")

    def number(self, key: str, low: float = 0.0, high: float = 1e15) -> float:
        value = self.values.get(key)
        if type(value) not in (int, float) or not low <= value <= high:  # False for NaN
            raise self.unfit(key, f"a number of {low:g} or more" + (f", at most {high:g}" if high < 1e15 else ""))
        return float(value)

    def whole(self, key: str, low: int = 0) -> int:
        value = self.values.get(key)
        if type(value) is not int or not low <= value <= 10**15:
            raise self.unfit(key, f"a whole number of {low} or more")
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.unfit(key, "text")
        return value

    def sha256(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self.unfit(key, "a SHA-256 (64 hexadecimal digits)")
        return value

    def unfit(self, key: str, expected: str) -> UnfitError:
        found = shown(self.values[key]) if key in self.values else "missing"
        return UnfitError(f"{self.where}: {key} is {found}, expected {expected}")


class Row(Fields):
    """A row of the log; `line` counts from 1."""

    def __init__(self, values: Mapping[str, Any], line: int) -> None:
        super().__init__(values, f"log.jsonl line {line}")
        self.line = line
        self.event: str = values["event"]


def shown(value: Any) -> str:
    """A value as a message shows it: one line, not long."""
    if isinstance(value, (dict, list)):
        return "a section" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # Python does not print whole numbers of thousands of digits
        return "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."


def same(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN, and true is not 1."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right or (left != left and right != right)
