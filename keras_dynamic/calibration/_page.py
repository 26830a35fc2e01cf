"""A `CalibrationReport` as one HTML page with plots, which refers to nothing outside.

Plots are inline SVG: geometry is computed here, in pixels, and the template of
`_page_template` draws it. Every name goes through its autoescape.
"""

import math

import jinja2

from keras_dynamic.calibration._page_template import TEMPLATE
from keras_dynamic.calibration._tables import confidence_text, uncertified_message

_COLORS = ("#0b62a8", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0f766e", "#a16207")


def render_page(report, baselines):
    """The page as a string.

    Args:
        report: a `CalibrationReport`.
        baselines: dict of `name: (mean_cost, accuracy)`.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda v: "–" if math.isnan(v) else f"{100 * v:.2f} %",
        "number": lambda v: "–" if math.isnan(v) else f"{v:.3f}",
        "precise": lambda v: "–" if math.isnan(v) else f"{v:.4f}",
        "short": _short,
        "confidence": confidence_text,
    }
    uncertified = None
    if report.certificate is not None and report.certificate.step is None:
        uncertified = uncertified_message(report.certificate)
    return environment.from_string(TEMPLATE).render(
        report=report,
        goal=report.goal and "{} = {:g}".format(*report.goal),
        uncertified=uncertified,
        trade_off=_trade_off(report, baselines),
        bars=_bars(report),
        diagrams=[_diagram(each) for each in report.exits],
    )


class _Plot:
    """The frame of a plot: data coordinates to pixels, and ticks."""

    left, top, right, bottom = 62, 14, 18, 46

    def __init__(self, width, height, x_range, y_range, x_ticks=None, y_ticks=None):
        self.width, self.height = width, height
        self.x_range, self.y_range = x_range, y_range
        self.x_end, self.y_end = width - self.right, height - self.bottom
        self.x_ticks = [(self.x(v), f"{v:g}") for v in x_ticks or _ticks(*x_range)]
        self.y_ticks = [
            (self.y(v), f"{100 * v:.4g} %") for v in y_ticks or _ticks(*y_range)
        ]

    def x(self, value):
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * self._across, 1)

    def y(self, value):
        low, high = self.y_range
        return round(self.y_end - (value - low) / (high - low) * self._up, 1)

    def path(self, points):
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    @property
    def _across(self):
        return self.x_end - self.left

    @property
    def _up(self):
        return self.y_end - self.top


def _trade_off(report, baselines):
    """Accuracy against cost: the curve, the operating point, exits and baselines."""
    final = report.exits[-1]
    points = [
        _point(each.name, each.relative_cost, each.accuracy, "exit")
        for each in report.exits[:-1]
    ]
    points.append(_point("full network", final.relative_cost, final.accuracy, "full"))
    points += [_point(name, *point, "baseline") for name, point in baselines.items()]
    points.append(
        _point("dynamic", report.mean_cost, report.dynamic_accuracy, "dynamic")
    )
    points = [p for p in points if not math.isnan(p["cost"] + p["accuracy"])]
    costs = [p["cost"] for p in points] + [cost for cost, _ in report.curve]
    levels = [p["accuracy"] for p in points] + [level for _, level in report.curve]
    plot = _Plot(
        760,
        400,
        (0.0, 1.08 * max(costs, default=1.0)),
        _with_margin(min(levels, default=0.0), max(levels, default=1.0)),
    )
    for point in points:
        point["x"], point["y"] = plot.x(point["cost"]), plot.y(point["accuracy"])
    _place_labels(points, plot)
    return {"plot": plot, "points": points, "curve": plot.path(report.curve)}


def _point(name, cost, accuracy, kind):
    return {"name": name, "cost": cost, "accuracy": accuracy, "kind": kind}


def _place_labels(points, plot):
    """Labels beside their points, each moved down past those that it would cover."""
    placed = []
    for point in sorted(points, key=lambda p: p["y"]):
        width = 8 * len(point["name"])
        overflows = point["x"] + 10 + width > plot.width
        fits_left = point["x"] - 10 - width > plot.left
        is_right = point["x"] > plot.left + 0.7 * (plot.x_end - plot.left)
        is_right |= overflows and fits_left
        point["anchor"] = "end" if is_right else "start"
        point["label_x"] = point["x"] + (-10 if is_right else 10)
        start = point["label_x"] - width if is_right else point["label_x"]
        y = point["y"] + 4
        for other_start, other_end, other_y in sorted(placed, key=lambda p: p[2]):
            if start < other_end and other_start < start + width:
                if abs(y - other_y) < 15:
                    y = other_y + 15
        placed.append((start, start + width, y))
        point["label_y"] = y


def _bars(report):
    """A bar for each exit: the share of rows that leave there."""
    top = max([rate for rate in report.exit_rates if not math.isnan(rate)], default=1)
    return [
        {
            "name": each.name,
            "rate": each.exit_rate,
            "width": round(420 * each.exit_rate / top, 1)
            if top and not math.isnan(each.exit_rate)
            else 0,
            "y": 26 * number,
            "color": _COLORS[number % len(_COLORS)],
        }
        for number, each in enumerate(report.exits)
    ]


def _diagram(exit_report):
    """Accuracy against confidence, a point for each bin, before and after."""
    bins = exit_report.reliability_before + exit_report.reliability_after
    low = min((min(c, a) for c, a, _ in bins), default=0.0)
    low = math.floor(10 * min(low, 0.9)) / 10
    ticks = _ticks(low, 1.0)
    plot = _Plot(300, 290, (low, 1.0), (low, 1.0), ticks, ticks)

    def points(reliability):
        return [(plot.x(c), plot.y(a), count) for c, a, count in reliability]

    return {
        "name": exit_report.name,
        "temperature": exit_report.temperature,
        "plot": plot,
        "diagonal": plot.path([(low, low), (1.0, 1.0)]),
        "before": points(exit_report.reliability_before),
        "after": points(exit_report.reliability_after),
        "before_line": plot.path(p[:2] for p in exit_report.reliability_before),
        "after_line": plot.path(p[:2] for p in exit_report.reliability_after),
    }


def _with_margin(low, high):
    margin = max(0.08 * (high - low), 0.005)
    return low - margin, high + margin


def _ticks(low, high):
    """About five round numbers in [low, high]."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _short(value):
    return "closed" if value is None else f"{value:.6g}"
