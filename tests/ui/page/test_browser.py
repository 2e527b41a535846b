"""The first five minutes, and what goes wrong in them, with a browser on the page and the engine behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_folder, job_list
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Folders, open_project
from tests.ui.page.conftest import Server
from tests.ui.page.hands import MADE_MS, Hands

TRAINING_MS = 240_000
NAME = "star"


@pytest.fixture(scope="module")
def hands(browser: Any, server: Server) -> Iterator[Hands]:
    yield Hands(browser, server.address)


def settings(data: Path) -> dict[str, Any]:
    return open_project(Folders(data), NAME).settings()


def newest(data: Path) -> job_folder.Job:
    return job_list.runs(open_project(Folders(data), NAME))[-1]


def until(found: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


# The tests of this file are one story, in this order.


def test_an_empty_page_says_what_comes_first(hands: Hands) -> None:
    hands.state("nothing")
    hands.see("#db_model_about", "Choose a checkpoint")
    assert not hands.page.locator("#db_train").is_visible()


def test_a_model_without_a_name_is_refused_where_it_is_made(hands: Hands) -> None:
    hands.press("db_create")
    hands.see("#db_create_said", "Name: it is empty")


def test_create(hands: Hands, data: Path) -> None:
    hands.write("db_new_name", NAME)
    hands.write("db_new_source", str(data / "Stable-diffusion" / "nowhere.safetensors"))
    hands.press("db_create")
    hands.see("#db_create_said", "nowhere.safetensors")
    hands.write("db_new_source", str(data / "Stable-diffusion" / "miniature.safetensors"))
    hands.press("db_create")
    hands.state("none")
    hands.see("#db_about", "Stable Diffusion 1")
    hands.see("#db_about", "No pictures yet")
    assert open_project(Folders(data), NAME).source.name == "miniature.safetensors"


def test_what_was_not_learned_cannot_be_put_elsewhere(hands: Hands) -> None:
    hands.tab("Generate")
    hands.unfold("db_export_section")
    hands.choose("db_export_as", "A Lora of another rank")
    hands.press("db_export")
    hands.see("#db_export_said", "Draw with: the model before training has learned nothing")
    hands.choose("db_export_as", "As it is")
    hands.unfold("db_export_section")


def test_training_without_pictures_is_refused_at_the_field(hands: Hands, data: Path) -> None:
    hands.press("db_train")
    hands.see("#db_run_said", "Dataset Directory: it is empty")
    hands.tab("Concepts")
    assert "it is empty" in hands.problem("db_concepts_N_instance_data_dir")
    assert job_list.runs(open_project(Folders(data), NAME)) == []


def test_dropped_pictures_lie_with_the_model(hands: Hands, data: Path) -> None:
    files = sorted(SUBJECT_PICTURES.iterdir())
    hands.drop("db_drop", [str(file) for file in files])
    hands.see("#db_said", "The pictures are in")
    folder = Path(settings(data)["concepts.0.instance_data_dir"])
    assert sorted(path.name for path in folder.iterdir()) == [file.name for file in files]
    assert hands.value("db_concepts_N_instance_data_dir") == str(folder)
    hands.see("#db_about", "5 pictures")


def test_the_pictures_are_shown_at_once_and_their_captions_change_in_place(hands: Hands, data: Path) -> None:
    hands.write("db_concepts_N_instance_prompt", "a photo of [filewords]")
    hands.see("#db_pictures textarea")
    pictures = hands.page.locator("#db_pictures .db-tile img")
    assert pictures.count() == 5
    until(lambda: pictures.first.evaluate("image => image.complete && image.naturalWidth > 0"))
    below = "image => image.closest('.db-frame').getBoundingClientRect().bottom + scrollY - innerHeight"
    assert pictures.first.evaluate(below) < 0, "the first of them are in view"
    field = hands.page.locator("#db_pictures textarea").first
    name = field.get_attribute("data-db-caption")
    field.fill("a sks star")
    field.blur()
    file = (Path(settings(data)["concepts.0.instance_data_dir"]) / str(name)).with_suffix(".txt")
    until(lambda: file.is_file() and file.read_text() == "a sks star\n")
    file.unlink()
    file.mkdir()
    field.fill("words that cannot be written")
    field.blur()
    refused = hands.see("#db_pictures .db-refused")
    hands.page.wait_for_timeout(5_000)
    assert refused.is_visible(), "it stays, though the page has looked again"
    file.rmdir()
    field.fill("a sks star")
    field.blur()
    until(lambda: file.is_file() and not refused.is_visible())


def test_what_is_written_is_saved_by_itself(hands: Hands, data: Path) -> None:
    hands.write("db_concepts_N_instance_prompt", "a photo of [filewords]")
    hands.write("db_concepts_N_class_prompt", "a photo of a star")
    until(lambda: settings(data)["concepts.0.class_prompt"] == "a photo of a star")
    assert settings(data)["concepts.0.instance_prompt"] == "a photo of [filewords]"
    hands.saved()


def test_a_preset_changes_the_page_and_the_file(hands: Hands, data: Path) -> None:
    hands.press("db_preset_person")
    hands.see("#db_preset_said", "Train Person")
    assert settings(data)["intervals.num_train_epochs"] == 150
    assert hands.value("db_concepts_N_num_class_images_per") == "5"


def test_a_bad_number_is_told_at_its_field_and_not_saved(hands: Hands, data: Path) -> None:
    before = settings(data)
    hands.tab("Settings")
    hands.write("db_general_seed", "-3")
    assert hands.problem("db_general_seed") == "-3 is below the minimum, 0."
    hands.see("#db_said", "Seed: -3 is below the minimum")
    assert settings(data) == before
    hands.write("db_general_seed", "7")
    hands.saved()
    assert hands.page.locator("#db_page .db-sentence").count() == 0
    assert settings(data)["general.seed"] == 7


def test_a_second_concept_keeps_its_own_fields(hands: Hands, data: Path) -> None:
    hands.tab("Concepts")
    hands.press("db_concept_add")
    hands.see("#db_concept", "Concept 2")
    until(lambda: hands.value("db_concepts_N_class_prompt") == "")
    hands.write("db_concepts_N_class_prompt", "a photo of a heart")
    until(lambda: settings(data).get("concepts.1.class_prompt") == "a photo of a heart")
    assert settings(data)["concepts.0.class_prompt"] == "a photo of a star"
    hands.see("#db_concept", "Concept 1 · a photo of [filewords]")
    hands.page.locator("#db_concept label", has_text="Concept 1").click()
    until(lambda: hands.value("db_concepts_N_class_prompt") == "a photo of a star")
    hands.page.locator("#db_concept label", has_text="Concept 2").click()
    until(lambda: hands.value("db_concepts_N_class_prompt") == "a photo of a heart")
    hands.press("db_concept_remove")
    until(lambda: "concepts.1.class_prompt" not in settings(data))
    hands.see("#db_said", "Concept 2 was removed; its pictures stay where they are.")
    hands.see("#db_said [data-db-undo]").click()
    until(lambda: settings(data).get("concepts.1.class_prompt") == "a photo of a heart")
    hands.see("#db_concept", "Concept 2")
    hands.page.locator("#db_concept label", has_text="Concept 2").click()
    until(lambda: hands.value("db_concepts_N_class_prompt") == "a photo of a heart")
    hands.press("db_concept_remove")
    until(lambda: "concepts.1.class_prompt" not in settings(data))
    until(lambda: hands.value("db_concepts_N_class_prompt") == "a photo of a star")


def test_two_windows_lose_nothing_of_each_other_and_say_what_is_newer(
    hands: Hands, browser: Any, server: Server, data: Path
) -> None:
    note, words = "#db_elsewhere .db-note", "changed in another window"
    other = Hands(browser, server.address)
    other.see("#db_about", "5 pictures")
    other.page.wait_for_timeout(5000)  # it has looked at the settings once
    hands.tab("Concepts")
    hands.write("db_concepts_N_class_prompt", "a photo of a heart")
    hands.saved()
    other.see(note, words)
    other.see(note, "Concept 1, Class Prompt a photo of a star → a photo of a heart")
    other.tab("Concepts")
    other.unfold("db_section_class")
    other.write("db_concepts_N_class_negative_prompt", "blurred")
    until(lambda: settings(data)["concepts.0.class_negative_prompt"] == "blurred")
    assert settings(data)["concepts.0.class_prompt"] == "a photo of a heart", "what the first window wrote stays"
    other.see(note, "a photo of a heart")
    hands.see(note, "Classification Negative Prompt empty → blurred")
    hands.press("db_refresh")
    until(lambda: not hands.page.locator(note).first.is_visible())
    assert not hands.page.locator(note).first.is_visible()
    other.press("db_refresh")
    other.tab("Concepts")
    until(lambda: other.value("db_concepts_N_class_prompt") == "a photo of a heart")
    until(lambda: not other.page.locator(note).first.is_visible())
    hands.write("db_concepts_N_class_prompt", "a photo of a star")
    hands.saved()
    hands.page.wait_for_timeout(5000)
    assert not hands.page.locator(note).first.is_visible(), "what was changed here is no surprise"
    assert not other.errors
    other.page.close()


def test_the_check_shows_every_picture(hands: Hands) -> None:
    hands.press("db_check")
    hands.see("#db_plan .db-good", "Nothing stands in the way")
    sheet = hands.page.frame_locator("#db_plan iframe")
    sheet.locator("figure").first.wait_for()
    assert sheet.locator("figure").count() == 5
    frame = hands.page.locator("#db_plan iframe").first
    assert frame.evaluate("frame => frame.sandbox.length === 0 && frame.hasAttribute('sandbox')"), "it runs no script"


def test_only_what_the_method_knows_is_shown(hands: Hands, data: Path) -> None:
    hands.tab("Settings")
    hands.unfold("db_section_learning")
    hands.see("#db_learning_lora_learning_rate")
    hands.choose("db_general_method", "full")
    hands.see("#db_learning_learning_rate")
    assert not hands.page.locator("#db_learning_lora_learning_rate").first.is_visible()
    hands.choose("db_general_method", "embedding")
    hands.see("#db_learning_embedding_learning_rate")
    for name in ("learning_learning_rate", "learning_lora_learning_rate", "saving_half_model"):
        assert not hands.page.locator(f"#db_{name}").first.is_visible()
    assert hands.page.locator("#db_section_embedding").is_visible()
    assert not hands.page.locator("#db_section_lora").is_visible()
    hands.choose("db_general_method", "lora")
    hands.see("#db_learning_lora_learning_rate")
    until(lambda: settings(data)["general.method"] == "lora")


def test_the_schedule_moves_with_the_controls(hands: Hands, data: Path) -> None:
    hands.see("#db_schedule svg")  # a flat line by itself has no height
    line = hands.page.locator("#db_schedule polyline.db-of-unet").first
    flat = line.get_attribute("points")
    hands.choose("db_learning_scheduler", "rex")
    until(lambda: line.get_attribute("points") != flat)
    hands.choose("db_learning_scheduler", "constant")
    until(lambda: settings(data)["learning.scheduler"] == "constant")


def test_train_freezes_what_the_page_shows(hands: Hands, data: Path) -> None:
    hands.write("db_intervals_num_train_epochs", "3000")
    hands.write("db_intervals_save_preview_every", "20")
    hands.press("db_train")  # at once: the draft need not have been saved
    hands.state("running", TRAINING_MS)
    frozen = newest(data).settings()
    assert frozen["intervals.num_train_epochs"] == 3000
    assert frozen == settings(data)
    hands.see("#db_run .db-facts", "step ", TRAINING_MS)
    hands.see("#db_run .db-curve polyline", wait_ms=TRAINING_MS)
    assert not hands.page.locator("#db_train").is_visible()


def test_previews_appear_as_they_are_made(hands: Hands, data: Path) -> None:
    hands.press("db_preview")
    until(lambda: hands.page.locator("#db_run .db-sheet th").count() >= 2, 180)
    picture = hands.page.locator("#db_run .db-sheet img").last
    until(lambda: picture.evaluate("image => image.complete && image.naturalWidth") == 64)


def test_a_reloaded_page_and_a_second_browser_show_the_same_run(hands: Hands, browser: Any, server: Server) -> None:
    hands.open()
    hands.state("running")
    hands.see("#db_run h3", "Run 1")
    second = Hands(browser, server.address)
    second.state("running")
    second.page.close()


def test_the_run_outlives_the_server(hands: Hands, server: Server, data: Path) -> None:
    server.end()
    hands.see("#db_run .db-silent", "does not answer")
    server.start()
    assert newest(data).status() == "running"
    hands.open()
    hands.state("running")


def test_pause_and_resume(hands: Hands, data: Path) -> None:
    hands.press("db_pause")
    hands.state("paused", TRAINING_MS)
    step = newest(data).progress()["step"]
    hands.press("db_resume")
    hands.state("running", TRAINING_MS)
    until(lambda: newest(data).progress()["step"] > step, 180)


def test_a_run_goes_on_from_the_state_that_was_chosen(hands: Hands, data: Path) -> None:
    hands.press("db_pause")
    hands.state("paused", TRAINING_MS)
    step = newest(data).progress()["step"]
    hands.tab("Model")
    hands.see("#db_model_about [data-db-send$=resume]")
    hands.page.locator("#db_model_about [data-db-send$=resume]").last.click()
    hands.state("running", TRAINING_MS)
    until(lambda: newest(data).progress()["step"] > step, 180)


def test_a_state_is_exported_while_the_run_rests(hands: Hands, data: Path) -> None:
    hands.press("db_pause")
    hands.state("paused", TRAINING_MS)
    hands.tab("Generate")
    until(lambda: "state after step" in hands.value("db_weights"))
    hands.tab("Model")
    before = set((data / "Lora").glob("*.safetensors"))
    hands.see('#db_model_about [aria-label^="Export the state after step"]').click()
    hands.see("#db_model_about .db-good", "Written: ", TRAINING_MS)
    (written,) = set((data / "Lora").glob("*.safetensors")) - before
    assert hands.see("#db_model_about .db-good").inner_text().endswith(written.name)
    assert newest(data).status() == "paused"
    hands.see("#db_model_about .db-tile", written.stem)
    hands.tab("Generate")
    until(lambda: hands.value("db_weights").startswith(f"{written.name} (run 1, step "))


def test_going_on_with_the_pages_settings_says_what_it_changes_and_what_stays(hands: Hands, data: Path) -> None:
    assert not hands.page.locator("#db_resume_with_page").is_visible()
    hands.tab("Settings")
    hands.write("db_intervals_num_train_epochs", "2500")
    hands.see("#db_run .db-takes", "Training Steps Per Image (Epochs) 3000 → 2500")
    hands.write("db_general_seed", "8")
    hands.see("#db_run .db-plan-made", "Seed (7 in the run, 8 on the page): this says which picture comes when")
    step = newest(data).progress()["step"]
    hands.press("db_resume_with_page")
    hands.state("running", TRAINING_MS)
    now = newest(data).settings()
    assert (now["intervals.num_train_epochs"], now["general.seed"]) == (2500, 7)
    until(lambda: newest(data).progress()["step"] > step, 180)
    assert len(job_list.runs(open_project(Folders(data), NAME))) == 1


def test_stopping_keeps_the_result_and_offers_it(hands: Hands, data: Path) -> None:
    hands.press("db_stop")
    hands.state("stopped", TRAINING_MS)
    hands.see("#db_run .db-files", "star")
    hands.tab("Generate")
    until(lambda: "(run 1)" in hands.value("db_weights"))
    assert list((data / "Lora").glob("star*.safetensors"))


def test_generate(hands: Hands, data: Path) -> None:
    hands.press("db_draw")
    hands.see("#db_draw_said", "Sample Prompt: it is empty")
    hands.write("db_prompt", "a photo of sks star")
    hands.write("db_count", "2")
    hands.press("db_draw")
    until(lambda: hands.page.locator("#db_drawn img").count() == 2, 180)
    assert len(list((open_project(Folders(data), NAME).folder / "generated").glob("*.png"))) == 2


def test_what_was_chosen_to_draw_with_stays_when_the_results_are_read_anew(hands: Hands) -> None:
    newest = hands.value("db_weights")
    again = "() => document.querySelector('button#db_look_again, #db_look_again button').click()"
    for chosen in ("The model before training", newest):
        hands.choose("db_weights", chosen)
        until(lambda wanted=chosen: hands.value("db_weights") == wanted)
        hands.page.evaluate(again)
        hands.page.wait_for_timeout(2000)
        assert hands.value("db_weights") == chosen


def test_a_sheet_of_results_at_weights(hands: Hands, data: Path) -> None:
    hands.unfold("db_sheet_section")
    hands.write("db_sheet_columns", "0, much")
    hands.press("db_draw_sheet")
    hands.see("#db_draw_said", "Lora Weights: '0, much' are no numbers")
    hands.write("db_sheet_columns", "0, 1")
    hands.press("db_draw_sheet")
    until(lambda: hands.page.locator("#db_drawn .db-grid img").count() == 4, 180)  # the result and what was exported
    heads = hands.page.locator("#db_drawn .db-grid th")
    assert heads.all_inner_texts()[:3] == ["Lora Weight", "0", "1"]
    hands.tab("Model")
    hands.see("#db_model_about .db-tile", "star")
    hands.tab("Generate")


def test_export(hands: Hands, tmp_path: Path) -> None:
    hands.unfold("db_export_section")
    target = tmp_path / "exported.safetensors"
    hands.write("db_export_to", str(target))
    hands.press("db_export")
    hands.see("#db_exported .db-good", "exported.safetensors")
    assert target.stat().st_size > 0


def test_what_was_learned_as_something_else(hands: Hands, data: Path, tmp_path: Path) -> None:
    """The fields appear that the kind of export needs, and sentences call them by their labels."""
    for field in ("db_export_onto", "db_export_merge", "db_export_rank"):
        assert not hands.page.locator(f"#{field}").is_visible()
    hands.choose("db_export_as", "A Lora of another rank")
    hands.see("#db_export_rank")
    hands.write("db_export_rank", "2")
    hands.write("db_export_to", str(tmp_path / "small.ckpt"))
    hands.press("db_export")
    hands.see("#db_export_said", "Export to: a LoRA is one .safetensors file")
    hands.write("db_export_to", str(tmp_path / "small.safetensors"))
    hands.press("db_export")
    hands.see("#db_exported .db-good", "small.safetensors")
    hands.see("#db_exported .db-quiet", "of what was learned")
    hands.choose("db_export_as", "Merged into another")
    hands.see("#db_export_merge")
    hands.press("db_export")
    hands.see("#db_export_said", "Other Checkpoint: it is empty")
    hands.write("db_export_onto", str(open_project(Folders(data), NAME).source))
    hands.write("db_export_to", str(tmp_path / "onto.safetensors"))
    hands.press("db_export")
    hands.see("#db_exported .db-good", "onto.safetensors")
    hands.choose("db_export_as", "As it is")


def test_discarding_takes_a_second_press(hands: Hands, data: Path) -> None:
    before = sorted((data / "Lora").iterdir())
    hands.press("db_train")
    hands.state("running", TRAINING_MS)
    hands.press("db_discard")
    hands.see("#db_discard", "Press again")
    assert "discard" not in newest(data).requests()
    hands.press("db_discard")
    hands.state("stopped", TRAINING_MS)
    assert sorted((data / "Lora").iterdir()) == before


def test_duplicate_rename_and_the_trash(hands: Hands, data: Path) -> None:
    hands.tab("Model")
    hands.unfold("db_change_section")
    hands.write("db_other_name", "copy")
    hands.press("db_duplicate")
    hands.see("#db_said", "This is copy.")
    copy = open_project(Folders(data), "copy")
    assert job_list.runs(copy) == []
    assert Path(copy.settings()["concepts.0.instance_data_dir"]).is_relative_to(copy.folder)
    hands.write("db_other_name", "other")
    hands.press("db_rename")
    hands.see("#db_said", "This is other.")
    until(lambda: hands.value("db_model") == "other")
    hands.page.wait_for_timeout(MADE_MS)  # gradio 6 draws the rest of the page anew, bit by bit
    hands.press("db_delete")
    hands.see("#db_delete", "Press again")
    hands.press("db_delete")
    hands.see("#db_said", "other is in the trash")
    until(lambda: hands.value("db_model") == NAME)
    assert not (Folders(data).projects / "other").exists()


def test_the_script_had_no_errors(hands: Hands) -> None:
    assert hands.errors == []


def test_nothing_is_asked_while_a_webui_reloads(hands: Hands) -> None:
    """It puts words in the place of its page then, and a request at the wrong moment can break its start."""
    asked: list[str] = []
    hands.page.evaluate("() => { document.body.innerHTML = '<h1>Reloading...</h1>'; dreamboothPage.answered(); }")
    hands.page.on("request", lambda request: asked.append(request.url))  # of now, not of before
    hands.page.wait_for_timeout(1000)
    assert not [address for address in asked if "/dreambooth/" in address]
    hands.open()
    assert [address for address in asked if "/dreambooth/page/live" in address]
