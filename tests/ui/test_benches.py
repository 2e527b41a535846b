"""What each measurement can be asked, and the sentence about what it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.core.errors import UserError
from dreambooth.ui import benches, command_line


def asked(*flags: str) -> dict[str, object]:
    return benches._asked(command_line._parser()[0].parse_args(["bench", *flags]))


def test_each_flag_belongs_to_some_parts() -> None:
    assert asked("plans", "--card", "8GB", "--method", "lora", "--minutes", "9") == {
        "large": False,
        "card_bytes": 8 * 2**30,
        "method": "lora",
        "minutes": 9.0,
    }
    assert asked("card", "--only", "steps", "memory")["only"] == ["steps", "memory"]
    assert Path(asked("card", "--work", "x")["work"]).name == "x"
    for flags, said in (
        (("card", "--large"), "--large: it belongs to bench training and bench drawing"),
        (("training", "--minutes", "9"), "--minutes: it belongs to bench plans and bench card"),
        (("plans", "--minutes", "0"), "--minutes: it must be more than 0"),
        (("plans", "--card", "huge"), "--card: 'huge' is no size of a card"),
    ):
        with pytest.raises(UserError, match=said):
            asked(*flags)
