"""Where the exits sit, as text under `model.summary()`."""

import io

import numpy as np
from rich.console import Console
from rich.table import Table

from keras_dynamic.models.per_exit import own_weights

__all__ = ["exit_table"]


def exit_table(road, rule):
    """A table of the exits of a model: loss weight, FLOPs, share of the cost.

    Args:
        road: the model's `Road`.
        rule: the rule in force, under which costs are counted.

    Returns:
        Text without control codes, 80 columns.
    """
    table = Table(title="Exits (cost 1.0 is the plain network)")
    table.add_column("Exit")
    table.add_column("Loss weight", justify="right")
    table.add_column("FLOPs to leave", justify="right")
    table.add_column("Of them its head", justify="right")
    table.add_column("Cost", justify="right")
    asked = road.asked_under(rule)
    costs = None if road.open_sizes else road.costs(None, rule, asked)
    weights = road.loss_weights or own_weights(road.heads)
    for index, head in enumerate(road.heads):
        weight = f"{float(np.asarray(weights[index])):g}"
        if costs is None:
            figures = ("open size", "", "")
        else:
            figures = (
                f"{costs.exits[index]:,}",
                f"{costs.heads[index]:,}",
                f"{costs.shares()[index]:.3f}",
            )
        table.add_row(head.name, weight, *figures)
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(table)
    return text.getvalue().rstrip()
