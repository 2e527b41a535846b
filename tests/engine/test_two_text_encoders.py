"""SDXL's two text encoders: which of them learn, and how fast each does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.core import forecast, schedules
from dreambooth.core.errors import UserError
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.project import Project
from dreambooth.core.run_length import budget
from dreambooth.core.settings import parse
from dreambooth.engine import compatibility, families, worker
from dreambooth.engine.families.sdxl import Sdxl
from dreambooth.engine.run import hooks
from dreambooth.engine.training import adapters, step_metrics, text_embeddings, traced_step
from tests.engine.runs import LORA, new_run, output, same, saved, tiny_project, told, train

WHICH, RATIO = "tuning.text_encoders", "learning.text_encoder_2_ratio"
LEARNS = {
    "tuning.text_encoder_ratio": 1.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.text_encoder_weight_decay": 0.0,
    "learning.lora_text_encoder_learning_rate": 1e-3,
    "intervals.max_train_steps": 3,
    "batching.train_batch_size": 1,
}
METHODS: dict[str, dict[str, Any]] = {"full": {}, "lora": LORA}
# How the names of each begin in a file, of a checkpoint and of a LoRA.
NAMES = {
    "full": ("conditioner.embedders.0.", "conditioner.embedders.1."),
    "lora": ("lora_te1_", "lora_te2_"),
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("two"), "sdxl")


def moved(star: Project, method: str, **changes: Any) -> list[float | None]:
    """How far the values of each text encoder have gone on the average, of a LoRA those of its second matrices, which
    begin at zero. None for one that is not in the file."""
    after = output(train(star, **METHODS[method], **LEARNS, **changes))
    before = load_file(star.source) if method == "full" else {}
    gone: list[list[Tensor]] = [[], []]
    for name, values in after.items():
        at = next((n for n, begin in enumerate(NAMES[method]) if name.startswith(begin)), None)
        if at is not None and (method == "full" or name.endswith("lora_up.weight")):
            gone[at].append((values.float() - before.get(name, torch.zeros(()))).abs().flatten())
    return [float(torch.cat(some).mean()) if some else None for some in gone]


@pytest.mark.parametrize("method", METHODS)
def test_the_second_learns_at_a_multiple_of_the_first_ones_rate(method: str, star: Project) -> None:
    """AdamW's first steps are about as long as the rate, whatever the gradient."""
    both, quarter = moved(star, method), moved(star, method, **{RATIO: 0.25})
    assert both[0] and both[1]
    assert quarter[0] == pytest.approx(both[0], rel=0.1)
    assert quarter[1] == pytest.approx(both[1] / 4, rel=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_one_learns_and_the_other_stays(method: str, star: Project) -> None:
    """Of a LoRA there is nothing of the other in the file."""
    for which, learns, rests in (("first", 0, 1), ("second", 1, 0)):
        gone = moved(star, method, **{WHICH: which})
        assert gone[rests] == (0 if method == "full" else None)
        assert gone[learns]


def test_the_one_that_rests_reads_once(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same as where both are read at each step: until something was learned the losses are theirs."""
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", -1.0)
    read: list[str] = []
    plain = Sdxl.run_encoder
    monkeypatch.setattr(Sdxl, "run_encoder", lambda model, part, some: (read.append(part), plain(model, part, some))[1])
    losses, counts = [], []
    for which in ("both", "first", "second"):
        read.clear()
        job = train(star, **LORA, **LEARNS, **{WHICH: which})
        losses.append(told(job, "step")[0]["loss"])
        counts.append([read.count(part) for part in ("text_encoder", "text_encoder_2")])
    assert losses == [pytest.approx(losses[0], rel=1e-4)] * 3
    assert counts == [[3, 3], [3, 1], [1, 3]]


@pytest.mark.thorough
def test_it_is_the_same_traced_and_paused_and_after_the_text_rests(star: Project, monkeypatch: Any) -> None:
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", 1)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    monkeypatch.setattr(text_embeddings, "_BATCH", 1)  # prompts at a time
    flat = {**LORA, **LEARNS, WHICH: "first", "captions.dropout": 0.3, "intervals.max_train_steps": 8}
    flat |= {"tuning.text_encoder_ratio": 0.8, "batching.gradient_accumulation_steps": 2}
    plain, job = output(train(star, **flat, **{"tuning.trace_steps": False})), new_run(star, **flat)
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == 3 else set())
        assert worker.run(job) == "paused"
    assert worker.run(job) == "done"
    assert not told(job, "warning")
    assert same(output(job), plain)


def test_what_a_run_tells_is_each_ones_own_rate(star: Project) -> None:
    rates = told(train(star, **LORA, **LEARNS, **{RATIO: 0.5}), "step")[-1]["rates"]
    assert rates == {"unet": 1e-2, "text_encoder": 1e-3, "text_encoder_2": 5e-4}


@pytest.mark.parametrize("which", ["both", "first", "second"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_is_counted(method: str, which: str, star: Project) -> None:
    chosen = {**METHODS[method], **LEARNS, "general.method": method, "saving.half_model": False, WHICH: which}
    settings = parse(chosen)
    model, header = families.load_file(star.source), checkpoint.read_header(star.source)
    sizes = {part: sum(one.numel() for one in encoder.parameters()) for part, encoder in model.text_encoders.items()}
    values = sum(weight.numel() for weight in adapters.make_trainable(model, settings).named().values())
    counted = anatomy.of(header)
    assert counted.trained(settings) == values
    assert counted == anatomy.from_json(anatomy.as_json(counted))
    assert counted.read_anew(settings) == sum(size for part, size in sizes.items() if settings.reads_anew(part))
    if method == "full":  # what is not trained lies in the file as it did
        assert forecast.save_bytes(header, settings) == sum(one.end - one.start for one in header.tensors.values())


def test_a_file_is_not_gone_on_from_by_half(star: Project) -> None:
    start = saved(train(star, **LORA, **LEARNS))[-1]
    said = r"also teaches the second text encoder; set tuning\.text_encoders to both"
    with pytest.raises(UserError, match=said):
        train(star, **LORA, **LEARNS, **{WHICH: "first", "lora.start_file": str(start)})


def test_models_with_one_are_told_so() -> None:
    about = {"family": "sd1", "prediction_type": "epsilon", "zero_terminal_snr": False}
    chosen = {WHICH: "second", RATIO: 0.5}
    said = compatibility.problems(parse({**chosen, "tuning.text_encoder_ratio": 1.0}), about)
    assert [one.split(":")[0] for one in said] == [WHICH, RATIO]
    assert all("this model has one text encoder" in one for one in said)
    assert compatibility.problems(parse(chosen), about) == []  # where it rests they say nothing
    assert (
        compatibility.problems(parse({**chosen, "tuning.text_encoder_ratio": 1.0}), {**about, "family": "sdxl"}) == []
    )


def test_prodigy_has_one_factor() -> None:
    factor = {"learning.lora_learning_rate": 1.0, "learning.lora_text_encoder_learning_rate": 1.0, RATIO: 0.5}
    with pytest.raises(UserError, match=r"learning\.text_encoder_2_ratio: it is 0\.5, but prodigy has one factor"):
        parse({"optimizer.name": "prodigy", "tuning.text_encoder_ratio": 1.0, **factor})
    parse({"optimizer.name": "prodigy", **factor})


def test_the_plan_draws_the_rate_of_each() -> None:
    def last(**changes: Any) -> dict[str, float]:
        settings = parse(
            {"tuning.text_encoder_ratio": 1.0, "learning.lora_text_encoder_learning_rate": 1e-4, **changes}
        )
        return schedules.curve(settings, budget(settings, 5))[-1]

    assert (last()["text_encoder"], "text_encoder_2" in last()) == (1e-4, False)
    assert (last(**{RATIO: 0.5})["text_encoder"], last(**{RATIO: 0.5})["text_encoder_2"]) == (1e-4, 5e-5)
    assert last(**{RATIO: 0.5, WHICH: "second"})["text_encoder"] == 5e-5
