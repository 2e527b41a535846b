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
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.migrate.other_names import OF_CONTROLS, other_names
from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.project import Folders, open_project
from dreambooth.core.schema import leaves, to_flat
from dreambooth.core.settings import Settings, parse
from dreambooth.ui.page import finding
from dreambooth.ui.page.settings import TITLES
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
        "db_lora_rank": ["lora.rank", "Lora Rank", "16"],
        "db_tuning_use_ema": ["tuning.use_ema", "Use EMA", "off"],
    }


def found(asked: str) -> tuple[set[str], list[str]]:
    """The controls that a search shows, and the sentences beside them."""
    field = finding.search_field(TITLES)
    [sections, elsewhere] = [
        json.loads(html.unescape(re.findall(rf'data-db-{name}="([^"]*)"', field)[0])) for name in ("words", "elsewhere")
    ]
    words = asked.lower().split()
    shown = {one for some in sections.values() for one, known in some.items() if all(word in known for word in words)}
    return shown, [sentence for known, sentence in elsewhere if all(word in known for word in words)]


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("constant_with_warmup", "learning.scheduler"), ("cosine", "learning.scheduler"),
        ("linear", "learning.scheduler"), ("ddim", "previews.scheduler"), ("euler", "previews.scheduler"),
        ("DEISMultistep", "previews.scheduler"), ("fp16", "tuning.mixed_precision"), ("xformers", "memory.attention"),
        ("8bit adam", "optimizer.name"), ("use_8bit_adam", "optimizer.name"), ("D-Adaptation", "optimizer.name"),
        ("freeze clip", "tuning.freeze_clip_normalization"), ("text encoder steps", "tuning.text_encoder_steps"),
        ("use lora", "general.method"), ("network_dim", "lora.rank"), ("flip_aug", "pictures.hflip"),
        ("color_aug", "pictures.colour"), ("unfreeze", "tuning.unet_layers"), ("sanity", "previews.prompts"),
        ("class images", "tuning.prior_loss_weight"), ("tf32", "tuning.mixed_precision"),
        ("wandb", "reporting.tensorboard"), ("noise_offset", "objective.offset_noise"),
        ("Training Steps Per image(Epoch)", "intervals.num_train_epochs"), ("Train U-NET", "tuning.train_unet"),
        ("Set Ratio of Text Encoder Training", "tuning.text_encoder_ratio"),
        ("checkpointing_steps", "intervals.save_state_every_steps"), ("validation_prompt", "previews.prompts"),
    ],
)  # fmt: skip
def test_a_setting_is_found_by_its_choices_and_by_what_it_is_called_elsewhere(asked: str, key: str) -> None:
    shown, _ = found(asked)
    assert f"db_{key.replace('.', '_')}" in shown
    assert len(shown) < 12


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("set gradients to none", "always so"), ("shared diffusers", "nothing to share"),
        ("class images per", "on the Concepts tab"), ("regularization", "on the Concepts tab"),
        ("sophia", "not here"), ("strict tokens", "not here"), ("debug buckets", "Check the pictures"),
        ("ToMe", "not here"), ("512x", "How to read it"), ("generate ckpt", '"Export"'),
        ("Setting Gradients to None When Zeroing", "always so"), ("concepts_list", "import that file"),
        ("native training", "there is Native too"), ("revision", "owner/name of the hub"),
        ("combine_prompt_from_txt", "Instance Prompt"),
    ],
)  # fmt: skip
def test_what_is_no_setting_here_is_told(asked: str, said: str) -> None:
    _, sentences = found(asked)
    assert [sentence for sentence in sentences if said in sentence]
    assert len(sentences) <= 4


def test_other_names_are_of_settings_that_there_are() -> None:
    assert other_names().keys() <= {leaf.key for leaf in leaves(Settings)}
    assert OF_CONTROLS.keys() <= {control.label for control in controls.every()}


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


def test_a_word_that_no_setting_has_opens_no_section(hands: Hands) -> None:
    words = hands.page.locator("#db_page .db-search").first
    words.fill("undefined")
    until(lambda: not seen(hands, "db_general_seed"))
    assert not hands.page.locator("#db_page [data-db-opened]").count()
    words.fill("")
    until(lambda: seen(hands, "db_general_seed"))


def test_what_is_not_here_is_said_beside_the_search(hands: Hands) -> None:
    words = hands.page.locator("#db_page .db-search").first
    words.fill("set gradients to none")
    hands.see("#db_search .db-known-elsewhere", "Set Gradients to None When Zeroing: always so")
    words.fill("constant_with_warmup")
    until(lambda: seen(hands, "db_learning_scheduler") and not seen(hands, "db_search .db-known-elsewhere"))
    words.fill("")
    until(lambda: seen(hands, "db_general_seed") and not seen(hands, "db_learning_scheduler"))


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
