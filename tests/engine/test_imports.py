"""What few runs use is imported when it is used, and then it is all there. In a process of its own, as an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.conftest import ROOT

SCRIPT = """
import json, sys
from dreambooth.engine import imports
imports.put_off()
import dreambooth.engine.worker
count = lambda name: sum(one.startswith(name + ".") for one in sys.modules)
before = {name: count(name) for name in ("bitsandbytes", "diffusers.models.transformers", "torch._inductor")}
import torch, bitsandbytes, scipy.stats
from diffusers import AutoencoderTiny, LMSDiscreteScheduler
from diffusers.models.transformers import DiTTransformer2DModel
from dreambooth.engine.training import optimizers
faults = {name: optimizers.fault(name, torch.device("cpu")) for name in ("adamw", "adamw_8bit", "lion_8bit")}
scheduler = LMSDiscreteScheduler()
scheduler.set_timesteps(4)
order = float(scheduler.get_lms_coefficient(2, 1, 0))
mean = float(scipy.stats.norm.cdf(0))
names = [AutoencoderTiny.__name__, DiTTransformer2DModel.__name__, bitsandbytes.optim.AdamW8bit.__name__]
print(json.dumps([before, faults, order, mean, names, bitsandbytes.__spec__.name]))
"""


def test_what_is_put_off_is_there_when_it_is_used() -> None:
    before, faults, order, mean, names, spec = found()
    assert before["bitsandbytes"] == 0
    assert before["diffusers.models.transformers"] < 15
    assert before["torch._inductor"] < 60, "the compiler is not brought along"
    assert set(faults.values()) == {""}
    assert order
    assert mean == 0.5
    assert names == ["AutoencoderTiny", "DiTTransformer2DModel", "AdamW8bit"]
    assert spec == "bitsandbytes"


def found() -> Any:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])
