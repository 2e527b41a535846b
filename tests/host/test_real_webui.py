"""The extension in a real WebUI, from its installation to its removal: `python -m tests tests/host --webui DIR`.

The WebUI runs on the CPU and keeps everything that it writes in a temporary folder (--data-dir), so that DIR is
as it was. A browser presses the buttons. The tests are one story, in this order.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.service import environment
from tests.conftest import ROOT
from tests.host.real import LONG_MS, UNTRANSLATED, Refused, Visitor, WebUI, install_from_page, snapshot
from tests.ui.page.conftest import browser as browser

NAME = "a star"
EXTENSION = "a dream-booth of any name"
RUNS = "/dreambooth/models/a%20star/runs"
KEPT = {"dreambooth_lend_gpu", "dreambooth_alone_minutes"}  # a WebUI forgets no setting that it was ever told
PROMPT = "a photo of a red star on a blue background"
TAUGHT = "a photo of " + (SUBJECT_PICTURES / "1.txt").read_text().strip()
SHORT = {"intervals.max_train_steps": 4, "previews.count": 0, "lora.rank": 2, "general.resolution": 64}


@pytest.fixture(scope="module")
def webui(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    named = request.config.getoption("--webui")
    if not named:
        pytest.skip("no real WebUI was named; --webui DIR does")
    folder = Path(named).resolve()
    inside = "venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python"
    python = str(request.config.getoption("--webui-python") or folder / inside)
    data = tmp_path_factory.mktemp("webui")
    (data / "models" / "Lora").mkdir(parents=True)
    (data / "extensions").mkdir()
    if (shipped := folder / "models" / "VAE-approx").is_dir():  # what some fetch when it is missing
        shutil.copytree(shipped, data / "models" / shipped.name)
    made = WebUI(folder, python, data)
    if checkpoint := request.config.getoption("--webui-checkpoint"):
        (data / "models" / "Stable-diffusion").mkdir()
        (data / "models" / "Stable-diffusion" / Path(checkpoint).name).symlink_to(Path(checkpoint).resolve())
    else:
        kind = "full-size" if made.is_forge else "miniature"
        models = [str(environment.python()), "-m", "tests.host.real_models", kind, str(data / "models")]
        subprocess.run(models, cwd=ROOT, check=True, env=environment.engine_variables())
    yield made
    made.kill()
    shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    """What the WebUI was before the extension came."""
    return {}


@pytest.fixture
def visitor(webui: WebUI, browser: Any) -> Iterator[Visitor]:
    opened = Visitor(browser, webui.address)
    yield opened
    opened.leave()


def number(webui: WebUI) -> int:
    return int(webui.ask(RUNS)["runs"][-1]["number"])


def run_is(webui: WebUI, *statuses: str, seconds: float = 600) -> Any:
    def reached() -> Any:
        newest = webui.ask(RUNS)["runs"][-1]
        return newest if newest["status"] in statuses else None

    return webui.wait(reached, seconds)


def events(webui: WebUI, what: str) -> list[Any]:
    said = webui.ask(f"{RUNS}/{number(webui)}/events")["events"]
    return [event for event in said if event["event"] == what]


def begin(webui: WebUI, **settings: Any) -> None:
    """A run over the API, with the engine at work when this returns."""
    webui.ask(RUNS, {"settings": {**SHORT, **settings}})
    webui.wait(lambda: events(webui, "step"), 600)


def test_the_webui_without_the_extension(webui: WebUI, before: dict[str, Any]) -> None:
    webui.start()
    before.update(packages=webui.packages(), files=webui.settings_files(), picture=webui.draw(PROMPT)[0])


def test_installed_on_the_extensions_page(webui: WebUI, browser: Any, tmp_path: Path) -> None:
    install_from_page(webui, browser, snapshot(ROOT, tmp_path / "published"), EXTENSION)
    installed = webui.data / "extensions" / EXTENSION
    assert (installed / "install.py").is_file()
    took, said = webui.install_as_at_start(installed)
    assert not said, "with an engine at hand there is nothing to say"
    print(f"install.py: {took:.3f} s")
    shutil.copytree(ROOT / "tests" / "host" / "probe", webui.data / "extensions" / "probe")
    print(f"start: {webui.start():.1f} s")
    assert webui.wait(lambda: webui.ask("/dreambooth/status"), 20)["engine"]["ready"]


def test_without_a_network_the_tab_says_why_there_is_no_engine(webui: WebUI, browser: Any) -> None:
    webui.kill()
    webui.has_engine = False
    took, said = webui.install_as_at_start(webui.data / "extensions" / EXTENSION)
    assert "being set up in the background" in said and took < 5
    webui.start()
    failed = webui.wait(lambda: webui.ask("/dreambooth/status")["engine"]["problem"])
    assert "pip could not be installed" in failed
    visitor = Visitor(browser, webui.address)
    visitor.state("unready")
    visitor.see("#db_run .db-note", "pip could not be installed")
    visitor.press("db_set_up")
    webui.wait(lambda: webui.ask("/dreambooth/status")["engine"]["working"])
    webui.wait(lambda: not webui.ask("/dreambooth/status")["engine"]["working"])
    visitor.see("#db_run .db-note", "pip could not be installed")
    visitor.leave()
    webui.kill()
    webui.has_engine = True
    assert webui.install_as_at_start(webui.data / "extensions" / EXTENSION)[1] == ""
    webui.start()
    webui.wait(lambda: webui.ask("/dreambooth/status"))


def test_a_model_is_made_and_taught_on_the_tab(webui: WebUI, visitor: Visitor) -> None:
    visitor.tab("Model")
    visitor.write("db_new_name", NAME)
    visitor.press("db_create")
    visitor.state("none")
    visitor.see("#db_about", "Stable Diffusion 1")
    visitor.tab("Concepts")
    visitor.drop("db_drop", [str(file) for file in sorted(SUBJECT_PICTURES.iterdir())])
    visitor.see("#db_about", "5 pictures")
    visitor.write("db_concepts_N_instance_prompt", "a photo of [filewords]")
    visitor.saved()
    webui.ask_to("PATCH", "/dreambooth/models/a%20star/settings", {"settings": SHORT})
    visitor.rest()
    visitor.open()
    visitor.press("db_train")
    visitor.state("done", LONG_MS)
    assert visitor.errors == []


def test_the_lora_is_listed_and_used_at_once(webui: WebUI, before: dict[str, Any]) -> None:
    written = Path(run_is(webui, "done")["outputs"][-1])
    assert written.parent == webui.data / "models" / "Lora"
    webui.wait(lambda: written.stem in [one["name"] for one in webui.ask("/sdapi/v1/loras")], 10)
    assert webui.draw(PROMPT)[0] == before["picture"]
    assert webui.draw(f"{PROMPT} <lora:{written.stem}:1>")[0] != before["picture"]


def test_one_press_puts_prompt_and_lora_into_txt2img(webui: WebUI, visitor: Visitor) -> None:
    written = Path(run_is(webui, "done")["outputs"][-1])
    assert visitor.used() == f"{TAUGHT} <lora:{written.stem}:1>"
    assert visitor.errors == []


def test_the_page_is_in_the_webuis_language(webui: WebUI, visitor: Visitor) -> None:
    """Each text of the template is put in «», which shows what the page says besides."""
    template = [sys.executable, "-m", "dreambooth.ui.page.reference", "texts"]
    texts = json.loads(subprocess.run(template, cwd=ROOT, check=True, capture_output=True).stdout)
    marked = {text: f"«{text}»" for text in texts}
    (webui.localizations / "marked.json").write_text(json.dumps(marked), encoding="utf-8")
    webui.ask("/sdapi/v1/options", {"localization": "marked"})
    visitor.reload_ui(webui)
    visitor.see("#db_train", "«Train anew»" if visitor.page.locator("#db_train_anew").is_visible() else "«Train»")
    visitor.see("#db_run h4", "«Written»")
    visitor.see("#db_about", "«5 pictures» · «4 steps»")
    for tab in ("Model", "Settings", "Concepts", "Generate"):
        visitor.tab(tab)
        visitor.page.wait_for_timeout(1500)
    of_gradio = {"Radio", "or", "Drop File Here", "Click to Upload", "Clear", "Common.or", "file_upload.or"}
    hints = {"fill it with colors of the image"}  # of the WebUI's own, for a choice that is called as one of its own
    left = set(visitor.page.evaluate(UNTRANSLATED)) - of_gradio - hints
    named = (NAME, ".safetensors", ".png", "/", "Remove ")  # the last is gradio's, of what has been chosen
    assert [text for text in left if not any(name in text for name in named)] == []
    webui.ask("/sdapi/v1/options", {"localization": "None"})
    visitor.reload_ui(webui)
    assert visitor.errors == []


def test_the_webuis_own_sampler_draws_and_txt2img_draws_it_again(webui: WebUI, visitor: Visitor) -> None:
    written = Path(run_is(webui, "done")["outputs"][-1])
    visitor.tab("Generate")
    visitor.choose("db_library", webui.ask("/dreambooth/status")["host"])
    visitor.choose("db_sampler", "Euler a")
    side = 64  # a model of full size would take half an hour for its own
    how = {"prompt": TAUGHT, "count": 2, "steps": 3, "cfg": 6.5, "lora_weight": 0.7, "width": side, "height": side}
    for field, value in how.items():
        visitor.write(f"db_{field}", str(value))
    visitor.press("db_draw")
    visitor.page.locator("#db_drawn .db-use").nth(1).wait_for(timeout=LONG_MS)
    drawn = sorted((webui.data / "models" / "dreambooth" / NAME / "generated").glob("*.png"))
    prompt = f"{TAUGHT} <lora:{written.stem}:0.7>"
    own = webui.draw(prompt, steps=3, width=side, height=side, seed=420420, sampler_name="Euler a", cfg_scale=6.5,
                     batch_size=2)[0]  # fmt: skip
    with Image.open(drawn[0]) as picture:
        assert picture.convert("RGB").tobytes() == own, "the very picture that the WebUI itself draws"
    visitor.page.locator("#db_drawn .db-use").nth(1).click()
    field = visitor.see("#txt2img_prompt textarea")
    webui.wait(lambda: field.input_value() == prompt, 30)
    for name, value in {"steps": "3", "cfg_scale": "6.5", "seed": "420421", "width": str(side)}.items():
        assert visitor.page.locator(f"#txt2img_{name} input").first.input_value() == value
    assert visitor.page.locator("#txt2img_sampling input").first.input_value() == "Euler a"
    assert visitor.errors == []


def test_a_word_that_learned_is_known_at_once(webui: WebUI) -> None:
    """Its name is drawn before and after there is an embedding of that name. Where the WebUI finds words within LoRAs,
    the word itself draws the same as the name does."""
    lora = Path(run_is(webui, "done")["outputs"][-1])
    coming = f"{lora.stem}-2"  # what the next run of as many steps is called
    unknown = webui.draw(f"a photo of {coming}")[0]
    assert webui.draw(PROMPT)[0] != unknown  # a WebUI keeps what it made of its last prompt
    asked = {"embedding.enabled": True, "concepts.0.instance_token": "sks", "saving.embedding_in_lora": True}
    begin(webui, **asked)
    assert Path(run_is(webui, "done")["outputs"][-1]).stem == coming
    assert (webui.data / "embeddings" / f"{coming}.safetensors").is_file()
    webui.wait(lambda: webui.draw(PROMPT) and webui.draw(f"a photo of {coming}")[0] != unknown, 120)
    if webui.ask("/dreambooth/status")["host"] == "AUTOMATIC1111":
        named, said, other = (webui.draw(f"a photo of {word} <lora:{coming}:1>")[0] for word in (coming, "sks", "zwx"))
        assert named == said != other


def test_the_checkpoint_is_listed_and_used_at_once(webui: WebUI, before: dict[str, Any]) -> None:
    """A whole model from a run where the model is small, from an export where it is of full size."""
    if webui.is_forge:
        written = webui.data / "models" / "Stable-diffusion" / "a merged star.safetensors"
        webui.ask(
            "/dreambooth/models/a%20star/errands", {"kind": "export", "to": str(written), "merge": 1, "half": True}
        )
    else:
        begin(webui, **{"general.method": "full"})
        written = Path(run_is(webui, "done")["outputs"][-1])
    titles = lambda: [one["model_name"] for one in webui.ask("/sdapi/v1/sd-models")]  # noqa: E731
    webui.wait(lambda: written.stem in titles(), 300)
    drawn, said = webui.draw(PROMPT, override_settings={"sd_model_checkpoint": written.stem})
    assert f"Model: {written.stem}" in said and drawn != before["picture"]
    if webui.ask("/dreambooth/status")["host"] == "reForge":  # it stays with what it drew with last
        (first,) = {one["model_name"] for one in webui.ask("/sdapi/v1/sd-models")} - {written.stem}
        webui.ask("/sdapi/v1/options", {"sd_model_checkpoint": first})
        assert webui.draw(PROMPT)[0] == before["picture"]


def test_one_press_chooses_the_checkpoint(webui: WebUI, visitor: Visitor) -> None:
    if webui.is_forge:
        pytest.skip("no run has written a checkpoint of full size")
    written = Path(run_is(webui, "done")["outputs"][-1])
    assert visitor.used() == TAUGHT
    webui.wait(lambda: written.name in webui.ask("/sdapi/v1/options")["sd_model_checkpoint"], 30)
    assert f"Model: {written.stem}" in webui.draw(PROMPT)[1]
    visitor.rest()  # AUTOMATIC1111's page says once more what was chosen when it shows it
    webui.ask("/sdapi/v1/options", {"sd_model_checkpoint": "miniature"})


def test_the_webuis_own_deepdanbooru_describes_pictures(webui: WebUI, tmp_path: Path, visitor: Visitor) -> None:
    webui.ask("/probe/deepdanbooru")
    model = "/dreambooth/models/a%20star"
    folder = Path(webui.ask(f"{model}/settings")["settings"]["concepts.0.instance_data_dir"])
    (folder / "2.txt").unlink()
    visitor.tab("Concepts")
    visitor.see("[data-db-describe=DeepDanbooru]").click()
    webui.wait((folder / "2.txt").exists)
    assert (folder / "2.txt").read_text() == "star\n"
    assert (folder / "1.txt").read_text() == (SUBJECT_PICTURES / "1.txt").read_text(), "what had a caption keeps it"
    begun = webui.ask(f"{model}/errands", {"kind": "caption", "with": "BLIP", "over": True})
    errand = f"{model}/errands/{begun['number']}"
    webui.wait(lambda: webui.ask(errand)["status"] == "failed")  # its weights are not there, and no network is
    assert "BLIP has no weights yet" in webui.ask(errand)["problems"][0]
    assert (folder / "2.txt").read_text() == "star\n"


def test_the_webui_is_used_while_it_trains(webui: WebUI, before: dict[str, Any]) -> None:
    begin(webui, **{"intervals.max_train_steps": 100_000, "intervals.save_state_every_steps": 2})
    began = time.monotonic()
    assert webui.draw(PROMPT)[0] == before["picture"]
    print(f"a picture while it trains: {time.monotonic() - began:.1f} s")
    assert run_is(webui, "running")


def test_an_engine_that_was_killed_is_resumed_with_the_button(webui: WebUI, visitor: Visitor) -> None:
    webui.wait(lambda: events(webui, "state"))
    os.kill(events(webui, "started")[-1]["pid"], signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    visitor.state("resumable")
    assert "SIGKILL" in visitor.see("#db_run [data-db-part=notes] .db-problems").inner_text()
    visitor.press("db_resume")
    visitor.state("running")
    webui.wait(lambda: events(webui, "resumed"))
    assert visitor.errors == []


def test_the_page_is_reloaded_in_the_webui(webui: WebUI, visitor: Visitor) -> None:
    visitor.reload_ui(webui)
    visitor.state("running")
    assert visitor.page.locator("#tab_dreambooth").count() == 1
    assert visitor.errors == []


def test_a_webui_that_was_killed_finds_its_run_again(webui: WebUI, browser: Any) -> None:
    engine = events(webui, "started")[-1]["pid"]
    webui.kill()
    webui.start()
    visitor = Visitor(browser, webui.address)
    visitor.state("running")
    at = run_is(webui, "running")["step"]
    webui.wait(lambda: run_is(webui, "running")["step"] > at, 300)
    assert events(webui, "started")[-1]["pid"] == engine
    visitor.press("db_pause")
    visitor.state("paused", LONG_MS)
    assert visitor.errors == []
    visitor.leave()


def test_the_gpu_is_lent_and_comes_back_even_after_a_crash(
    webui: WebUI, before: dict[str, Any], visitor: Visitor
) -> None:
    assert webui.draw(PROMPT)[0] == before["picture"]
    webui.ask("/probe/gpu?there=true")
    full = webui.ask("/probe/model")
    webui.ask(f"{RUNS}/{number(webui)}/resume", {})
    webui.wait(lambda: len(events(webui, "started")) > 2 and run_is(webui, "running"))
    lent = webui.ask("/probe/model")
    assert lent["moved"][-1] == ("unload_all_models" if webui.is_forge else "send_model_to_cpu")
    if webui.is_forge:
        assert (full["models"] > 0, lent["models"]) == (True, 0)
    with pytest.raises(Refused, match="Dreambooth has the GPU"):
        webui.draw(PROMPT)
    visitor.enter("txt2img")
    visitor.see("#txt2img_prompt textarea").fill("a red star")
    visitor.see("#txt2img_token_counter", "3/75")
    visitor.press("txt2img_generate")
    visitor.see("#html_log_txt2img", "Dreambooth has the GPU")
    visitor.page.locator("#txt2img_interrupt").first.wait_for(state="hidden", timeout=10_000)
    os.kill(events(webui, "started")[-1]["pid"], signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    webui.wait(lambda: webui.draw(PROMPT)[0] == before["picture"], 60)
    print(f"resident: {full['resident_bytes'] / 1e9:.2f} GB, lent {lent['resident_bytes'] / 1e9:.2f} GB")


def test_removed_without_a_trace(webui: WebUI, before: dict[str, Any]) -> None:
    webui.kill()
    assert webui.packages() == before["packages"]
    shutil.rmtree(webui.data / "extensions" / EXTENSION)
    shutil.rmtree(webui.data / "extensions" / "probe")
    webui.start()
    after = webui.settings_files()
    assert after["ui-config.json"] == before["files"]["ui-config.json"]
    settings, earlier = after["config.json"], before["files"]["config.json"]
    assert {key: settings.get(key) for key in earlier} == earlier
    assert {key for key in settings if "dreambooth" in key} <= KEPT
    print("kept in config.json:", KEPT & set(after["config.json"]))
    assert webui.draw(PROMPT)[0] == before["picture"]
