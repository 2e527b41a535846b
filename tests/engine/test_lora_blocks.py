"""A LoRA in some blocks of the UNet: in these alone, counted as such, and without a backward pass before the first."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint_table, step_memory
from dreambooth.core.models import anatomy, checkpoint, unet_blocks
from dreambooth.core.project import Project
from dreambooth.engine import families, plan, worker
from dreambooth.engine.bench import footprint as counting
from dreambooth.engine.bench.footprint import Point, Step
from dreambooth.engine.checkpoints import lora, names
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.drawing.sampling import Sampling, draw, make_scheduler
from dreambooth.engine.families.model import Model, whole_picture
from dreambooth.engine.families.pipelines import pipeline
from dreambooth.engine.training import adapters, checkpointing
from dreambooth.service import preflight
from tests.engine.runs import LORA, SHORT, new_run, output, same, tiny_project, told, train

B_LORA = {"lora.blocks": "OUT00, OUT01", "lora.layers": "attention"}  # of SDXL: what it shows, and its style


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("blocks"), "sdxl")


def places(model: Model) -> set[str]:
    """Where in the UNet there are trained layers: down_blocks.1.attentions.0 and the like."""
    trained = (name for name, weight in model.unet.named_parameters() if weight.requires_grad)
    return {".".join(name.split(".")[: 3 if name.startswith("mid_block") else 4]) for name in trained}


def prepared(base: Path, **changes: Any) -> Model:
    model = families.load_file(base)
    adapters.make_trainable(model, settings.parse({"lora.rank": 2, **changes}))
    return model


def test_both_layouts_have_the_same_names(base: Path, family: str) -> None:
    own = [name.removeprefix("unet/") for name in open_source(base).tensors if name.startswith("unet/")]
    originals = names.to_original((f"unet/{name}" for name in own), family)
    spelled = {name: originals[f"unet/{name}"].name.removeprefix("model.diffusion_model.") for name in own}
    blocks, others = unet_blocks.by_name(own), unet_blocks.by_name(spelled.values())
    assert {name: others.get(spelled[name]) for name in own} == {name: blocks.get(name) for name in own}
    last = 8 if family == "sdxl" else 11
    numbers = [f"{number:02d}" for number in range(last + 1)]
    assert set(blocks.values()) == {"MID", *(f"{side}{number}" for side in ("IN", "OUT") for number in numbers)}
    around = {name.split(".")[0] for name in own if name not in blocks}
    assert around <= {"time_embedding", "add_embedding", "conv_norm_out", "conv_out"}


@pytest.mark.parametrize(
    ("chosen", "kinds", "there"),
    [
        ("IN04", ("sd1", "sd2"), {"down_blocks.1.attentions.0"}),
        ("out08", ("sd1", "sd2"), {"up_blocks.2.attentions.2"}),
        ("m00", ("sd1", "sdxl"), {"mid_block.attentions.0"}),
        ("in", ("sdxl",), {f"down_blocks.{n}.attentions.{m}" for n in (1, 2) for m in (0, 1)}),
        ("IN08-OUT00", ("sdxl",), {"down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.0.attentions.0"}),
        ("OUT00, OUT01", ("sdxl",), {"up_blocks.0.attentions.0", "up_blocks.0.attentions.1"}),
    ],
)
def test_the_layers_are_those_of_the_blocks(
    chosen: str, kinds: tuple[str, ...], there: set[str], base: Path, family: str
) -> None:
    if family in kinds:
        assert places(prepared(base, **{"lora.blocks": chosen})) == there


def test_with_convolutions_a_block_is_all_that_it_has(base: Path, family: str) -> None:
    on = {"lora.layers": "convolutions"}
    assert places(prepared(base, **{"lora.blocks": "IN03, OUT02", **on})) == {
        "down_blocks.0.downsamplers.0",
        "up_blocks.0.resnets.2",
        "up_blocks.0.upsamplers.0",
        *(["up_blocks.0.attentions.2"] if family == "sdxl" else []),
    }


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_every_kind_of_lora_has_them(kind: str, base: Path) -> None:
    assert places(prepared(base, **{"lora.blocks": "mid", "lora.kind": kind})) == {"mid_block.attentions.0"}


def test_the_text_encoder_learns_as_ever(base: Path) -> None:
    whole, some = (
        adapters.make_trainable(
            families.load_file(base), settings.parse({"tuning.text_encoder_ratio": 1.0, **flat})
        ).parts
        for flat in ({}, {"lora.blocks": "mid"})
    )
    assert some["text_encoder"].keys() == whole["text_encoder"].keys()
    assert len(some["unet"]) < len(whole["unet"])


@pytest.mark.parametrize("layers", ["attention", "transformer", "convolutions"])
@pytest.mark.parametrize("chosen", ["out", "IN04-OUT03", "MID"])
def test_the_trained_values_are_counted(chosen: str, layers: str, base: Path) -> None:
    wanted = settings.parse({"lora.blocks": chosen, "lora.layers": layers, "lora.rank": 3})
    trained = adapters.make_trainable(families.load_file(base), wanted).named()
    counted = anatomy.of(checkpoint.read_header(base))
    assert counted.trained(wanted) == sum(weight.numel() for weight in trained.values()) > 0
    kept = anatomy.from_json(anatomy.as_json(counted))
    assert kept.trained(wanted) == counted.trained(wanted)


def test_a_file_has_these_layers_and_is_read_by_us_and_by_diffusers(base: Path, family: str, tmp_path: Path) -> None:
    model = prepared(base, **{"lora.blocks": "mid,OUT03-OUT05", "lora.alpha": 3.0})
    path = tmp_path / "some.safetensors"
    torch.manual_seed(3)
    for weight in model.unet.parameters():
        if weight.requires_grad:
            weight.data = torch.randn_like(weight) * 0.2
    write_tensors(path, lora.lora_tensors(model.parts, family, half=False), {})
    blocks = "mid_block_attentions_0|up_blocks_1_attentions_[012]"
    if family == "sdxl":
        blocks = "middle_block_1|output_blocks_[345]_1"
    assert all(re.match(rf"lora_unet_({blocks})_", name) for name in load_file(path))
    ours = families.load_file(base)
    plain = picture(ours)
    source = open_source(base)
    lora.add(path, lora.read(path, list(source.tensors), family), source, ours.parts, 1.0)
    assert np.abs(picture(ours) - picture(model)).max() <= 2
    assert np.abs(picture(ours) - plain).max() > 5
    pipe = pipeline(families.load_file(base))
    pipe.scheduler = make_scheduler("ddim", ours)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a star", num_inference_steps=3, guidance_scale=3.0, width=64, height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert np.abs(picture(ours) - np.asarray(theirs, dtype=int)).max() <= 2


def picture(model: Model) -> np.ndarray:
    return np.asarray(draw(model, ["a star"], [5], Sampling(64, 64, 3, 3.0, scheduler="ddim"))[0], dtype=int)


# ---- what it costs


@pytest.mark.parametrize("checkpointed", [0.0, 0.5, 1.0])
def test_no_gradient_is_worked_out_before_the_first_block(
    checkpointed: float, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in from before it asks for none, and checkpointing does not work the blocks before it out again."""
    model = prepared(base, **{"lora.blocks": "out"})
    if checkpointed:
        checkpointing.enable(model.unet, checkpointed)
    model.unet.train()
    where = {module: path for path, module in model.unet.named_modules()}
    asked, done = dict[str, bool](), collections.Counter[str]()
    for kind in (BasicTransformerBlock, ResnetBlock2D):
        forward = kind.forward

        def watched(block: Any, *inputs: Any, forward: Any = forward, **more: Any) -> Any:
            done[where[block]] += 1
            found = forward(block, *inputs, **more)
            asked[where[block]] = found.requires_grad
            return found

        monkeypatch.setattr(kind, "forward", watched)
    text = model.encode_text(["x"])
    sizes = torch.tensor([whole_picture(64, 64)])
    model.denoise(torch.ones(1, 4, 8, 8), torch.zeros(1, dtype=torch.long), text, sizes).sum().backward()
    before = [path for path in asked if not path.startswith("up_blocks")]
    assert not any(asked[path] for path in before)
    assert all(done[path] == 1 for path in before)
    assert any(asked[path] for path in asked if path.startswith("up_blocks"))
    assert max(done.values()) == (2 if checkpointed else 1)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.large)], indirect=False)
