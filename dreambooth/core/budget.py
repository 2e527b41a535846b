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

    def is_due(self, every_epochs: int, step: int) -> bool:
        """Whether something that is done every so many epochs is due after this step (the last step is left out)."""
        every = every_epochs * self.pictures
        if not every or step >= self.steps:
            return False
        return self.images_seen(step) // every > self.images_seen(step - 1) // every


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
