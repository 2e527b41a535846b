"""kohya's sd-scripts, for SD 1 and SDXL of full size: it knows the sizes of their UNets by heart, and no miniature's.

It is run as its own documentation recommends: latents cached, SDXL's texts too, PyTorch's attention, and the UNet alone
trained, as we do it by default.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dreambooth.core.errors import UserError
from dreambooth.engine.bench.cases import RATES, Case, precision

_SCRIPTS = {
    ("sd1", "lora"): "train_network.py",
    ("sd1", "full"): "train_db.py",
    ("sdxl", "lora"): "sdxl_train_network.py",
    ("sdxl", "full"): "sdxl_train.py",
}
FILES = tuple(_SCRIPTS.values())
_UNETS = {
    "sd1": "library.original_unet:UNet2DConditionModel",
    "sdxl": "library.sdxl_original_unet:SdxlUNet2DConditionModel",
}
# Where it looks for CLIP's vocabulary under --tokenizer_cache_dir, before it would ask the hub.
_TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
NEEDED = ("torch", "accelerate", "diffusers", "transformers", "toml", "cv2")  # packages, told where they are missing
_MISSING = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
VENV_PYTHON = Path("Scripts", "python.exe") if sys.platform == "win32" else Path("bin", "python")


@dataclass(frozen=True)
class SdScripts:
    """The scripts by family and method, and the Python that has their packages."""

    scripts: dict[tuple[str, str], Path]
    python: str
    name: ClassVar = "sd-scripts"
    title: ClassVar = "sd-scripts"
    trainable: ClassVar = "SD 1 and SDXL of full size (--large)"
    layers: ClassVar = "transformer"
    reads_folder: ClassVar = False

    @classmethod
    def at(cls, checkout: Path, python: str) -> SdScripts | None:
        """With the Python that a person names, else with that of the folder `venv` which its own guide has people make.

        Raises UserError where there is none, or it lacks packages.
        """
        found = {which: checkout / name for which, name in _SCRIPTS.items()}
        if not all(path.is_file() for path in found.values()):
            return None
        own = checkout / "venv" / VENV_PYTHON
        if not python and not own.is_file():
            raise UserError(
                f"--peer: sd-scripts has packages of its own, and {own} is not there; name its Python with "
                "--peer-python."
            )
        _check(python or str(own))
        return cls(found, python or str(own))

    def trains(self, case: Case, *, large: bool) -> bool:
        return large and (case.family, case.method) in self.scripts

    def told(self, case: Case, model: Path, pictures: Path, prompt: str, work: Path) -> dict[str, Any]:
        options = {
            "pretrained_model_name_or_path": model,
            "dataset_config": _data_set(work / "pictures.toml", case, pictures, prompt),
            "tokenizer_cache_dir": _tokenizers(work / "tokenizers"),
            "output_dir": work / "output",
            "output_name": "peer",
            "save_model_as": "safetensors",
            "max_train_steps": case.steps,
            "max_data_loader_n_workers": 1,
            "learning_rate": RATES[case.method],
            "optimizer_type": "AdamW",
            "lr_scheduler": "constant",
            "seed": 1,
            "mixed_precision": precision(),
        }
        flags = ["cache_latents", "sdpa", "persistent_data_loader_workers"]
        if case.method == "lora":
            options |= {"network_module": "networks.lora", "network_dim": case.rank, "network_alpha": case.rank}
            flags.append("network_train_unet_only")
        elif case.family == "sd1":
            options["stop_text_encoder_training"] = -1
        if case.family == "sdxl":
            flags += ["cache_text_encoder_outputs", "no_half_vae"]
        return {
            "script": str(self.scripts[case.family, case.method]),
            "arguments": [*(f"--{flag}" for flag in flags), *(f"--{name}={value}" for name, value in options.items())],
            "python": self.python,
            "unet": _UNETS[case.family],
        }


def _check(python: str) -> None:
    """Whether scripts of sd-scripts can be run with this Python. Raises UserError."""
    advice = "name the Python that sd-scripts runs with"
    try:
        asked = subprocess.run([python, "-c", _MISSING, *NEEDED], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--peer-python: {python} cannot be started ({error.strerror}); {advice}.") from None
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"code {asked.returncode}"]
        raise UserError(f"--peer-python: {python} is no Python that works ({said[-1]}); {advice}.")
    if missing := asked.stdout.split():
        raise UserError(f"--peer-python: {python} has no {', no '.join(missing)}; {advice}.")


def _data_set(file: Path, case: Case, pictures: Path, prompt: str) -> Path:
    """The pictures, so often that the run has one epoch: each begins with a pause."""
    repeats = math.ceil(case.steps * case.batch / len(list(pictures.iterdir())))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"[[datasets]]\nresolution = {case.resolution}\nbatch_size = {case.batch}\n\n"
        f"[[datasets.subsets]]\nimage_dir = {_text(str(pictures))}\nclass_tokens = {_text(prompt)}\n"
        f"num_repeats = {repeats}\n",
        encoding="utf-8",
    )
    return file


def _text(value: str) -> str:
    """A string of TOML."""
    return json.dumps(value, ensure_ascii=False)


def _tokenizers(folder: Path) -> Path:
    """CLIP's vocabulary as transformers' older tokenizers read it."""
    from dreambooth.engine.prompts.vocabulary import write_vocabulary

    for name in _TOKENIZERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_vocabulary(folder / name)
        about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder
