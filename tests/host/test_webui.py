"""The WebUI as host: folders from its flags, its lists, and the loan of its GPU."""

from __future__ import annotations

import base64
import os
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dreambooth.core import device
from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from tests.host.conftest import StandIn


@pytest.fixture
def host(webui: StandIn) -> Any:
    return webui.load_script().HOST


def gradio_error() -> type[Exception]:
    """What every page shows the words of."""
    return sys.modules["gradio"].Error  # type: ignore[no-any-return]


def test_folders_are_the_webuis(host: Any, webui: StandIn) -> None:
    folders = host.folders()
    assert folders.projects == webui.models / "dreambooth"
    assert folders.checkpoints == webui.models / "Stable-diffusion"
    assert folders.loras == webui.models / "Lora"
    assert not folders.projects.exists(), "nothing is written before there is something to write"


def test_flags_move_folders_for_the_engine_and_the_command_line_too(webui: StandIn, tmp_path: Path) -> None:
    from dreambooth.core.project import Folders

    flags = webui.module("shared").cmd_opts
    flags.ckpt_dir, flags.lora_dir = str(tmp_path / "c"), str(tmp_path / "theirs")
    flags.lora_models_path, flags.dreambooth_models_path = str(tmp_path / "mine"), str(tmp_path / "taught")
    said = webui.load_script().HOST.folders()
    for folders in (said, Folders(webui.models)):
        assert folders.checkpoints == tmp_path / "c"
        assert folders.loras == tmp_path / "mine"
        assert folders.projects == tmp_path / "taught"
    del flags.lora_models_path, flags.dreambooth_models_path
    flags.ckpt_dir = flags.lora_dir = None
    webui.load_script().HOST.folders()
    assert Folders(webui.models).checkpoints == webui.models / "Stable-diffusion", "a flag that is gone moves nothing"


