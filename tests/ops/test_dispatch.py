"""Where rows go: places, capacities, and the way there and back."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dynamic.ops.dispatch import (
    capacity_for,
    drop_above,
    fixed_places,
    move_rows,
    sorted_places,
)
from tests.ops.gradients import normal


def lists(places):
    return [
        getattr(places, name).numpy().tolist()
        for name in ("place_of", "held_by", "counts")
    ]


# Places, by hand


@pytest.mark.parametrize("complete", [True, False])
def test_sorted_places_by_hand(complete):
    # Expert 0 is chosen by assignments 1 and 3, expert 1 by 0 and 4, expert 3 by 2.
    places = sorted_places(tf.constant([1, 0, 3, 0, 1]), 4, complete)
    assert lists(places) == [[2, 0, 4, 1, 3], [1, 3, 0, 4, 2], [2, 2, 0, 1]]
    assert places.complete is complete


def test_sorted_places_without_those_that_go_nowhere():
    places = sorted_places(tf.constant([1, -1, 0, 1, -1]), 2, complete=False)
    assert lists(places) == [[1, -1, 0, 2, -1], [2, 0, 3], [1, 2]]


def test_fixed_places_by_hand():
    # Two places an expert: 0, 1 are expert 0's; 2, 3 expert 1's; 4, 5 expert 2's.
    places = fixed_places(tf.constant([2, 0, -1, 2]), 3, 2)
    assert lists(places) == [[4, 0, -1, 5], [1, -1, -1, -1, 0, 3], [1, 0, 2]]


@pytest.mark.parametrize("experts", [[], [-1, -1]])
def test_nobody_goes_anywhere(experts):
    experts = tf.constant(experts, tf.int32)
    nowhere = [-1] * len(experts)
    assert lists(sorted_places(experts, 2, False)) == [nowhere, [], [0, 0]]
    assert lists(fixed_places(experts, 2, 1)) == [nowhere, [-1, -1], [0, 0]]


# Capacity


@pytest.mark.parametrize(
    "rows, per_row, experts, factor, expected",
    [
        (8, 1, 4, 1.0, 2),
        (8, 2, 4, 1.0, 4),
        (10, 1, 4, 1.0, 3),  # 2.5, rounded up
        (8, 1, 4, 1.25, 3),
        # 1.1 * 10 is 11.000000000000002 in floating point, and meant to be 11.
        (100, 1, 10, 1.1, 11),
        (8, 1, 4, 0.01, 1),  # at least one
        (8, 2, 4, 10.0, 8),  # no row goes to an expert twice
        (0, 1, 4, 1.0, 1),
    ],
)
def test_capacity_by_hand(rows, per_row, experts, factor, expected):
    capacity = capacity_for(tf.constant(rows), per_row, experts, factor)
    assert capacity.dtype == "int32" and int(capacity) == expected
    several = capacity_for(tf.constant([rows, 8]), per_row, experts, factor)
    assert int(several[0]) == expected


def test_an_even_load_of_any_size_fits():
    for rows in range(1, 400):
        for factor in (0.1, 0.7, 1.0, 1.1, 1.25):
            # In tenths, and so without a rounding error.
            exact = -(-round(factor * 100) * rows // 500)
            assert int(capacity_for(rows, 1, 5, factor)) == min(max(exact, 1), rows)


# Dropping, by hand


def test_first_choices_come_before_second_ones():
    # First choices of 4 rows: 0 0 1 0; second ones: 1 1 0 1. Two places an expert:
    # expert 0 takes the first choices of rows 0 and 1, and neither row 3's nor the
    # second choice of row 2. Expert 1 takes row 2's first choice, row 0's second.
    experts = tf.constant([[0, 0, 1, 0], [1, 1, 0, 1]])
    kept = drop_above(2, experts, 2)
    assert kept.numpy().tolist() == [[0, 0, 1, -1], [1, -1, -1, -1]]


def test_priority_comes_before_order():
    # The same rows, those with the larger numbers first: 3 2 1 0. Expert 0 takes the
    # first choices of rows 3 and 1; expert 1 that of row 2, and row 3's second.
    experts = tf.constant([[0, 0, 1, 0], [1, 1, 0, 1]])
    kept = drop_above(2, experts, 2, priority=tf.constant([0.1, 0.2, 0.3, 0.4]))
    assert kept.numpy().tolist() == [[-1, 0, 1, 0], [-1, -1, -1, 1]]


def test_equal_priority_keeps_the_order():
    kept = drop_above(2, tf.constant([[0, 0, 0]]), 1, priority=tf.zeros(3))
    assert kept.numpy().tolist() == [[0, 0, -1]]


def test_who_goes_nowhere_takes_no_room():
    kept = drop_above(1, tf.constant([[-1, 0, 0, -1, 1]]), 2)
    assert kept.numpy().tolist() == [[-1, 0, -1, -1, 1]]


@st.composite
def choices(draw):
    """(experts (K, R), E): each row's experts all different, some of them -1."""
    number = draw(st.integers(1, 4))
    rows, per_row = draw(st.integers(0, 8)), draw(st.integers(1, number))
    each = st.permutations(range(number)).map(lambda order: order[:per_row])
    table = np.array([draw(each) for _ in range(rows)], "int32")
    table = table.reshape(rows, per_row).T
    gone = draw(st.lists(st.booleans(), min_size=table.size, max_size=table.size))
    return np.where(np.reshape(gone, table.shape), -1, table), number


