from types import SimpleNamespace

from modules import sd_models

refreshed = []
extra_pages = [
    SimpleNamespace(name="textual_inversion", refresh=lambda: refreshed.append("textual_inversion")),
    SimpleNamespace(name="checkpoints", refresh=sd_models.list_models),
    SimpleNamespace(name="lora", refresh=lambda: refreshed.append("lora")),
]
