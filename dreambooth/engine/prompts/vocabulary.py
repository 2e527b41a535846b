"""CLIP's tokenizer, made from the byte-pair file that the open_clip_torch package carries (MIT licence)."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from pathlib import Path

from transformers import CLIPTokenizer

from dreambooth.core.models.families import CHUNK_TOKENS

TOKENS = 49408  # the last two are the marks of a text's start and end
# The file lists more merges than CLIP uses: its tokens less 512 bytes and 2 marks.
MERGES = TOKENS - 512 - 2


@functools.cache
def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP-L's tokenizer: 49,408 tokens, 77 a prompt; SD 1 pads with the end mark."""
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token=pad_token,
        model_max_length=CHUNK_TOKENS,
    )


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """{token: number} and the merges in order, as CLIP's own vocab.json and merges.txt have them."""
    lines = gzip.decompress(_merges_file().read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : MERGES + 1])]
    letters = _byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def write_vocabulary(folder: Path) -> None:
    """Writes vocab.json and merges.txt, which transformers' older tokenizers and other trainers read."""
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _merges_file() -> Path:
    package = importlib.util.find_spec("open_clip")  # found, not imported: the package itself would need torchvision
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the package open_clip_torch is missing from the engine's environment")
    return Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


def _byte_letters() -> list[str]:
    """The letter that stands for each byte, in CLIP's order: printable bytes first, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
