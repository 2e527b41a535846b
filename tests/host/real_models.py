"""Checkpoints for a real WebUI, made with the engine's Python: `python -m tests.host.real_models KIND FOLDER`.

KIND is `miniature`, with the .yaml and the CLIP folder that AUTOMATIC1111 builds a small model from, or `full-size`: a
Stable Diffusion 1 with random weights, for Forge, which knows no other sizes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from dreambooth.core.install_paths import MINIATURE
from dreambooth.engine import families
from dreambooth.engine.bench.random_model import write_random
from dreambooth.engine.checkpoints.webui_yaml import layout
from dreambooth.engine.prompts.vocabulary import write_vocabulary

_MARKS = {"bos_token": "<|startoftext|>", **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")}


def main(kind: str, folder: Path) -> None:
    checkpoints = folder / "Stable-diffusion"
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / f"{kind}.safetensors"
    if kind == "full-size":
        write_random(target, "sd1", torch.float16)
        return
    shutil.copyfile(MINIATURE, target)
    model, clip = families.load_file(MINIATURE), folder / "clip-miniature"
    clip.mkdir()
    model.text_encoders["text_encoder"].config.to_json_file(clip / "config.json", use_diff=False)
    write_vocabulary(clip)
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **_MARKS}
    (clip / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    target.with_suffix(".yaml").write_text(json.dumps(layout(model, str(clip)), indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
