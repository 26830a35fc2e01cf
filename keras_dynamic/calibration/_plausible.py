"""Whether a report that was read from a file can be one."""

__all__ = ["checked_report"]

# Fields that are shares of rows, of a report and of its exits.
_SHARES = "final_accuracy", "dynamic_accuracy"
_EXIT_SHARES = "exit_rate", "accuracy", "accuracy_of_leavers", "spoiled"


def checked_report(report):
    """A report from a file, if its parts fit together."""
    if not report.exits or len(report.exit_rates) != len(report.exits):
        raise ValueError(
            "`report.exit_rates` must have one entry for each exit. Received: "
            f"{len(report.exit_rates)} for {len(report.exits)} exits."
        )
    certificate = report.certificate
    if certificate and not 0 <= certificate.num_certified <= len(certificate.path):
        raise ValueError(
            "`report.certificate.num_certified` must lie in "
            f"[0, {len(certificate.path)}]. Received: {certificate.num_certified}."
        )
    _check_ranges(report)
    return report


def _check_ranges(report):
    """Raises for shares outside [0, 1] and the like; NaN is a figure of no rows."""
    if report.num_samples < 0:
        raise ValueError(
            f"`report.num_samples` must be >= 0. Received: {report.num_samples}."
        )
    shares = {name: getattr(report, name) for name in _SHARES}
    for number, rate in enumerate(report.exit_rates):
        shares[f"exit_rates[{number}]"] = rate
    for number, each in enumerate(report.exits):
        place = f"exits[{number}]"
        if each.temperature <= 0:
            raise ValueError(
                f"`report.{place}.temperature` must be > 0. Received: "
                f"{each.temperature}."
            )
        shares |= {f"{place}.{name}": getattr(each, name) for name in _EXIT_SHARES}
    for name, share in shares.items():
        if share < 0 or share > 1:
            raise ValueError(f"`report.{name}` must lie in [0, 1]. Received: {share}.")
