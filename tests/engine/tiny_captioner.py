"""Very small captioning models, taught here to tell a red picture from a blue one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

WORDS = {"red": "a red star", "blue": "an arafed blue dog"}  # what is taught; "arafed" is left out of captions
_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "arafed", "red", "blue", "star", "dog"]
_PAD, _BEGIN, _END = 0, 2, 3
_SIDE, _STEPS = 32, 60
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": 16,
}
_TEXT = {
    "vocab_size": len(_VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": _BEGIN,
    "eos_token_id": _END,
    "pad_token_id": _PAD,
}


def write(folder: Path, kind: str = "blip") -> Path:
    """Writes a captioning model of this kind into a new folder."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(_VOCABULARY))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    model: Any
    if kind == "blip":
        text = {**_TEXT, "encoder_hidden_size": 32, "sep_token_id": _END}
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=_VISION, projection_dim=16))
        size = {"height": _SIDE, "width": _SIDE}
        processor: Any = BlipProcessor(BlipImageProcessor(size=size), tokenizer)
    else:
        model = GitForCausalLM(GitConfig(vision_config=_VISION, **_TEXT))
        size = {"height": _SIDE, "width": _SIDE}
        images = CLIPImageProcessor(size={"shortest_edge": _SIDE}, crop_size=size)
        processor = GitProcessor(images, tokenizer)
    _teach(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(colour: str, path: Path) -> Path:
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def _teach(model: Any, processor: Any) -> None:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in WORDS]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    texts = processor.tokenizer(list(WORDS.values()), padding=True, return_tensors="pt")
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(_STEPS):
        model(pixel_values=pixels, **texts, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
