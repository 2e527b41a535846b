"""The whole engine on a card that is simulated: nothing of it takes a tensor from the wrong place."""

from __future__ import annotations

import gc
import platform
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings, parse
from dreambooth.core.settings.optimization import Optimizer
from dreambooth.engine import generate, hardware, selfcheck, worker
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.drawing import sampling, sheet
from dreambooth.engine.drawing.sampling import NotDrawn
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.unet_weights import Int8Weight
from dreambooth.engine.prompts import tokens
from dreambooth.engine.training import adapters, loss, optimizers, precision, state, state_writer
from dreambooth.service import launcher, short_jobs
from tests.engine import test_waits
from tests.engine.runs import LORA, folders, new_run, saved, tiny_project, told, train
from tests.engine.simulated_card import BYTES, CARD, simulated_card
from tests.engine.test_export_of_states import exported, paused


def test_it_plays_a_card() -> None:
    with simulated_card() as card:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == CARD and (there * 2)[1:].device == CARD
        assert here.device.type == "cpu" and there.cpu().device.type == "cpu" and here.to("cuda").is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert torch.equal(there.cpu(), here)
        assert (there + torch.tensor(2.0)).device == CARD
        assert card.operations
    assert torch.ones(3).device.type == "cpu"


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "paged_lion_8bit"])
def test_an_optimizer_whose_memory_cannot_be_paged_is_found_before_it_is_begun(name: str) -> None:
    """bitsandbytes pages large weights alone, and here it was built without that."""
    with simulated_card():
        assert "cget_managed_ptr" in optimizers.fault(name, CARD)
        assert not optimizers.fault(name.removeprefix("paged_"), CARD)


