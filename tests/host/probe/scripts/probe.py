"""An extension of the tests, for a WebUI on the processor: it lets the extension believe that there is a GPU, and says
what became of the WebUI's model."""

import os
import sys
from types import SimpleNamespace

from modules import devices, script_callbacks, sd_models

moved = []


def noting(name, call):
    def noted(*arguments, **named):
        moved.append(name)
        return call(*arguments, **named)

    return noted


def models_there():
    """How many models the WebUI holds ready for drawing."""
    if hasattr(sd_models.model_data, "loaded_sd_models"):  # AUTOMATIC1111
        return int(sd_models.model_data.sd_model is not None)
    from backend import memory_management

    return len(memory_management.current_loaded_models)


def pretend(_demo, app):
    webui = sys.modules["dreambooth.host.webui"]
    if not hasattr(webui, "really"):
        webui.really = webui.devices
        for name in ("send_model_to_cpu", "send_model_to_device", "unload_model_weights"):
            setattr(sd_models, name, noting(name, getattr(sd_models, name)))

    def gpu(there: bool):
        pretended = SimpleNamespace(device=SimpleNamespace(type="cuda"), torch_gc=devices.torch_gc)
        webui.devices = pretended if there else webui.really
        return {"there": there}

    def model():
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {"moved": moved, "models": models_there(), "resident_bytes": resident}

    app.add_api_route("/probe/gpu", gpu, methods=["GET"])
    app.add_api_route("/probe/model", model, methods=["GET"])


script_callbacks.on_app_started(pretend)
