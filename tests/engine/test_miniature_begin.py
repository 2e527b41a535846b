"""Another family's miniature begins where the first one has got to."""

from __future__ import annotations

import pytest
import torch

from dreambooth.core.install_paths import MINIATURE
from dreambooth.engine import families
from dreambooth.engine.miniature.begin import begin_with
from dreambooth.engine.miniature.model import TextToNoise
from dreambooth.engine.miniature.shapes import SHAPES
from dreambooth.engine.miniature.train import first_weights

CAPTIONS = ["", "a red star", "a photo of a small blue heart on a white background", "a photo of a ring"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return first_weights(families.load_file(MINIATURE))


@pytest.mark.parametrize(("family", "fewer_levels"), [("sd2", 0), ("sdxl", 1)])
def test_it_takes_over_what_fits(family: str, fewer_levels: int, weights: dict[str, torch.Tensor]) -> None:
    model = TextToNoise(SHAPES[family])
    begin_with(model, weights, text_steps=2)
    ours, theirs = model.unet.state_dict(), {name.removeprefix("unet."): tensor for name, tensor in weights.items()}
    for part in ("attentions.2.proj_out.weight", "resnets.0.conv1.weight"):
        for side, shift in (("down_blocks", 0), ("up_blocks", fewer_levels)):
            name = part.replace("2.proj_out", "1.proj_out") if side == "down_blocks" else part
            taken, source = ours[f"{side}.1.{name}"], theirs[f"{side}.{1 + shift}.{name}"]
            assert torch.equal(taken.flatten(), source.flatten())


@pytest.mark.thorough
def test_its_unet_hears_what_the_first_one_hears(weights: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    model, first = TextToNoise(SHAPES["sdxl"]), TextToNoise(SHAPES["sd1"])
    first.load_state_dict(weights)
    begin_with(model, weights, text_steps=250)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    with torch.no_grad():
        wanted, heard = (m.unet.get_submodule(layer)(m.encode(CAPTIONS)[0]) for m in (first, model))
    between_captions = (wanted - wanted.mean(0)).square().mean()
    assert (heard - wanted).square().mean() < 0.5 * between_captions
