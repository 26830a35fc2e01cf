"""The benchmark against PyTorch: its twin has to be the same network."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

import keras_dynamic as kd

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def against_pytorch(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its scripts import each other
    return importlib.import_module("against_pytorch")


# PyTorch runs in a process of its own, as it does in the benchmark.
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)
def test_the_twin_answers_like_the_model(against_pytorch, tmp_path):
    model = against_pytorch.resnet20()
    against_pytorch.vary_norms(model)
    x = against_pytorch.inputs_of(model, 64)
    thresholds = against_pytorch.thresholds_for(model, x, (0.5, 0.25, 0.25))
    rule = kd.rules.MaxProbability(thresholds)
    ours = vars(model.predict_dynamic(x, batch_size=24, rule=rule, verbose=0))
    assert np.bincount(ours["exit_index"]).tolist() == [32, 16, 16]
    first = {name: ours[name][:1] for name in ("outputs", "exit_index", "confidence")}
    final = model.predict(x, verbose=0)[-1]

    with against_pytorch.PyTorch(tmp_path, model, x) as pytorch:
        ways = pytorch.ask("ways")
        assert ways == ["eager", "folded"]
        against_pytorch.check_ways(pytorch, ways, ours, 24, thresholds)
        against_pytorch.check_ways(pytorch, ways, first, 1, thresholds)
        for way in ways:
            static = pytorch.answers("static_answers", way=way, batch_size=24)
            against_pytorch.check_outputs(final, static["outputs"])
            seconds = pytorch.ask(
                "seconds", way=way, batch_size=24, thresholds=thresholds, calls=1
            )
            assert 0 < seconds < 60


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="transformers are not installed",
)
def test_the_blocks_of_transformers_answer_like_ours(against_pytorch, monkeypatch):
    sparse_moe = importlib.import_module("sparse_moe")
    for name, value in (("TOKENS", 64), ("FEATURES", 8), ("HIDDEN", 16)):
        monkeypatch.setattr(sparse_moe, name, value)
    rows = sparse_moe.against_pytorch(8, rounds=1)  # compares answers first
    assert [row["block"] for row in rows[::2]] == [
        "switch",
        "mixtral eager",
        "mixtral grouped_mm",
    ]
    assert all(row["theirs_over_ours"] > 0 for row in rows)


def test_another_answer_does_not_pass(against_pytorch):
    # One early exit with threshold 0.5; samples 0 and 2 leave there, and 3 just not.
    ours = {
        "outputs": np.full((100, 2), 0.4),
        "exit_index": np.array([0, 1, 0, 1] * 25),
        "confidence": np.array([0.9, 0.8, 0.50004, 0.7] * 25),
    }

    def check(sample=0, **changed):
        theirs = {name: column.copy() for name, column in ours.items()}
        for name, value in changed.items():
            theirs[name][sample] = value
        against_pytorch.check_alike(ours, theirs, [0.5])

    check()
    check(2, exit_index=1, confidence=0.7, outputs=0.8)  # 4e-5 above the threshold
    with pytest.raises(AssertionError, match="Sample 0 leaves at exit 0 here and at 1"):
        check(0, exit_index=1)
    with pytest.raises(AssertionError, match="Sample 1 .* its score at exit 0 is 0.6"):
        check(1, exit_index=0, confidence=0.6)
    with pytest.raises(AssertionError, match="Only 75.0% of the samples leave alike"):
        check(slice(2, None, 4), exit_index=1)
    with pytest.raises(AssertionError, match="The outputs differ by up to 0.5"):
        check(outputs=[0.9, 0.4])
    with pytest.raises(AssertionError, match="The outputs differ by up to nan"):
        check(outputs=np.nan)
