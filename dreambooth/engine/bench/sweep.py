"""What each option does to what is learned: the miniature is taught the demo's subject once for each option, and its
pictures are measured. Every option changes one thing of a recipe, so that its row shows that thing alone.

What has been measured is kept in a file; called again, the sweep goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.core import project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import MINIATURE, PROJECT, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import new_run
from dreambooth.core.project import Folders, Project
from dreambooth.engine import export, families
from dreambooth.engine.bench import sweep_plot
from dreambooth.engine.export import ExportOptions
from dreambooth.engine.generate import load
from dreambooth.engine.miniature import measure
from dreambooth.engine.process.listener import asked_to_end

SEEDS = (1, 2)
PICTURES = 24  # measured of each kind
UNTRAINED = "before training"
WORK = "dreambooth-sweep"  # in the folder that a person names, which may hold models of his own

Flat = dict[str, Any]

# The miniature is small, so it learns at rates far above a full-size model's.
_RECIPE: Flat = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of [filewords]",
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 12,
    "concepts.0.class_guidance_scale": 5.0,
    "batching.train_batch_size": 2,
    "batching.class_batch_size": 8,
    "intervals.num_train_epochs": 100,
    "intervals.save_state_every": 0,
    "learning.scheduler": "cosine",
    "tuning.prior_loss_weight": 1.0,
    "previews.count": 0,
}
RECIPES: dict[str, Flat] = {
    "LoRA": {**_RECIPE, "general.method": "lora", "learning.lora_learning_rate": 3e-3},
    "embedding": {
        **{**_RECIPE, "concepts.0.num_class_images_per": 0},
        "general.method": "embedding",
        "concepts.0.instance_token": "sks",
        "learning.embedding_learning_rate": 1e-2,
    },
    "full": {**_RECIPE, "general.method": "full", "learning.learning_rate": 4e-4},
}


@dataclass(frozen=True)
class Option:
    """One thing that is changed in a recipe."""

    recipe: str
    label: str
    changes: Flat = field(default_factory=dict)
    rank: int = 0  # of the LoRA that the result is measured as; 0 measures it as it is

    @property
    def name(self) -> str:
        return f"{self.recipe}: {self.label}" if self.label else self.recipe

    def settings(self, seed: int) -> Flat:
        return {**RECIPES[self.recipe], **self.changes, "general.seed": seed}


def _lora(label: str, **changes: Any) -> Option:
    return Option("LoRA", label, {key.replace("__", "."): value for key, value in changes.items()})


def _word(label: str, **changes: Any) -> Option:
    return Option("embedding", label, {key.replace("__", "."): value for key, value in changes.items()})


def _full(label: str, rank: int = 0, **changes: Any) -> Option:
    return Option("full", label, {key.replace("__", "."): value for key, value in changes.items()}, rank)


_EMBEDDING: Flat = {
    "embedding__enabled": True,
    "concepts__0__instance_token": "sks",
    "learning__embedding_learning_rate": 2e-3,
}
OPTIONS = (
    _lora(""),
    _lora("half as long", intervals__num_train_epochs=50),
    _lora("twice as long", intervals__num_train_epochs=200),
    _lora("a third of the rate", learning__lora_learning_rate=1e-3),
    _lora("three times the rate", learning__lora_learning_rate=9e-3),
    _lora("no class pictures", concepts__0__num_class_images_per=0),
    _lora("2 class pictures each", concepts__0__num_class_images_per=2),
    _lora("prediction in place of class pictures", concepts__0__class_mode="prediction"),
    _lora("prediction, prior weight 0.3", concepts__0__class_mode="prediction", tuning__prior_loss_weight=0.3),
    _lora("prediction, prior weight 3", concepts__0__class_mode="prediction", tuning__prior_loss_weight=3.0),
    _lora("prediction, twice as long", concepts__0__class_mode="prediction", intervals__num_train_epochs=200),
    _lora("prior weight 0.3", tuning__prior_loss_weight=0.3),
    _lora("rank 4, alpha 4", lora__rank=4, lora__alpha=4.0),
    _lora("rank 64, alpha 64", lora__rank=64, lora__alpha=64.0),
    _lora("alpha 1", lora__alpha=1.0),
    _lora("attention only", lora__layers="attention"),
    _lora("convolutions too", lora__layers="convolutions"),
    _lora("blocks on the way down", lora__blocks="in"),
    _lora("blocks in the middle", lora__blocks="IN07-OUT05"),
    _lora("blocks on the way up", lora__blocks="out"),
    _lora("blocks on the way up, twice the rate", lora__blocks="out", learning__lora_learning_rate=6e-3),
    _lora("the last six blocks", lora__blocks="OUT06-OUT11"),
    _lora("LoRA+ 4", learning__lora_plus_ratio=4.0),
    _lora("LoRA+ 16", learning__lora_plus_ratio=16.0),
    _lora("LoRA+ 4, half the rate", learning__lora_plus_ratio=4.0, learning__lora_learning_rate=1.5e-3),
    _lora("LoRA+ 16, a third of the rate", learning__lora_plus_ratio=16.0, learning__lora_learning_rate=1e-3),
    _lora("dropout 0.1", lora__dropout=0.1),
    _lora("DoRA", lora__kind="dora"),
    _lora("LoHa", lora__kind="loha"),
    _lora("LoKr", lora__kind="lokr"),
    _lora("LoHa, three times the rate", lora__kind="loha", learning__lora_learning_rate=9e-3),
    _lora("LoKr, three times the rate", lora__kind="lokr", learning__lora_learning_rate=9e-3),
    _lora("OFT", lora__kind="oft"),
    _lora("OFT, a third of the rate", lora__kind="oft", learning__lora_learning_rate=1e-3),
    _lora("text encoder, whole run", tuning__text_encoder_ratio=1.0, learning__lora_text_encoder_learning_rate=1e-3),
    _lora("text encoder, first 0.3", tuning__text_encoder_ratio=0.3, learning__lora_text_encoder_learning_rate=1e-3),
    _lora("embedding", **_EMBEDDING),
    _lora("embedding, whole run", **_EMBEDDING, embedding__ratio=1.0),
    _lora("embedding, 1 vector", **_EMBEDDING, embedding__vectors=1),
    _lora("embedding, 4 vectors", **_EMBEDDING, embedding__vectors=4),
    _lora("embedding and prediction", **_EMBEDDING, concepts__0__class_mode="prediction"),
    _lora("constant rate", learning__scheduler="constant"),
    _lora("linear rate", learning__scheduler="linear"),
    _lora("one-cycle rate", learning__scheduler="one_cycle"),
    _lora("lion, a fifth of the rate", optimizer__name="lion", learning__lora_learning_rate=6e-4),
    _lora("adafactor", optimizer__name="adafactor"),
    _lora("CAME, a fifth of the rate", optimizer__name="came", learning__lora_learning_rate=6e-4),
    _lora("prodigy", optimizer__name="prodigy", learning__lora_learning_rate=1.0),
    _lora("schedule-free AdamW", optimizer__name="adamw_schedule_free", learning__scheduler="constant"),
    _lora("EMA", tuning__use_ema=True),
    _lora("batch 8, the same rate", batching__train_batch_size=8),
    _lora("batch 8, twice the rate", batching__train_batch_size=8, learning__lora_learning_rate=6e-3),
    _lora("min-SNR", objective__weighting="min_snr"),
    _lora("debiased", objective__weighting="debiased"),
    _lora("Huber", objective__loss="huber"),
    _lora("offset noise 0.1", objective__offset_noise=0.1),
    _lora("multi-resolution noise, 3", objective__multires_noise_levels=3),
    _lora("input perturbation 0.1", objective__input_perturbation=0.1),
    _lora("timesteps logit-normal", objective__timesteps="logit_normal"),
    _lora("timesteps cubic", objective__timesteps="cubic"),
    _lora("flip", pictures__hflip=True),
    _lora("crop jitter 0.1", pictures__crop_jitter=0.1),
    _lora("caption dropout 0.1", captions__dropout=0.1),
    _lora("one caption for all", concepts__0__instance_prompt="a photo of sks star"),
    _lora("no class word", concepts__0__instance_prompt="a photo of sks"),
    _word(""),
    _word("1 vector", embedding__vectors=1),
    _word("4 vectors", embedding__vectors=4),
    _word("8 vectors", embedding__vectors=8),
    _word("a third of the rate", learning__embedding_learning_rate=3e-3),
    _word("three times the rate", learning__embedding_learning_rate=3e-2),
    _word("twice as long", intervals__num_train_epochs=200),
    _full(""),
    _full("half as long", intervals__num_train_epochs=50),
    _full("twice as long", intervals__num_train_epochs=200),
    _full("a quarter of the rate", learning__learning_rate=1e-4),
    _full("no class pictures", concepts__0__num_class_images_per=0),
    _full("EMA", tuning__use_ema=True),
    _full("text encoder, whole run", tuning__text_encoder_ratio=1.0, learning__text_encoder_learning_rate=1e-4),
    _full("attention layers alone", tuning__unet_layers="attention"),
    _full("weights in bf16", memory__bf16_weights=True),
    _full("8-bit AdamW", optimizer__name="adamw_8bit"),
    _full("as a LoRA of rank 2", rank=2),
    _full("as a LoRA of rank 8", rank=8),
    _full("as a LoRA of rank 32", rank=32),
)


def run(job: Job) -> dict[str, Any]:
    """Measures every option of job.json's `options` (all if it is empty) with every seed, in the folder `out`.

    Writes sweep.json and the plot sweep.svg there. Raises UserError when asked to stop; what was measured stays.
    """
    wanted = job.read()
    out = Path(wanted["out"])
    out.mkdir(parents=True, exist_ok=True)
    chosen = [option for option in OPTIONS if not wanted.get("options") or option.name in wanted["options"]]
    seeds = wanted.get("seeds") or list(SEEDS)
    taken = _read(out / "sweep.json")
    star = _project(Folders(out / WORK / "models"))
    todo = [(option, seed) for seed in seeds for option in chosen if str(seed) not in taken.get(option.name, {})]
    if UNTRAINED not in taken:
        taken[UNTRAINED] = {"0": measure.measure(families.load_file(MINIATURE), PICTURES)}
    for number, (option, seed) in enumerate(todo):
        if asked_to_end(job):
            raise UserError(
                f"Stopped as asked; what was measured is in {out / 'sweep.json'}, and the sweep goes on there."
            )
        job.report("stage", name=option.name, done=number, total=len(todo))
        taken.setdefault(option.name, {})[str(seed)] = _taught(star, option, seed)
        atomic.write_text(out / "sweep.json", json.dumps(taken, indent=1))
    shutil.rmtree(out / WORK, ignore_errors=True)
    (out / "sweep.svg").write_text(sweep_plot.draw(table(taken)), encoding="utf-8")
    return {"rows": table(taken), "plot": str(out / "sweep.svg")}


def table(taken: dict[str, dict[str, measure.Figures]]) -> list[dict[str, Any]]:
    """A row for each option: the mean of its seeds of every figure, and how far they lie apart."""
    rows = []
    for name, by_seed in taken.items():
        figures = list(by_seed.values())
        row: dict[str, Any] = {"name": name, "seeds": len(figures)}
        for key in figures[0]:
            values = [one[key] for one in figures]
            row[key] = statistics.fmean(values)
            row[f"{key}_span"] = (min(values), max(values))
        rows.append(row)
    return rows


def _read(path: Path) -> dict[str, dict[str, measure.Figures]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _project(folders: Folders) -> Project:
    if (folders.projects / "star").is_dir():
        return project.open_project(folders, "star")
    return project.create(folders, "star", MINIATURE)


def _taught(star: Project, option: Option, seed: int) -> measure.Figures:
    """One run and its pictures; with the seconds that the run took."""
    chosen = settings.parse({**star.settings(), **option.settings(seed)})
    made = new_run(Folders(star.folder.parents[1]), star, chosen)
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "dreambooth.engine",
        str(made.folder),
    ]  # one run leaves nothing behind for the next
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    seconds = time.monotonic() - began
    output = Path(next(event["path"] for event in made.events()[0] if event["event"] == "saved"))
    if option.rank:
        result, output = output, output.with_name(f"{output.stem}-rank-{option.rank}.safetensors")
        export.of_file(made, star, result, output, ExportOptions(rank=option.rank))
        result.unlink()
    figures = measure.measure(load(star, str(output)), PICTURES)
    output.unlink()
    return {**figures, "seconds": seconds}
