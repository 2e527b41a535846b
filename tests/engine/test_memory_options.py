"""Options of memory, precision, gradients and averages, each turned in a real run and its effect measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import families, worker
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.drawing.sampling import decoding
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import setup
from dreambooth.engine.training import attention, loop, loss, preview, stochastic_rounding
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.session import Session
from dreambooth.service import launcher
from tests.engine import tiny

SHORT: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "general.method": "full",
    "intervals.num_train_epochs": 1,
    "learning.learning_rate": 1e-3,
    "learning.text_encoder_learning_rate": 1e-3,
    "batching.train_batch_size": 5,
    "previews.count": 0,
    "saving.half_model": False,
}
WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("memory")
    source = tiny.write_original(folder / "tiny.safetensors", "sd1")
    return project.create(Folders(folder / "models"), "star", source)


@pytest.fixture
def model(star: Project) -> Model:
    return families.load(open_model(star))


def train(star: Project, **changes: Any) -> Job:
    job = launcher.new_run(Folders(star.folder.parents[1]), star, parse({**SHORT, **changes}))
    AcceleratorState._reset_state(reset_partial_state=True)  # each run has a process of its own
    assert worker.run(job) == "done"
    return job


def output(job: Job) -> dict[str, torch.Tensor]:
    return load_file(next(event["path"] for event in reversed(job.events()[0]) if event["event"] == "saved"))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def at_each_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[Session], None]) -> None:
    """Has `look` see the session before the weights change."""
    change = Session.change_weights

    def looked_at(session: Session, **more: Any) -> None:
        look(session)
        change(session, **more)

    monkeypatch.setattr(Session, "change_weights", looked_at)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_part_is_clipped_to_its_own_norm(star: Project, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The predecessor left LoRA unclipped, and its text encoder's norm was read by nobody."""
    norms: dict[str, float] = {}

    def look(session: Session) -> None:
        for part, parameters in session.trained.parts.items():
            found = [p.grad for p in parameters.values() if p.grad is not None]
            norms[part] = torch.nn.utils.get_total_norm(found).item()

    at_each_step(monkeypatch, look)
    common = {"general.method": method, "tuning.text_encoder_ratio": 1.0}
    limits = {"optimizer.max_grad_norm": 1e-3, "optimizer.text_encoder_max_grad_norm": 2e-4}
    if method == "lora":  # its gradients of the first step are those of lora_B
        limits = {key: value / 10 for key, value in limits.items()}
    told = train(star, **common, **limits).progress()["gradient_norms"]
    assert list(norms.values()) == pytest.approx(list(limits.values()), rel=1e-3)
    assert all(told[part] > norm for part, norm in norms.items())  # what is told is the norm before
    off = {"optimizer.max_grad_norm": 0, "optimizer.text_encoder_max_grad_norm": 0}
    train(star, **common, **off)
    assert norms == pytest.approx(told, rel=1e-2, abs=1e-5)


def test_the_average_or_the_weights_are_saved(star: Project) -> None:
    longer = {"intervals.num_train_epochs": 6, "tuning.ema_decay": 0.9}
    plain = output(train(star, **longer))
    raw = output(train(star, **longer, **{"tuning.use_ema": True, "saving.weights": "raw"}))
    average = output(train(star, **longer, **{"tuning.use_ema": True}))
    assert same(plain, raw)
    start = load_file(star.source)[WEIGHT]
    assert 0 < (average[WEIGHT] - start).norm() < (raw[WEIGHT] - start).norm()


