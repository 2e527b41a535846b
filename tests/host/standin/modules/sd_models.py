import threading
from pathlib import Path
from types import SimpleNamespace

from modules import paths, shared

model = SimpleNamespace(used_config="v1-inference.yaml", place="cuda")
model_data = SimpleNamespace(sd_model=model, loaded_sd_models=[model], lock=threading.Lock())
checkpoints_list = {}


def list_models():
    checkpoints_list.clear()
    for folder in (Path(paths.models_path) / "Stable-diffusion", Path(shared.cmd_opts.ckpt_dir or "/nowhere")):
        for file in sorted(folder.glob("*.safetensors")):
            checkpoints_list[file.name] = SimpleNamespace(title=f"{file.name} [0123456789]", filename=str(file))


def send_model_to_cpu(one):
    one.place = "cpu"


def send_model_to_device(one):
    one.place = "cuda"
