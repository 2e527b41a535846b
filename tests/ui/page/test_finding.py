"""Settings are found by their words, and what is not at its default is marked and can be put back."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import project
from dreambooth.core.layout import MINIATURE
from dreambooth.core.project import Folders, open_project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import parse
from dreambooth.ui.page import finding
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands
from tests.ui.page.test_browser import until


def test_only_what_differs_from_its_default_is_named() -> None:
    def marks(**changes: Any) -> dict[str, list[str]]:
        shown = finding.changed_view(to_flat(parse({key.replace("__", "."): value for key, value in changes.items()})))
        found = re.search(r'data-db-changed="([^"]*)"', shown)
        assert found
        return dict(json.loads(html.unescape(found[1])))

    assert marks(concepts__0__instance_prompt="a star") == {}
    assert marks(lora__rank=4, tuning__use_ema=True, general__seed=420420) == {
        "db_lora_rank": ["lora.rank", "16"],
        "db_tuning_use_ema": ["tuning.use_ema", "off"],
    }


@pytest.fixture(scope="module")
def hands(browser: Any, data: Path) -> Iterator[Hands]:
    project.create(Folders(data), "star", MINIATURE)
    server = Server(data)
    try:
        yield Hands(browser, server.address)
    finally:
        server.end()


def seen(hands: Hands, field: str) -> bool:
    return any(one.is_visible() for one in hands.page.locator(f"#{field}").all())


def test_a_search_shows_what_has_the_words_even_in_closed_sections(hands: Hands) -> None:
    hands.tab("Settings")
    hands.see("#db_defaults", "All at their defaults")
    words = hands.page.locator("#db_page .db-search").first
    words.fill("dropout")
    until(lambda: seen(hands, "db_lora_dropout") and seen(hands, "db_captions_dropout"))  # both are advanced
    until(lambda: not seen(hands, "db_general_seed") and not seen(hands, "db_lora_rank"))
    words.fill("")
    until(lambda: seen(hands, "db_general_seed") and not seen(hands, "db_lora_dropout"))
    until(lambda: not seen(hands, "db_lora_rank"))  # its section is closed again


def test_a_changed_setting_is_marked_and_put_back(hands: Hands, data: Path) -> None:
    hands.write("db_general_seed", "7")
    hands.see("#db_defaults", "1 changed from the defaults")
    reset = hands.page.locator("#db_general_seed .db-reset").first
    assert "420420" in str(reset.get_attribute("title"))
    reset.click()
    until(lambda: hands.value("db_general_seed") == "420420")
    hands.see("#db_defaults", "All at their defaults")
    until(lambda: open_project(Folders(data), "star").settings()["general.seed"] == 420420)
    assert hands.page.locator(".db-reset").count() == 0
