"""What every drawing is held to."""

import numpy as np
from matplotlib import pyplot


def save(axes, path):
    """Draws to a PNG file, which is not empty."""
    figure = np.ravel(axes)[0].figure
    figure.savefig(path)
    assert len(np.unique(pyplot.imread(path))) > 10
