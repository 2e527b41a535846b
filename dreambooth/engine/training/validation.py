"""Validation: how well a run does, measured on images that it is not trained on.

The error of the model's prediction for validation images is measured repeatedly with the same noise, relative to the
error before the run. While the subject is learned it falls for validation images, too; when the model overfits it rises
for them, though that for training images still falls. Where no images can be spared, mirror images of training images
are used, which are not trained on either. Beside it, the drift of the predictions for the class is measured.

The timesteps are those at which the content of an image is decided (Choi et al. 2022, arXiv 2204.00227, figure 2): with
less noise only details are left, which are memorized first, and with more hardly anything depends on the prompt.
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
class ValidationResult:
    """The gains of a run since its beginning. A gain is 1 - error / error before the run."""

    held_out: float  # the gain of validation images
    learned: float  # the gain of training images
    drift: float | None  # mean squared change of the predictions for the class / their error before; None without one


@dataclass(frozen=True)
class _Probe:
    """An image that is measured, with its prompts."""

    x_0: Tensor  # (1, 4, h, w)
    size: Tensor  # (1, 6)
    mask: Tensor | None
    inpainting: Tensor | None  # (1, 5, h, w), the further inputs of an inpainting model, to paint it as a whole
    seed: int  # of its noise
    prompt: str
    class_prompt: str = ""


class Validation:
    """Measures a session. The errors before the run's first step are kept in the file `before`, for a run that is
    resumed; while that file is missing `measure` returns None, except at step 0, where it is written."""

    def __init__(
        self, session: Session, own: list[Example], encoded: Encoded, examples: list[Example], before: Path
    ) -> None:
        """`own` are the session's examples, `examples` the validation images, of which `encoded` are the latents."""
        self.session, self.before = session, before
        self._validation = [self._probe(encoded, n, example) for n, example in enumerate(examples)]
        chosen = spread(len(own), MOST_MEASURED)
        self._training = [self._probe(session.instances, n, own[n]) for n in chosen]
        self._texts: dict[str, TextEmbedding] = {}
        self._baseline = _read(before)
        self._alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod[list(TIMESTEPS)].to(session.model.device)

    def _probe(self, encoded: Encoded, number: int, example: Example) -> _Probe:
        settings, index = self.session.settings, torch.tensor([number])
        picture, seed = example.picture, settings.general.seed
        has_class = settings.concepts[picture.concept].class_prompt.strip()
        prompt = captions.variants(picture.prompt, captions.steady(settings.captions), seed)[0]
        return _Probe(
            encoded.average(index),
            encoded.size[index],
            encoded.masks(index),
            encoded.nothing_around(index),
            seed + number,
            prompt,
            class_text(settings, picture) if has_class else "",
        )

    @torch.no_grad()
    def measure(self) -> ValidationResult | None:
        """Measures the session as it is now, with the weights that outputs show, in evaluation mode.

        Returns None where the errors before the run are not known, or where a value is not finite.
        """
        session = self.session
        random_state = hardware.random_numbers_kept(session.model.device)
        with session.model.evaluated(), random_state, session.shown():
            now = {
                _HELD_OUT: self._errors(self._validation),
                _LEARNED: self._errors(self._training),
                **self._class_predictions(),
            }
            self._texts = {} if session.settings.text_learns else self._texts
        if session.step == 0:
            self._baseline = now
            atomic.write_bytes(self.before, save(now))
        return _compare(self._baseline, now)

    def _errors(self, probes: list[_Probe]) -> Tensor:
        """The mean error of some images at each timestep, (T,), on the CPU."""
        errors = [self._error(probe, *self._predict(probe, probe.prompt)) for probe in probes]
        return torch.stack(errors).mean(0).cpu()

    def _class_predictions(self) -> dict[str, Tensor]:
        """The predictions for the training images with their class prompt, and their mean error, by the file's keys."""
        probes, predictions = [probe for probe in self._training if probe.class_prompt], dict[str, Tensor]()
        errors = []
        for number, probe in enumerate(probes):
            prediction, target = self._predict(probe, probe.class_prompt)
            predictions[f"{_CLASS}{number}"] = prediction.cpu()
            errors.append((prediction - target).square().mean((1, 2, 3)))
        return {**predictions, _CLASS_ERROR: torch.stack(errors).mean(0).cpu()} if errors else {}

    def _error(self, probe: _Probe, prediction: Tensor, target: Tensor) -> Tensor:
        mask = None if probe.mask is None else probe.mask.expand(len(prediction), -1, -1, -1)
        unmasked = self.session.settings.objective.unmasked_weight
        return objective.image_means((prediction - target).square(), mask, unmasked)

    def _predict(self, probe: _Probe, prompt: str) -> tuple[Tensor, Tensor]:
        """The UNet's prediction for a noised image at each timestep, and its target, (T, 4, h, w)."""
        model, count = self.session.model, len(TIMESTEPS)
        # Drawn on the CPU, so that it is the same on every device.
        noise = torch.randn((count, *probe.x_0.shape[1:]), generator=torch.Generator().manual_seed(probe.seed))
        eps, t = noise.to(model.device), torch.tensor(TIMESTEPS, device=model.device)
        x_t = objective.add_noise(probe.x_0, eps, self._alpha_bar)
        text = self._text(prompt)[torch.zeros(count, dtype=torch.long, device=model.device)]
        model_input = inpainting_inputs.concatenate(x_t, probe.inpainting)
        prediction = loss.predict(self.session, model_input, t, text, probe.size.expand(count, -1))
        return prediction.float(), objective.target(model.prediction_type, probe.x_0, eps, self._alpha_bar)

    def _text(self, prompt: str) -> TextEmbedding:
        if prompt not in self._texts:
            with self.session.accelerator.autocast():
                self._texts[prompt] = self.session.model.encode_text([prompt])
        return self._texts[prompt]


def _read(before: Path) -> dict[str, Tensor]:
    """What was measured before a run; empty where the file is missing or damaged. The file is not held open."""
    try:
        return load(before.read_bytes())
    except (OSError, SafetensorError):
        return {}


def _compare(before: dict[str, Tensor], now: dict[str, Tensor]) -> ValidationResult | None:
    if any(not torch.isfinite(one).all() for one in (*before.values(), *now.values())):
        return None
    if before.keys() != now.keys() or any(before[name].shape != now[name].shape for name in now):
        return None
    gains = [1 - float((now[name] / before[name]).mean()) for name in (_HELD_OUT, _LEARNED)]
    changes = [(now[name] - before[name]).square().mean((1, 2, 3)) for name in now if name.startswith(_CLASS)]
    drift = float((torch.stack(changes).mean(0) / before[_CLASS_ERROR]).mean()) if changes else None
    return ValidationResult(*gains, drift)
