"""The optimizers, their parameter groups (the UNet's first, then each text encoder's, or that of words that learn), and
their states. With LoRA+ (Hayou et al. 2024, arXiv 2402.12354) a part has two groups, as the up matrices of its LoRA
learn at a multiple of its rate.

None is offered before it has taken real steps on this device, and none is ever put in another's place.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings, learning_rate
from dreambooth.core.settings.optimization import Optimizer as Chosen
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.process import probe
from dreambooth.engine.training.adapters import LEARNED_TOKENS, LORA_UP, Trained

Groups = list[dict[str, Any]]

BY_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")
_ADAM_BETAS, _LION_BETAS, _EPSILON = (0.9, 0.999), (0.9, 0.99), 1e-8
_ADAFACTOR_EPSILON = 1e-30  # of the squared gradient
_CAME_BETA3, _CAME_EPSILONS = 0.9999, (1e-30, 1e-16)  # of the steps' disagreement; of the squared gradient and of that
_LEFT: list[Any] = []  # memory of paged optimizers that are gone
_PACKED = "__bnb_optimizer_quant_state__"  # where bitsandbytes' state_dict puts its 8-bit values


@dataclass(frozen=True)
class Group:
    """Weights of a part of the model that learn at the part's rate times a factor."""

    part: str
    factor: float
    weights: list[nn.Parameter]

    def rate(self, settings: Settings) -> float:
        """The learning rate before any schedule."""
        return learning_rate(settings, self.part) * self.factor


def groups(trained: Trained, settings: Settings) -> list[Group]:
    """In the optimizer's order; of a part in two, what learns at the part's own rate comes first."""
    ratio, found = settings.learning.lora_plus_ratio if settings.is_lora else 1.0, []
    for part, weights in trained.parts.items():
        if ratio == 1 or part == LEARNED_TOKENS:
            found.append(Group(part, 1.0, list(weights.values())))
            continue
        for factor, is_up in ((1.0, False), (ratio, True)):
            side = [weight for name, weight in weights.items() if (LORA_UP in name) == is_up]
            found.append(Group(part, factor, side))
    return found


def make(trained: Trained, settings: Settings) -> torch.optim.Optimizer:
    """The chosen optimizer over the groups, each with its own learning rate and weight decay."""
    chosen = settings.optimizer
    decays = {"unet": chosen.weight_decay, LEARNED_TOKENS: 0.0}
    parameter_groups = [
        {
            "params": group.weights,
            "lr": group.rate(settings),
            "weight_decay": decays.get(group.part, chosen.text_encoder_weight_decay),
        }
        for group in groups(trained, settings)
    ]
    return RECIPES[chosen.name](parameter_groups, chosen)


def check(settings: Settings, device: torch.device) -> None:
    """Raises UserError if the chosen optimizer does not work on this device."""
    name = settings.optimizer.name
    if reason := fault(name, device):
        raise UserError(f"optimizer.name: {name} does not work here ({reason}); choose adamw or another.")


def fault(name: str, device: torch.device) -> str:
    """Why an optimizer does not work on this device; empty if it does."""
    if name in BY_BITSANDBYTES:
        return probe.fault(("optimizer.name", name), device, lambda: try_here(name, device))
    return try_here(name, device)


def try_here(name: str, device: torch.device) -> str:
    """The same, found in this process by steps on a small problem."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Paged optimizers are not supported")  # else it would be replaced
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(320, 320, generator=generator).to(device)  # large enough to be paged, and kept in 8 bits
        weight, bias = nn.Parameter(torch.zeros_like(matrix)), nn.Parameter(torch.zeros(320, 1, device=device))
        losses = []
        try:
            optimizer = RECIPES[name]([{"params": [weight, bias], "lr": 1.0 if name == "prodigy" else 0.01}], Chosen())
            set_mode(optimizer, training=True)
            for _ in range(4):
                loss = (weight + bias - matrix).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        except Exception as error:  # noqa: BLE001  (whatever it is, this optimizer is not for here)
            return out_of_memory.first_line(error)
        return "" if losses[-1] < losses[0] else "its steps do not lower the loss"


def set_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """A schedule-free optimizer holds other weights while it trains than those that are to be used."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Puts what `state_dict` gave back, value for value.

    The optimizers' own way casts to the precision of the weights, which for weights in bf16 would spoil it.
    """
    inner = unwrapped(optimizer)
    numbers = []
    for group, kept in zip(inner.param_groups, saved["param_groups"]):
        numbers += list(zip(kept["params"], group["params"]))
        group.update({name: value for name, value in kept.items() if name != "params"})
    on_device = {
        id(p): group.get("fused") or group.get("capturable") for group in inner.param_groups for p in group["params"]
    }
    inner.state.clear()
    for number, weight in numbers:
        kept = dict(saved["state"].get(number, {}))
        kept.update(kept.pop(_PACKED, {}))
        for name, value in kept.items():
            stays = name == "step" and not on_device[id(weight)]
            inner.state[weight][name] = value if stays else _placed(inner, weight, value)


def _placed(optimizer: Any, weight: nn.Parameter, value: Any) -> Any:
    """A kept value on the weight's device; of a paged optimizer in memory that can be lent again."""
    if not isinstance(value, Tensor):
        return value
    if getattr(optimizer, "is_paged", False) and value.shape == weight.shape:
        return optimizer.get_state_buffer(weight, dtype=value.dtype).copy_(value)
    return value.to(weight.device, copy=True)


