"""LoRA+: the second matrices of a LoRA learn at a multiple of the rate, wherever rates, groups and states are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.core.settings import learning_rate, on_resume, parse, to_flat
from dreambooth.engine import families, worker
from dreambooth.engine.run import hooks
from dreambooth.engine.training import adapters, fused_backward, optimizers, step_metrics
from tests.engine.runs import LORA, new_run, output, same, tiny_project, told, train

RATIO = "learning.lora_plus_ratio"
PLUS = {**LORA, RATIO: 4.0}
ALL_PARTS = {"tuning.text_encoder_ratio": 0.6, "learning.lora_text_encoder_learning_rate": 3e-3}
WORD = {"embedding.enabled": True, "concepts.0.instance_token": "sks"}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("plus"))


def moved(star: Project, kind: str, *which: str, **more: Any) -> list[tuple[float, float]]:
    """How far the matrices that are called so have gone from where they began, at a ratio of 1 and of 4."""
    ups = {"optimizer.weight_decay": 0.0, "optimizer.text_encoder_weight_decay": 0.0, "lora.kind": kind, **more}
    before, plain, four = (
        output(train(star, **{**LORA, **ups, RATIO: ratio, "learning.lora_learning_rate": rate, **steps(rate)}))
        for ratio, rate in ((1.0, 0.0), (1.0, 1e-4), (4.0, 1e-4))
    )

    def far(after: dict[str, torch.Tensor], ending: str) -> float:
        gone = [(after[name] - before[name]).abs().mean() for name in after if name.endswith(ending)]
        return float(torch.stack(gone).mean())

    return [(far(plain, ending), far(four, ending)) for ending in which]


def steps(rate: float) -> dict[str, Any]:
    text = {"learning.lora_text_encoder_learning_rate": rate / 2}
    return {"intervals.max_train_steps": 4, "batching.train_batch_size": 1, **text}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_second_matrices_learn_at_a_multiple(kind: str, star: Project) -> None:
    """AdamW's first steps are about as long as the rate, whatever the gradient."""
    (up, up_at_four), (down, down_at_four) = moved(star, kind, "lora_up.weight", "lora_down.weight")
    assert up_at_four == pytest.approx(4 * up, rel=0.1)
    assert 0 < down_at_four < 1.5 * down


def test_so_do_a_text_encoders(star: Project) -> None:
    text = {"tuning.text_encoder_ratio": 1.0, "tuning.train_unet": False}
    small_gradients = {"optimizer.epsilon": 1e-14, "optimizer.text_encoder_max_grad_norm": 0.0}
    [(plain, four)] = moved(star, "lora", "lora_up.weight", **text, **small_gradients)
    assert four == pytest.approx(4 * plain, rel=0.25)


def test_a_part_has_two_groups_and_one_without(star: Project) -> None:
    for more in (ALL_PARTS, WORD):
        made = {}
        for ratio in (1.0, 4.0):
            settings = parse({**LORA, **more, "concepts.0.instance_data_dir": "x", RATIO: ratio})
            trained = adapters.make_trainable(families.load_file(star.source), settings)
            made[ratio] = optimizers.groups(trained, settings)
            held = optimizers.make(trained, settings).param_groups
            assert [one["params"] for one in held] == [one.weights for one in made[ratio]]
            rates = [learning_rate(settings, one.part) * one.factor for one in made[ratio]]
            assert [one["lr"] for one in held] == rates
            everything = [weight for part in trained.parts.values() for weight in part.values()]
            assert sorted(map(id, everything)) == sorted(id(w) for one in made[ratio] for w in one.weights)
        last = "words" if more is WORD else "text_encoder"
        assert [(one.part, one.factor) for one in made[1.0]] == [("unet", 1.0), (last, 1.0)]
        of_text = [(last, 1.0)] if more is WORD else [(last, 1.0), (last, 4.0)]
        assert [(one.part, one.factor) for one in made[4.0]] == [("unet", 1.0), ("unet", 4.0), *of_text]


