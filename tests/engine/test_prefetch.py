"""Pictures that are made ready by threads: in order, within bounds, the same as without, and no thread is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.engine import families
from dreambooth.engine.data import cache, cropping, decoding, inspection, latent_store, masks, prefetch, vae_inputs
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families.model import Model
from tests.engine.simulated_card import CARD, simulated_card
from tests.engine.test_cache import examples, latents, photo

VARIED = {"pictures.hflip": True, "pictures.crop_jitter": 0.3, "pictures.rotation": 5, "pictures.variants": 3}


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("pictures", "latents"))}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not threads()
    yield
    assert not threads()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        photo(number, (96, 80) if number % 2 else (80, 120)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_what_is_made_ahead_comes_in_order(workers: int) -> None:
    where = set()

    def work(item: int) -> int:
        where.add(threading.current_thread().name.split("_")[0])
        return item * item

    assert list(prefetch.in_order(work, range(50), workers=workers)) == [n * n for n in range(50)]
    assert where == {"pictures" if workers else "MainThread"}


def test_several_are_worked_on_at_once_while_the_first_is_used() -> None:
    all_at_work, begun = threading.Barrier(prefetch.WORKERS, timeout=30), list[int]()

    def work(item: int) -> int:
        begun.append(item)
        all_at_work.wait()
        return item

    with closing(prefetch.in_order(work, range(3 * prefetch.WORKERS))) as found:
        assert next(found) == 0
        while len(begun) < 2 * prefetch.WORKERS:
            time.sleep(0.001)
        assert sorted(begun) == list(range(2 * prefetch.WORKERS)), "no more than that lie ready"
        assert list(found) == list(range(1, 3 * prefetch.WORKERS))


@pytest.mark.parametrize(("size", "at_once"), [(30, 3), (60, 1), (500, 1)])
def test_no_more_lies_in_memory_than_may(size: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At work or ready; one that is larger than all of it is done alone."""
    monkeypatch.setattr(prefetch, "MOST_BYTES", 100)
    lock, held, most = threading.Lock(), [0], [0]

    def work(item: int) -> int:
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        return item

    for n, item in enumerate(prefetch.in_order(work, range(20), lambda item: size)):
        assert item == n
        with lock:
            held[0] -= 1
    assert most[0] == at_once


@pytest.mark.parametrize("workers", [0, 4])
def test_an_error_comes_in_its_order_and_ends_the_rest(workers: int) -> None:
    found, begun = list[int](), set[int]()

    def work(item: int) -> int:
        begun.add(item)
        if item in (5, 6):
            raise UserError(f"{item}: no.")
        return item

    with pytest.raises(UserError, match="5: no"):
        for item in prefetch.in_order(work, range(1000), workers=workers):
            found.append(item)
    assert found == [0, 1, 2, 3, 4]
    assert len(begun) <= 6 + 2 * workers
    assert not threads()


def test_who_stops_in_between_waits_for_none_of_the_rest() -> None:
    begun = set[int]()
    with pytest.raises(KeyboardInterrupt):
        for item in prefetch.in_order(lambda item: (begun.add(item), item)[1], range(1000)):
            if item == 3:
                raise KeyboardInterrupt
    assert not threads()
    assert len(begun) <= 4 + 2 * prefetch.WORKERS


