"""What the browser asks for: guarded like the API, read from the folders, free of what a name could smuggle in."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.errors import RUN_SETUP, Problem, UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.models.captioner_folder import BLIP
from dreambooth.core.project import Folders
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings, parse, to_json
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, installation, page_environment
from dreambooth.ui.page import alone, jobs, routes
from dreambooth.ui.page.fragments import problem_list
from dreambooth.ui.page.help_page import help_link


class Locked(Standalone):
    """A host with a login that nobody has passed."""

    def admits(self, headers: object, cookies: object) -> bool:
        return False


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


def client(folders: Folders, host: type[Standalone] = Standalone) -> TestClient:
    app = FastAPI()
    app.include_router(routes.router(host(str(folders.models))))
    return TestClient(app)


def job(folders: Folders, *events: dict[str, object]) -> job_folder.Job:
    made = job_list.create(
        project.open_project(folders, "star").runs, {"kind": "train", "model": "star"}, to_json(Settings())
    )
    with open(made.folder / "events.jsonl", "w") as file:
        file.writelines(json.dumps({"time": 0, **event}) + "\n" for event in events)
    return made


def test_why_a_card_is_not_used_is_told_as_long_as_that_is_so(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {"ready": True, "working": False, "problem": "", "said": "", "log": ""}
    for note in ("", "The driver <470> is too old: training uses the CPU."):
        monkeypatch.setattr(installation, "state", lambda note=note: {**ready, "note": note})
        headers = {"X-Dreambooth-Token": Standalone.token}
        shown = client(folders).get("/dreambooth/page/live?view=run&model=star", headers=headers).text
        assert ("db-unused-card" in shown) == bool(note) and ("driver &lt;470&gt; is" in shown) == bool(note)


def test_a_run_that_is_going_stays_in_view_with_its_buttons_while_the_engine_is_set_up(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update: the set-up waits for the run, and asks to pause it."""
    state = {"ready": False, "working": True, "problem": "", "said": "Waiting for 1 job", "log": "", "note": ""}
    monkeypatch.setattr(installation, "state", lambda: state)
    project.create(folders, "sun", MINIATURE)
    run = job(folders, {"event": "started"}, STEP)
    alive = run.hold()
    assert alive

    def shown(model: str) -> str:
        headers = {"X-Dreambooth-Token": Standalone.token}
        return client(folders).get(f"/dreambooth/page/live?view=run&model={model}", headers=headers).text

    own, other = shown("star"), shown("sun")
    assert 'data-db-state="running"' in own and "Waiting for 1 job" in own and "step 5 of 10" in own
    assert 'data-db-state="working"' in other and "Pause it" in other
    alive.close()
    assert 'data-db-state="working"' in shown("star") and "Pause it" not in shown("sun")


def test_the_repair_is_offered_where_the_engine_may_be_damaged(folders: Folders) -> None:
    headers = {"X-Dreambooth-Token": Standalone.token}
    for error in (Problem("A package does not load.", do=RUN_SETUP), Problem("Another failure.")):
        said = UserError(error).as_json()
        job(folders, {"event": "started"}, {"event": "failed", "refused": False, **said})
        shown = client(folders).get("/dreambooth/page/live?view=run&model=star", headers=headers).text
        assert ("db-engine-damaged" in shown) == error.is_of_engine and error.what in shown


STEP = {"event": "step", "step": 5, "steps": 10, "images": 5, "loss": 0.5, "rate": 1e-4, "steps_per_second": 2.0,
        "seconds_left": 2.5, "memory_bytes": 0}  # fmt: skip


def test_without_the_login_or_the_pages_token_nothing_is_told(folders: Folders) -> None:
    asked = client(folders, Locked)
    assert asked.get("/dreambooth/page/live?view=run&model=star").status_code == 401
    with_token = {"X-Dreambooth-Token": Locked.token}
    assert asked.get("/dreambooth/page/live?view=run&model=star", headers=with_token).status_code == 200


