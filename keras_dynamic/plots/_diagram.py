"""The drawing of a model's diagram: what stands where, and how it is shortened."""

import dataclasses

import numpy as np
from matplotlib import pyplot

__all__ = ["draw_diagram", "shortened"]

# Okabe and Ito's colors; the kind is written beside the bar as well.
_FACES = {
    "layer": "#E6E6E6",
    "gate": "#E69F00",
    "mixture": "#56B4E9",
    "choice": "#009E73",
    "selector": "#CC79A7",
}
# Layers below that share of the FLOPs share a row with such neighbors.
_SMALL = 0.01
# In a network of more rows all plain neighbors do.
_MOST_ROWS = 44
# The width of the diagram is 10: where the trunk, the bars and the exits begin.
_TRUNK, _BARS, _END = 1.5, 5.0, 10.0
_TRUNK_WIDTH, _LONGEST_BAR = 3.2, 1.6
# Characters that there is room for: in a box, beside the longest bar, in an exit.
_LABEL, _WORDS, _EXIT_WORDS = 32, 44, 60
_EXIT_HEIGHT = 1.7


@dataclasses.dataclass(frozen=True)
class _Row:
    """One box of the trunk: its layers, or the exit that branches off."""

    segment: int
    layers: tuple = ()
    exit: int | None = None

    @property
    def height(self):
        return 1.0 if self.exit is None else _EXIT_HEIGHT


def draw_diagram(record, ax=None):
    """Draws a `ModelDiagram`; see its `plot`."""
    rows = _rows(record, lambda share: share < _SMALL)
    if len(rows) > _MOST_ROWS:
        rows = _rows(record, lambda share: True)
    total = sum(row.height for row in rows)
    if ax is None:
        size = (8.4, 0.27 * total + 0.8)
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    tops = np.cumsum([0.0, *(row.height for row in rows)])
    ax.set(xlim=(0, _END), ylim=(total + 0.7, -0.5))
    ax.set_axis_off()
    ax.set_title(f"{record.name} (100 % = {_in_words(record.reference)}FLOPs)")
    _draw_segments(ax, record, rows, tops)
    middle = _TRUNK + _TRUNK_WIDTH / 2
    end = total - _EXIT_HEIGHT / 2 if record.exits else total
    ax.plot([middle, middle], [-0.3, end], color="0.3", linewidth=2, zorder=1)
    if not record.exits:
        _draw_arrow(ax, (middle, total), (middle, total + 0.7))
    if any(row.layers and record.kinds[row.layers[0]] == "gate" for row in rows):
        note = "hatched: saved by samples that find the gate closed"
        ax.text(_END - 0.1, total + 0.4, note, ha="right", va="center", fontsize=7)
    shares = [np.nansum(record.shares[list(row.layers)]) for row in rows]
    longest = max(shares) or 1.0
    for row, top, share in zip(rows, tops, shares, strict=False):
        if row.exit is None:
            _draw_layers(ax, record, row, top, share, _LONGEST_BAR / longest)
        else:
            _draw_exit(ax, record, row.exit, top, middle)
    return ax


def _rows(record, is_small):
    """Rows from top to bottom: trunk, then exit, segment by segment."""
    rows = []
    for segment in range(max(1, len(record.exits))):
        gathered = []
        trunk = np.flatnonzero((record.segments == segment) & ~record.in_head)
        for index in trunk:
            joins = record.kinds[index] == "layer" and not record.notes[index]
            # What cannot be counted is not small.
            if joins and is_small(record.shares[index]):
                gathered.append(int(index))
                continue
            if gathered:
                rows.append(_Row(segment, tuple(gathered)))
            gathered = []
            rows.append(_Row(segment, (int(index),)))
        if gathered:
            rows.append(_Row(segment, tuple(gathered)))
        if record.exits:
            rows.append(_Row(segment, exit=segment))
    return rows


def _draw_segments(ax, record, rows, tops):
    """A band behind each segment, and its share at the left."""
    for segment, flops in enumerate(record.segment_flops):
        own = [index for index, row in enumerate(rows) if row.segment == segment]
        top, bottom = tops[own[0]], tops[own[-1] + 1]
        if segment % 2 == 0:
            ax.axhspan(top, bottom, color="0.96", zorder=0)
        part = f"segment {segment}" if record.exits else "network"
        text = f"{part}\n{_percent(flops / record.reference)}"
        ax.text(0.1, (top + bottom) / 2, text, va="center", fontsize=8)


