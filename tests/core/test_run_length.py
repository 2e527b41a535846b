from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core.run_length import Budget, budget
from dreambooth.core.settings import parse

LENGTH = {"epochs": st.integers(1, 60), "most_steps": st.just(0) | st.integers(1, 99)}
budgets = st.builds(
    Budget, pictures=st.integers(1, 40), batch=st.integers(1, 9), accumulation=st.integers(1, 5), **LENGTH
)


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


def test_total_steps_take_the_place_of_epochs() -> None:
    flat = {"intervals.max_train_steps": 30, "intervals.num_train_epochs": 7, "batching.train_batch_size": 2}
    chosen = parse({**flat, "batching.gradient_accumulation_steps": 3})
    length = budget(chosen, 50)
    assert (length.steps, length.images, length.epochs) == (30, 180, 4)
    assert budget(parse({"intervals.num_train_epochs": 7}), 50).steps == 350


@given(budgets, st.integers(0, 30), st.integers(0, 30))
def test_how_often_something_is_due_is_known_beforehand(budget: Budget, epochs: int, steps: int) -> None:
    due = [step for step in range(1, budget.steps + 1) if budget.is_due(epochs, step, steps)]
    assert len(due) == budget.times_due(epochs, steps)
    for after in (1, budget.steps // 2, budget.steps):
        assert sum(step > after for step in due) == budget.times_due(epochs, steps, after=after)
    assert not steps or {step for step in range(1, budget.steps) if step % steps == 0} <= set(due)