def test_a_lora_is_averaged_too(star: Project) -> None:
    longer = {"general.method": "lora", "learning.lora_learning_rate": 1e-2, "intervals.num_train_epochs": 6}
    raw, average = (output(train(star, **longer, **{"tuning.use_ema": on})) for on in (False, True))
    ups = [name for name in raw if name.endswith("lora_up.weight")]
    assert sum(average[name].norm() for name in ups) < 0.95 * sum(raw[name].norm() for name in ups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_forgets_faster_in_its_first_updates(dtype: torch.dtype) -> None:
    """As in Stable Diffusion's own training: 2/11 are left after the first update, 3/12 of that after the second."""
    weights = {"plain": torch.zeros(3), "other": torch.zeros(2, dtype=dtype)}
    average, left = Ema(weights, 0.5), [1.0]
    for weight in weights.values():
        weight.fill_(1)
    assert not any(one.any() for one in average.average.values())
    for _ in range(10):
        average.update(weights)
        (share,) = {1 - value for one in average.average.values() for value in one.tolist()}
        left.append(share)
    kept = [after / before for before, after in itertools.pairwise(left)]
    assert kept == pytest.approx([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, *[0.5] * 3], rel=1e-2)
    assert all(one.dtype == torch.float32 for one in average.average.values())


def test_what_is_previewed_is_what_is_saved(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("average", "raw"):
        shown: list[torch.Tensor] = []
        monkeypatch.setattr(
            preview,
            "make",
            lambda model, *_, s=shown, **__: s.append(model.unet.conv_in.weight.clone()) or [],
        )
        changes = {"tuning.use_ema": True, "saving.weights": which, "previews.count": 1}
        job = train(star, **changes, **{"intervals.num_train_epochs": 3})
        assert torch.equal(shown[-1], output(job)[WEIGHT])


def test_weights_in_bf16_take_half_and_learn(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    kinds: set[torch.dtype] = set()

    def look(session: Session) -> None:
        sizes.append(sum(p.nbytes + p.grad.nbytes for p in session.trained.parts["unet"].values()))
        kinds.update(p.dtype for p in session.trained.parts["unet"].values())
        kinds.add(session.model.vae.dtype)

    at_each_step(monkeypatch, look)
    full = output(train(star, **{"intervals.num_train_epochs": 4}))
    assert kinds == {torch.float32}
    half = output(train(star, **{"intervals.num_train_epochs": 4, "memory.bf16_weights": True}))
    assert kinds == {torch.float32, torch.bfloat16}  # the VAE stays as it is
    assert sizes[-1] * 2 == sizes[0]
    start = load_file(star.source)
    names = [name for name in full if name.startswith("model.diffusion_model.")]
    one = torch.cat([(full[name] - start[name].float()).flatten() for name in names])
    two = torch.cat([(half[name] - start[name].bfloat16().float()).flatten() for name in names])
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.15
    assert two.norm() == pytest.approx(one.norm(), rel=0.5)


def test_small_changes_get_through_in_a_run_of_bf16_weights(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nearest value in place of the random one, nearly no weight moves."""
    start = load_file(star.source)[WEIGHT].bfloat16().float()
    slow = {"memory.bf16_weights": True, "learning.learning_rate": 2e-5, "intervals.num_train_epochs": 3}
    at_random = (output(train(star, **slow))[WEIGHT] != start).float().mean()
    monkeypatch.setattr(stochastic_rounding, "round_at_random", lambda whole, each, numbers: None)
    nearest = (output(train(star, **slow))[WEIGHT] != start).float().mean()
    assert at_random > 0.05
    assert nearest < at_random / 3


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_precision_is_what_the_layers_compute_in(
    star: Project, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """And the VAE is in full precision in each."""
    found: dict[str, set[torch.dtype]] = {"unet": set(), "vae": set(), "weights": set()}
    load = setup.load

    def watched(*arguments: Any) -> Any:
        model, accelerator = load(*arguments)
        model.unet.conv_in.register_forward_hook(lambda _, __, out: found["unet"].add(out.dtype))
        model.vae.encoder.conv_in.register_forward_hook(lambda _, __, out: found["vae"].add(out.dtype))
        model.vae.decoder.conv_in.register_forward_hook(lambda _, __, out: found["vae"].add(out.dtype))
        found["weights"].add(model.unet.dtype)
        return model, accelerator

    monkeypatch.setattr(setup, "load", watched)
    train(star, **{"tuning.mixed_precision": precision, "previews.count": 1, "previews.steps": 1})
    assert found["unet"] == {torch.float32 if precision == "no" else torch.bfloat16}
    assert found["weights"] == {torch.float32}
    assert found["vae"] == {torch.float32}


def test_the_vae_is_in_full_precision_when_a_lora_previews_in_bf16(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[torch.dtype] = set()
    decode = Model.decode

    def watched(model: Model, latents: torch.Tensor) -> torch.Tensor:
        hook = model.vae.decoder.mid_block.register_forward_hook(lambda _, __, out: found.add(out.dtype))
        try:
            return decode(model, latents)
        finally:
            hook.remove()

    monkeypatch.setattr(Model, "decode", watched)
    changes = {"general.method": "lora", "tuning.mixed_precision": "bf16", "previews.count": 1, "previews.steps": 1}
    train(star, **changes)
    assert found == {torch.float32}


def test_sliced_attention_is_the_same_with_smaller_pieces(
    star: Project, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    scores = Attention.get_attention_scores

    def counted(self: Attention, query: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(query))
        return scores(self, query, *rest)

    monkeypatch.setattr(Attention, "get_attention_scores", counted)
    plain = output(train(star))
    assert not rows  # SDPA never has them
    sliced = output(train(star, **{"memory.attention": "sliced"}))
    assert set(rows) == {1}
    assert all(torch.allclose(plain[name], sliced[name], atol=2e-3) for name in plain)
    start = load_file(star.source)
    assert not torch.equal(start[WEIGHT], sliced[WEIGHT])


def test_flash_attention_is_the_same_by_that_kernel_alone(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    losses = loss.compute_losses

    def watched(*given: Any) -> Any:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            found = losses(*given)
        asked.update(event.key for event in seen.key_averages())
        return found

    def kernels(name: str) -> set[str]:
        asked.clear()
        flash = output(train(star, **{"memory.attention": name}))
        assert all(torch.allclose(plain[key], flash[key], atol=2e-3) for key in plain)
        return set(asked)

    plain = output(train(star))
    monkeypatch.setattr(loss, "compute_losses", watched)
    with sdpa_kernel(SDPBackend.MATH):  # what SDPA would take here
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in kernels("sdpa")
        assert "aten::_scaled_dot_product_flash_attention_for_cpu" in kernels("flash")


def test_flash_attention_is_refused_where_it_cannot_be(star: Project) -> None:
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"memory\.attention: flash does not work here"):
        attention.check("flash", torch.device("privateuseone"), torch.float16, "sd1")
    assert attention._has_flash(gpu, torch.bfloat16)
    assert not attention._has_flash(gpu, torch.float32)
    with pytest.raises(UserError, match=r"tuning\.pad_tokens: flash"):
        parse({"memory.attention": "flash", "tuning.pad_tokens": False})


def test_xformers_is_refused_where_it_does_not_work(star: Project) -> None:
    if not attention.fault("xformers", torch.device("cpu")):
        pytest.skip("xformers works here")
    with pytest.raises(UserError, match=r"memory\.attention: xformers does not work here"):
        train(star, **{"memory.attention": "xformers"})


@pytest.mark.parametrize(
    ("how", "expected"), [("whole", [(3, 40)]), ("sliced", [(1, 40)] * 3), ("tiled", [(1, 32)] * 3)]
)
def test_pictures_are_decoded_as_asked(model: Model, how: str, expected: list[tuple[int, int]]) -> None:
    """Encoding is never cut into tiles: that would change what is trained on."""
    seen: list[tuple[int, int]] = []
    model.vae.tile_sample_min_size, model.vae.tile_latent_min_size = 256, 32
    model.vae.decoder.register_forward_hook(lambda _, given, __: seen.append((len(given[0]), max(given[0].shape[2:]))))
    latents = torch.randn(3, 4, 40, 40)
    with torch.no_grad():
        whole = model.decode(latents)
        seen.clear()
        with decoding(model, how):
            decoded = model.decode(latents)
    assert seen[: len(expected)] == expected
    assert how == "tiled" or torch.allclose(whole, decoded, atol=1e-4)
    assert decoded.shape == whole.shape
    assert not model.vae.use_tiling


def test_previews_and_class_pictures_are_decoded_as_asked(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    load = setup.load

    def watched(*arguments: Any) -> Any:
        model, accelerator = load(*arguments)
        model.vae.decoder.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
        return model, accelerator

    monkeypatch.setattr(setup, "load", watched)
    some = {"previews.count": 4, "previews.steps": 1, "previews.prompts": "a star"}
    train(star, **some, **{"memory.vae_decoding": "whole"})
    assert set(batches) == {4}
    batches.clear()
    made = {
        "concepts.0.class_prompt": "a star",
        "concepts.0.num_class_images_per": 1,
        "concepts.0.class_infer_steps": 1,
    }
    train(star, **some, **made, **{"memory.vae_decoding": "sliced"})
    assert set(batches) == {1}


def test_deterministic_refuses_what_does_not_repeat(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    at_each_step(monkeypatch, lambda _: modes.append(torch.are_deterministic_algorithms_enabled()))
    try:
        one, other = (output(train(star, **{"tuning.deterministic": True})) for _ in range(2))
        assert modes == [True, True]
        assert same(one, other)
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
        train(star)
        assert modes == [True, True, False]
    finally:
        torch.use_deterministic_algorithms(False)


def test_things_are_done_every_so_many_steps(star: Project) -> None:
    every = {
        "intervals.save_model_every_steps": 4,
        "intervals.save_state_every_steps": 3,
        "intervals.save_preview_every_steps": 5,
        "intervals.save_preview_every": 0,
        "intervals.save_state_every": 0,
        "previews.count": 1,
        "previews.steps": 1,
    }
    job = train(star, **every, **{"batching.train_batch_size": 1, "intervals.num_train_epochs": 2})
    events = job.events()[0]
    assert [event["images"] for event in events if event["event"] == "saved"] == [4, 8, 10]
    assert [event["step"] for event in events if event["event"] == "state"] == [3, 6, 9]
    assert [event["images"] for event in events if event["event"] == "preview"] == [0, 5, 10]


def test_the_run_rests_after_so_many_epochs(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(loop.time, "sleep", sleep)
    rests = {"intervals.epoch_pause_frequency": 2, "intervals.epoch_pause_time": 30}
    job = train(star, **rests, **{"intervals.num_train_epochs": 6})
    assert [event["seconds"] for event in job.events()[0] if event["event"] == "cooling"] == [30, 30]
    assert sum(slept) == pytest.approx(60, abs=2 * loop.COOLING_POLL_SECONDS)


def test_a_rest_ends_as_soon_as_somebody_asks(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: naps.append(seconds))
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"stop"} if naps else set())
    rests = {"intervals.epoch_pause_frequency": 1, "intervals.epoch_pause_time": 3600}
    job = launcher.new_run(
        Folders(star.folder.parents[1]), star, parse({**SHORT, **rests, "intervals.num_train_epochs": 3})
    )
    assert worker.run(job) == "stopped"
    assert len(naps) == 1


@pytest.mark.parametrize(
    "half", [{"intervals.epoch_pause_frequency": 2}, {"intervals.epoch_pause_time": 5}, {"previews.width": 100}]
)
def test_half_a_wish_is_refused(half: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"^(intervals\.epoch_pause|previews\.width)"):
        parse(half)


def test_nothing_waits_for_the_device_between_reports(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other trainers read the loss at every step, which on a GPU waits for it."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *rest: Any, original: Any = original, name: str = name) -> Any:
            if self.dtype == torch.float32 and self.requires_grad is False and inside:
                reads.append(name)
            return original(self, *rest)

        monkeypatch.setattr(torch.Tensor, name, read)
    inside: list[bool] = []
    at_each_step(monkeypatch, lambda session: inside.append(True))
    train(star, **{"intervals.num_train_epochs": 20, "optimizer.name": "lion"})
    told = len(
        [
            event
            for event in Job(star.runs / sorted(p.name for p in star.runs.iterdir())[-1]).events()[0]
            if event["event"] == "step"
        ]
    )
    assert reads.count("tolist") <= told + 1
    assert not [name for name in reads if name != "tolist"]


def test_a_pause_never_saves_a_spoilt_state(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number was only looked at twice a second; a state in between must not be kept either."""
    monkeypatch.setattr(loss.objective, "error", lambda predicted, *_: predicted * float("nan"))
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step else set())
    strict = {"intervals.num_train_epochs": 5, "tuning.nonfinite_steps": 1}
    job = launcher.new_run(Folders(star.folder.parents[1]), star, parse({**SHORT, **strict}))
    with pytest.raises(UserError, match="The loss was not a number"):
        worker.run(job)
    assert not list(Path(job.state).glob("0*"))
