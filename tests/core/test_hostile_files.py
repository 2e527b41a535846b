"""Damaged, truncated, hostile and wrong files: each ends in one sentence, quickly, and nothing is written or run."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.models.pickle_file import read_pickle
from dreambooth.core.project import Folders
from tests.conftest import write_safetensors

SECONDS = 2.0  # of the CPU, so that a busy machine fails no test

Make = Callable[[Path], Path]
CASES: dict[str, tuple[Make, str]] = {}
UNET = "model.diffusion_model."
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"
CLIP = "cond_stage_model.transformer.text_model.x"
BIG = 2**40


def case(name: str, make: Make, said: str) -> None:
    CASES[name] = make, said


def of_bytes(suffix: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        path = folder / f"model{suffix}"
        path.write_bytes(data)
        return path

    return make


def of_tensors(*shapes: tuple[str, list[int]], **metadata: str) -> Make:
    """A .safetensors file of half-precision zeros."""

    def make(folder: Path) -> Path:
        tensors = {}
        for name, shape in shapes:
            count = 1
            for side in shape:
                count *= side
            tensors[name] = ("F16", shape, 2 * count)
        return write_safetensors(folder / "model.safetensors", tensors, metadata)

    return make


def of_folder(files: dict[str, str | bytes]) -> Make:
    def make(folder: Path) -> Path:
        root = folder / "model"
        root.mkdir()
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


def header_of(text: bytes, rest: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + rest


def zipped(
    program: bytes, *, compressed: bool = False, name: str = "archive/data.pkl", data: bytes = bytes(64)
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr(name, program)
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


class Calls:
    """Pickled, this calls something when it is opened."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def calling(function: Any, *arguments: Any) -> bytes:
    return pickle.dumps({"state_dict": {"x": Calls(function, *arguments)}}, protocol=2)


def tensor_program(
    storage: bytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], count: int = 16
) -> bytes:
    """The pickle of one tensor, opcode by opcode."""

    def number(value: int) -> bytes:
        return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    pid = (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + storage
        + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(count)
        + b"tQ"
    )
    body = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + numbers(shape) + numbers(stride) + b"\x89}tR"
    )
    name = FIRST.encode()
    return b"\x80\x02}X" + struct.pack("<I", len(name)) + name + body + b"s."


MARKER = "touched-by-a-pickle"

# .safetensors
case("empty", of_bytes(".safetensors", b""), "not a .safetensors")
case("one byte", of_bytes(".safetensors", b"x"), "not a .safetensors")
case("words", of_bytes(".safetensors", b"not a model at all, just some words"), "not a .safetensors")
case("a web page", of_bytes(".safetensors", b"<!DOCTYPE html><html>" * 9), "not a .safetensors")
case("endless header", of_bytes(".safetensors", (2**63).to_bytes(8, "little") + b"{}"), "not a .safetensors")
case("header cut", of_bytes(".safetensors", (500).to_bytes(8, "little") + b"{}  "), "cut short")
case("half a brace", of_bytes(".safetensors", header_of(b"{ ")), "damaged")
case("a list", of_bytes(".safetensors", header_of(b"[]")), "damaged")
case("no text", of_bytes(".safetensors", header_of(b"\xff\xfe\xff")), "damaged")
case("a number for a tensor", of_bytes(".safetensors", header_of(b'{"a": 1}')), "damaged")
case("metadata that is none", of_bytes(".safetensors", header_of(b'{"__metadata__": 7}')), "damaged")
case("deep nesting", of_bytes(".safetensors", header_of(b'{"a": ' + b"[" * 100_000)), "damaged")
for name, dtype, shape, offsets in (
    ("too few bytes", "F32", "[2]", "[0, 4]"),
    ("negative shape", "F32", "[-1]", "[0, -4]"),
    ("negative offset", "F32", "[1]", "[-4, 0]"),
    ("offset in words", "F32", "[1]", '["a", "b"]'),
    ("endless number", "F32", "[1e999]", "[0, 4]"),
):
    text = f'{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}'
    case(name, of_bytes(".safetensors", header_of(text.encode(), bytes(8))), "damaged")
