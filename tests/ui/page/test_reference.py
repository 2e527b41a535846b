"""What is written out of the page and the API: complete, and as it lies in docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from dreambooth.core.install_paths import PROJECT
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings
from dreambooth.host.standalone import Standalone
from dreambooth.service import api
from dreambooth.ui.page import reference


@pytest.fixture
def host(tmp_path: Path) -> Standalone:
    return Standalone(str(tmp_path))


def test_the_api_is_documented(host: Standalone) -> None:
    written = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == reference.api_reference(host), "run: python -m dreambooth.ui.page.reference api > docs/api.md"


def test_what_the_docs_tell_to_press_is_there(host: Standalone) -> None:
    """Bold words of the guide are buttons, tabs and fields, but for the beginnings of its paragraphs; so are italic
    ones of what else there is to read."""
    there, docs = set(reference.texts(host)), PROJECT / "docs"
    guide = (docs / "guide.md").read_text(encoding="utf-8")
    told = {one for one in re.findall(r"\*\*([^*]+?)\*\*", guide) if not one.endswith(".")}
    pages = ("guide", "how-it-works", "coming-from", "command-line", "webuis")
    for file in (*(docs / f"{name}.md" for name in pages), PROJECT / "README.md"):
        plain = file.read_text(encoding="utf-8").replace("**", "")
        told |= {" ".join(one.split()) for one in re.findall(r"(?<!\S)\*([^*]+?)\*", plain)}
    described = {f"Describe with {one}" for one in ("BLIP", "DeepDanbooru")}  # made of the captioner's name
    assert described < told and {"Stop and keep", "Train Person", "Gradient Checkpointing"} & told
    assert told - there - described - {"call", "Install from URL", "Settings, Dreambooth"} == set()


def test_every_route_is_in_the_schema_with_a_description(host: Standalone) -> None:
    app = FastAPI()
    app.include_router(api.router(host))
    paths = app.openapi()["paths"]
    assert len(paths) > 30
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("description"), f"{method} {path}"
    body = paths["/dreambooth/models/{name}/settings"]["patch"]["requestBody"]["content"]["application/json"]["schema"]
    known = body["properties"]["settings"]["properties"]
    assert set(known) == {leaf.key for leaf in leaves(Settings)}
    assert known["lora.rank"]["title"] == "Lora Rank"


def test_a_localisation_file_has_every_label_and_help(host: Standalone) -> None:
    found = reference.texts(host)
    assert len(found) == len(set(found))
    for leaf in leaves(Settings):
        assert leaf.spec.label in found and leaf.spec.help in found
    assert {"Train", "Performance", "Concepts", "Create a model", "paused", "cosine_with_restarts"} <= set(found)
    assert not {"save", "shown model", "compare", "setting to reset", "loaded settings"} & set(found)
