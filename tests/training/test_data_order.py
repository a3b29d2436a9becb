"""The order of training rows, the same on any number of processes, and their micro-batches."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcls.engine.batching import micro_batches
from peftcls.training.data_order import share, step_rows, steps_per_epoch
from peftcls.training.lr_schedule import learning_rate_factor

tables = st.integers(1, 60)
batch_sizes = st.integers(1, 25)
seeds = st.integers(0, 2**32)
lengths_of_rows = st.lists(st.integers(1, 300), min_size=1, max_size=60)
limits = st.one_of(st.none(), st.integers(1, 20))
token_limits = st.one_of(st.none(), st.integers(1, 700))


@given(tables, batch_sizes, seeds, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_row_comes_exactly_once_in_each_epoch(rows, batch_size, seed, epoch):
    steps = steps_per_epoch(rows, batch_size)
    found = [step_rows(rows, batch_size, seed, epoch * steps + step) for step in range(steps)]
    assert sorted(chain(*found)) == list(range(rows))
    assert all(len(step) == batch_size for step in found[:-1])
    assert 1 <= len(found[-1]) <= batch_size


@given(tables, batch_sizes, seeds, st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_step_does_not_depend_on_the_steps_before_it(rows, batch_size, seed, step):
    first = step_rows(rows, batch_size, seed, step)
    np.random.default_rng(0).permutation(9)
    np.random.seed(step)
    for other in range(step, -1, -1):
        step_rows(rows, batch_size, seed, other)
    assert first == step_rows(rows, batch_size, seed, step)


def test_the_order_differs_between_epochs_and_between_seeds():
    orders = {
        tuple(chain(*(step_rows(40, 8, seed, epoch * 5 + s) for s in range(5))))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_the_order_does_not_depend_on_the_batch_size():
    orders = {
        tuple(chain(*(step_rows(40, size, 3, s) for s in range(steps_per_epoch(40, size)))))
        for size in (1, 7, 8, 40, 100)
    }
    assert len(orders) == 1


@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"), [(1, 1, 1), (16, 16, 1), (17, 16, 2), (5, 100, 1), (32, 16, 2)]
)
def test_an_epoch_has_a_last_step_for_the_rest(rows, batch_size, steps):
    assert steps_per_epoch(rows, batch_size) == steps


@given(lengths_of_rows, batch_sizes, seeds, st.integers(0, 9), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_the_shares_of_all_processes_are_the_rows_of_the_step(
    lengths, batch_size, seed, step, processes
):
    indices = step_rows(len(lengths), batch_size, seed, step)
    shares = [share(indices, lengths, process, processes) for process in range(processes)]
    assert sorted(chain(*shares)) == sorted(indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    lengths_of_rows, batch_sizes, seeds, st.integers(0, 9), st.integers(1, 9), limits, token_limits
)
@settings(max_examples=150, deadline=None)
def test_any_number_of_processes_sees_the_same_rows_in_a_step(
    lengths, batch_size, seed, step, processes, rows, tokens
):
    indices = step_rows(len(lengths), batch_size, seed, step)
    seen = [
        index
        for process in range(processes)
        for batch in micro_batches(
            share(indices, lengths, process, processes), lengths, rows=rows, tokens=tokens
        )
        for index in batch
    ]
    assert sorted(seen) == sorted(indices)


@given(lengths_of_rows, st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_the_shares_hold_about_the_same_number_of_tokens(lengths, processes):
    sums = [
        sum(lengths[i] for i in share(range(len(lengths)), lengths, process, processes))
        for process in range(processes)
    ]
    assert max(sums) - min(sums) <= 2 * max(lengths)


@given(lengths_of_rows, limits, token_limits)
@settings(max_examples=300, deadline=None)
def test_micro_batches_keep_their_limits_except_for_a_single_long_row(lengths, rows, tokens):
    found = micro_batches(range(len(lengths)), lengths, rows=rows, tokens=tokens)
    assert sorted(chain(*found)) == list(range(len(lengths)))
    for batch in found:
        assert batch, "no micro-batch is empty"
        assert rows is None or len(batch) <= rows
        assert (
            tokens is None
            or len(batch) == 1
            or max(lengths[i] for i in batch) * len(batch) <= tokens
        )


@given(lengths_of_rows, limits, token_limits)
@settings(max_examples=300, deadline=None)
def test_padding_that_is_left_out_does_not_count_but_is_at_most_half(lengths, rows, tokens):
    found = micro_batches(range(len(lengths)), lengths, rows=rows, tokens=tokens, packed=True)
    assert sorted(chain(*found)) == list(range(len(lengths)))
    for batch in found:
        own = [lengths[i] for i in batch]
        assert rows is None or len(batch) <= rows
        assert (
            tokens is None
            or len(batch) == 1
            or (sum(own) <= tokens and max(own) * len(own) <= 2 * tokens)
        )
    assert len(found) <= len(micro_batches(range(len(lengths)), lengths, rows=rows, tokens=tokens))


@given(lengths_of_rows, limits, token_limits)
@settings(max_examples=100, deadline=None)
def test_the_longest_row_comes_first_so_that_memory_runs_out_at_once_or_never(
    lengths, rows, tokens
):
    order = [
        lengths[i]
        for batch in micro_batches(range(len(lengths)), lengths, rows=rows, tokens=tokens)
        for i in batch
    ]
    assert order == sorted(lengths, reverse=True)


def test_without_a_limit_all_rows_are_one_micro_batch():
    assert micro_batches([2, 0, 1], [3, 5, 4]) == [[1, 2, 0]]


def test_no_rows_make_no_micro_batch():
    assert micro_batches([], []) == []


@given(lengths_of_rows, st.randoms(use_true_random=False), st.integers(1, 9), limits, token_limits)
@settings(max_examples=150, deadline=None)
def test_shares_and_micro_batches_are_pure_functions_of_their_arguments(
    lengths, random, processes, rows, tokens
):
    indices = list(range(len(lengths)))
    mixed = random.sample(indices, len(indices))
    arguments = list(mixed), list(lengths)
    plans = [
        (
            micro_batches(i, of, rows=rows, tokens=tokens),
            [share(i, of, p, processes) for p in range(processes)],
        )
        for i in (indices, mixed, mixed)
        for of in (lengths, np.array(lengths))
    ]
    assert all(plan == plans[0] for plan in plans)
    assert (mixed, lengths) == arguments


def test_the_global_random_state_of_numpy_stays_as_it_was():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    step_rows(10, 3, 0, 1)
    assert (np.random.get_state()[1] == before).all()


@given(
    st.integers(1, 200),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["linear", "cosine", "constant"]),
)
@settings(max_examples=200, deadline=None)
def test_the_learning_rate_of_every_step_is_above_zero_and_at_most_its_peak(
    steps, warmup, schedule
):
    rates = [
        learning_rate_factor(step, steps, warmup=warmup, schedule=schedule) for step in range(steps)
    ]
    assert all(0 < rate <= 1 for rate in rates)