other = b'{"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}'
case("a dtype that no model here has", of_bytes(".safetensors", header_of(other, bytes(4))), "in 'F8_E8M0', which")
whole = f'{{"a": {{"dtype": "F32", "shape": [{BIG}], "data_offsets": [0, {4 * BIG}]}}}}'
case("four terabytes that are not there", of_bytes(".safetensors", header_of(whole.encode(), bytes(8))), "cut short")
case(
    "last byte gone",
    of_bytes(".safetensors", header_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(7))),
    "cut short",
)

# .ckpt
case("empty pickle", of_bytes(".ckpt", b""), "damaged")
case("words in a pickle", of_bytes(".ckpt", b"hello, I am a model"), "damaged")
case("pickle cut", of_bytes(".ckpt", zipped(pickle.dumps({"a": list(range(999))}, 2)[:-40])), "damaged")
case("zip cut", of_bytes(".ckpt", zipped(pickle.dumps({}, 2))[:-30]), "damaged")
case("zip without a pickle", of_bytes(".ckpt", zipped(b"x", name="archive/readme.txt")), "damaged")
case("a list for a model", of_bytes(".ckpt", zipped(pickle.dumps([1, 2, 3], 2))), "damaged")
case(
    "runs a command", of_bytes(".ckpt", zipped(calling(os.system, f"touch {MARKER}"))), "wants to run (posix|nt).system"
)
case("evaluates", of_bytes(".ckpt", zipped(calling(eval, f"open('{MARKER}', 'w')"))), "wants to run builtins.eval")
case("executes", of_bytes(".pt", zipped(calling(exec, f"open('{MARKER}', 'w')"))), "wants to run builtins.exec")
case("imports", of_bytes(".pth", zipped(calling(__import__, "antigravity"))), "wants to run builtins.__import__")
case("takes attributes", of_bytes(".ckpt", zipped(calling(getattr, 1, "real"))), "wants to run builtins.getattr")
case("opens", of_bytes(".bin", zipped(calling(open, MARKER, "w"))), "wants to run")
case(
    "starts a process",
    of_bytes(".ckpt", zipped(b"\x80\x02csubprocess\nPopen\n(X\x02\x00\x00\x00lstR.")),
    "wants to run subprocess.Popen",
)
case("an old opcode", of_bytes(".ckpt", zipped(b"(S'touch x'\nios\nsystem\n.")), "wants to run os.system")
case(
    "behind the legacy magic",
    of_bytes(".ckpt", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + calling(os.system, "x")),
    "wants to run",
)
case("without a zip", of_bytes(".ckpt", calling(os.system, f"touch {MARKER}")), "wants to run")
case("a legacy file of nothing", of_bytes(".ckpt", pickle.dumps(0x1950A86A20F9469CFC6C, 2)), "damaged")
case(
    "compressed weights",
    of_bytes(".ckpt", zipped(tensor_program(b"FloatStorage", 0, (2, 2), (2, 1)), compressed=True)),
    "compressed",
)
case("beyond its storage", of_bytes(".ckpt", zipped(tensor_program(b"FloatStorage", 0, (BIG,), (1,)))), "damaged")
case("before its storage", of_bytes(".ckpt", zipped(tensor_program(b"FloatStorage", -4, (1,), (1,)))), "damaged")
case("negative stride", of_bytes(".ckpt", zipped(tensor_program(b"FloatStorage", 8, (2,), (-1,)))), "damaged")
case("more sides than strides", of_bytes(".ckpt", zipped(tensor_program(b"FloatStorage", 0, (1, 1), (1,)))), "damaged")
case("unknown storage", of_bytes(".ckpt", zipped(tensor_program(b"SecretStorage", 0, (1,), (1,)))), "damaged")
case("memo bomb", of_bytes(".ckpt", zipped(b"\x80\x02}r\xff\xff\xff\x7f.")), "no Stable Diffusion|damaged")
case("endless bytes", of_bytes(".ckpt", zipped(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.")), "damaged")
case("nested a million deep", of_bytes(".ckpt", zipped(b"\x80\x02" + b"(" * 1_000_000 + b".")), "damaged")
case(
    "sets attributes of a mark",
    of_bytes(".ckpt", zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.")),
    "damaged",
)
case("too long a program", of_bytes(".ckpt", zipped(b"0" * 9_000_000)), "damaged")

# .ckpt files of a few bytes, or some megabytes, that would keep a reader busy for hours
DEEP = b"N" + b"2\x86" * 60  # a tuple of two, each of which is a tuple of two, ...
PAIRS = b"}(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(50_000)) + b"uq\x01"
for name, program in {
    "a key of tuples within tuples": b"\x80\x02}" + DEEP + b"Ns.",
    "many keys with one of tuples": b"\x80\x02}(" + DEEP + b"Nu.",
    "a dictionary of tuples within tuples": b"\x80\x02(" + DEEP + b"Nd.",
    "a set of tuples within tuples": b"\x80\x04\x8f(" + DEEP + b"\x90.",
    "a frozen set of tuples within tuples": b"\x80\x04(" + DEEP + b"\x91.",
    "Python 2's pairs with a key of tuples": b"\x80\x02ccollections\nOrderedDict\n(](" + DEEP + b"N\x86etR.",
    "a storage of that name": tensor_program(b"FloatStorage", 0, (1,), (1,)).replace(
        b"X\x01\x00\x00\x000X", DEEP + b"X"
    ),
    "keys that look alike": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(100_000))
        + b"u."
    ),
    "a tensor of very many sides": tensor_program(b"FloatStorage", 0, (1,) * 60_000, (1,) * 60_000),
    "copies of copies": b"\x80\x02ccollections\nOrderedDict\nq\x00"
    + PAIRS
    + b"0"
    + b"h\x00h\x01\x85R0" * 100_000
    + b"N.",
    "names without end": (
        b"\x80\x04X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00" + b"h\x00h\x00\x930" * 200_000 + b"."
    ),
    "steps that lead nowhere": b"\x80\x02" + b"N0" * 900_000 + b"N.",
}.items():
    case(name, of_bytes(".ckpt", zipped(program)), "damaged")
many = f'{{"a": {{"dtype": "F32", "shape": [{"2," * 2_000_000}2], "data_offsets": [0, 4]}}}}'
case("a tensor of a million sides", of_bytes(".safetensors", header_of(many.encode(), bytes(8))), "damaged")
spelled = '{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": "04"}}'
case("numbers in words", of_bytes(".safetensors", header_of(spelled.encode(), bytes(8))), "damaged")

# Diffusers folders
case("empty folder", of_folder({}), "model_index.json is missing")
case("damaged index", of_folder({"model_index.json": "{"}), "damaged")
case("a list for an index", of_folder({"model_index.json": "[]"}), "damaged")
case("no weights", of_folder({"model_index.json": "{}", "unet/config.json": "{}"}), "no weights in this part")
case(
    "shards that lead out",
    of_folder(
        {
            "model_index.json": "{}",
            "unet/model.safetensors.index.json": json.dumps({"weight_map": {"a": "../../x.safetensors"}}),
        }
    ),
    "damaged",
)
case(
    "a shard that is missing",
    of_folder(
        {
            "model_index.json": "{}",
            "unet/model.safetensors.index.json": json.dumps({"weight_map": {"a": "x.safetensors"}}),
        }
    ),
    "missing",
)
case(
    "a pickle in a folder",
    of_folder(
        {"model_index.json": "{}", "unet/diffusion_pytorch_model.bin": zipped(calling(os.system, f"touch {MARKER}"))}
    ),
    "wants to run",
)
case(
    "a transformer's folder", of_folder({"model_index.json": '{"_class_name": "FluxPipeline"}'}), "no Stable Diffusion"
)

# Files of other kinds
case("a LoRA", of_tensors(("lora_unet_x.lora_down.weight", [1, 1])), "LoRA, not a whole model")
case("a VAE", of_tensors(("decoder.conv_in.weight", [1])), "VAE, not a whole model")
case("Flux", of_tensors(("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", [1])), "Flux")
case("SD 3", of_tensors(("model.diffusion_model.joint_blocks.0.x", [1])), "Stable Diffusion 3")
case("a ControlNet", of_tensors(("control_model.input_blocks.0.0.weight", [1])), "ControlNet")
case("an embedding", of_tensors(("emb_params", [1, 768])), "embedding")
case("LyCORIS", of_tensors(("lora_unet_x.oft_diag", [1])), "LyCORIS")
case("a LoHa", of_tensors(("lora_unet_x.hada_w1_a", [1])), "a LoRA")
case("a LoKr", of_tensors(("lora_unet_x.lokr_w1", [1])), "a LoRA")
case("a refiner", of_tensors((TO_K, [1, 1280]), ("conditioner.embedders.0.model.x", [1])), "refiner")
case("inpainting without a VAE", of_tensors((TO_K, [1, 768]), (CLIP, [1]), (FIRST, [1, 9, 1, 1])), "--vae")
case("an upscaler", of_tensors((TO_K, [1, 768]), (CLIP, [1]), (FIRST, [1, 7, 1, 1])), "upscaler")
case("editing", of_tensors((TO_K, [1, 768]), (CLIP, [1]), (FIRST, [1, 8, 1, 1])), "InstructPix2Pix")
case("depth", of_tensors((TO_K, [1, 1024]), ("cond_stage_model.model.x", [1]), (FIRST, [1, 5, 1, 1])), "depth")
case("an unknown width", of_tensors((TO_K, [1, 99])), "unknown kind")
case("without text", of_tensors((TO_K, [1, 768]), (FIRST, [1, 4, 1, 1])), "no text encoder")
case("without a VAE", of_tensors((TO_K, [1, 768]), (CLIP, [1]), (FIRST, [1, 4, 1, 1])), "--vae")
case("nothing known", of_tensors(("x", [1])), "no Stable Diffusion")
case("another suffix", of_bytes(".gguf", b"GGUF"), "no model file")
case("no file", lambda folder: folder / "nothing.safetensors", "no such file")


@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = CASES[name]
    path = make(tmp_path)
    models = tmp_path / "models"
    since = time.process_time()
    with pytest.raises(UserError, match=said) as caught:
        project.create(Folders(models), "new", path)
    assert time.process_time() - since < SECONDS
    assert len(caught.value.problems) == 1
    sentence = caught.value.problems[0]
    assert sentence.startswith(str(path)) and sentence.endswith((".", ")")), sentence
    assert "Traceback" not in sentence and "\n" not in sentence
    assert not (models / "dreambooth").exists() or not list((models / "dreambooth").iterdir())
    assert not (tmp_path / MARKER).exists()


def test_a_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    """Of bytes in the pickle, and of the pickle in its archive."""
    claimed = zipped(b"\x80\x05\x96" + (2**27).to_bytes(8, "little") + b"x.")
    bomb = zipped(bytes(2**27), compressed=True).replace(struct.pack("<I", 2**27), struct.pack("<I", 1000))
    for data in (claimed, bomb):
        path = of_bytes(".ckpt", data)(tmp_path)
        tracemalloc.start()
        with pytest.raises(UserError):
            read_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24


def copying(call: bytes) -> bytes:
    """A pickle of a megabyte that calls for copies of one dictionary of 20,000 things: 5 GB and more."""
    shared = b"}(" + b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(20_000)) + b"u\x940"
    return b"\x80\x04" + b"ccollections\nOrderedDict\n\x940" + shared + b"](" + (1_000_000 // len(call)) * call + b"e."


COPIES = {
    "a tuple": b"h\x00h\x01\x85R",
    "a list": b"h\x00]h\x01aR",
    "a tuple of a hundred": b"h\x00(" + 100 * b"h\x01" + b"tR",
    "an object": b"(h\x00h\x01o",
    "an instance": b"(h\x01icollections\nOrderedDict\n",
}
READ = """
import resource, sys
from dreambooth.core.errors import UserError
from dreambooth.core.models.pickle_file import read_pickle
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
try:
    read_pickle(Path(sys.argv[1]))
except UserError:
    # The peak of this program alone: getrusage has that of the process that started it, too.
    [peak] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 2**10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
@pytest.mark.parametrize("call", COPIES)
def test_a_dictionary_that_is_handed_over_again_and_again_takes_no_memory(tmp_path: Path, call: str) -> None:
    path = of_bytes(".ckpt", zipped(copying(COPIES[call])))(tmp_path)
    said = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=60, cwd=PROJECT
    )
    assert said.stdout and int(said.stdout) < 300, f"{said.stdout} MB {said.stderr[-500:]}"


def test_there_are_more_than_fifty() -> None:
    assert len(CASES) > 50


def test_the_hostile_pickles_would_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the cases above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(calling(eval, f"open('{MARKER}', 'w').close()"))
    assert (tmp_path / MARKER).exists()
    assert "GLOBAL" in {opcode.name for opcode, _, _ in pickletools.genops(calling(os.system, "x"))}