def test_a_flag_of_the_webuis_keeps_what_people_name_to_its_folders(
    webui: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, on the page and by the API; not on the command line."""
    from dreambooth.core.files import confinement

    monkeypatch.setattr(confinement, "_own", None)
    flags = webui.module("shared").cmd_opts
    flags.ckpt_dir = str(tmp_path / "c")
    webui.load_script()
    assert confinement.named(str(tmp_path / "d"), "to") == tmp_path / "d"
    flags.hide_ui_dir_config = True
    webui.load_script()
    for inside in (webui.models / "x", tmp_path / "c" / "x"):
        assert confinement.named(str(inside), "to") == inside
    with pytest.raises(UserError, match=r"^to: .*d lies outside of the WebUI's folders, .* --hide-ui-dir-config; name"):
        confinement.named(str(tmp_path / "d"), "to")
    del flags.hide_ui_dir_config
    flags.ckpt_dir = None
    webui.load_script()
    assert confinement.named(str(tmp_path / "d"), "to") == tmp_path / "d"


def test_the_engine_works_on_the_gpu_that_the_webui_was_told(webui: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.GPU_VARIABLE, raising=False)
    webui.load_script()
    assert device.GPU_VARIABLE not in os.environ
    webui.module("shared").cmd_opts.device_id = "1"
    webui.load_script()
    assert os.environ[device.GPU_VARIABLE] == "1"
    monkeypatch.delenv(device.GPU_VARIABLE)


def test_a_new_file_is_in_the_lists_at_once(host: Any, webui: StandIn) -> None:
    (webui.models / "Stable-diffusion" / "anna.safetensors").touch()
    assert host.checkpoints() == []
    host.refresh()
    path = webui.models / "Stable-diffusion" / "anna.safetensors"
    assert host.checkpoints() == [("anna.safetensors [0123456789]", path)]
    assert webui.module("ui_extra_networks").refreshed == ["lora"]


class _Folder:
    """Of Forge's embeddings."""

    is_read = False

    def has_changed(self) -> bool:
        return not self.is_read

    def update(self) -> None:
        self.is_read = True


def test_forge_reads_a_new_embedding_into_each_of_its_text_encoders(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    forge = ModuleSpec("modules_forge", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: forge if name == "modules_forge" else None)
    host = webui.load_script().HOST
    assert host.name == "Forge"
    host.refresh()  # no model has been loaded yet
    for name in ("text_processing_engine_l", "text_processing_engine_g"):
        database = SimpleNamespace(embedding_dirs={"": _Folder()}, load_from_dir=lambda _, name=name: read.append(name))
        monkeypatch.setattr(webui.module("sd_models").model, name, SimpleNamespace(embeddings=database), raising=False)
    host.refresh()
    host.refresh()
    assert read == ["text_processing_engine_l", "text_processing_engine_g"], "once, as the folder has not changed since"


def test_a_lent_gpu_is_empty_and_pictures_are_refused_with_a_sentence(host: Any, webui: StandIn) -> None:
    queue, model = webui.module("call_queue").queue_lock, webui.module("sd_models").model
    progress, ask = webui.module("progress"), webui.module("call_queue").wrap_gradio_gpu_call(lambda: "drawn")
    host.lend_gpu()
    host.lend_gpu()
    assert model.place == "cpu"
    progress.pending_tasks["task(1)"] = 0.0  # of before the loan, which is being waited for
    with pytest.raises(gradio_error(), match=r"^Dreambooth has the GPU.*Pause or stop it"):
        ask("task(2)")
    assert progress.pending_tasks == {"task(1)": 0.0}
    assert progress.finished_tasks == ["task(2)"], "its page looks for it no more"
    host.take_gpu_back()
    host.take_gpu_back()
    assert model.place == "cuda"
    assert ask("task(3)") == "drawn"
    assert queue.acquire(False), "the lock is as it was"


def test_tokens_are_counted_while_the_gpu_is_lent(host: Any, webui: StandIn) -> None:
    """A prompt can be written meanwhile: the counter beside it shows no error, and the console none at each letter."""
    queue = webui.module("call_queue")

    def update_token_counter(prompt: str) -> int:
        return len(prompt.split())

    host.lend_gpu()
    assert queue.wrap_queued_call(update_token_counter)("a red star") == 3
    with pytest.raises(gradio_error(), match=r"^Dreambooth has the GPU"):
        queue.wrap_queued_call(lambda: None)()
    host.take_gpu_back()
    assert queue.queue_lock.acquire(False), "the lock is as it was"


def test_the_picture_that_is_being_drawn_is_waited_for(host: Any, webui: StandIn) -> None:
    queue, model = webui.module("call_queue").queue_lock, webui.module("sd_models").model
    queue.acquire()
    lending = threading.Thread(target=host.lend_gpu, daemon=True)
    lending.start()
    lending.join(0.2)
    assert lending.is_alive() and model.place == "cuda"
    queue.release()
    lending.join(5)
    assert not lending.is_alive() and model.place == "cpu"


@pytest.mark.parametrize("why", ["cpu", "setting"])
def test_nothing_is_lent_where_there_is_no_need(host: Any, webui: StandIn, why: str) -> None:
    if why == "cpu":
        webui.module("devices").device = SimpleNamespace(type="cpu")
    else:
        webui.module("shared").opts.data["dreambooth_lend_gpu"] = False
    host.lend_gpu()
    with webui.module("call_queue").queue_lock:
        assert webui.module("sd_models").model.place == "cuda"


def test_a_loan_ends_when_the_setting_is_turned_off(host: Any, webui: StandIn) -> None:
    host.lend_gpu()
    webui.module("shared").opts.data["dreambooth_lend_gpu"] = False
    host.lend_gpu()
    assert webui.module("sd_models").model.place == "cuda"
    with webui.module("call_queue").queue_lock:
        pass


def test_a_model_that_does_not_come_back_is_tried_again(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model elsewhere, a picture would end in an error about devices."""
    queue, models = webui.module("call_queue").queue_lock, webui.module("sd_models")
    host.lend_gpu()

    def full(model: Any) -> None:
        raise MemoryError("somebody else is on the GPU")

    with monkeypatch.context() as changed:
        changed.setattr(models, "send_model_to_device", full)
        with pytest.raises(MemoryError):
            host.take_gpu_back()
    with pytest.raises(gradio_error(), match=r"^Dreambooth has the GPU"), queue:
        pass
    host.take_gpu_back()
    assert models.model.place == "cuda"
    with queue:
        pass


@pytest.mark.parametrize("manager", ["backend.memory_management", "ldm_patched.modules.model_management"])
def test_forge_and_reforge_unload_by_their_own_manager_and_load_when_they_draw(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch, manager: str
) -> None:
    unloaded: list[bool] = []
    monkeypatch.setitem(sys.modules, manager, SimpleNamespace(unload_all_models=lambda: unloaded.append(True)))
    monkeypatch.setattr(webui.module("sd_models"), "send_model_to_device", None)  # theirs does nothing
    host.lend_gpu()
    assert unloaded
    host.take_gpu_back()
    with webui.module("call_queue").queue_lock:
        pass


def test_sdnext_has_another_lock_other_names_and_folders_in_its_settings(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models, unloaded = webui.module("sd_models"), []
    monkeypatch.setitem(sys.modules, "modules.launch_utils", None)
    monkeypatch.setitem(sys.modules, "installer", SimpleNamespace(get_version=lambda: {"updated": "2026-07-23"}))
    plain = threading.Lock()
    drawing = SimpleNamespace(queue_lock=plain)
    accounts = {"anna": "1", "of its file": "2"}  # what its --auth and --auth-file name
    program = SimpleNamespace(queue_lock=plain, generate=drawing, credentials=accounts)
    monkeypatch.setattr(webui.module("shared"), "api", program, raising=False)
    webui.module("call_queue").queue_lock = plain
    monkeypatch.setattr(models, "model_data", SimpleNamespace(sd_model=models.model))
    monkeypatch.setattr(models, "unload_model_weights", lambda: unloaded.append(True), raising=False)
    webui.module("shared").opts.data["lora_dir"] = str(tmp_path / "theirs")
    webui.module("shared").cmd_opts.auth = '"anna:1"'
    host = webui.load_script().HOST
    host.started(None)
    assert (host.name, host.version) == ("SD.Next", "2026-07-23")
    assert host.folders().loras == tmp_path / "theirs"
    assert host.admits(_basic("anna:1"), {}) and host.admits(_basic("of its file:2"), {}) and not host.admits({}, {})
    for _ in range(2):
        host.lend_gpu()
        assert unloaded
        with pytest.raises(gradio_error(), match=r"^Dreambooth has the GPU"), program.queue_lock:
            pass
        host.take_gpu_back()
        with program.queue_lock:
            assert program.queue_lock.locked() and not program.queue_lock.acquire(False)
    assert webui.module("call_queue").queue_lock is program.queue_lock is drawing.queue_lock is not plain


def test_forge_shows_the_refusal_and_not_an_older_error(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = SimpleNamespace(last_exception=ValueError("of an hour ago"))
    monkeypatch.setitem(sys.modules, "modules_forge.main_thread", thread)
    host.lend_gpu()
    with pytest.raises(gradio_error(), match=r"^Dreambooth has the GPU"), webui.module("call_queue").queue_lock:
        pass
    assert thread.last_exception is None


def test_who_asks_for_a_model_while_the_gpu_is_lent_loads_none(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1111's own page asks when it is opened, and loads one where none was loaded yet."""
    data = SimpleNamespace(sd_model=None, loaded_sd_models=[], was_loaded_at_least_once=False)
    monkeypatch.setattr(webui.module("sd_models"), "model_data", data)
    host.lend_gpu()
    assert data.was_loaded_at_least_once
    host.take_gpu_back()
    assert data.was_loaded_at_least_once is False, "the next picture loads it"
    data.was_loaded_at_least_once = True  # somebody has unloaded theirs
    host.lend_gpu()
    host.take_gpu_back()
    assert data.was_loaded_at_least_once


@pytest.mark.parametrize("of", ["reForge", "SD.Next"])
def test_a_model_that_is_loaded_beside_the_queue_leaves_the_gpu_again(
    of: str, host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded: list[str] = []
    models = webui.module("sd_models")
    if of == "reForge":
        loaded: list[str] = []
        manager = SimpleNamespace(current_loaded_models=loaded, unload_all_models=lambda: unloaded.append("all"))
        monkeypatch.setitem(sys.modules, "ldm_patched.modules.model_management", manager)
    else:
        data = SimpleNamespace(sd_model=None, sd_refiner="one")

        def unload(op: str = "model") -> None:
            unloaded.append(op)
            data.sd_model = data.sd_refiner = None

        monkeypatch.setattr(models, "model_data", data)
        monkeypatch.setattr(models, "unload_model_weights", unload, raising=False)
    host.lend_gpu()
    first = list(unloaded)
    assert first in (["all"], ["model"])
    host.lend_gpu()
    assert unloaded == first, "there is nothing to unload"
    if of == "reForge":
        loaded.append("a model")
    else:
        data.sd_model = "a model"
    host.lend_gpu()
    assert len(unloaded) == 2
    host.take_gpu_back()


def test_a_text_encoder_on_the_cpu_is_not_unloaded_once_a_second(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forge and reForge have it work there on a small card, count it among what is loaded, and say on the console each
    time that they try to unload all."""
    unloaded: list[bool] = []
    text_encoder = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    manager = SimpleNamespace(current_loaded_models=[text_encoder], unload_all_models=lambda: unloaded.append(True))
    monkeypatch.setitem(sys.modules, "backend.memory_management", manager)
    for _ in range(3):
        host.lend_gpu()
    assert len(unloaded) == 1
    manager.current_loaded_models.append(SimpleNamespace(device=SimpleNamespace(type="cuda")))
    host.lend_gpu()
    assert len(unloaded) == 2
    host.take_gpu_back()


@pytest.mark.parametrize("busy", [True, False])
def test_a_webui_that_starts_beside_an_engine_loads_no_model(webui: StandIn, tmp_path: Path, busy: bool) -> None:
    folder = webui.models / "dreambooth"
    folder.mkdir()
    engine = lock.acquire(folder / ".device") if busy else None
    webui.load_script()
    assert webui.module("shared").cmd_opts.skip_load_model_at_start is busy
    if engine:
        engine.close()


def _basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_pictures_are_described_by_the_webuis_models_in_its_queue(
    host: Any, webui: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picture, queue, held = tmp_path / "a.png", webui.module("call_queue").queue_lock, []
    Image.new("RGB", (8, 8)).save(picture)
    assert host.captioners == (), "this WebUI has neither"
    with pytest.raises(UserError, match=r"no 'BLIP' .*it has: none"):
        host.describe(picture, "BLIP")

    def say(image: Any) -> str:
        held.append(not queue.acquire(False))
        return f" a picture of {image.width} pixels\n"

    blip = SimpleNamespace(load=lambda: None, unload=lambda: held.append("unloaded"), generate_caption=say)
    monkeypatch.setattr(webui.module("shared"), "interrogator", blip, raising=False)
    deepbooru = ModuleType("modules.deepbooru")
    deepbooru.__spec__ = ModuleSpec("modules.deepbooru", None)
    deepbooru.model = SimpleNamespace(  # type: ignore[attr-defined]
        start=lambda: None,
        stop=lambda: held.append("stopped"),
        tag_multi=lambda image, force_disable_ranks: say(image) if force_disable_ranks else "(star:0.998)",
    )
    monkeypatch.setitem(sys.modules, "modules.deepbooru", deepbooru)
    monkeypatch.setattr(sys.modules["modules"], "deepbooru", deepbooru, raising=False)
    assert host.captioners == ("BLIP", "DeepDanbooru")
    for captioner in host.captioners:
        assert host.describe(picture, captioner) == "a picture of 8 pixels"
    assert held == [True, "unloaded", True, "stopped"]
    host.lend_gpu()
    with pytest.raises(UserError, match=r"BLIP cannot describe a\.png: Dreambooth has the GPU"):
        host.describe(picture, "BLIP")
    host.take_gpu_back()
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        host.describe(picture, "BLIP")


def test_who_is_admitted(host: Any, webui: StandIn) -> None:
    assert host.admits({}, {}), "no login is asked for"
    host.app = SimpleNamespace(auth={"anna": "1"}, tokens={"abc": "anna"})
    assert not host.admits({}, {})
    assert host.admits({}, {"access-token": "abc"}), "the page's login, gradio 3"
    assert host.admits({}, {"access-token-unsecure-Xy": "abc"}), "and 4"
    assert not host.admits({}, {"access-token": "abd"})
    assert not host.admits(_basic("anna:1"), {}), "the page's password is not the API's"
    assert not host.has_accounts
    webui.module("shared").cmd_opts.api_auth = "bob:key,eve:other"
    assert host.admits(_basic("eve:other"), {}) and host.has_accounts
    assert not host.admits(_basic("eve:key"), {})
    assert not host.admits({"authorization": "Basic %%%"}, {})
    host.app = SimpleNamespace()  # --nowebui
    assert not host.admits({}, {})