def _betas(chosen: Chosen, own: tuple[float, float]) -> tuple[float, float]:
    return chosen.beta1 or own[0], chosen.beta2 or own[1]


def _adamw(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=_betas(chosen, _ADAM_BETAS), eps=chosen.epsilon or _EPSILON, fused=True)


def _bitsandbytes() -> Any:
    """Its optimizers. By themselves they wait for a card after each weight, though what they ask of it goes to the very
    stream that gradients come from and all else goes to."""
    from bitsandbytes import optim  # heavy: only where it is asked for

    optim.optimizer.sync_gpu = lambda weight: None
    return optim


def _settled(paged: Any) -> torch.optim.Optimizer:
    """A paged optimizer whose step ends when the card has done it, as its states are memory that the CPU reads, and
    which takes memory that another has left before it asks for more."""
    paged.register_step_post_hook(lambda *_: hardware.wait_for_card())
    more = paged.get_state_buffer

    def lent(weight: nn.Parameter, dtype: torch.dtype = torch.float32) -> Tensor:
        wanted = weight.shape, dtype, weight.device.index
        for at, one in enumerate(_LEFT):
            if (one.shape, one.dtype, one.page_deviceid) == wanted:
                paged.page_mng.paged_tensors.append(_LEFT.pop(at))
                torch.cuda.synchronize()
                return one.zero_()
        return more(weight, dtype=dtype)  # type: ignore[no-any-return]

    paged.get_state_buffer = lent
    return paged  # type: ignore[no-any-return]


def leave_paged() -> None:
    """What paged optimizers hold is left to the next ones: bitsandbytes never gives it back, and each attempt of a run
    would take as much again. Nothing may use those optimizers any more."""
    if "bitsandbytes.functional" in sys.modules:
        held = sys.modules["bitsandbytes.functional"].GlobalPageManager.get_instance().paged_tensors
        _LEFT.extend(held)
        held.clear()


def _adamw_8bit(groups: Groups, chosen: Chosen, *, paged: bool = False) -> torch.optim.Optimizer:
    optim = _bitsandbytes()
    cls = optim.PagedAdamW8bit if paged else optim.AdamW8bit
    optimizer = cls(groups, betas=_betas(chosen, _ADAM_BETAS), eps=chosen.epsilon or _EPSILON)
    return _settled(optimizer) if paged else optimizer  # type: ignore[no-any-return]


def _paged_adamw_8bit(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    return _adamw_8bit(groups, chosen, paged=True)


def _lion(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    from dreambooth.engine.training.lion import Lion

    return Lion(groups, betas=_betas(chosen, _LION_BETAS))


def _lion_8bit(groups: Groups, chosen: Chosen, *, paged: bool = False) -> torch.optim.Optimizer:
    optim = _bitsandbytes()
    optimizer = (optim.PagedLion8bit if paged else optim.Lion8bit)(groups, betas=_betas(chosen, _LION_BETAS))
    return _settled(optimizer) if paged else optimizer  # type: ignore[no-any-return]


def _paged_lion_8bit(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    return _lion_8bit(groups, chosen, paged=True)


def _adafactor(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    from dreambooth.engine.training.adafactor import Adafactor

    return Adafactor(groups, eps=chosen.epsilon or _ADAFACTOR_EPSILON, beta1=chosen.beta1 or None)


def _came(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    from dreambooth.engine.training.came import CAME

    epsilons = chosen.epsilon or _CAME_EPSILONS[0], _CAME_EPSILONS[1]
    return CAME(groups, betas=(*_betas(chosen, _ADAM_BETAS), _CAME_BETA3), eps=epsilons)


def _prodigy(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    from dreambooth.engine.training.prodigy import Prodigy

    betas = _betas(chosen, _ADAM_BETAS)
    return Prodigy(groups, betas=betas, eps=chosen.epsilon or _EPSILON, d_coef=chosen.d_coef)


def _adamw_schedule_free(groups: Groups, chosen: Chosen) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, betas=_betas(chosen, _ADAM_BETAS), eps=chosen.epsilon or _EPSILON)


RECIPES: dict[str, Callable[[Groups, Chosen], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "lion": _lion,
    "lion_8bit": _lion_8bit,
    "paged_lion_8bit": _paged_lion_8bit,
    "adafactor": _adafactor,
    "came": _came,
    "prodigy": _prodigy,
    "adamw_schedule_free": _adamw_schedule_free,
}
