"""An Apple GPU simulated on the CPU: a simulated card (see there) that refuses what PyTorch refuses on one.

That is double precision, and two things that it would take and get wrong without a word: a copy that nobody waits for,
and a fused step that is to be left out. Operations for which the locked PyTorch has no kernel there are noted, as its
table of operations has them. What runs through is not proven to work on an Apple GPU; what fails here fails there, too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchgen
import yaml
from torch import Tensor

from tests.engine.simulated_card import BYTES, SimulatedCard

_TABLE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
# The CPU's own kernels, in whose place PyTorch does a sum of plain operations on an Apple GPU.
_OF_THE_CPU = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
}


class SimulatedAppleGpu(SimulatedCard):
    device, says = torch.device("mps", 0), "mps:0"
    kind, title = "mps", "is_mps"

    def __init__(self) -> None:
        super().__init__()
        self.asked_for_states = 0  # of its random numbers
        self.lacking: set[str] = set()  # operations that the CPU does in its place

    def put(self, tensor: Tensor) -> Tensor:
        if tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return super().put(tensor)

    def check_operation(self, function: Any, kwargs: dict[str, Any]) -> None:
        if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
            return
        packet = function.overloadpacket.__name__
        if packet.startswith("_fused_") and kwargs.get("found_inf") is not None:
            raise AssertionError(f"{packet} of an Apple GPU takes the step whatever found_inf says")
        if packet not in _OF_THE_CPU and not has_kernel(function.__name__.removesuffix(".default")):
            self.lacking.add(packet)

    def check_late(self) -> None:
        raise AssertionError("an Apple GPU reads or writes what nobody has waited for")

    def patches(self) -> list[tuple[Any, str, Any]]:
        def state(device: Any = "mps") -> Tensor:
            self.asked_for_states += 1
            return torch.get_rng_state()

        of_mps = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: None,
            "get_rng_state": state,
            "set_rng_state": lambda state, device="mps": None,
            "recommended_max_memory": lambda: BYTES,
            "driver_allocated_memory": lambda: 2 * 2**30,
            "current_allocated_memory": lambda: 2**30,
        }
        backend = {"is_available": lambda: True, "is_built": lambda: True, "is_macos_or_newer": lambda *release: True}
        return [
            *((torch.mps, name, value) for name, value in of_mps.items()),
            *((torch.backends.mps, name, value) for name, value in backend.items()),
            (torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps")),
        ]


@functools.cache
def _operations() -> dict[str, Any]:
    """Each operation of PyTorch by its name and overload."""
    found = {}
    for entry in yaml.load(_TABLE.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        name = entry["func"].split("(")[0]
        keys = {key.strip() for some in entry.get("dispatch", {}) for key in some.split(",")}
        made = [one.split("(")[0] for one in str(entry.get("autogen", "")).split(", ")]
        found[name] = SimpleNamespace(keys=keys, by=entry.get("structured_delegate"), is_plain="dispatch" not in entry)
        found.update(
            {one: SimpleNamespace(keys={"CompositeExplicitAutograd"}, by=None, is_plain=False) for one in made}
        )
    return found


@functools.cache
def has_kernel(name: str) -> bool:
    """Whether the locked PyTorch has an operation (its name and overload) on an Apple GPU, of itself or by others."""
    operation = _operations()[name]
    if operation.by:
        return has_kernel(operation.by)
    return operation.is_plain or any(key == "MPS" or key.startswith("Composite") for key in operation.keys)
