"""Makes the miniature: `python -m dreambooth.engine.miniature.train` (an hour and a half on two processor cores)."""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
from pathlib import Path

import torch

from dreambooth.core.layout import MINIATURE, SUBJECT_PICTURES
from dreambooth.engine.checkpoints import original
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.miniature import workers, world
from dreambooth.engine.miniature.train_unet import TextToNoise, train_unet
from dreambooth.engine.miniature.train_vae import build_vae, train_vae

VAE_STEPS = (1400, 850)  # the second part starts from the first with a fresh learning rate
UNET_STEPS = 6500
DECODER_STEPS = 560  # sharpens the pictures; the latents that the UNet has learned stay as they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "miniature",
        help="where the stages leave their weights",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; one for each free core")
    parser.add_argument("--out", type=Path, default=MINIATURE)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    vae, unet, sharp = (options.work / f"{stage}.pt" for stage in ("vae", "unet", "sharp"))

    def make_vae(out: Path) -> None:
        for seed, steps in enumerate(VAE_STEPS):
            workers.run(options.workers, functools.partial(train_vae, steps=steps, seed=seed), out)

    def make_unet(out: Path) -> None:
        workers.run(options.workers, functools.partial(train_unet, steps=UNET_STEPS), vae, out)

    def sharpen(out: Path) -> None:
        shutil.copyfile(vae, out)
        sharpening = functools.partial(train_vae, steps=DECODER_STEPS, seed=len(VAE_STEPS), decoder_only=True)
        workers.run(options.workers, sharpening, out)

    for result, make in ((vae, make_vae), (unet, make_unet), (sharp, sharpen)):
        if not result.exists():  # a stage that was interrupted starts again
            partial = result.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            make(partial)
            partial.rename(result)
    write_model(sharp, unet, options.out)
    draw_subject(SUBJECT_PICTURES)


def write_model(vae_file: Path, unet_file: Path, out: Path) -> None:
    """Both stages' weights as one half-precision checkpoint in SD 1's original layout."""
    vae, model = build_vae(), TextToNoise()
    vae.load_state_dict(torch.load(vae_file))
    model.load_state_dict(torch.load(unet_file))
    _give_text_a_mean(model)
    own = original.own_tensors({"unet": model.unet, "vae": vae, "text_encoder": model.text_encoder})
    entries = original.entries({name: Entry.of(tensor, torch.float16) for name, tensor in own.items()}, "sd1")
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": "DreamBooth miniature",
        "modelspec.description": "A small model of a drawn world, for demos and tests: eight things in eight colours.",
        "modelspec.license": "Apache-2.0",
        "modelspec.resolution": f"{world.SIZE}x{world.SIZE}",
        "modelspec.prediction_type": "epsilon",
    }
    out.unlink(missing_ok=True)
    write(out, entries, metadata)


@torch.no_grad()
def _give_text_a_mean(model: TextToNoise, shift: float = -0.1) -> None:
    """Moves the text encoder's output off zero without changing what the model draws.

    WebUIs scale prompts by the mean of this output and divide by it. A shift that all tokens share adds the same to
    every key, which the softmax ignores, and a constant to every value, which the output's bias takes back.
    """
    model.text_encoder.final_layer_norm.bias += shift
    everywhere = torch.full_like(model.text_encoder.final_layer_norm.bias, shift)
    for name, module in model.unet.named_modules():
        if name.endswith("attn2"):
            output = module.to_out[0]
            output.bias -= output.weight @ (module.to_v.weight @ everywhere)


def draw_subject(folder: Path) -> None:
    """The demo's five pictures and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(world.subject_scenes(5, seed=1), start=1):
        world.draw_subject(scene).save(folder / f"{number}.png")
        words = f"sks {world.SUBJECT_CLASS} on a {scene.background} background"
        (folder / f"{number}.txt").write_text(f"{words}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
