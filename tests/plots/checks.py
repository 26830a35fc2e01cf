"""What every drawing is held to."""

import itertools

import numpy as np
from matplotlib import pyplot


def save(axes, path):
    """Draws to a PNG file, which is not empty."""
    figure = np.ravel(axes)[0].figure
    figure.savefig(path)
    assert len(np.unique(pyplot.imread(path))) > 10


def titles_are_apart(axes):
    """Titles of neighbors do not run into one another."""
    axes[0].figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in axes]
    return all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