def on_card(encode: Callable[[Model], None]) -> None:
    """Encodes on a card, the VAE fetched for that as in a run."""
    with simulated_card():
        model = families.load_file(MINIATURE)
        model.to(CARD, aside=["vae"])
        encode(model)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pictures of 512 pixels and more are encoded; many together differ in their last bits."""
    monkeypatch.setattr(cache, "pictures_at_once", lambda area: 1)


def test_for_a_card_pictures_are_made_ready_by_threads_and_their_latents_are_the_same_to_the_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one(monkeypatch)
    some, where, told = examples(photos, **VARIED), set[str](), dict[str, list[int]]()
    decode = decoding.decode

    def watched(path: Path) -> object:
        where.add(threading.current_thread().name.split("_")[0])
        return decode(path)

    monkeypatch.setattr(decoding, "decode", watched)

    def encode(model: Model, folder: str) -> cache.Encoded:
        told[folder] = []
        return cache.encode(model, some, ["x"], told[folder].append, Store(tmp_path / folder, model))

    plain = encode(families.load_file(MINIATURE), "plain")
    assert where == {"MainThread"}, "where the CPU encodes, it decodes nothing beside"
    where.clear()
    found = []
    on_card(lambda model: found.append(encode(model, "card")))
    assert where == {"pictures"}
    assert told["card"] == told["plain"] == list(range(1, len(some) + 1))
    assert kept(tmp_path / "card") == kept(tmp_path / "plain")
    for n in range(len(some)):
        assert all(torch.equal(a, b) for a, b in zip(latents(plain, n), latents(found[0], n)))


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("most", "decoded"), [(2**24, 1), (2 * 4 * 64 * 64, 2), (1, 3)])
def test_a_file_is_decoded_once_for_its_variants_however_many_are_encoded_together(
    photos: Path, monkeypatch: pytest.MonkeyPatch, most: int, decoded: int
) -> None:
    """As far as they do not take much memory."""
    one_by_one(monkeypatch)
    some, decode, files = examples(photos, **VARIED), decoding.decode, list[str]()
    assert len(some) == 3 * 5
    wanted = cache.encode(model := families.load_file(MINIATURE), some, ["x"], lambda done: None)
    monkeypatch.setattr(vae_inputs, "_MAX_CROP_BYTES", most)
    monkeypatch.setattr(decoding, "decode", lambda path: (files.append(path.name), decode(path))[1])
    encoded = cache.encode(model, some, ["x"], lambda done: None)
    assert {name: files.count(name) for name in files} == {f"{n}.png": decoded for n in range(5)}
    assert all(torch.equal(latents(encoded, n)[0], latents(wanted, n)[0]) for n in range(len(some)))


def test_what_is_known_is_not_decoded(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one(monkeypatch)
    some = examples(photos)

    def encode(model: Model) -> None:
        cache.encode(model, some, ["x"], lambda done: None, Store(tmp_path / "kept", model))

    on_card(encode)
    monkeypatch.setattr(decoding, "decode", lambda path: pytest.fail(f"{path} was decoded"))
    on_card(encode)


@pytest.mark.parametrize("asked", [False, True])
def test_what_was_encoded_before_an_error_is_kept_and_no_thread_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """A picture that cannot be read any more ends it when its turn comes; a person who asks for it at once."""
    one_by_one(monkeypatch)
    some, told = examples(photos), list[int]()
    turn = [one.picture.path for one in sorted(some, key=lambda one: one.cut.bucket != some[0].cut.bucket)]
    if not asked:
        turn[2].unlink()
        turn[3].write_bytes(b"")

    def on_batch(done: int) -> None:
        told.append(done)
        if asked and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if asked else UserError) as caught:
        on_card(lambda model: cache.encode(model, some, ["x"], on_batch, Store(tmp_path / "kept", model)))
    assert not threads()
    assert told == [1, 2]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    if not asked:
        assert str(caught.value).startswith(f"{turn[2]}: ")


def test_latents_go_to_the_disk_beside_the_encoding_and_are_there_after_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one(monkeypatch)
    monkeypatch.setattr(latent_store, "_MOST_WAITING", 2)
    where, waiting, some = set[str](), list[int](), examples(photos)
    save, model = latent_store.save_file, families.load_file(MINIATURE)
    store = Store(tmp_path / "kept", model)

    def watched(entry: object, path: Path) -> None:
        where.add(threading.current_thread().name.split("_")[0])
        save(entry, path)

    monkeypatch.setattr(latent_store, "save_file", watched)
    cache.encode(model, some, ["x"], lambda done: waiting.append(len(store._waiting)), store)
    assert where == {"latents"}
    assert max(waiting) <= 2
    assert {path.stem for path in (tmp_path / "kept").iterdir()} == store.used
    assert len(store.used) == len(some) and not store.problem


def test_of_pictures_whose_size_is_not_known_few_are_looked_at_at_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "WORKERS", 50)
    for path in sorted(photos.iterdir()):
        for number in range(4):
            photo(9).save(path.with_stem(f"{path.stem}-{number}"))
    lock, at_work, most = threading.Lock(), [0], [0]

    def watched(path: Path, **_: object) -> Image.Image:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        with lock:
            at_work[0] -= 1
        return photo(1)

    for name in ("decode", "decode_alpha"):
        monkeypatch.setattr(decoding, name, watched)
    for look in (inspection.inspect_all, masks.check_all):
        most[0] = 0
        look(sorted(photos.iterdir()))
        assert 1 < most[0] <= prefetch.FEW


def test_masks_are_cut_by_threads_and_come_in_order(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(0, 5, 2):
        photo(100 + number, (80, 120)).convert("L").save(photos / f"{number}-mask.png")
    some, where, decode = examples(photos, **VARIED), set[str](), masks.decode

    def watched(path: Path) -> object:
        where.add(threading.current_thread().name.split("_")[0])
        return decode(path)

    monkeypatch.setattr(masks, "decode", watched)
    cut = cache.cut_masks(some)
    assert where == {"pictures"}
    assert [mask is not None for mask in cut] == [int(one.picture.path.stem) % 2 == 0 for one in some]
    for mask, one in zip(cut, some):
        if mask is not None:
            assert torch.equal(mask, own_mask(one))


def own_mask(example: Example) -> torch.Tensor:
    whole = masks.decode(example.picture.path)
    assert whole is not None
    return cache.to_mask(cropping.shape(whole, example.cut))