@pytest.mark.parametrize(("end", "chosen"), [("whole", "out"), ("checkpointed", "mid,out")])
def test_what_a_step_holds_is_foreseen(family: str, end: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted anew on models of full size: hardly more than is foreseen, and not much less."""
    checkpointed = end == "checkpointed"
    flat = {"lora.blocks": chosen, "batching.gradient_checkpointing": checkpointed, "previews.count": 0}
    parse = settings.parse
    monkeypatch.setattr(counting.settings, "parse", lambda some: parse({**some, "lora.blocks": chosen}))
    step = Step(family, "lora", "transformer", "mixed", checkpointed)
    held = max(counting.count(step, Point(1, counting.SIDES[family], 16)).moments)
    area = (8 * counting.SIDES[family]) ** 2
    told = step_memory.peak_bytes(parse(flat), footprint_table.full_size(family), family, area, 0)
    assert 0.98 * held < told < 1.2 * held


# ---- runs


def test_a_run_trains_these_and_writes_them(made: Project) -> None:
    """B-LoRA's two."""
    whole, some = (set(output(train(made, **LORA, **flat))) for flat in ({"lora.layers": "attention"}, B_LORA))
    assert some < whole
    assert {name[: len("lora_unet_output_blocks_0_1_")] for name in some} == {
        "lora_unet_output_blocks_0_1_",
        "lora_unet_output_blocks_1_1_",
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"batching.gradient_checkpointing": True},
        {"batching.gradient_checkpointing": True, "memory.unet_weights": "streamed"},
        {"memory.step_in_backward": True},
        {"embedding.enabled": True, "concepts.0.instance_token": "sks"},
    ],
    ids=str,
)
def test_traced_or_not_the_same_is_learned(more: dict[str, Any], made: Project) -> None:
    flat = {**LORA, "lora.blocks": "mid,OUT03-OUT05", "lora.layers": "convolutions", **more}
    flat |= {"intervals.max_train_steps": 24, "batching.train_batch_size": 1}
    jobs = [train(made, **flat, **{"tuning.trace_steps": on}) for on in (False, True)]
    assert not [event for job in jobs for event in told(job, "warning")]
    assert same(*(output(job) for job in jobs))
    ups = [tensor for name, tensor in output(jobs[0]).items() if name.endswith("lora_up.weight")]
    assert ups
    assert all(tensor.any() for tensor in ups)


