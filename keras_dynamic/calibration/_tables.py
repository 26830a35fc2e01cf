"""A `CalibrationReport` as text: two tables in ASCII, the same on every terminal."""

import dataclasses
import io
import math
import textwrap

import rich.box
import rich.console
import rich.table

_WIDTH = 110
_ALL_CLOSED = "All exits are closed, so that the full network runs."


def render(report):
    """The text of a report, at most 110 columns wide, without color codes."""
    notes = "\n".join(
        f"{exit_report.name}: temperature {exit_report.temperature_status}"
        for exit_report in report.exits
        if exit_report.temperature_status != "fitted"
    )
    parts = [_header(report)]
    if report.certificate is not None:
        parts += [_promise(report.certificate), _path_table(report.certificate)]
    parts += [_exit_table(report), _probability_table(report), notes]
    return "\n\n".join(part for part in parts if part)


def number_or_dash(value):
    return "-" if math.isnan(value) else f"{value:.3f}"


def percent(value):
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def _header(report):
    goal = "no goal" if report.goal is None else "{} = {:g}".format(*report.goal)
    return (
        f"Calibration on {report.num_samples:,} samples, rule {report.rule}, {goal}.\n"
        f"Accuracy {percent(report.final_accuracy)} at the final exit -> "
        f"{percent(report.dynamic_accuracy)} dynamic, at a mean cost of "
        f"{number_or_dash(report.mean_cost)} (1 = the plain network)."
    )


def confidence_text(confidence):
    """A confidence as a number, or as what it lacks of 1 where it would round to it."""
    text = f"{confidence:g}"
    return f"1 - {1 - confidence:.2g}" if text == "1" and confidence < 1 else text


def uncertified_message(certificate):
    """What is said where no step of the path is in force."""
    if certificate.num_certified:
        cheapest = min(
            step.mean_cost for step in certificate.path[: certificate.num_certified]
        )
        return (
            "Nothing that could be certified saves anything: on the samples tested, it "
            f"costs {cheapest:.3f} or more, the full network "
            f"{certificate.closed_cost:.3f}. {_ALL_CLOSED}"
        )
    wanted = (
        f"Nothing could be certified: no thresholds tried lose at most "
        f"{certificate.max_risk:g} of the samples with a confidence of "
        f"{confidence_text(certificate.confidence)}."
    )
    if certificate.path:
        first = certificate.path[0].num_lost
        seen = (
            f"The safest of them lost {first:,} of {certificate.num_samples:,} "
            "samples; at that rate"
        )
    elif certificate.num_selection_samples:
        seen = (
            "None were tried: none saved anything within that bound on the "
            f"{certificate.num_selection_samples:,} samples that they are chosen on. "
            "Thresholds that lose none:"
        )
    else:
        seen = (
            "None were tried: no sample was left to choose them on. Thresholds that "
            "lose none:"
        )
    needed = certificate.samples_needed
    would_do = (
        "no number of samples would do."
        if needed is None
        else f"it would take {needed:,} samples in all."
    )
    return f"{wanted} {seen} {would_do} {_ALL_CLOSED}"


def _promise(certificate):
    split = (
        f"Temperatures and path come from {certificate.num_selection_samples:,} "
        f"samples, tests and figures from {certificate.num_samples:,} others (split "
        f"at random, seed {certificate.seed})."
    )
    if certificate.step is None:
        return _wrapped(f"{uncertified_message(certificate)} {split}")
    return _wrapped(
        f"Certified with a confidence of "
        f"{confidence_text(certificate.confidence)}: of new samples, "
        f"at most {percent(certificate.max_risk)} are answered rightly by the full "
        f"network and wrongly by the dynamic one ({certificate.step.num_lost:,} of "
        f"{certificate.num_samples:,} here, p = {certificate.p_value:.2g}). {split}"
    )


def _wrapped(text):
    return "\n".join(textwrap.wrap(text, _WIDTH))


def _path_table(certificate):
    title = (
        "Path tested, the safest first (p: probability of as few losses, if more than "
        f"{certificate.max_risk:g} were lost)"
    )
    rows = []
    for number, step in enumerate(certificate.path, start=1):
        if step.p_value is None:
            rows.append((f"{number} to {len(certificate.path)}", *["not tested"] * 4))
            break
        passed = number <= certificate.num_certified
        is_choice = number - 1 == certificate.chosen
        rows.append(
            (
                str(number),
                ", ".join(_short(threshold) for threshold in step.thresholds),
                number_or_dash(step.mean_cost),
                f"{step.num_lost:,}",
                f"{step.p_value:.2g}"
                + (" chosen" if is_choice else " passed" if passed else " failed"),
            )
        )
    headers = ["step", "thresholds", "mean cost", "lost", "p"]
    return _render_table(title, headers, rows, num_text_columns=2) if rows else ""


def _short(threshold):
    return "closed" if threshold is None else f"{threshold:.6g}"


def _exit_table(report):
    title = (
        "Exits: cost of leaving there (1 = the plain network); accuracy on all rows, "
        "and on those that leave"
    )
    rows = [
        (
            exit_report.name,
            _threshold(exit_report, is_final=number == len(report.exits) - 1),
            number_or_dash(exit_report.relative_cost),
            percent(exit_report.exit_rate),
            percent(exit_report.accuracy),
            percent(exit_report.accuracy_of_leavers),
        )
        for number, exit_report in enumerate(report.exits)
    ]
    headers = ["exit", "threshold", "cost", "leave", "accuracy", "leavers' accuracy"]
    return _render_table(title, headers, rows, num_text_columns=1)


def _probability_table(report):
    title = (
        "Probabilities before -> after temperature (T): expected calibration error "
        "(ECE),\nnegative log-likelihood (NLL, nats), Brier score (0 to 2); on the "
        "rows that reach the exit, and on all"
    )
    rows = []
    for exit_report in report.exits:
        temperature = number_or_dash(exit_report.temperature)
        reached = _changes(exit_report.reached_before, exit_report.reached_after)
        everyone = _changes(exit_report.all_before, exit_report.all_after)
        rows.append((exit_report.name, "reach", temperature, *reached))
        rows.append(("", "all", "", *everyone))
    headers = ["exit", "rows", "T", "ECE", "NLL", "Brier"]
    return _render_table(title, headers, rows, num_text_columns=2)


def _threshold(exit_report, is_final):
    if exit_report.threshold is None:
        return "-" if is_final else "closed"
    return f"{exit_report.threshold:.6g}"


def _changes(before, after):
    pairs = zip(dataclasses.astuple(before), dataclasses.astuple(after), strict=True)
    return ["-" if math.isnan(old) else f"{old:.4f} -> {new:.4f}" for old, new in pairs]


def _render_table(title, headers, rows, num_text_columns):
    table = rich.table.Table(box=rich.box.ASCII2, show_edge=False)
    for number, header in enumerate(headers):
        is_text = number < num_text_columns
        table.add_column(
            header, justify="left" if is_text else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    target = io.StringIO()
    console = rich.console.Console(
        file=target,
        width=_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(table)
    lines = [line.rstrip() for line in target.getvalue().splitlines()]
    return "\n".join([title, *lines])
