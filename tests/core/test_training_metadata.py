"""What files of several trainers tell of their making; what lies about it is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.models import training_metadata
from dreambooth.core.models.model_file import Tensor


def tensor(*shape: int) -> Tensor:
    return Tensor("F16", shape, Path("x"), 0, 0)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("lora_unet_down_blocks_1_attn1_to_q.lora_down.weight", 4),
        ("unet.down_blocks.1.attn1.to_q.lora_A.weight", 4),
        ("base_model.model.to_q.lora_A.default.weight", 4),
        ("unet.mid_block.to_k_lora.down.weight", 4),
        ("unet.mid_block.to_k.lora_linear_layer.down.weight", 4),
        ("lora_unet_mid.hada_w1_b", 4),
        ("lora_unet_mid.lokr_w2_b", 4),
        ("lora_unet_mid.lora_up.weight", None),
        ("lora_unet_mid.alpha", None),
    ],
)
def test_the_rank_is_read_from_every_spelling(name: str, rank: int | None) -> None:
    assert training_metadata.ranks({name: tensor(4, 320)}) == ([] if rank is None else [rank])


def test_ranks_that_differ_are_all_told() -> None:
    some = {f"a{n}.lora_down.weight": tensor(rank, 8, 1, 1) for n, rank in enumerate((32, 4, 32))}
    assert training_metadata.ranks(some) == [4, 32]


SETTINGS = {
    "concepts.0.instance_prompt": "a photo of sks dog",
    "concepts.1.instance_prompt": "a photo of a cat",
    "concepts.1.instance_token": "hta",
}


@pytest.mark.parametrize(
    ("metadata", "trainer", "words"),
    [
        ({}, "", []),
        ({"dreambooth.settings": SETTINGS}, training_metadata.OURS, ["a photo of sks dog", "hta"]),
        ({"dreambooth.settings": SETTINGS, "dreambooth.words": {"sks": None}}, training_metadata.OURS, ["sks"]),
        ({"ss_network_module": "networks.lora", "ss_tag_frequency": {"a": {"x": 2, "y": 9}, "b": {"x": 1}}},
         "kohya's scripts", ["y", "x"]),
        ({"ot_revision": "1", "ss_network_module": "x"}, "OneTrainer", []),
        ({"software": {"name": "ai-toolkit", "version": "1"}}, "ai-toolkit", []),
        ({"modelspec.trigger_phrase": "sks dog, sks  cat"}, "", ["sks dog", "sks cat"]),
        ({"software": "[" * 9, "ss_tag_frequency": [1], "dreambooth.settings": {"concepts.0.instance_prompt": 3}},
         training_metadata.OURS, []),
        ({"ss_tag_frequency": {"a": {"x": "many"}, "b": 3}, "software": {"name": 3}}, "", []),
    ],
)  # fmt: skip
def test_who_wrote_a_file_and_what_it_was_taught(metadata: dict[str, Any], trainer: str, words: list[str]) -> None:
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    assert (training_metadata.trainer(written), training_metadata.trained_words(written)) == (trainer, words)
