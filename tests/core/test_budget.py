from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core.budget import Budget

budgets = st.builds(Budget, st.integers(1, 40), st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))


@given(budgets)
def test_the_last_step_reaches_the_last_image_and_none_before(budget: Budget) -> None:
    assert budget.images_seen(budget.steps) == budget.images
    assert budget.images_seen(budget.steps - 1) < budget.images


@given(budgets, st.integers(1, 30))
def test_what_is_due_every_so_many_epochs_comes_once_in_each(budget: Budget, every: int) -> None:
    due = [step for step in range(1, budget.steps + 1) if budget.is_due(every, step)]
    crossed = {budget.images_seen(step) // (every * budget.pictures) for step in range(1, budget.steps)} - {0}
    assert len(due) == len(crossed)


def test_batch_and_accumulation_do_not_change_how_many_images_are_seen() -> None:
    assert Budget(5, 100, 1, 1).images == Budget(5, 100, 4, 2).images == 500
    assert (Budget(5, 100, 1, 1).steps, Budget(5, 100, 4, 2).steps) == (500, 63)
