"""Latents: of the same distribution as encoding afresh, kept by content, and never encoded twice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.core import forecast, project
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import families, hardware, worker
from dreambooth.engine.data import cache, cropping, decoding, latent_store, pictures
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families.model import Model
from dreambooth.service import launcher
from tests.engine.simulated_card import CARD, simulated_card


@pytest.fixture
def model() -> Model:
    return families.load_file(MINIATURE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(70, 70), (90, 60), (64, 100), (120, 80)]):
        photo(number, size).save(folder / f"{number}.png")
    return folder


def photo(seed: int, size: tuple[int, int] = (70, 70)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def examples(folder: Path, **changes: object) -> list[Example]:
    flat = {"concepts.0.instance_data_dir": str(folder), "concepts.0.instance_prompt": "x"}
    settings = parse({**flat, "pictures.bucket_step": 8, **changes})
    gathered = pictures.gather(settings.concepts)
    return [one for variants in pictures.examples(gathered, settings, 64) for one in variants]


def encode(model: Model, some: list[Example], store: Store | None = None) -> cache.Encoded:
    return cache.encode(model, some, ["x"], lambda done: None, store)


def test_latents_in_the_computers_memory_reach_a_card_out_of_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory the driver would have the CPU wait, whatever was asked for."""
    mean, std = torch.randn(2, 5, 4, 8, 8)
    index, brought, copied = torch.tensor([3, 1]), hardware.brought, list[bool]()

    def watched(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device != device:
            copied.append(tensor.is_pinned())
        return brought(tensor, device)

    monkeypatch.setattr(hardware, "brought", watched)
    order = torch.arange(5)
    for where in (torch.device("cpu"), CARD):
        with simulated_card() as card:
            some = [[tensor.to(where)] for tensor in (mean, std, torch.ones(5, 1, 8, 8))]
            there = cache.Encoded(*some[:2], order * 0, order, order, order, order, CARD, some[2])
            drawn, average, mask = there.sample(index), there.average(index), there.masks(index)
            assert all(card.has(one) for one in (drawn, average, mask))
            assert torch.equal(average.cpu(), mean[index])
        if where.type == "cpu":
            assert copied == [True] * 4, "mean and deviation, the mean, the mask"


class LateEvent:
    """The end of copies that a card does as late as it may: when somebody waits for them."""

    asked: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []
    is_quick = False

    def __init__(self) -> None:
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(self) -> None:
        self.copies, LateEvent.asked = LateEvent.asked, []
        if self.is_quick:
            self.synchronize()

    def query(self) -> bool:
        return not self.copies

    def synchronize(self) -> None:
        for place, source in self.copies:
            place.copy_(source)
        self.copies = []


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_pinned_buffer_is_written_again_only_after_the_copy_out_of_it(
    monkeypatch: pytest.MonkeyPatch, *, is_quick: bool
) -> None:
    """Rows of two sizes and kinds in turn, of a card that is late, and of one that is not."""

    def late(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        LateEvent.asked.append((torch.zeros_like(tensor), tensor))
        return LateEvent.asked[-1][0]

    def counted(count: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory
        made.append(count)
        return empty(count, dtype=dtype)

    made, empty = list[int](), torch.empty
    tables = [torch.randn(9, 4, 8, 8), torch.rand(9, 5) > 0.5]
    monkeypatch.setattr(LateEvent, "is_quick", is_quick)
    monkeypatch.setattr(torch.cuda, "Event", LateEvent)
    monkeypatch.setattr(hardware, "brought", late)
    monkeypatch.setattr(torch, "empty", counted)
    buffers, wanted, found = hardware.PinnedBuffers(), list[torch.Tensor](), list[torch.Tensor]()
    for turn in range(60):
        table, rows = tables[turn % 2], torch.randint(9, (3,))
        wanted.append(table[rows])
        found.append(buffers.rows_brought(table, rows, CARD))
    for _, copied in buffers._used:
        copied.synchronize()  # type: ignore[no-untyped-call]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    assert len(made) == (1 if is_quick else hardware._MOST_BUFFERS), "they are used again"


def test_rows_come_to_a_card_also_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpinned(count: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(count, dtype=dtype)

    empty, table, rows = torch.empty, torch.randn(9, 4, 8, 8), torch.tensor([2, 7])
    monkeypatch.setattr(hardware, "_PINS", [True])
    monkeypatch.setattr(torch.cuda, "Event", LateEvent)
    monkeypatch.setattr(hardware, "brought", lambda tensor, _: tensor.clone())
    monkeypatch.setattr(torch, "empty", unpinned)
    assert torch.equal(hardware.PinnedBuffers().rows_brought(table, rows, CARD), table[rows])
    assert not hardware.pins()


def latents(encoded: cache.Encoded, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    bucket, row = int(encoded.bucket[n]), int(encoded.row[n])
    return encoded.mean[bucket][row], encoded.std[bucket][row]


def encoded_pictures(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the VAE is given, batch after batch."""
    counts: list[int] = []
    real = model.encode_pictures
    monkeypatch.setattr(model, "encode_pictures", lambda pixels: (counts.append(len(pixels)), real(pixels))[1])
    return counts


def test_every_example_is_found_again_in_its_bucket(model: Model, photos: Path) -> None:
    some = examples(photos, **{"pictures.hflip": True, "pictures.crop_jitter": 0.2})
    encoded = encode(model, some)
    assert len(encoded) == len(some) == 16
    for n, example in enumerate(some):
        picture = cropping.apply(decoding.decode(example.picture.path), example.cut)
        mean, _ = model.encode_pictures(cache.to_tensor(picture)[None])
        assert torch.allclose(latents(encoded, n)[0], mean[0], atol=1e-4)
        bucket = example.cut.bucket
        assert encoded.sample(torch.tensor([n])).shape == (1, 4, bucket.height // 8, bucket.width // 8)


@torch.no_grad()
def test_draws_are_of_the_distribution_of_encoding_afresh(model: Model, photos: Path) -> None:
    some = examples(photos)[:1]
    encoded, count = encode(model, some), 4000
    torch.manual_seed(0)
    drawn = encoded.sample(torch.zeros(count, dtype=torch.long))
    pixels = cache.to_tensor(cropping.apply(decoding.decode(some[0].picture.path), some[0].cut))[None]
    posterior = model.vae.encode(pixels).latent_dist
    afresh = torch.cat([posterior.sample() for _ in range(count)]) * model.latent_scale
    error = afresh.std(0) / count**0.5  # of a mean
    assert ((drawn.mean(0) - afresh.mean(0)).abs() < 6 * error).all()
    assert (drawn.std(0) / afresh.std(0) - 1).abs().max() < 0.1
    assert drawn.std(0).min() > 0


def test_an_unchanged_set_does_not_touch_the_vae(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = examples(photos, **{"pictures.crop_jitter": 0.2})
    first = encode(model, some, Store(tmp_path / "kept", model))
    counts = encoded_pictures(model, monkeypatch)
    again = encode(model, examples(photos, **{"pictures.crop_jitter": 0.2}), Store(tmp_path / "kept", model))
    assert counts == []
    for n in range(len(some)):
        assert all(torch.equal(a, b) for a, b in zip(latents(first, n), latents(again, n)))


def test_only_what_has_changed_is_encoded_anew(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode(model, examples(photos), Store(tmp_path / "kept", model))
    about = (photos / "0.png").stat()
    photo(99).save(photos / "0.png")
    os.utime(photos / "0.png", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    (photos / "1.png").rename(photos / "renamed.png")  # the same picture under another name
    counts = encoded_pictures(model, monkeypatch)
    after = encode(model, examples(photos), Store(tmp_path / "kept", model))
    assert counts == [1]
    assert not torch.equal(latents(before, 0)[0], latents(after, 0)[0])
    assert torch.equal(latents(before, 1)[0], latents(after, 3)[0])


@pytest.mark.parametrize("change", ["cut", "seed", "vae", "damage"])
def test_what_latents_depend_on_is_part_of_their_name(
    model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    kept = tmp_path / "kept"
    encode(model, examples(photos, **{"pictures.crop": "random"}), Store(kept, model))
    changes: dict[str, object] = {"pictures.crop": "random"}
    if change == "cut":
        changes["pictures.crop"] = "centre"
    elif change == "seed":
        changes["general.seed"] = 1
    elif change == "vae":
        model.vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 0.01
    else:
        for path in kept.iterdir():
            path.write_bytes(path.read_bytes()[:100])
    counts = encoded_pictures(model, monkeypatch)
    encode(model, examples(photos, **changes), Store(kept, model))
    assert sum(counts) >= 3  # a picture that fits its bucket as it is has the same cut at every seed


def test_what_nobody_uses_goes_in_time(model: Model, photos: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    encode(model, examples(photos), Store(kept, model))
    (kept / "half.tmp").write_bytes(b"cut short by a crash")
    old = time.time() - (latent_store.KEPT_DAYS + 1) * 86400
    for path in kept.iterdir():
        os.utime(path, (old, old))
    (photos / "3.png").unlink()
    store = Store(kept, model)
    encode(model, examples(photos), store)
    store.prune()
    assert {path.stem for path in kept.iterdir()} == store.used
    assert len(store.used) == 3


def test_a_disk_that_takes_nothing_only_costs_time(model: Model, photos: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "kept", model)
    store.folder.rmdir()
    store.folder.write_bytes(b"no folder")
    encoded = encode(model, examples(photos), store)
    assert torch.isfinite(encoded.sample(torch.tensor([0]))).all()
    assert store.problem


def test_few_latents_lie_on_the_card_and_many_in_the_computers_memory(
    model: Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as a plan counts of them."""
    some, index, drawn = examples(photos, **{"pictures.buckets": False}), torch.tensor([0, 3]), list[torch.Tensor]()
    total = forecast.latent_bytes(one.cut.bucket for one in some)
    with simulated_card() as card:
        model.to(CARD)
        for most, on_card in ((total, True), (total - 1, False)):
            monkeypatch.setattr(cache, "MOST_ON_DEVICE", most)
            encoded = encode(model, some)
            assert [card.has(one) for one in (*encoded.mean, *encoded.std)] == [on_card, on_card]
            torch.manual_seed(1)
            drawn.append(encoded.sample(index))
            assert card.has(drawn[-1])
        assert torch.equal(*drawn)


def test_a_picture_whose_latents_are_not_finite_is_named(model: Model, photos: Path) -> None:
    """In one of their channels, too."""
    model.vae.quant_conv.bias.data[1] = torch.inf
    with pytest.raises(UserError, match=r"0\.png: the VAE cannot encode this picture"):
        encode(model, examples(photos))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_run_keeps_latents_where_it_is_asked_to(tmp_path: Path, photos: Path, on_disk: bool) -> None:
    folders = Folders(tmp_path / "models")
    star = project.create(folders, "x", MINIATURE)
    job = run(folders, star, photos, **{"pictures.cache_on_disk": on_disk})
    assert star.latents.exists() == on_disk
    if on_disk:
        kept = sum(path.stat().st_size for path in star.latents.iterdir())
        assert kept == pytest.approx(forecast.latent_bytes([Bucket(64, 64)] * 4), rel=0.1)
    assert any(event["event"] == "saved" for event in job.events()[0])


def test_a_run_over_several_buckets_with_class_pictures_and_variants(tmp_path: Path, photos: Path) -> None:
    folders = Folders(tmp_path / "models")
    changes = {
        "pictures.bucket_step": 8,
        "pictures.hflip": True,
        "batching.train_batch_size": 2,
        "intervals.num_train_epochs": 3,
        "concepts.0.class_prompt": "a star",
        "concepts.0.num_class_images_per": 1,
        "concepts.0.class_infer_steps": 1,
    }
    job = run(folders, project.create(folders, "x", MINIATURE), photos, **changes)
    last = job.progress()
    assert (last["step"], last["images"]) == (6, 12)
    assert last["prior_loss"] > 0


def run(folders: Folders, star: project.Project, photos: Path, **changes: object) -> Job:
    flat = {
        "concepts.0.instance_data_dir": str(photos),
        "concepts.0.instance_prompt": "x",
        "intervals.num_train_epochs": 1,
        "previews.count": 0,
    }
    job = launcher.new_run(folders, star, parse({**flat, **changes}))
    assert worker.run(job) == "done"
    return job
