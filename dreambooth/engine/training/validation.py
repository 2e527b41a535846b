"""How well a run does, told by pictures that it does not learn.

What the model predicts of them is measured again and again with the very same noise, against what it predicted before
the run. As long as the subject is learned, pictures of it that were held out are predicted better, too; from where only
the training pictures are repeated they are predicted worse, though those still gain. Where few can be spared mirror
images of learned ones do, which are not learned either. Beside it goes how far what is predicted for the class has
moved.

The noise is that at which the content of a picture is decided (Choi et al. 2022, arXiv 2204.00227, figure 2): below it
only details are left, which are the first to be learned by heart, and above it hardly anything depends on the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreambooth.core import captions
from dreambooth.core.files import atomic
from dreambooth.core.validation import MOST_MEASURED, spread
from dreambooth.engine import hardware
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.pictures import Example, class_text
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import loss, objective
from dreambooth.engine.training.session import Session

TIMESTEPS = (350, 450, 550, 650, 750, 850)

_HELD_OUT, _LEARNED, _CLASS_ERROR, _CLASS = "held_out", "learned", "class_error", "class."


@dataclass(frozen=True)
class Validated:
    """How much better pictures are predicted than before the run, 1 being without any error; and how far what is
    predicted for the class has moved, as a share of the error that it had; None without a class."""

    held_out: float
    learned: float
    drift: float | None


@dataclass(frozen=True)
class _Probe:
    """A picture that is looked at, with the words that it is read with."""

    x_0: Tensor  # (1, 4, h, w)
    size: Tensor  # (1, 6)
    mask: Tensor | None
    around: Tensor | None  # (1, 5, h, w): an inpainting model paints it as a whole
    seed: int
    words: str
    class_words: str = ""


class Validation:
    """Measures a session. `before` is the file with what was measured before the run's first step, for a run that goes
    on; without it there is nothing to measure against, and `measure` returns None until step 0 is measured."""

    def __init__(
        self, session: Session, own: list[Example], held_out: Encoded, examples: list[Example], before: Path
    ) -> None:
        """`own` are the session's examples, `examples` those of `held_out`, in their order."""
        self.session, self.before = session, before
        self.held_out = [self._probe(held_out, n, example) for n, example in enumerate(examples)]
        chosen = spread(len(own), MOST_MEASURED)
        self.learned = [self._probe(session.instances, n, own[n]) for n in chosen]
        self._texts: dict[str, TextEmbedding] = {}
        self._known = _read(before)
        self._alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod[list(TIMESTEPS)].to(session.model.device)

    def _probe(self, encoded: Encoded, number: int, example: Example) -> _Probe:
        settings, index = self.session.settings, torch.tensor([number])
        picture, seed = example.picture, settings.general.seed
        of_class = class_text(settings, picture) if settings.concepts[picture.concept].class_prompt.strip() else ""
        words = captions.variants(picture.prompt, captions.steady(settings.captions), seed)[0]
        return _Probe(
            encoded.average(index),
            encoded.size[index],
            encoded.masks(index),
            encoded.nothing_around(index),
            seed + number,
            words,
            of_class,
        )

    @torch.no_grad()
    def measure(self) -> Validated | None:
        """None where nothing is known of before the run, or where something is no number."""
        session = self.session
        kept = hardware.random_numbers_kept(session.model.device)
        with session.model.evaluated(), kept, session.shown():
            now = {
                _HELD_OUT: self._errors(self.held_out),
                _LEARNED: self._errors(self.learned),
                **self._of_class(),
            }
            self._texts = {} if session.settings.text_learns else self._texts
        if session.step == 0:
            self._known = now
            atomic.write_bytes(self.before, save(now))
        return _compared(self._known, now)

    def _errors(self, probes: list[_Probe]) -> Tensor:
        """The mean error of some pictures at each timestep, (T,), on the CPU."""
        errors = [self._error(probe, *self._predicted(probe, probe.words)) for probe in probes]
        return torch.stack(errors).mean(0).cpu()

    def _of_class(self) -> dict[str, Tensor]:
        """What is predicted for the class, at the learned pictures, and before the run with how wrong."""
        probes, found = [probe for probe in self.learned if probe.class_words], dict[str, Tensor]()
        errors = []
        for number, probe in enumerate(probes):
            predicted, wanted = self._predicted(probe, probe.class_words)
            found[f"{_CLASS}{number}"] = predicted.cpu()
            errors.append((predicted - wanted).square().mean((1, 2, 3)))
        return {**found, _CLASS_ERROR: torch.stack(errors).mean(0).cpu()} if errors else {}

    def _error(self, probe: _Probe, predicted: Tensor, wanted: Tensor) -> Tensor:
        mask = None if probe.mask is None else probe.mask.expand(len(predicted), -1, -1, -1)
        unmasked = self.session.settings.objective.unmasked_weight
        return objective.picture_means((predicted - wanted).square(), mask, unmasked)

    def _predicted(self, probe: _Probe, words: str) -> tuple[Tensor, Tensor]:
        """What the UNet says of a picture at each timestep, and what would be right, (T, 4, h, w)."""
        model, count = self.session.model, len(TIMESTEPS)
        # The same on every device.
        noise = torch.randn((count, *probe.x_0.shape[1:]), generator=torch.Generator().manual_seed(probe.seed))
        eps, t = noise.to(model.device), torch.tensor(TIMESTEPS, device=model.device)
        x_t = objective.add_noise(probe.x_0, eps, self._alpha_bar)
        text = self._text(words)[torch.zeros(count, dtype=torch.long, device=model.device)]
        taken = inpainting_inputs.joined(x_t, probe.around)
        predicted = loss.predict(self.session, taken, t, text, probe.size.expand(count, -1))
        return predicted.float(), objective.target(model.prediction_type, probe.x_0, eps, self._alpha_bar)

    def _text(self, words: str) -> TextEmbedding:
        if words not in self._texts:
            with self.session.accelerator.autocast():
                self._texts[words] = self.session.model.encode_text([words])
        return self._texts[words]


def _read(before: Path) -> dict[str, Tensor]:
    """What was measured before a run; nothing where that is gone or damaged. The file is not held open."""
    try:
        return load(before.read_bytes())
    except (OSError, SafetensorError):
        return {}


def _compared(before: dict[str, Tensor], now: dict[str, Tensor]) -> Validated | None:
    if any(not torch.isfinite(one).all() for one in (*before.values(), *now.values())):
        return None
    if before.keys() != now.keys() or any(before[name].shape != now[name].shape for name in now):
        return None
    gains = [1 - float((now[name] / before[name]).mean()) for name in (_HELD_OUT, _LEARNED)]
    moved = [(now[name] - before[name]).square().mean((1, 2, 3)) for name in now if name.startswith(_CLASS)]
    drift = float((torch.stack(moved).mean(0) / before[_CLASS_ERROR]).mean()) if moved else None
    return Validated(*gains, drift)