@settings(max_examples=60)
@given(choices(), st.integers(1, 5), st.booleans())
def test_dropping_and_places_against_loops(given_choices, capacity, prioritized):
    experts, number = given_choices
    rows = experts.shape[1]
    priority = np.random.default_rng(rows).permutation(rows).astype("float32")
    kept = drop_above(
        capacity, tf.constant(experts), number, priority if prioritized else None
    ).numpy()

    order = np.argsort(-priority) if prioritized else np.arange(rows)
    taken, expected = [0] * number, np.full_like(experts, -1)
    for choice, choosing in enumerate(experts):
        for row in order:
            expert = choosing[row]
            if expert >= 0 and taken[expert] < capacity:
                taken[expert] += 1
                expected[choice, row] = expert
    assert kept.tolist() == expected.tolist()

    flat = kept.reshape(-1)
    fixed = fixed_places(tf.constant(flat), number, capacity)
    packed = sorted_places(tf.constant(flat), number, complete=False)
    assert lists(fixed)[2] == lists(packed)[2] == taken
    assert packed.held_by.shape == (sum(taken),)
    for places in (fixed, packed):
        place_of, held_by, _ = lists(places)
        for assignment, place in enumerate(place_of):
            assert (place < 0) == (flat[assignment] < 0)
            assert place < 0 or held_by[place] == assignment
        assert sum(held >= 0 for held in held_by) == sum(taken)
    assert lists(fixed)[1] == [
        held
        for expert in range(number)
        for held in (np.flatnonzero(flat == expert).tolist() + [-1] * capacity)[
            :capacity
        ]
    ]
    assert lists(packed)[1] == [
        held for expert in range(number) for held in np.flatnonzero(flat == expert)
    ]


# The way there


@pytest.mark.parametrize("experts", [[1, 0, 1, 0, 0, 1], [1, -1, 1, 0, 0, -1]])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_moving_and_its_gradient(experts, times):
    """Like the product with a matrix of zeros and ones."""
    complete = -1 not in experts
    places = sorted_places(tf.constant(experts), 2, complete)
    num_rows = len(experts) // times
    sources = places.held_by % num_rows
    targets = tf.reshape(places.place_of, [times, num_rows])
    rows = tf.constant(normal(num_rows, 3))
    upstream = tf.constant(normal(len(sources), 3, seed=1))

    def product(rows):
        return tf.linalg.matmul(tf.one_hot(sources, num_rows), rows)

    def moved(rows):
        return move_rows(rows, sources, targets, complete)

    def derived(rows):
        return move_rows(rows, sources, targets, complete, training=False)

    found = []
    for move in (product, moved, derived):
        with tf.GradientTape() as outer:
            outer.watch(rows)
            with tf.GradientTape() as tape:
                tape.watch(rows)
                answer = move(rows)
                loss = tf.reduce_sum(tf.sin(answer) * upstream)
            gradient = tf.convert_to_tensor(tape.gradient(loss, rows))
            steepness = tf.reduce_sum(gradient**2)
        second = tf.convert_to_tensor(outer.gradient(steepness, rows))
        found.append((answer, gradient, second))
    for expected, *others in zip(*found, strict=True):
        for actual in others:
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_empty_places_are_zeros():
    rows = tf.constant([[1.0], [2.0]])
    moved = move_rows(rows, tf.constant([1, -1]), tf.constant([[-1, 0]]), False)
    assert moved.numpy().tolist() == [[2.0], [0.0]]


def test_moving_of_no_rows_and_of_nan():
    rows = tf.zeros((0, 3))
    moved = move_rows(rows, tf.constant([-1, -1]), tf.zeros((1, 0), tf.int32), False)
    assert moved.numpy().tolist() == [[0.0] * 3] * 2
    # Row 0 goes nowhere: that it is a NaN is nobody's affair.
    rows = tf.constant([[np.nan], [2.0]])
    with tf.GradientTape() as tape:
        tape.watch(rows)
        moved = move_rows(rows, tf.constant([1]), tf.constant([[-1, 0]]), False)
    assert moved.numpy().tolist() == [[2.0]]
    assert tape.gradient(moved, rows).numpy().tolist() == [[0.0], [1.0]]


def test_the_same_under_xla():
    experts = tf.constant([[0, 0, 1, 0], [1, 1, 0, 1]])
    rows = tf.constant(normal(4, 3))

    def run(experts, rows):
        capacity = capacity_for(tf.shape(rows)[0], 2, 2, 0.5)
        kept = drop_above(capacity, experts, 2, tf.reduce_sum(rows, axis=1))
        places = fixed_places(tf.reshape(kept, [-1]), 2, capacity)
        sources = tf.where(places.held_by < 0, -1, places.held_by % 4)
        targets = tf.reshape(places.place_of, [2, 4])
        return kept, places.counts, move_rows(rows, sources, targets, False)

    compiled = tf.function(run, jit_compile=True, autograph=False)
    for actual, expected in zip(
        compiled(experts, rows), run(experts, rows), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
