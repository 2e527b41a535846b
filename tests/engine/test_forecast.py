"""The forecast counts what training makes: trained values, what the UNet's layers put out, and the files' sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dreambooth.core import forecast, project
from dreambooth.core.buckets import Bucket
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.memory import footprint
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.model_file import Header, Tensor
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import families, worker
from dreambooth.engine.families.model import whole_picture
from dreambooth.engine.training import adapters
from dreambooth.service import launcher

HEADER = checkpoint.read_header(MINIATURE)


@pytest.mark.parametrize("text", [0.0, 1.0])
@pytest.mark.parametrize("layers", ["attention", "transformer", "convolutions", "all"])
def test_the_trained_values_are_those_that_training_trains(layers: str, text: float) -> None:
    method = {"general.method": "full"} if layers == "all" else {"lora.layers": layers, "lora.rank": 4}
    settings = parse({**method, "tuning.text_encoder_ratio": text})
    trained = adapters.make_trainable(families.load_file(MINIATURE), settings)
    count = sum(parameter.numel() for parameter in trained.named().values())
    assert forecast.memory(HEADER, settings, Bucket(64, 64)).gradients == 4 * count
    assert anatomy.of(HEADER).trained(settings) == count
    assert forecast.state_bytes(HEADER, settings) == 12 * count


@pytest.mark.parametrize("rank", [2, 40])
@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_the_values_of_each_kind_of_lora_are_counted(kind: str, rank: int) -> None:
    for factor, of_kernels in ((0, 0), (4, 3), (5, 12)):
        chosen = {"lora.kind": kind, "lora.rank": rank, "lora.lokr_factor": factor, "lora.layers": "convolutions"}
        settings = parse({**chosen, "lora.conv_rank": of_kernels, "tuning.text_encoder_ratio": 1.0})
        trained = adapters.make_trainable(families.load_file(MINIATURE), settings)
        count = sum(parameter.numel() for parameter in trained.named().values())
        assert forecast.state_bytes(HEADER, settings) == 12 * count


@pytest.mark.parametrize("layers", ["attention", "cross_attention"])
def test_layers_that_rest_are_not_counted(layers: str) -> None:
    settings = parse({"general.method": "full", "tuning.unet_layers": layers})
    trained = adapters.make_trainable(families.load_file(MINIATURE), settings)
    count = sum(parameter.numel() for parameter in trained.named().values())
    assert forecast.state_bytes(HEADER, settings) == 12 * count


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_text_encoder_alone_is_counted_alone(method: str) -> None:
    settings = parse({"general.method": method, "tuning.text_encoder_ratio": 1.0, "tuning.train_unet": False})
    trained = adapters.make_trainable(families.load_file(MINIATURE), settings)
    count = sum(parameter.numel() for parameter in trained.named().values())
    assert forecast.state_bytes(HEADER, settings) == 12 * count


def test_what_the_layers_put_out_is_counted() -> None:
    model, counted = families.load_file(MINIATURE), [0]

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if output.shape[1:2] != (77,) and output.dim() > 2:  # not the layers that read words or the timestep
            counted[0] += output.numel()

    for module in model.unet.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    latents = torch.zeros(1, 4, 8, 16)
    with torch.no_grad():
        text = model.encode_text(["x"])
        model.denoise(latents, torch.zeros(1, dtype=torch.long), text, torch.tensor([whole_picture(128, 64)]))
    assert anatomy.outputs(HEADER) * 8 * 16 == counted[0]


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_forecast_of_disk_is_what_a_run_writes(tmp_path: Path, method: str, half: bool) -> None:
    folders = Folders(tmp_path)
    settings = parse(
        {
            "general.method": method,
            "saving.half_model": half,
            "lora.rank": 64,
            "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
            "concepts.0.instance_prompt": "x",
            "intervals.num_train_epochs": 1,
            "previews.count": 0,
        }
    )
    job = launcher.new_run(folders, project.create(folders, "x", MINIATURE), settings)
    assert worker.run(job) == "done"
    written = next(event["bytes"] for event in job.events()[0] if event["event"] == "saved")
    assert written == pytest.approx(forecast.save_bytes(HEADER, settings), rel=0.03)


@pytest.mark.parametrize("half", [True, False])
def test_the_averaged_weights_of_a_source_take_no_room_as_none_are_written(*, half: bool) -> None:
    settings = parse({"general.method": "full", "saving.half_model": half})
    unet = {name: tensor for name, tensor in HEADER.tensors.items() if name.startswith(checkpoint.UNET)}
    averaged = {checkpoint.EMA + name.removeprefix("model.").replace(".", ""): unet[name] for name in unet}
    with_average = Header(MINIATURE, {**HEADER.tensors, **averaged})
    assert forecast.save_bytes(with_average, settings) == forecast.save_bytes(HEADER, settings)


def test_a_diffusers_folder_is_counted_as_the_same_model() -> None:
    model = families.load_file(MINIATURE)
    renamed = {
        f"{part}/{key}": Tensor("F32", tuple(values.shape), MINIATURE, 0, 4 * values.numel())
        for part, module in model.parts.items()
        for key, values in module.state_dict().items()
    }
    folder = Header(Path("folder"), renamed)
    assert anatomy.of(folder) == anatomy.of(HEADER)
    for layers in ("attention", "transformer", "convolutions"):
        settings = parse({"lora.layers": layers, "tuning.text_encoder_ratio": 1.0})
        assert forecast.state_bytes(folder, settings) == forecast.state_bytes(HEADER, settings)


def test_memory_grows_with_the_batch_and_the_area_and_shrinks_with_checkpointing() -> None:
    def activations(side: int, batch: int, *, checkpointing: bool = False, classes: int = 0) -> int:
        flat = {"batching.train_batch_size": batch, "batching.gradient_checkpointing": checkpointing}
        prior = {"concepts.0.class_prompt": "x", "concepts.0.num_class_images_per": classes}
        return forecast.memory(HEADER, parse({**flat, **prior}), Bucket(side, side)).activations

    assert activations(512, 128) == pytest.approx(4 * activations(256, 128), rel=0.05)
    assert activations(512, 128) == pytest.approx(2 * activations(512, 64), rel=0.05)
    assert activations(512, 64, classes=1) == activations(512, 128)
    assert activations(512, 256, checkpointing=True) < 0.5 * activations(512, 256)
    encoding = footprint.encoding_bytes(512**2)
    assert activations(512, 1) > 0.7 * encoding, "encoding the pictures takes more than training such a small model"
