"""What few runs use is imported when it is used, and then it is all there. In a process of its own, as an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.conftest import ROOT

BEGIN = """
import gc, importlib, json, sys
from dreambooth.engine.process import lazy_imports, lazy_modules
lazy_imports.install()
from dreambooth.engine import worker
lazy_imports.settle()
awake = lambda: [name for name in lazy_imports.TABLE if lazy_modules.is_loaded(name)]
"""

LIGHT = """
before = [awake(), len(sys.modules), gc.isenabled()]
from pathlib import Path
from dreambooth.core.install_paths import MINIATURES
from dreambooth.core.settings import parse
from dreambooth.engine import families
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import adapters, optimizers
import torch
after = []
for settings in ({"general.method": "full"}, {"lora.rank": 4}):
    model = families.load_file(MINIATURES["sd1"])
    trained = adapters.make_trainable(model, parse(settings))
    optimizer = optimizers.make(trained, parse(settings))
    text = model.encode_text(["a photo of a star"])
    loss = model.denoise(torch.randn(1, 4, 16, 16), torch.tensor([10]), text, None).square().mean()
    loss.backward()
    optimizer.step()
    after.append(awake())
print(json.dumps([before, after]))
"""

WOKEN = """
count = lambda name: sum(one.startswith(name + ".") for one in sys.modules)
handed = {}
for name, known in lazy_imports.TABLE.items():
    module = importlib.import_module(name)
    handed[name] = {key: getattr(module, key) for key in known.names}
assert not awake()
import torch, transformers, bitsandbytes, scipy.stats
from diffusers import AutoencoderTiny, LMSDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.transformers import DiTTransformer2DModel
from dreambooth.engine.training import optimizers
faults = {name: optimizers.fault(name, torch.device("cpu")) for name in ("adamw", "adamw_8bit", "lion_8bit")}
scheduler = LMSDiscreteScheduler()
scheduler.set_timesteps(4)
found = [float(scheduler.get_lms_coefficient(2, 1, 0)), float(scipy.stats.norm.cdf(0)), awake()]
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.zeros(3)).tolist()
from scipy.optimize import linear_sum_assignment
from torch.distributed.tensor import DTensor
from transformers.processing_utils import Unpack
from transformers import AutoImageProcessor
pairs = [side.tolist() for side in linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])]
not_sharded = isinstance(torch.zeros(1), DTensor)
for name in lazy_imports.TABLE:
    lazy_modules.loaded(name)
    module = sys.modules[name]
    for key, thing in handed[name].items():
        assert getattr(module, key) is thing, (name, key)
from diffusers.models.attention import BasicTransformerBlock
rules = importlib.import_module("torch._dynamo.trace_rules")
told = id(BasicTransformerBlock) in rules._allowed_callable_ids.function_ids
names = [AutoencoderTiny.__name__, DiTTransformer2DModel.__name__, bitsandbytes.optim.AdamW8bit.__name__]
processor = AutoImageProcessor.from_pretrained.__name__
print(json.dumps([found, faults, compiled, pairs, not_sharded, names, bitsandbytes.__spec__.name, told, processor,
    sorted(set(lazy_imports.TABLE) - set(awake()))]))
"""


def test_a_run_imports_no_more_than_it_uses() -> None:
    (asleep, modules, collecting), after = _found(LIGHT)
    assert asleep == []
    assert modules < 2100, "about half of what the libraries would bring by themselves"
    assert collecting
    assert after == [[], []]


def test_what_is_put_off_is_there_when_it_is_used() -> None:
    found, faults, compiled, pairs, sharded, names, spec, told, processor, still_asleep = _found(WOKEN)
    order, mean, awake = found
    assert order
    assert mean == 0.5
    assert "scipy.stats" in awake
    assert "bitsandbytes" in awake
    assert set(faults.values()) == {""}
    assert compiled == [1, 1, 1]
    assert pairs == [[0, 1], [1, 0]]
    assert not sharded
    assert names == ["AutoencoderTiny", "DiTTransformer2DModel", "AdamW8bit"]
    assert spec == "bitsandbytes"
    assert told, "the compiler hears what diffusers said of its blocks while it slept"
    assert processor == "from_pretrained"
    assert still_asleep == []


def _found(script: str) -> Any:
    command = [sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
