"""What the tests of this folder share: a check accepts what is right and names what is wrong."""

from collections.abc import Callable
from typing import Any

from minivlm.lesson import verdict


def accepts(check: Callable[[Any], object], function: Any) -> None:
    """Asserts that a right solution passes, however it is written."""
    assert verdict(check, function) == "correct"


def refuses(check: Callable[[Any], object], function: Any, word: str) -> None:
    """Asserts that a wrong solution is refused, and that the reader is told what matters."""
    said = verdict(check, function)
    assert said != "correct"
    assert not said.startswith("the check stopped"), said
    assert word.lower() in said.lower(), said