def test_a_pictures_address_is_good_for_that_picture_and_nothing_else(folders: Folders) -> None:
    """Whoever gets its link from somebody who has logged in."""
    failed = job(folders, {"event": "started"}, STEP, {"event": "failed", "problems": ["A sentence."], "refused": True})
    previews = [failed.previews / f"5-0-{number}.png" for number in range(2)]
    failed.previews.mkdir()
    for path in previews:
        Image.new("RGB", (64, 64)).save(path)
    failed.report("preview", images=5, paths=[str(path) for path in previews], prompts=["a & b"])
    app = FastAPI()
    for made in (routes, api):
        app.include_router(made.router(Locked(str(folders.models))), prefix="/behind/a/proxy")
    asked = TestClient(app, base_url="http://here/behind/a/proxy/")
    headers = {"X-Dreambooth-Token": Locked.token}
    shown = asked.get("dreambooth/page/live?view=run&model=star", headers=headers).text
    addresses = [html.unescape(one) for one in re.findall('data-db-src="(.*?)"', shown)]
    assert len(addresses) == 5, "two pictures, each with a small one, and the report"
    for address in addresses:
        assert Locked.token not in address
        assert asked.get(address).status_code == 200
        assert asked.post(address).status_code in (401, 405)
        seal = address.rpartition("&seal=")[2]
        for other in (
            address.replace("&seal=", "&side=64&seal="),
            address.replace("5-0-0", "5-0-1").replace("run=1", "run=2"),
            address.replace("models/star/", "models/sun/"),
            f"dreambooth/models/star/runs?seal={seal}",
            address.replace(seal, ""),
            address.replace(seal, Locked.token),
            address.replace(f"seal={seal}", f"token={Locked.token}"),
        ):
            assert other == address or asked.get(other).status_code == 401, other


def test_the_help_behind_a_section_is_the_shipped_reference(folders: Folders) -> None:
    link = help_link("lora", "Lora")
    address = re.search('href="([^"#]+)#lora"', link)
    assert address and "Lora: keys, defaults and bounds" in link
    shown = client(folders, Locked).get(f"/{address[1]}").text  # it asks for no login, and has nothing of anybody's
    for leaf in leaves(Settings):
        assert f'<h2 id="{leaf.key.split(".")[0]}">' in shown
        row = re.search(f"<tr><td><code>{re.escape(leaf.key)}</code></td>(.*?)</tr>", shown)
        assert row and row[1].count("<td>") == 4 and html.escape(leaf.spec.help) in row[1], leaf.key
    assert shown.count("<table>") == shown.count("</table>") == shown.count("<th>setting</th>")


def test_a_view_or_model_that_does_not_exist(folders: Folders) -> None:
    assert client(folders).get("/dreambooth/page/live?view=walk&model=star").status_code == 400
    answer = client(folders).get("/dreambooth/page/live?view=run&model=sun")
    assert answer.status_code == 400
    assert "no model named 'sun'" in answer.json()["problems"][0]


def test_a_result_is_offered_to_txt2img_as_long_as_it_is_there(folders: Folders) -> None:
    lora = folders.loras / 'a "star" 4.safetensors'
    lora.parent.mkdir(parents=True)
    lora.touch()
    saved = {"event": "saved", "kind": "lora", "path": str(lora), "bytes": 1, "images": 5}
    job(folders, {"event": "started"}, STEP, saved)
    address = "/dreambooth/page/live?view=run&model=star"
    assert 'data-db-prompt="&lt;lora:a &quot;star&quot; 4:1&gt;"' in client(folders).get(address).text
    lora.unlink()
    assert "data-db-use" not in client(folders).get(address).text


class Describing(Standalone):
    captioners = ("BLIP",)


