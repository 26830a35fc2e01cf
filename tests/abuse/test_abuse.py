"""Random arguments, right and wrong, through every public entry.

A call answers as the specification says, or refuses with an error that names what was
wrong. `benchmarks/abuse.py` draws ten thousand times as many.
"""

import re

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tests.abuse import public
from tests.abuse.judging import FAILURES, draw, judge

RANDOMS = st.randoms(use_true_random=False)
# Until arguments of the kind that is wanted come up: half of them are.
TRIES = 30
ROADS = r"SkipGate, rank.*|SparseMoE, called|DynamicModel.(predict|stream)_dynamic"


# Those of which nothing is wrong, and those of which nothing is right.
ANYTHING = r"ops\..*|rules\..*\.\w+|.*\.score|ExitSelector.probabilities"
NOTHING = r"DynamicModel.export|tuning.pareto"


def entries(*families, only=".*", but="^$"):
    """Parametrizes a test by the entries of some families."""
    chosen = [
        entry
        for family in families
        for entry in public.FAMILIES[family]
        if re.fullmatch(only, entry.name) and not re.fullmatch(but, entry.name)
    ]
    return pytest.mark.parametrize("entry", chosen, ids=lambda entry: entry.name)


def run(entry, wrong, examples=8):
    """Draws arguments of one kind a few times, and fails as the call does."""

    @settings(
        max_examples=max(examples // 5, 1) if entry.slow else examples,
        suppress_health_check=list(HealthCheck),
    )
    @given(r=RANDOMS)
    def repeat(r):
        for _ in range(TRIES):
            arguments, is_wrong = draw(entry, r)
            if wrong is (is_wrong is not False):
                break
        else:
            reject()
        case = judge(entry, arguments, is_wrong)
        assert case.end not in FAILURES, f"{case.end}: {case.words}"

    repeat()


def test_every_public_entry_is_abused_or_says_why_not():
    abused = public.abused_names()
    missing = [
        name
        for name in public.public_names()
        if name not in abused and not public.exempt(name)
    ]
    assert not missing, missing


def test_every_abused_name_and_every_reason_is_of_a_public_entry():
    names = set(public.public_names())
    strangers = [
        name
        for name in public.abused_names()
        if name not in names and not name.startswith("ops.")
    ]
    assert not strangers, strangers
    for pattern in public.EXEMPT:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


@pytest.mark.fault(
    case="values, shapes and dtypes at random into `ops` and `kd.rules`",
    made="NaN, infinities, denormals, 1e38, half precision, 0 and 1 rows",
    lost="nothing: every answer was that of plain NumPy",
)
@entries("ops", "rules")
def test_operations_and_rules_answer_as_numpy_does(entry):
    run(entry, wrong=False)


@pytest.mark.fault(
    case="wrong types and ranges into `kd.rules`",
    made="None, strings, lists, bools, NaN and numbers out of range as thresholds",
    lost="nothing: every one was refused by an error that names the argument",
)
@entries("rules", but=ANYTHING)
def test_rules_refuse_what_is_wrong(entry):
    run(entry, wrong=True)


@pytest.mark.fault(
    case="values, shapes and dtypes at random into `kd.calibration`",
    made="arrays with NaN, infinities, ties, one-hot rows, 0 and 1 samples",
    lost="nothing: every answer was that of plain NumPy",
)
@entries("calibration")
def test_calibration_answers_as_numpy_does(entry):
    run(entry, wrong=False)


@pytest.mark.fault(
    case="wrong types, ranges and shapes into `kd.calibration`",
    made="labels of another length, ragged lists, strings, bools, goals out of range",
    lost="nothing: every one was refused by an error that names the argument",
)
@entries("calibration")
def test_calibration_refuses_what_is_wrong(entry):
    run(entry, wrong=True)


@pytest.mark.fault(
    case="inputs at random into every layer, under four dtype policies",
    made="NaN, infinities, 1e38, half precision, 0 and 1 samples, ranks 2 to 4",
    lost="nothing: rows beside a broken one were answered as they are alone",
)
@entries("layers", but=ROADS)
def test_layers_answer_as_specified(entry):
    run(entry, wrong=False)


@pytest.mark.fault(
    case="wrong types, ranges and shapes into every layer and router",
    made="each argument of a constructor, and inputs of another rank or width",
    lost="nothing: every one was refused by an error that names what is wrong",
)
@entries("layers", but=ANYTHING)
def test_layers_refuse_what_is_wrong(entry):
    run(entry, wrong=True)


@pytest.mark.fault(
    case="broken values on the sparse roads of gates, mixtures and early exits",
    made="rows with NaN, infinities and 1e38, in batches of 0, 1 and more",
    lost="nothing: answers, exits and NaN were those of the dense road",
)
@entries("layers", "models", only=ROADS)
def test_sparse_roads_answer_as_the_dense_one(entry):
    run(entry, wrong=False, examples=15)


@pytest.mark.fault(
    case="data and rules at random into `DynamicModel` and the functions on models",
    made="batch sizes 1 to 32, no samples, NaN, rules with closed exits, every goal",
    lost="nothing: every answer was that of the dense road",
)
@entries("models", but=f"{ROADS}|{NOTHING}")
def test_models_answer_as_specified(entry):
    run(entry, wrong=False)


@pytest.mark.fault(
    case="wrong types, ranges and shapes into `DynamicModel` and functions on models",
    made="batch_size=0, -1, 2.5 or True, y of another length, no model, x of strings",
    lost="nothing: every one was refused by an error that says what is wrong",
)
@entries("models")
def test_models_refuse_what_is_wrong(entry):
    run(entry, wrong=True)


@pytest.mark.fault(
    case="arguments at random into `kd.callbacks`, `kd.tuning` and `kd.plots`",
    made="schedules that give arrays and tensors, ranges, goals, logs with NaN",
    lost="nothing: every one was answered as specified",
)
@entries("callbacks and tuning", "plots", but=NOTHING)
def test_callbacks_tuning_and_plots_answer_as_specified(entry):
    run(entry, wrong=False)


@pytest.mark.fault(
    case="wrong types and ranges into `kd.callbacks`, `kd.tuning` and `kd.plots`",
    made="schedules that give None or NaN, data that ends, models without exits",
    lost="nothing: every one was refused by an error that names the argument",
)
@entries("callbacks and tuning", "plots")
def test_callbacks_tuning_and_plots_refuse_what_is_wrong(entry):
    run(entry, wrong=True)
