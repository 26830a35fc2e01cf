"""How a tutorial, a percent script, becomes a notebook for Sphinx.

A cell that draws begins with two comments, which become the figure's caption (Markdown)
and its alternative text:

    # Caption: What the figure shows, as one reads it.
    # Alt: What there is to be seen, for those who cannot see it.
"""

import re

import jupytext

_FIGURE = re.compile(
    r"# Caption: (?P<caption>.+(?:\n# .+)*)\n# Alt: (?P<alt>.+(?:\n# .+)*)\n"
)


def read(text):
    """Returns the notebook of a percent script."""
    notebook = jupytext.reads(text, fmt="py:percent")
    for cell in notebook.cells:
        match = _FIGURE.match(cell.source) if cell.cell_type == "code" else None
        if match:
            caption, alt = (part.replace("\n# ", " ") for part in match.groups())
            cell.source = cell.source[match.end() :]
            cell.metadata["mystnb"] = {
                "figure": {"caption": caption},
                "image": {"alt": alt},
            }
    return notebook