def test_describing_is_offered_for_pictures_without_a_caption(folders: Folders, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    project.write_settings(
        project.open_project(folders, "star"),
        {"concepts.0.instance_data_dir": str(tmp_path), "concepts.0.instance_prompt": "[filewords]"},
    )
    address = "/dreambooth/page/live?view=pictures&model=star"
    by_webui, by_engine = client(folders, Describing).get(address).text, client(folders).get(address).text
    assert "&quot;with&quot;: &quot;BLIP&quot;" in by_webui and "Hugging Face" not in by_webui
    assert f"&quot;with&quot;: &quot;{BLIP}&quot;" in by_engine and "Hugging Face" in by_engine
    for text in (by_webui, by_engine):
        assert 'data-db-describe="BLIP" data-db-send="dreambooth/models/star/errands"' in text
    (tmp_path / "a.txt").write_text("a star\n")
    assert "trained as" not in client(folders).get(address).text
    assert "data-db-describe" not in client(folders, Describing).get(address).text
    assert "data-db-describe" not in client(folders).get(address).text


def test_a_caption_is_shown_as_it_is_read(folders: Folders, tmp_path: Path) -> None:
    """Without its marker and its backslashes, and where tags are left out with all that it is read as."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(r"sks ||| tifa \(ff7\)")
    own: dict[str, Any] = {"concepts.0.instance_data_dir": str(tmp_path), "captions.keep_marker": "|||"}
    own["concepts.0.instance_prompt"] = "[filewords]"

    def shown(**more: Any) -> str:
        project.write_settings(project.open_project(folders, "star"), {**own, **more})
        return client(folders).get("/dreambooth/page/live?view=pictures&model=star").text

    assert "<figcaption>trained as: sks, tifa (ff7)</figcaption>" in shown()
    varied = re.search(
        r'<figcaption title="([^"]+)">trained as: (.*)</figcaption>', shown(**{"captions.tag_dropout": 0.5})
    )
    assert varied and sorted(varied[1].split("\n")) == ["sks", "sks, tifa (ff7)"] and varied[2] in varied[1].split("\n")


def test_a_picture_that_is_none_is_named_with_the_reason(folders: Folders, tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "words.jpg").write_text("no picture")
    (place / "nothing.png").touch()
    (place / "phone.heic").write_bytes(b"something newer")
    own = {"concepts.0.instance_data_dir": f'"{place}" ', "concepts.0.instance_prompt": "a star"}
    project.write_settings(project.open_project(folders, "star"), own)
    shown = client(folders).get("/dreambooth/page/live?view=pictures&model=star").text
    for said in ("words.jpg: the picture cannot be read (it is no picture)", "nothing.png: the picture cannot be read "
                 "(it is empty)", "phone.heic: the picture cannot be read (it is no picture)"):  # fmt: skip
        assert said in shown
    assert f"{place}/" not in shown


@pytest.mark.skipif(sys.platform != "linux", reason="there every name is Unicode")
def test_a_picture_whose_name_is_not_unicode_hides_no_other(folders: Folders, tmp_path: Path) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    Image.new("RGB", (64, 64)).save(place / "good.png")
    (place / "good.png").rename(os.fsdecode(bytes(place) + b"/caf\xe9.png"))
    Image.new("RGB", (64, 64)).save(place / "good.png")
    own = {"concepts.0.instance_data_dir": str(place), "concepts.0.instance_prompt": "a star"}
    project.write_settings(project.open_project(folders, "star"), own)
    shown = client(folders).get("/dreambooth/page/live?view=pictures&model=star")
    assert shown.status_code == 200
    assert "2 pictures" in shown.text and 'alt="good.png"' in shown.text
    assert "caf?.png: it is trained, but its name is not Unicode" in shown.text
    problem = f"{place}/caf\udce9.png: it broke; mend it."
    job(folders, {"event": "started"}, {"event": "failed", **UserError([problem]).as_json()})
    assert "caf?.png: it broke" in client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "caf?.png: it broke" in problem_list([problem]).encode().decode()


def test_a_check_of_what_is_no_longer_so_is_not_shown(folders: Folders, tmp_path: Path) -> None:
    opened = project.open_project(folders, "star")
    place = tmp_path / "pictures"
    place.mkdir()
    own = {"concepts.0.instance_data_dir": str(place), "concepts.0.instance_prompt": "a star"}
    project.write_settings(opened, own)

    def check() -> None:
        kept = to_json(parse(opened.settings()))
        made = job_list.create(opened.errands, {"kind": "check", "model": "star"}, kept)
        problems = ["concepts.0.instance_prompt: it will not do."]
        done = {"event": "done", "time": 0, "problems": problems, "sheet": ""}
        (made.folder / "events.jsonl").write_text(json.dumps(done) + "\n")

    def shown() -> str:
        return client(folders).get("/dreambooth/page/live?view=check&model=star").text

    check()
    assert "Instance Prompt: it will not do." in shown()
    assert "data-db-problems" in shown()
    project.write_settings(opened, {**own, "concepts.0.instance_prompt": "a photo of a star"})
    assert "will not do" not in shown()
    assert "have changed since the last check" in shown()
    check()
    assert "will not do" in shown()
    later = time.time() + 5
    os.utime(place, (later, later))
    assert "have changed since the last check" in shown()


def test_a_sheet_is_shown_where_it_lies_with_the_model_and_runs_no_script(folders: Folders, tmp_path: Path) -> None:
    """Events of a folder that came from elsewhere may name any file of this machine, or a page of somebody's own."""
    opened = project.open_project(folders, "star")
    made = job_list.create(opened.errands, {"kind": "check", "model": "star"}, to_json(parse(opened.settings())))

    def shown(sheet: Path) -> str:
        sheet.parent.mkdir(exist_ok=True)
        sheet.write_text("<p>a sheet</p><script>alert()</script>")
        done = {"event": "done", "time": time.time(), "problems": [], "sheet": str(sheet)}
        (made.folder / "events.jsonl").write_text(json.dumps(done) + "\n")
        return client(folders).get("/dreambooth/page/live?view=check&model=star").text

    assert "sandbox srcdoc=" in shown(made.folder / "sheet.html")
    for elsewhere in (tmp_path / "sheet.html", opened.folder / ".." / "x.html", made.folder / "sheet.png"):
        assert "iframe" not in shown(elsewhere), elsewhere


def test_the_run_that_is_on_is_shown_and_asked_not_a_later_one_that_rests(folders: Folders) -> None:
    first, later = job(folders, {"event": "started"}), job(folders, {"event": "started"}, {"event": "paused"})
    headers = {"X-Dreambooth-Token": Standalone.token}

    def shown() -> str:
        return client(folders).get("/dreambooth/page/live?view=run&model=star", headers=headers).text

    assert "Run 2" in shown() and job_list.find(folders, "star").name == later.name
    first.request("start")
    assert "Run 1" in shown() and job_list.find(folders, "star").name == first.name
    first.clear_request("start")
    with first.hold() or pytest.fail("it is held"):
        assert "Run 1" in shown()
        jobs.ask(Standalone(str(folders.models)), "star", "pause")
    assert "pause" in first.requests() and not later.requests()


def test_a_run_without_an_engine_is_shown_as_lost_not_as_done(folders: Folders) -> None:
    made = job(folders, {"event": "started"}, STEP, {**STEP, "step": 6})
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert 'data-db-state="failed"' in shown
    assert "lost its engine" in shown
    assert "step 6 of 10" in shown
    made.report("state", step=8)
    made.report("paused")
    assert "step 8 of 10" in client(folders).get("/dreambooth/page/live?view=run&model=star").text
    (made.folder / "events.jsonl").write_text(
        "".join(json.dumps({"time": 1, **event}) + "\n" for event in ({"event": "started"}, STEP))
    )
    (made.state / "0001").mkdir(parents=True)
    assert 'data-db-state="resumable"' in client(folders).get("/dreambooth/page/live?view=run&model=star").text


def test_what_a_run_says_is_text_not_html(folders: Folders) -> None:
    job(folders, {"event": "started"}, {"event": "warning", "text": "<script>alert(1)</script>"},
        {"event": "failed", "problems": ["<b>no</b>"], "refused": True})  # fmt: skip
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "<script>" not in shown
    assert "&lt;b&gt;no" in shown


def test_a_warning_calls_its_setting_by_its_label(folders: Folders) -> None:
    made = job(folders, {"event": "started"}, STEP)
    made.warn("tuning.max_token_length: 3 captions are cut off; it can be up to 225.")
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert '<p class="db-note">Max Token Length: 3 captions are cut off; it can be up to 225.</p>' in shown


def test_a_thousand_steps_make_a_short_curve(folders: Folders) -> None:
    job(folders, {"event": "started"}, *({**STEP, "step": n, "steps": 1000} for n in range(1, 1001)), {"event": "done"})
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert 'data-db-state="done"' in shown
    assert len(shown) < 10_000


def test_curves_of_the_subject_and_the_class_and_every_rate_are_named(folders: Folders) -> None:
    kept = {**STEP, "subject_loss": 0.3, "prior_loss": 0.2, "rates": {"unet": 1e-4, "text_encoder": 5e-5}}
    job(folders, {"event": "started"}, kept, {**kept, "step": 6})
    asked, address = client(folders), "/dreambooth/page/live?view=run&model=star"
    shown = asked.get(address).text
    assert "Loss: now 0.5, at most 0.5; Subject: now 0.3, at most 0.3; Class: now 0.2, at most 0.2" in shown
    assert '<span class="db-line-1">Subject <b>0.3</b></span><span class="db-line-2">Class <b>0.2</b></span>' in shown
    assert "Learning rates: UNet 0.0001 · Text encoder 5e-05" in shown
    job(folders, {"event": "started"}, STEP, {**STEP, "step": 6, "rates": {"unet": "much", "words": None}})
    shown = asked.get(address).text
    assert "Loss: now 0.5" in shown and "Subject" not in shown and "Learning rates" not in shown


def test_the_address_is_said_when_the_page_can_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        socket.create_connection(sockets[0].getsockname(), timeout=5).close()
        reached.append(capsys.readouterr().out)
        server.started = True

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert alone.main(["--data", str(tmp_path), "--port", "0"]) == 0
    assert "The page is at http://127.0.0.1:" in reached[0]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert alone.main(["--data", str(tmp_path), "--port", str(port)]) == page_environment.PORT_IS_TAKEN
    said = capsys.readouterr()
    assert said.out == "" and f"--port: {port} cannot be used (" in said.err


def test_a_run_that_failed_shows_why_with_its_log_and_a_report(folders: Folders) -> None:
    failed = {"event": "failed", "problems": ["It broke."], "refused": False}
    made = job(folders, {"event": "started"}, failed)
    made.log.write_text("the <last> line\n")
    shown = client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "It broke." in shown
    assert "the &lt;last&gt; line" in shown
    assert "dreambooth/models/star/report?run=1" in shown
    with open(made.folder / "events.jsonl", "a") as file:
        file.write('{"event": "paused"}\n')
    assert "report?run" not in client(folders).get("/dreambooth/page/live?view=run&model=star").text


def test_a_name_of_somebodys_own_that_leads_here_is_refused(folders: Folders) -> None:
    """Else a page at that name could read and ask everything (DNS rebinding)."""
    app = alone.application(Standalone(str(folders.models)))
    for name, code in (
        ("127.0.0.1:7870", 200),
        ("localhost", 200),
        ("evil.example:7870", 400),
        ("127.0.0.1.evil", 400),
    ):
        asked = TestClient(app, base_url=f"http://{name}")
        assert asked.get("/dreambooth/models").status_code == code, name


def test_a_download_that_waits_is_shown_as_one(folders: Folders) -> None:
    made = job_list.create(
        folders.download_errands, {"kind": "download", "repository": "a/b", "file": ""}, to_json(Settings())
    )
    asked = client(folders)
    assert 'role="progressbar"' in asked.get("/dreambooth/page/live?view=download").text
    (made.folder / "events.jsonl").write_text(
        '{"event": "started", "time": 0}\n{"event": "failed", "time": 0, "problems": ["The hub cannot be reached."]}\n'
    )
    assert "The hub cannot be reached." in asked.get("/dreambooth/page/live?view=download").text


def test_a_models_results_have_the_pictures_that_were_drawn_at_them(folders: Folders) -> None:
    opened = project.open_project(folders, "star")
    written = folders.loras / "star_5.safetensors"
    written.parent.mkdir(parents=True)
    written.write_bytes(b"0" * 1000)
    made = job(folders, {"event": "started"}, STEP)
    picture = made.previews / "000000005-00-0.png"
    picture.parent.mkdir()
    picture.write_bytes(b"")
    made.report("preview", images=5, paths=[str(picture)], prompts=["a <b> star"])
    assert "a &lt;b&gt; star" in client(folders).get("/dreambooth/page/live?view=run&model=star").text
    assert "Resume from step" not in client(folders).get("/dreambooth/page/live?view=model&model=star").text
    made.report("saved", path=str(written), images=5, bytes=1000, kind="lora")
    made.report("paused")
    for step in (3, 5):
        (made.state / f"{step:09}").mkdir(parents=True)
    shown = client(folders).get(f"/dreambooth/page/live?view=model&model={opened.name}").text
    assert "000000005-00-0.png" in shown and "star_5" in shown
    assert shown.count("/resume") == shown.count("&quot;kind&quot;: &quot;export&quot;") == 2
    assert shown.count("data-db-twice") - shown.count("db-delete") == 1  # going back sets later states aside


def test_a_button_that_goes_back_to_a_state_says_so(folders: Folders) -> None:
    made = job(folders, {"event": "started"}, STEP, {"event": "paused"})
    for step in (3, 5):
        (made.state / f"{step:09}").mkdir(parents=True)
    shown = client(folders).get("/dreambooth/page/live?view=model&model=star").text
    assert 'aria-label="Resume from step 3; later states go to the trash" data-db-twice>3<' in shown
    assert 'aria-label="Resume from step 5">5<' in shown
    assert "<th></th>" not in shown


def test_a_file_exported_from_a_state_is_shown_with_the_results(folders: Folders) -> None:
    lora = folders.loras / "star_3.safetensors"
    lora.parent.mkdir(parents=True)
    lora.touch()
    made = job(folders, {"event": "started"}, STEP, {"event": "paused"})
    made.report("exported", kind="lora", path=str(lora), bytes=1, images=3, step=1500)
    shown = {
        view: client(folders).get(f"/dreambooth/page/live?view={view}&model=star").text for view in ("model", "run")
    }
    assert "run 1, step 1,500" in shown["model"] and "lora:star_3:1" in shown["model"]
    assert "3 pictures seen · exported from step 1,500" in shown["run"] and "lora:star_3:1" in shown["run"]
    assert list(jobs.results(project.open_project(folders, "star"))) == ["star_3.safetensors (run 1, step 1,500)"]