def test_what_a_run_tells_is_each_parts_own_rate(star: Project) -> None:
    job = train(star, **PLUS, **ALL_PARTS, **{"learning.scheduler": "linear", "intervals.max_train_steps": 4})
    last = told(job, "step")[-1]
    assert last["rates"] == {"unet": pytest.approx(1e-2 / 4), "text_encoder": pytest.approx(3e-3 / 4)}
    assert last["rate"] == last["rates"]["unet"]
    assert last["gradient_norms"].keys() == {"unet", "text_encoder"}


SLOW = pytest.param("adamw_8bit", marks=pytest.mark.thorough)


@pytest.mark.parametrize("name", ["adamw", "adamw_schedule_free", SLOW])
def test_with_each_optimizer_a_pause_changes_no_bit(name: str, star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {**PLUS, **ALL_PARTS, "optimizer.name": name, "intervals.max_train_steps": 6}
    whole, job = train(star, **flat), new_run(star, **flat)
    paused(job, monkeypatch)
    assert worker.run(job) == "done"
    assert same(output(job), output(whole))
    assert not same(output(whole), output(train(star, **{**flat, RATIO: 1.0})))


def paused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == 3 else set())
        assert worker.run(job) == "paused"


@pytest.mark.thorough
def test_a_run_from_before_there_was_lora_plus_goes_on(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings do not have it, and its state one group for each part."""
    flat = {**LORA, **ALL_PARTS, "intervals.max_train_steps": 6}
    job = new_run(star, **flat)
    paused(job, monkeypatch)
    kept = torch.load(next(job.state.rglob("state.pt")), weights_only=True)
    assert len(kept["rest"]["optimizer"]["param_groups"]) == 2
    file = job.folder / "settings.json"
    old = json.loads(file.read_text())
    del old[RATIO]
    file.write_text(json.dumps(old))
    assert worker.run(job) == "done"
    assert same(output(job), output(train(star, **flat)))


@pytest.mark.parametrize("more", [{}, {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True}])
def test_so_in_the_backward_pass(more: dict[str, Any], star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 10_000)
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", -1.0)  # each step's norms are told
    unclipped = {"optimizer.max_grad_norm": 0.0, "optimizer.text_encoder_max_grad_norm": 0.0}
    flat = {**PLUS, **ALL_PARTS, **unclipped, "batching.train_batch_size": 1, **more}
    plain, fused = (train(star, **flat, **{"memory.step_in_backward": on}) for on in (False, True))
    assert same(output(plain), output(fused))
    norms = [[step["gradient_norms"] for step in told(job, "step")] for job in (plain, fused)]
    assert len(norms[0]) == len(norms[1]) > 2
    for one, other in zip(*norms):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora.kind": "loha"}, "learning.lora_plus_ratio: it is 4, but loha has no second matrix"),
        ({"lora.kind": "oft"}, "learning.lora_plus_ratio: it is 4, but oft has no second matrix"),
        (
            {"optimizer.name": "prodigy", "learning.lora_learning_rate": 1.0},
            "learning.lora_plus_ratio: it is 4, but prodigy has one factor",
        ),
        ({RATIO: 0.5}, "learning.lora_plus_ratio: 0.5 is below the minimum"),
    ],
)
def test_what_has_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({RATIO: 4.0, **changes})


def test_a_file_of_another_kind_is_refused(star: Project) -> None:
    start = train(star, **LORA, **{"lora.kind": "loha"}).story().saved[-1]["path"]
    with pytest.raises(UserError, match=r"for which there is no LoRA\+; set learning\.lora_plus_ratio to 1"):
        train(star, **PLUS, **{"lora.start_file": start})


def test_it_stays_when_a_run_goes_on() -> None:
    now = to_flat(parse(PLUS))
    with pytest.raises(UserError, match=r"learning\.lora_plus_ratio: it cannot change when a run goes on"):
        on_resume.changes(now, {RATIO: 8.0})
    assert on_resume.changes(now, {"learning.lora_learning_rate": 1e-3}) == {"learning.lora_learning_rate": 1e-3}
