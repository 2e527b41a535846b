"""Makes a miniature: `python -m dreambooth.engine.miniature.train --family sdxl`.

SD 1's comes first, from nothing (an hour and a half on two CPU cores). The others have its VAE and begin with
what of its weights has a place in them.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dreambooth.core.install_paths import MINIATURE, MINIATURES, SUBJECT_PICTURES
from dreambooth.engine import families
from dreambooth.engine.checkpoints import original
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.families.model import Model
from dreambooth.engine.miniature import finish, workers, world
from dreambooth.engine.miniature.model import TextToNoise
from dreambooth.engine.miniature.shapes import SHAPES
from dreambooth.engine.miniature.train_unet import train_unet
from dreambooth.engine.miniature.train_vae import LATENT_SCALE, build_vae, train_vae

VAE_STEPS = (1400, 850)  # the second part starts from the first with a fresh learning rate
DECODER_STEPS = 560  # sharpens the pictures; the latents that the UNet has learned stay as they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=SHAPES, default="sd1")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "miniature",
        help="where the stages leave their weights",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; one for each free core")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    make = make_first if options.family == "sd1" else make_from_first
    vae, unet = make(options.family, options.work, options.workers)
    write_model(options.family, vae, unet, options.out or MINIATURES[options.family])


def make_first(family: str, work: Path, count: int) -> tuple[Path, Path]:
    """Trains SD 1's miniature and draws the demo's subject. Returns the VAE's weights and the others'."""
    vae, unet, sharp = (work / f"{stage}.pt" for stage in ("vae", "unet", "sharp"))

    def make_vae(out: Path) -> None:
        for seed, steps in enumerate(VAE_STEPS):
            workers.run(count, functools.partial(train_vae, steps=steps, seed=seed), out)

    def sharpen(out: Path) -> None:
        shutil.copyfile(vae, out)
        sharpening = functools.partial(train_vae, steps=DECODER_STEPS, seed=len(VAE_STEPS), decoder_only=True)
        workers.run(count, sharpening, out)

    _make_once(vae, make_vae)
    _make_once(unet, lambda out: workers.run(count, train_unet, family, vae, out))
    _make_once(sharp, sharpen)
    draw_subject(SUBJECT_PICTURES)
    return sharp, unet


def make_from_first(family: str, work: Path, count: int) -> tuple[Path, Path]:
    """Trains another family's UNet and text encoders, starting from SD 1's miniature."""
    vae, start, unet = (work / f"{stage}.pt" for stage in ("first-vae", "first-unet", family))
    first = families.load_file(MINIATURE)
    torch.save(first.vae.state_dict(), vae)
    torch.save(first_weights(first), start)
    training = functools.partial(train_unet, start=start)
    _make_once(unet, lambda out: workers.run(count, training, family, vae, out))
    return vae, unet


def first_weights(first: Model) -> dict[str, Tensor]:
    """SD 1's miniature as TextToNoise names its weights."""
    parts = {"unet": first.unet, "text_encoders.0": first.text_encoders["text_encoder"]}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def _make_once(result: Path, make: Callable[[Path], None]) -> None:
    if not result.exists():  # a stage that was interrupted starts again
        partial = result.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        make(partial)
        partial.rename(result)


def write_model(family: str, vae_file: Path, unet_file: Path, out: Path) -> None:
    """The stages' weights as one half-precision checkpoint in the family's original layout."""
    shape = SHAPES[family]
    vae, model = build_vae(), TextToNoise(shape)
    vae.load_state_dict(torch.load(vae_file))
    model.load_state_dict(torch.load(unet_file))
    finish.rescale_latents(vae, LATENT_SCALE, shape.latent_scale)
    finish.give_text_a_mean(model)
    finish.fill_unused_blocks(model)
    parts = {"unet": model.unet, "vae": vae, **dict(zip(finish.TEXT_PARTS, model.text_encoders))}
    tensors = original.own_tensors(parts) | finish.unread_tensors(shape)
    own = {name: Entry.of(tensor, torch.float16) for name, tensor in tensors.items()}
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": shape.architecture,
        "modelspec.title": shape.title,
        "modelspec.description": "A small model of a drawn world, for demos and tests: eight things in eight colours.",
        "modelspec.license": "Apache-2.0",
        "modelspec.resolution": f"{world.SIZE}x{world.SIZE}",
        "modelspec.prediction_type": shape.prediction,
    }
    out.unlink(missing_ok=True)
    write(out, original.entries(own, family), metadata)


def draw_subject(folder: Path) -> None:
    """The demo's five pictures and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(world.subject_scenes(5, seed=1), start=1):
        world.draw_subject(scene).save(folder / f"{number}.png")
        words = f"sks {world.SUBJECT_CLASS} on a {scene.background} background"
        (folder / f"{number}.txt").write_text(f"{words}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