@pytest.mark.parametrize(("name", "waits"), [("adamw_8bit", 0), ("lion_8bit", 0), ("paged_adamw_8bit", 3)])
def test_an_optimizer_in_8_bits_does_not_wait_for_the_card_at_each_weight(
    name: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bitsandbytes does by itself; a paged one waits once in a step."""
    found: list[Any] = []
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: found.append(device))
        weights = [torch.nn.Parameter(torch.ones(40, 40, device="cuda")) for _ in range(3)]
        made = optimizers.RECIPES[name]([{"params": weights, "lr": 0.01}], Optimizer())
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            made.step()
    assert len(found) == waits
    assert not torch.equal(weights[2], torch.ones(40, 40))


def test_a_paged_optimizer_takes_what_the_one_before_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes never gives back what it has lent, and a run tries again and again where memory is short."""
    from bitsandbytes import functional

    def lend(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made.append(torch.empty(shape, dtype=dtype))
        made[-1].is_paged, made[-1].page_deviceid = True, device.index  # type: ignore[attr-defined]
        return made[-1]

    made: list[torch.Tensor] = []
    monkeypatch.setattr(functional, "get_paged", lend)
    monkeypatch.setattr(functional, "fill", lambda tensor, value: tensor.fill_(value))
    monkeypatch.setattr(functional.GlobalPageManager.get_instance(), "paged_tensors", [])
    monkeypatch.setattr(optimizers, "_LEFT", [])
    with simulated_card():
        weights = [torch.nn.Parameter(torch.ones(side, 400, device="cuda")) for side in (400, 400, 600)]

        def states() -> list[torch.Tensor]:
            paged = optimizers.RECIPES["paged_adamw_8bit"]([{"params": weights}], Optimizer())
            return [paged.get_state_buffer(one, dtype=torch.uint8).fill_(7) for one in weights]  # type: ignore[attr-defined]

        first = states()
        assert len(made) == 3
        optimizers.leave_paged()
        monkeypatch.setattr(torch.Tensor, "fill_", lambda own, value: own)
        again = states()
        assert len(made) == 3 and [one is other for one, other in zip(first, again)] == [True] * 3
        assert not any(one.any() for one in again)
        states()
    assert len(made) == 6, "what is still in use is nobody else's"


@pytest.mark.parametrize("has_room", [True, False])
def test_paged_states_are_read_only_while_the_card_rests(
    has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows the CPU may not read memory that is lent to a card while the card works at anything."""
    waits, read, save = list[int](), list[int](), state.save
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waits.append(1))
        monkeypatch.setattr(state, "save", lambda *given: read.append(len(waits)) or save(*given))
        lent = [torch.ones(4) for _ in range(2)]
        for one in lent:
            one.is_paged = True  # type: ignore[attr-defined]
        if not has_room:
            monkeypatch.setattr(state_writer, "copy_to_cpu", _no_room)
        there = torch.ones(4, device="cuda")
        writer = state_writer.Writer(tmp_path, lambda steps: set(steps))
        writer.begin(1, {"weights": {"a": there}, "rest": [lent[0], there, lent[1]]}, lambda written: None)
        writer.finish(lambda written: None)
    assert read == ([3] if has_room else [1]), "before each that is copied, and at the end; or before all are written"
    assert state.load(tmp_path, 1)["rest"][0].sum() == 4


def _no_room(*_: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("name", "generation", "chosen"),
    [
        ("Tesla V100-SXM2-16GB", (7, 0), "fp16"),
        ("NVIDIA GeForce RTX 2080 Ti", (7, 5), "fp16"),
        ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), "no"),
        ("NVIDIA GeForce GTX 1650 Ti with Max-Q Design", (7, 5), "no"),
        ("NVIDIA GeForce MX450", (7, 5), "no"),
        ("NVIDIA GeForce MX550", (7, 5), "no"),
        ("NVIDIA T400 4GB", (7, 5), "no"),
        ("NVIDIA T500", (7, 5), "no"),
        ("NVIDIA T550 Laptop GPU", (7, 5), "no"),
        ("NVIDIA T600 Laptop GPU", (7, 5), "no"),
        ("NVIDIA T1000 8GB", (7, 5), "no"),
        ("NVIDIA T1200 Laptop GPU", (7, 5), "no"),
        ("Quadro T1000 with Max-Q Design", (7, 5), "no"),
        ("Quadro T2000", (7, 5), "no"),
        ("Tesla T4", (7, 5), "fp16"),
        ("NVIDIA T4G", (7, 5), "fp16"),
        ("Tesla T40 24GB", (7, 5), "fp16"),
        ("Quadro RTX 4000", (7, 5), "fp16"),
        ("NVIDIA GeForce RTX 3060", (8, 6), "bf16"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "bf16"),
    ],
)
def test_by_itself_it_computes_in_what_the_card_is_quick_at(
    name: str, generation: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says that a card of 2018 can do bf16, which it emulates; asked for, it is done. Convolutions in fp16 give
    NaN on Turing chips without tensor cores."""
    with simulated_card():
        _of_generation(generation, monkeypatch, name)
        for wanted, found in {"auto": chosen, "bf16": "bf16", "fp16": "fp16"}.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            assert precision.accelerator(wanted).mixed_precision == found


@pytest.mark.parametrize(
    ("chip", "chosen"),
    [
        ("gfx900:xnack-", "fp16"),
        ("gfx906:sramecc+:xnack-", "fp16"),
        ("gfx90c:xnack-", "fp16"),
        ("gfx1010:xnack-", "fp16"),
        ("gfx1032", "fp16"),
        ("gfx908:sramecc+:xnack-", "bf16"),
        ("gfx90a:sramecc+:xnack-", "bf16"),
        ("gfx942:sramecc+:xnack-", "bf16"),
        ("gfx1100", "bf16"),
        ("gfx1201", "bf16"),
    ],
)
def test_on_a_card_of_amd_bf16_is_chosen_only_where_its_chip_has_that(
    chip: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says of every one that it can do bf16, emulated or not."""
    with simulated_card():
        monkeypatch.setattr(torch.version, "hip", "7.2.53211")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", _CAN_DO_BF16)
        about = types.SimpleNamespace(gcnArchName=chip, total_memory=BYTES)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: about)
        assert torch.cuda.is_bf16_supported(including_emulation=False)
        assert precision.automatic(CARD) == chosen
        assert ("emulates" in precision.bf16_fault(CARD)) == (chosen == "fp16")


@pytest.mark.parametrize(
    ("chosen", "added"),
    [
        ("", ["pinned_max_cached_size_mb:1"]),
        ("max_split_size_mb:64", ["max_split_size_mb:64,pinned_max_cached_size_mb:1"]),
        ("pinned_max_cached_size_mb:64", []),
    ],
)
def test_no_more_is_pinned_for_a_card_than_is_asked_for(
    chosen: str, added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person has chosen stays; without a card nothing is chosen."""
    known = [chosen]
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: known[-1])
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", known.append)
    AcceleratorState._reset_state(reset_partial_state=True)
    precision.accelerator("no")
    assert known == [chosen]
    with simulated_card():
        for _ in range(2):
            AcceleratorState._reset_state(reset_partial_state=True)
            assert precision.accelerator("no").device.type == "cuda"
    assert known == [chosen, *added]


def test_a_torch_that_always_rounds_what_it_pins_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings")
    hardware.pin_exactly()


def test_torch_knows_how_to_pin_exactly() -> None:
    """It reads the values of the settings that it has."""
    with pytest.raises(ValueError, match="stoull"):
        torch._C._accelerator_setAllocatorSettings("pinned_max_cached_size_mb:x")
    torch._C._accelerator_setAllocatorSettings("")


def test_what_was_pinned_is_given_back_when_all_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: done.append("given back"), raising=False)
    hardware.give_back_pinned()
    assert not done
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
        hardware.give_back_pinned()
    assert done == ["waited", "given back"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({**LORA, "tuning.mixed_precision": "bf16"}, "tuning.mixed_precision"),
        ({"memory.bf16_weights": True, "tuning.mixed_precision": "auto"}, "memory.bf16_weights"),
        ({**LORA, "tuning.mixed_precision": "auto"}, ""),
    ],
)
def test_where_bf16_is_emulated_that_is_said(
    projects: dict[str, Project], changes: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_card():
        assert not selfcheck._faults(CARD)["memory.bf16_weights"]
        _of_generation((7, 5), monkeypatch)
        assert "emulates" in selfcheck._faults(CARD)["memory.bf16_weights"]["on"]
        assert _warned(projects["sd1"], changes, monkeypatch)[0] == ([key] if key else [])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [("auto", "auto takes full precision here"), ("fp16", "are known to give no numbers"), ("no", "")],
)
def test_where_fp16_gives_no_numbers_that_is_said(
    projects: dict[str, Project], chosen: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check's stamp has it too, for the planner."""
    with simulated_card():
        assert not selfcheck._faults(CARD)["tuning.mixed_precision"]
        _of_generation((7, 5), monkeypatch, "NVIDIA GeForce GTX 1660")
        assert "NaN" in selfcheck._faults(CARD)["tuning.mixed_precision"]["fp16"]
        keys, texts = _warned(projects["sd1"], {**LORA, "tuning.mixed_precision": chosen}, monkeypatch)
    assert keys == (["tuning.mixed_precision"] if said else [])
    assert said in "".join(texts)


def _warned(made: Project, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Of which settings a run warns before it loads anything, and in which words."""
    monkeypatch.setattr(worker.setup, "prepare_session", _stopped)
    AcceleratorState._reset_state(reset_partial_state=True)
    job = new_run(made, **changes)
    with pytest.raises(UserError, match="so far"):
        worker.run(job)
    warnings = told(job, "warning")
    return [one["where"] for one in warnings], [one["text"] for one in warnings]


def _stopped(*_: Any) -> Any:
    raise UserError("It comes so far.")


def _of_generation(
    generation: tuple[int, int], monkeypatch: pytest.MonkeyPatch, name: str = "a simulated card"
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: generation)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", _CAN_DO_BF16)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    about = types.SimpleNamespace(major=generation[0], minor=generation[1], total_memory=BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: about)


_CAN_DO_BF16 = torch.cuda.is_bf16_supported  # PyTorch's own


@pytest.mark.parametrize(("share", "free"), [(1.0, 6), (0.5, 2)])
def test_free_is_what_may_be_taken(share: float, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench plans lets a run have no more of a large card than a small one has. Of what PyTorch holds, 1 GiB is kept
    for later, and 1 GiB a CUDA graph's, which is no tensor."""
    kept = [2**30]
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (6 * 2**30 - sum(kept), 10 * 2**30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 3 * 2**30 + sum(kept))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 2 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device=None: share)
        assert hardware.free_bytes(CARD) == free * 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_in_8_bits_wake_the_same_as_on_the_cpu(dtype: torch.dtype) -> None:
    weight = torch.randn(48, 24, 3, 3).to(dtype)
    wanted = Int8Weight(weight, torch.device("cpu"), torch.nn.Linear(1, 1)).restore(torch.device("cpu"))
    with simulated_card() as card:
        restored = Int8Weight(weight, CARD, torch.nn.Linear(1, 1)).restore(CARD)
        assert card.has(restored)
        assert restored.dtype == dtype
        assert torch.equal(restored.cpu(), wanted)


OF_SDXL = "one of two text encoders"
RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "text encoders": {"tuning.text_encoder_ratio": 1.0, "captions.dropout": 0.5},
    "text encoders, lora": {**LORA, "tuning.text_encoder_ratio": 1.0},
    OF_SDXL: {
        **LORA,
        "lora.max_norm": 0.05,
        "tuning.text_encoders": "second",
        "tuning.text_encoder_ratio": 0.5,
        "captions.dropout": 0.5,
        "batching.train_batch_size": 2,
        "tuning.mixed_precision": "bf16",
        "previews.count": 1,
        "previews.steps": 1,
        "intervals.save_preview_every": 1,
    },
    "a word": {**LORA, "embedding.enabled": True, "concepts.0.instance_token": "sks", "captions.dropout": 0.5},
    "dora": {**LORA, "lora.kind": "dora"},
    "loha": {**LORA, "lora.kind": "loha"},
    "lokr": {**LORA, "lora.kind": "lokr"},
    "oft": {**LORA, "lora.kind": "oft"},
    "lora, bf16": {**LORA, "tuning.mixed_precision": "bf16"},
    "full, bf16": {"tuning.mixed_precision": "bf16"},
    "full, fp16": {"tuning.mixed_precision": "fp16"},
    "weights in bf16": {"memory.bf16_weights": True, "tuning.mixed_precision": "bf16"},
    "average": {"tuning.use_ema": True, "batching.gradient_accumulation_steps": 2},
    "checkpointed": {"batching.gradient_checkpointing": True},
    "step in backward": {"memory.step_in_backward": True},
    "int8": {**LORA, "memory.unet_weights": "int8", "batching.gradient_checkpointing": True},
    "streamed": {**LORA, "memory.unet_weights": "streamed", "batching.gradient_checkpointing": True},
    "streamed, full": {
        "intervals.num_train_epochs": 3,  # from the second step on, a block ahead
        "memory.unet_weights": "streamed",
        "memory.step_in_backward": True,
        "batching.gradient_checkpointing": True,
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
    },
    "class by prediction": {
        **LORA,
        "concepts.0.class_mode": "prediction",
        "concepts.0.class_prompt": "a photo of a star",
        "tuning.text_encoder_ratio": 0.5,
        "tuning.mixed_precision": "bf16",
    },
    "held out": {
        "concepts.0.held_out": 1,
        "concepts.0.class_prompt": "a photo of a star",
        "intervals.validate_every": 1,
        "tuning.text_encoder_ratio": 0.5,
        "tuning.mixed_precision": "bf16",
    },
    "held out, streamed": {
        **LORA,
        "concepts.0.held_out": 1,
        "intervals.validate_every": 1,
        "memory.unet_weights": "streamed",
        "batching.gradient_checkpointing": True,
    },
    "lion": {"optimizer.name": "lion"},
    "adafactor": {"optimizer.name": "adafactor"},
    "came": {"optimizer.name": "came"},
    "prodigy": {"optimizer.name": "prodigy", "learning.learning_rate": 1.0},
    "schedule-free": {"optimizer.name": "adamw_schedule_free"},
    "objective": test_waits.KINDS["objective"],
    "previews and class pictures": {
        "previews.count": 1,
        "previews.steps": 2,
        "intervals.save_preview_every": 1,
        "concepts.0.class_prompt": "a photo of a star",
        "concepts.0.num_class_images_per": 1,
        "concepts.0.class_infer_steps": 2,
    },
    "kept by prediction": {**LORA, "concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a star"},
    "traced": {**LORA, "intervals.num_train_epochs": 30},
    "traced, streamed": {
        **LORA,
        "intervals.num_train_epochs": 30,
        "memory.unet_weights": "streamed",
        "batching.gradient_checkpointing": True,
    },
    "models and states on the way": {
        "intervals.num_train_epochs": 3,
        "intervals.save_state_every": 1,
        "intervals.save_model_every": 1,
        "tuning.use_ema": True,
    },
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("simulated")
    return {family: tiny_project(folder, family) for family in ("sd1", "sdxl")}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("sd1", kind) for kind in RUNS if kind != OF_SDXL),
        *(("sdxl", kind) for kind in ("full", "lora", "streamed, full", OF_SDXL)),
    ],
)
def test_a_run(projects: dict[str, Project], family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, elsewhere = loss.make_batch, set[str]()

    def looked_at(*given: Any, **more: Any) -> loss.Batch:
        batch = gathered(*given, **more)
        elsewhere.update(name for name, tensor in batch.tensors().items() if not card.has(tensor))
        return batch

    monkeypatch.setattr(loss, "make_batch", looked_at)
    with simulated_card() as card:
        job = train(projects[family], **RUNS[kind])
    assert not elsewhere, "no CUDA graph could be made of a step that is given them"
    assert card.operations > 1000
    assert not told(job, "warning"), "among others, that a record gives something else"


def test_sd_2_is_not_given_to_sliced_attention_in_fp16(projects: dict[str, Project], tmp_path: Path) -> None:
    """Where its products would be too large."""
    chosen = {**LORA, "memory.attention": "sliced", "tuning.mixed_precision": "fp16"}
    with simulated_card():
        with pytest.raises(UserError, match=r"memory\.attention: sliced .* choose sdpa"):
            train(tiny_project(tmp_path, "sd2"), **chosen)
        train(projects["sd1"], **chosen)


def test_beside_another_card_it_leaves_that_alone(
    projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch says so where random numbers are kept of every card that there is."""
    with simulated_card(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        train(projects["sd1"], **RUNS["previews and class pictures"])
    assert not [one for one in said if "fork_rng" in str(one.message)]


def test_a_run_goes_on_and_its_result_is_drawn_and_exported(
    projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = projects["sd1"]
    with simulated_card() as card:
        job = paused(made, monkeypatch, **LORA, **{"tuning.use_ema": True})
        assert exported(made, job).is_file()
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "done"
        before = card.operations
        for weights in ("", str(saved(job)[-1])):
            drawing = short_jobs.drawing(made, {"prompt": "a star", "steps": 2, "count": 2, "weights": weights})
            assert len(generate.run(_errand(made, *drawing))["pictures"]) == 2
        assert card.operations > before


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_a_sheet_takes_results_of_each_kind(projects: dict[str, Project], kind: str, tmp_path: Path) -> None:
    """The model lies on the card by then, and what is read of a file does not."""
    made, chosen = projects["sd1"], parse({**LORA, "lora.kind": kind})
    with simulated_card():
        AcceleratorState._reset_state(reset_partial_state=True)
        model = generate.load(made, "")
        for weight in adapters.make_trainable(model, chosen).named().values():
            weight.data += torch.randn_like(weight) * 0.1
        file = tmp_path / f"{kind}.safetensors"
        write_tensors(file, lora.lora_tensors(model.parts, model.family, half=False), {})
        wanted = {"weights": [str(file)], "lora_weights": [0, 1]}
        drawing = short_jobs.sheet(made, {"prompt": "a star", "steps": 2, "sheet": wanted})
        without, whole = generate.run(_errand(made, *drawing))["pictures"]
    assert _pixels(without) != _pixels(whole)


@pytest.mark.parametrize("of_sheet", [False, True])
def test_while_it_draws_nothing_but_the_unet_lies_on_the_card(
    projects: dict[str, Project], of_sheet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a card on which a model is taught draws with what was learned, too."""
    draw, beside = generate.draw, list[int]()

    def looked_at(model: Model, *given: Any, **more: Any) -> Any:
        own = {weight.untyped_storage()._cdata for weight in model.unet.state_dict().values()}
        found = [one.untyped_storage() for one in gc.get_objects() if isinstance(one, torch.Tensor) and card.has(one)]
        beside.append(sum({one._cdata: one.nbytes() for one in found if one._cdata not in own}.values()))
        return draw(model, *given, **more)

    made = projects["sdxl"]
    with simulated_card() as card:
        file = str(saved(train(made, **LORA, **{"lora.layers": "convolutions"}))[-1])
        gc.collect()
        monkeypatch.setattr(sheet if of_sheet else generate, "draw", looked_at)
        wanted = {"prompt": "a star", "steps": 2, "weights": file, "sheet": {"weights": [file]}}
        generate.run(_errand(made, *(short_jobs.sheet if of_sheet else short_jobs.drawing)(made, wanted)))
    assert len(beside) == 1
    assert beside[0] < 100_000, "what is read, which is a text"


@pytest.mark.parametrize(
    ("card", "chosen", "dtype"),
    [
        ("NVIDIA GeForce RTX 2060", "no", torch.float32),
        ("NVIDIA GeForce RTX 2060", "auto", torch.float16),
        ("NVIDIA GeForce GTX 1660", "fp16", torch.float32),
    ],
)
@pytest.mark.parametrize("of_sheet", [False, True])
def test_it_draws_in_full_precision_where_the_run_had_that(
    projects: dict[str, Project],
    of_sheet: bool,
    card: str,
    chosen: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As half precision may not be enough for a model, or for a card; what cannot be drawn in that says so."""

    def looked_at(model: Model, *_: Any, **__: Any) -> Any:
        assert model.unet.dtype == dtype
        raise NotDrawn(sampling._why_not(model))

    monkeypatch.setattr(sheet if of_sheet else generate, "draw", looked_at)
    wanted = {"prompt": "a star", "base": True, "sheet": {"weights": [""]}}
    with simulated_card():
        _of_generation((7, 5), monkeypatch, card)
        _, fields = (short_jobs.sheet if of_sheet else short_jobs.drawing)(projects["sd1"], wanted)
        errand = _errand(projects["sd1"], parse({"tuning.mixed_precision": chosen}), fields)
        with pytest.raises(
            NotDrawn, match=r"tuning\.mixed_precision: .* set it to no" if chosen == "auto" else "weights are damaged"
        ):
            generate.run(errand)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_word_that_learned_draws_and_words_are_measured(
    projects: dict[str, Project], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = projects[family]
    with simulated_card():
        job = train(made, **{"general.method": "embedding", "concepts.0.instance_token": "sks"})
        file = str(saved(job)[-1])
        drawing = short_jobs.drawing(made, {"prompt": "a sks", "steps": 1, "weights": file})
        assert generate.run(_errand(made, *drawing))["pictures"]
        wanted = {"weights": ["", file], "lora_weights": [1]}
        drawing = short_jobs.sheet(made, {"prompt": "a sks", "steps": 1, "sheet": wanted})
        assert len(generate.run(_errand(made, *drawing))["pictures"]) == 2
        monkeypatch.setattr(tokens, "_FIRST_RARE_ID", 49_000)
        fields = short_jobs.words("a sks star", 2, label="{}")
        AcceleratorState._reset_state(reset_partial_state=True)
        said = tokens.run(launcher.new_errand(folders(made), made, "tokens", parse({}), **fields))
        assert len(said["words"]) == 3


def _errand(made: Project, chosen: Settings, fields: dict[str, Any]) -> Job:
    """What draws; an engine is a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return launcher.new_errand(folders(made), made, "generate", chosen, **fields)


def _pixels(path: str) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_pictures_are_encoded_wherever_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the card, there without the UNet, or by the CPU; the card itself may refuse what was thought to be free."""
    project, places = tiny_project(tmp_path), list[tuple[str, str]]()
    encode, refuses = Model.encode_pictures, [False]

    def watched(model: Model, pixels: torch.Tensor) -> Any:
        places.append((model.unet.device.type, next(model.vae.parameters()).device.type))
        if refuses[0] and places[-1][1] == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(model, pixels)

    monkeypatch.setattr(Model, "encode_pictures", watched)
    for free, refused, wanted in (
        ([BYTES, BYTES], False, [("cuda", "cuda")]),
        ([0, BYTES], False, [("cpu", "cuda")]),
        ([0, 0], False, [("cuda", "cpu")]),
        ([BYTES, BYTES], True, [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")]),
    ):
        places.clear()
        refuses[0], left = refused, [BYTES, *free]  # before anything is loaded it is asked, too
        with simulated_card(), monkeypatch.context() as patch:
            patch.setattr(hardware, "free_bytes", lambda device, left=left: left.pop(0) if left else BYTES)
            job = train(project, **LORA, **{"pictures.cache_on_disk": False, "intervals.max_train_steps": 1})
        assert list(dict.fromkeys(places)) == wanted
        said = [event["text"] for event in told(job, "warning")]
        assert any("the CPU encodes them" in text for text in said) == (wanted[-1] == ("cuda", "cpu"))


@pytest.mark.parametrize(
    ("system", "kernel", "limit"),
    [("win32", "11", 0.75), ("linux", "5.15.167.4-microsoft-standard-WSL2", 0.75), ("linux", "6.8.0-45-generic", 1.0)],
)
def test_on_windows_no_more_is_taken_than_is_free(
    system: str, kernel: str, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the driver would lend the computer's memory, so that nothing is ever refused and all is slow."""
    project, share = tiny_project(tmp_path), [1.0]
    with simulated_card(), monkeypatch.context() as patch:
        patch.setattr(hardware, "_LIMITS", set())
        patch.setattr(sys, "platform", system)
        patch.setattr(platform, "release", lambda: kernel)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (BYTES // 2, BYTES))
        patch.setattr(torch.cuda, "memory_reserved", lambda device=None: BYTES // 4)
        patch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device=None: share[0])
        patch.setattr(
            torch.cuda, "set_per_process_memory_fraction", lambda given, device=None: share.__setitem__(0, given)
        )
        patch.setattr(worker.setup, "load", _stopped)
        with pytest.raises(UserError, match="so far"):
            train(project, **LORA)
        assert share == [limit]
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (BYTES, BYTES))
        hardware.refuse_more_than_is_free(torch.device("cuda"))
        assert share == [1.0], "it follows what others give back"
        share[0] = 0.3  # as a benchmark has it
        hardware.refuse_more_than_is_free(torch.device("cuda"))
        assert share == [0.3]


def test_what_a_full_card_has_no_room_for_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_run(tiny_project(tmp_path), **LORA, **{"batching.train_batch_size": 64})
    with simulated_card(), monkeypatch.context() as patch:
        patch.setattr(hardware, "free_bytes", lambda device: 100 * 2**20)
        patch.setattr(worker.setup, "load", _stopped)
        with pytest.raises(UserError, match="so far"):
            worker.run(job)
    [warning] = told(job, "warning")
    assert "of it are free" in warning["text"]
    assert "--batching.gradient_checkpointing on" in warning["text"]


def test_what_is_streamed_is_held_against_the_computers_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True}
    job = new_run(tiny_project(tmp_path), **LORA, **streamed)
    with simulated_card(), monkeypatch.context() as patch:
        patch.setattr(hardware, "available_bytes", lambda: 1000)
        patch.setattr(worker.setup, "load", _stopped)
        with pytest.raises(UserError, match="so far"):
            worker.run(job)
    assert "(RAM)" in told(job, "warning")[0]["text"]