def test_a_lora_goes_on_with_its_own_blocks(made: Project) -> None:
    first = train(made, **LORA, **B_LORA)
    start = first.story().saved[-1]["path"]
    again = train(made, **LORA, **{"lora.start_file": start, "lora.layers": "convolutions"})
    assert output(again).keys() == output(first).keys()
    with pytest.raises(UserError, match=r"lora\.blocks: the LoRA of lora\.start_file has its own"):
        settings.parse({"lora.start_file": start, **B_LORA})


# ---- what is refused


@pytest.mark.parametrize(("chosen", "said"), [("IN01", "IN01 has no layer"), ("mid, IN00, IN03", "IN00 and IN03 have")])
def test_blocks_that_have_nothing_to_train_are_said_before_anything_starts(
    chosen: str, said: str, made: Project
) -> None:
    wanted = rf"^lora\.blocks: {said} .*; choose among IN04, IN05, IN07, IN08, MID, OUT00, .*, OUT05\.$"
    job = new_run(made, **LORA, **{"lora.blocks": chosen})
    with pytest.raises(UserError, match=wanted):
        preflight.check_new(made, settings.parse({**SHORT, **LORA, "lora.blocks": chosen}))
    assert [one for one in plan.report(job)["problems"] if re.match(wanted, one)]
    with pytest.raises(UserError, match=wanted):
        worker.run(job)
    assert "loading the model" not in [event["name"] for event in told(job, "stage")]


def test_where_a_lora_in_no_block_is_trained_the_blocks_do_not_count(made: Project) -> None:
    for flat in ({"general.method": "full"}, {"lora.blocks": "in"}, {"lora.blocks": ""}):
        preflight.check_new(made, settings.parse({**SHORT, **LORA, "lora.blocks": "IN01", **flat}))
