"""Micro-batches are cut at the least cost."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from peftcls.engine.batching import micro_batches


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.integers(0, 80),
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(20, 200)),
)
@settings(max_examples=80, deadline=None)
def test_no_way_to_cut_rows_in_order_of_length_costs_less(lengths, call, shared, rows, tokens):
    widths = sorted((length for length in lengths), reverse=True)

    def allowed(part):
        return len(part) == 1 or (
            (rows is None or len(part) <= rows)
            and (tokens is None or part[0] * len(part) <= tokens)
        )

    def cost(parts):
        return sum(part[0] * len(part) + shared + call for part in parts)

    ways = []
    for cuts in itertools.product([False, True], repeat=len(widths) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(widths)]
        parts = [widths[a:b] for a, b in itertools.pairwise(edges)]
        if all(map(allowed, parts)):
            ways.append(cost(parts))
    found = [
        [lengths[i] for i in batch]
        for batch in micro_batches(
            range(len(lengths)),
            [n + shared for n in lengths],
            rows=rows,
            tokens=tokens,
            shared=shared,
            call_tokens=call,
        )
    ]
    assert [n for batch in found for n in batch] == widths
    assert cost(found) == min(ways)
