"""A translation of the WebUI on what the page draws besides its components; tests/host has all of it in a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.ui.page.wording import drawn_words
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands

WORDS_JS = PROJECT / "javascript" / "words.js"


def test_the_words_of_views_scripts_and_stages_are_found() -> None:
    found = drawn_words()
    assert len(found) == len(set(found))
    assert {"# pictures", "Runs are shown here as they go.", "● reset", "Press again:", "encoding pictures"} <= set(
        found
    )
    assert {
        "# is below the minimum, #.",
        "it is empty; name the folder with your pictures.",
    } <= set(found)
    assert not [text for text in found if "<" in text or "db-" in text or "\x00" in text]


def test_texts_with_numbers_and_names_are_translated(browser: Any, server: Server, data: Path) -> None:
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "general.seed": 7}
    own |= {"concepts.0.instance_prompt": "a photo of sks star"}
    project.create(Folders(data), "star", MINIATURE, own)
    hands = Hands(browser, server.address)
    translation = {
        "# pictures": "# Bilder",
        "# steps": "Schritte: #",
        "Runs are shown here as they go.": "Hier erscheinen die Läufe.",
        "Changed. The default is #.": "Geändert. Sonst #.",
        "Find a setting": "Einstellung suchen",
        "# is below the minimum, #.": "# ist kleiner als #.",
        "Concept #,": "Konzept #,",
        "Concept #": "Konzept #",
        "Seed": "Startwert",
    }
    hands.page.add_init_script(f"window.localization = {json.dumps(translation)};")
    hands.page.add_init_script(WORDS_JS.read_text(encoding="utf-8"))
    hands.open()
    said = hands.see("#db_about .db-cost", "5 Bilder").inner_text()
    assert "5 Bilder · Schritte: " in said
    hands.see("#db_run", "Hier erscheinen die Läufe.")
    hands.tab("Concepts")
    hands.see("#db_concept label", "Konzept 1 · a photo of sks star")
    hands.write("db_concepts_N_instance_prompt", "a photo of zwx star")  # a text that changes where it stands
    hands.see("#db_concept label", "Konzept 1 · a photo of zwx star")
    hands.tab("Settings")
    assert hands.see("#db_general_seed .db-reset").get_attribute("title").startswith("Geändert. Sonst ")
    assert hands.page.locator("#db_search input").first.get_attribute("placeholder") == "Einstellung suchen"
    hands.write("db_general_seed", "-3")
    hands.see("#db_general_seed .db-sentence", "-3 ist kleiner als 0.")
    hands.see("#db_page .db-problems", "Startwert: -3 ist kleiner als 0.")
    translated = "(text) => dreamboothWords.translated(text)"
    sentence = hands.page.evaluate(translated, "Concept 1, Repeats: 0 is below the minimum, 1.")
    assert sentence == "Konzept 1, Repeats: 0 ist kleiner als 1."
    assert hands.page.evaluate(translated, "Note: 3 of them stay.") == "Note: 3 of them stay."
    assert hands.errors == []
    hands.page.close()
