"""Lets a WebUI load the miniature: the .yaml that A1111 reads beside a checkpoint of unusual widths, and the text
encoder's folder that it names. A full-size model needs neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth.core.models.families import CHUNK_TOKENS
from dreambooth.engine import families
from dreambooth.engine.checkpoints import webui_yaml
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.prompts.vocabulary import write_vocabulary


def write(model_file: Path, clip_folder: Path) -> Path:
    """Writes the layout beside `model_file`, and `clip_folder` if it is not there. Returns the layout's path."""
    model = families.skeleton(open_source(model_file))
    if not clip_folder.exists():
        _write_clip(model.text_encoders["text_encoder"].config.to_dict(), clip_folder)
    target = model_file.with_suffix(".yaml")
    layout = webui_yaml.layout(model, str(clip_folder.resolve()))
    target.write_text(json.dumps(layout, indent=1), encoding="utf-8")  # JSON is YAML too
    return target


def _write_clip(config: dict[str, Any], folder: Path) -> None:
    """The configuration and the vocabulary, as transformers' older tokenizers read them."""
    folder.mkdir(parents=True)
    words = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    files: dict[str, object] = {
        "config.json": {**config, "architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": CHUNK_TOKENS,
            "do_lower_case": True,
            **words,
        },
        "special_tokens_map.json": words,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    write_vocabulary(folder)
