"""An extension of the tests, for a WebUI on the CPU: it lets the extension believe that there is a GPU, and says
what became of the WebUI's model."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from modules import devices, script_callbacks, sd_models

moved = []
manager = sys.modules.get("backend.memory_management") or sys.modules.get("ldm_patched.modules.model_management")


def noting(name, call):
    def noted(*arguments, **named):
        moved.append(name)
        return call(*arguments, **named)

    return noted


def models_there():
    """How many models the WebUI holds ready for drawing."""
    return len(manager.current_loaded_models) if manager else int(sd_models.model_data.sd_model is not None)


def pretend(_demo, app):
    lending = sys.modules["dreambooth.host.lending"]
    if not hasattr(lending, "really"):
        lending.really = lending.devices
        where = manager or sd_models
        for name in ("unload_all_models",) if manager else ("send_model_to_cpu", "send_model_to_device"):
            setattr(where, name, noting(name, getattr(where, name)))

    def gpu(there: bool):
        simulated = SimpleNamespace(device=SimpleNamespace(type="cuda"), torch_gc=devices.torch_gc)
        lending.devices = simulated if there else lending.really
        return {"there": there}

    def model():
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {"moved": moved, "models": models_there(), "resident_bytes": resident}

    def deepdanbooru():
        """Weights that see a star and nothing else in every picture, where the WebUI writes tags with their ranks."""
        from modules import deepbooru_model, paths, shared

        shared.opts.data["interrogate_return_ranks"] = True

        model = deepbooru_model.DeepDanbooruModel()
        last = model.n_Conv_178
        torch.nn.init.constant_(last.weight, -1)  # of what is never below nothing
        last.weight.data[0] = 1
        state = {name: tensor.half() for name, tensor in model.state_dict().items()}
        state["tags"] = ["star", *(f"thing_{number}" for number in range(1, last.out_channels))]
        folder = Path(paths.models_path) / "torch_deepdanbooru"
        folder.mkdir(exist_ok=True)
        torch.save(state, folder / "probe.pt", _use_new_zipfile_serialization=False)  # its unpickler knows no newer
        return {}

    app.add_api_route("/probe/deepdanbooru", deepdanbooru, methods=["GET"])
    app.add_api_route("/probe/gpu", gpu, methods=["GET"])
    app.add_api_route("/probe/model", model, methods=["GET"])


script_callbacks.on_app_started(pretend)
