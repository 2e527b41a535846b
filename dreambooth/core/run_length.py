"""How long a run is: steps per picture, epochs and total steps are the same number seen three ways."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dreambooth.core.settings import Settings


@dataclass(frozen=True)
class Budget:
    """Progress is counted in images of the subject seen, so that batch size and accumulation do not move it."""

    pictures: int
    epochs: int
    batch: int
    accumulation: int
    most_steps: int = 0  # where it is set, it says the length, and `epochs` are those that this begins

    @property
    def images(self) -> int:
        return self.most_steps * self.images_per_step if self.most_steps else self.pictures * self.epochs

    @property
    def steps(self) -> int:
        """Updates of the weights."""
        return ceil(self.images / (self.batch * self.accumulation))

    @property
    def images_per_step(self) -> int:
        return self.batch * self.accumulation

    def images_seen(self, step: int) -> int:
        return min(self.images, step * self.images_per_step)

    def is_due(self, every_epochs: int, step: int, every_steps: int = 0) -> bool:
        """Whether something that is done every so many epochs, and every so many steps, is due after this step.

        The last step is left out.
        """
        if step >= self.steps:
            return False
        if every_steps and step % every_steps == 0:
            return True
        every = every_epochs * self.pictures
        return bool(every) and self.images_seen(step) // every > self.images_seen(step - 1) // every

    def times_due(self, every_epochs: int, every_steps: int = 0, *, after: int = 0) -> int:
        """How often that is in the whole run, or after a step of it."""
        by_steps = max(0, (self.steps - 1) // every_steps - after // every_steps) if every_steps else 0
        if not every_epochs:
            return by_steps
        every = every_epochs * self.pictures
        at = {ceil(images / self.images_per_step) for images in range(every, self.images, every)}
        return by_steps + sum(
            after < step < self.steps and not (every_steps and step % every_steps == 0) for step in at
        )


def passed_already(settings: Settings, steps: int, planned: Budget) -> str:
    """Why a run that has made so many steps cannot go on at this length; empty where it can."""
    if steps <= planned.steps:
        return ""
    key = "intervals.max_train_steps" if settings.intervals.max_train_steps else "intervals.num_train_epochs"
    return (
        f"{key}: the run has made {steps} steps already, more than the {planned.steps} that it is to have now; make it "
        "longer."
    )


def budget(settings: Settings, pictures: int) -> Budget:
    """The length of a run whose epochs see so many pictures."""
    batching, intervals = settings.batching, settings.intervals
    batch, accumulation, steps = (
        batching.train_batch_size,
        batching.gradient_accumulation_steps,
        intervals.max_train_steps,
    )
    epochs = ceil(steps * batch * accumulation / pictures) if steps else intervals.num_train_epochs
    return Budget(pictures, epochs, batch, accumulation, steps)