def _draw_layers(ax, record, row, top, share, scale):
    """A box with names, a bar for the share of the FLOPs, and words on it."""
    first = row.layers[0]
    kind, rate = record.kinds[first], record.open_rates[first]
    ax.add_patch(
        pyplot.Rectangle(
            (_TRUNK, top + 0.08),
            _TRUNK_WIDTH,
            0.84,
            facecolor=_FACES[kind],
            edgecolor="0.3",
            linewidth=0.8,
            zorder=2,
        )
    )
    middle = top + 0.5
    text = {"va": "center", "fontsize": 8, "zorder": 3}
    center = _TRUNK + _TRUNK_WIDTH / 2
    ax.text(center, middle, _joined(record, row.layers), ha="center", **text)
    corner, label = (_BARS, top + 0.25), record.layers[first]
    bar = {"height": 0.5, "edgecolor": "0.3", "linewidth": 0.6, "zorder": 2}
    executed = share
    if kind == "gate":
        # What is saved is hatched, behind what is executed.
        executed -= record.saved[first] * (1 - np.nan_to_num(rate)) / record.reference
        back = pyplot.Rectangle(corner, share * scale, facecolor="white", **bar)
        back.set(hatch="/////", label=f"{label} (saved)")
        ax.add_patch(back)
    color = _FACES[kind]
    front = pyplot.Rectangle(corner, executed * scale, facecolor=color, **bar)
    front.set(label=label)
    ax.add_patch(front)
    unknown = np.isnan(record.flops[list(row.layers)]).any()
    words = ["FLOPs unknown" if unknown else _percent(share)]
    if kind != "layer":
        words.append(kind)
    if not np.isnan(rate):
        words.append(f"open {_percent(rate)}")
    if record.notes[first]:
        words.append(record.notes[first])
    words = shortened(", ".join(words), _WORDS)
    ax.text(_BARS + share * scale + 0.1, middle, words, **text)


def _draw_exit(ax, record, index, top, trunk):
    middle = top + _EXIT_HEIGHT / 2
    _draw_arrow(ax, (trunk, middle), (_BARS, middle))
    ax.add_patch(
        pyplot.Rectangle(
            (_BARS, top + 0.12),
            _END - _BARS - 0.1,
            _EXIT_HEIGHT - 0.24,
            facecolor="white",
            edgecolor="0.3",
            linewidth=1.2,
            zorder=2,
        )
    )
    text = {"va": "center", "fontsize": 8, "zorder": 3}
    name = shortened(record.exits[index], _LABEL)
    ax.text(_BARS + 0.12, top + 0.52, name, weight="bold", **text)
    rate = record.exit_rates[index]
    if not np.isnan(rate):
        words = f"{_percent(rate)} leave" if rate else "no samples leave"
        ax.text(_END - 0.22, top + 0.52, words, ha="right", **text)
    cost = record.exit_flops[index] / record.reference
    words = [f"cost {cost:.3f}", f"loss weight {record.loss_weights[index]:g}"]
    if index < len(record.exits) - 1:
        head = _percent(record.head_flops[index] / record.reference)
        own = np.flatnonzero(record.in_head & (record.segments == index))
        held = [record.layers[i] for i in own if record.kinds[i] != "layer"]
        words.insert(1, f"head {head}" + (f" with {', '.join(held)}" if held else ""))
    ax.text(_BARS + 0.12, top + 1.15, shortened(", ".join(words), _EXIT_WORDS), **text)


def _draw_arrow(ax, start, end):
    arrow = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 2, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops={**arrow, "shrinkA": 0}, zorder=1)


def _joined(record, layers):
    """Names of a row; where there is no room the dearest one, and how many more."""
    joined = ", ".join(record.layers[index] for index in layers)
    if len(joined) <= _LABEL:
        return joined
    if len(layers) == 1:
        return shortened(joined, _LABEL)
    more = f" + {len(layers) - 1} more"
    dearest = max(layers, key=lambda index: np.nan_to_num(record.flops[index]))
    return shortened(record.layers[dearest], _LABEL - len(more)) + more


def shortened(text, length):
    """The beginning and the end, which holds the number."""
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def _percent(share):
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _in_words(flops):
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= size:
            return f"{flops / size:.3g} {prefix}"
    return f"{flops:g} "
