"""The front where closed exits are passed by, so that nobody pays for their heads.

n: samples, E: early exits (the final exit has index E).
"""

import itertools

import numpy as np

from keras_dynamic.calibration._search import Front, find_front
from keras_dynamic.calibration._walk import Walk

# With more exits than this, not every set of them is tried closed.
_MAX_EXITS = 3
# Then only heads that cost this share of the network are worth a search without them.
_DEAR_HEAD = 0.01


def front_passing_by(leaves, correct, costs_of):
    """The `Front` of all choices, each priced without the exits that it closes.

    Beyond three early exits: of those that one search with every exit finds, and one
    without each exit that is dear.

    Args:
        leaves, correct: as for `choose_thresholds`, checked.
        costs_of: function of a tuple of closed exits that gives `(E + 1,)` costs.
    """
    fronts = []
    for closed in _sets_to_close(len(leaves), costs_of):
        kept = [
            matrix[:, :1] if number in closed else matrix
            for number, matrix in enumerate(leaves)
        ]
        fronts.append(find_front(Walk(kept, correct, costs_of(closed))))
    merged = Front.merged(fronts)
    if len(leaves) <= _MAX_EXITS:
        return merged  # each choice is there at its own price
    walk = Walk(leaves, correct, costs_of(()))
    costs = [cost_passing_by(walk, columns, costs_of) for columns in merged.columns]
    return Front.of(merged.num_correct, np.array(costs), merged.columns)


def cost_passing_by(walk, columns, costs_of):
    """The mean cost of a choice; exits at which nobody leaves are passed by."""
    counts = walk.counts(columns)[0]
    closed = tuple(np.flatnonzero(counts[:-1] == 0).tolist())
    return float(np.sum(counts * costs_of(closed)) / walk.num_samples)


def _sets_to_close(num_early, costs_of):
    exits, open_costs = range(num_early), costs_of(())
    if np.array_equal(costs_of(tuple(exits)), open_costs):
        return [()]
    if num_early <= _MAX_EXITS:
        sizes = range(num_early + 1)
        return [s for size in sizes for s in itertools.combinations(exits, size)]
    saved = [np.max(open_costs - costs_of((number,))) for number in exits]
    dear = [(n,) for n in exits if saved[n] >= _DEAR_HEAD * np.max(open_costs)]
    return [(), *dear, tuple(exits)]
