"""The memory bank: the last targets of earlier steps, the oldest first, without gradient."""

from __future__ import annotations

import torch

from training.bank import MemoryBank, bank_bytes


def numbers(*values: float) -> torch.Tensor:
    """Targets of one vector of one number."""
    return torch.tensor(values)[:, None, None]


def bank(size: int = 3) -> MemoryBank:
    return MemoryBank(size, (1, 1), torch.zeros(()))


def test_it_holds_the_last_targets_of_earlier_steps() -> None:
    kept = bank()
    kept.offer(numbers(1, 2), torch.tensor([10, 20]))
    assert len(kept.targets) == 0  # those of a step come in after it
    kept.take(applied=True)
    assert kept.targets.flatten().tolist() == [1, 2]
    kept.offer(numbers(3), torch.tensor([30]))  # two pieces of one step
    kept.offer(numbers(4), torch.tensor([40]))
    kept.take(applied=True)
    assert kept.targets.flatten().tolist() == [2, 3, 4]
    assert kept.images.tolist() == [20, 30, 40]


def test_a_skipped_step_leaves_it_as_it_was() -> None:
    """What overflowed in float16 would else be a negative of all later steps."""
    kept = bank()
    kept.offer(numbers(1), None)
    kept.take(applied=True)
    kept.offer(numbers(float("nan")), None)
    kept.take(applied=False)
    kept.offer(numbers(2), None)
    kept.take(applied=True)
    assert kept.targets.flatten().tolist() == [1, 2]


def test_it_keeps_no_gradient_and_no_more_memory_than_it_needs() -> None:
    kept, targets = bank(), torch.ones(100, 1, 1, requires_grad=True) * 2
    kept.offer(targets, None)
    kept.take(applied=True)
    assert not kept.targets.requires_grad
    assert kept.targets.untyped_storage().nbytes() == 3 * 4


def test_it_goes_on_from_its_state() -> None:
    first, second = bank(), bank()
    first.offer(numbers(1, 2), torch.tensor([10, 20]))
    first.take(applied=True)
    second.restore(first.state())
    second.broadcast()  # one process has nobody to ask
    assert second.targets.flatten().tolist() == [1, 2]
    assert second.images.tolist() == [10, 20]


def test_a_full_bank_takes_the_bytes_that_a_dry_run_tells() -> None:
    bank = MemoryBank(5, (3, 4), torch.zeros(()))
    bank.offer(torch.zeros(7, 3, 4), None)
    bank.take(applied=True)
    assert sum(t.nbytes for t in bank.state().values()) == bank_bytes(5, (3, 4))
