"""The benchmark on sentences: loader, vocabulary, and the network with its exits."""

import importlib
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_dynamic as kd

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def sst2(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its scripts import each other
    module = importlib.import_module("sst2_transformer")
    for name, value in {"LENGTH": 5, "WIDTH": 8, "BLOCKS": 3, "BATCH": 4}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_sentences_become_numbers_by_the_training_words_alone(sst2):
    numbers = sst2.vocabulary(["good film", "bad film", "not good film", "dull"])
    # Thrice, twice; the others only once.
    assert numbers == {"film": 2, "good": 3}
    rows = sst2.numbered(["a good film", "film film film film film film good"], numbers)
    assert rows.dtype == "int32"
    assert rows.tolist() == [[1, 3, 2, 0, 0], [2, 2, 2, 2, 2]]


def test_the_loader_reads_sentences_and_labels(sst2, monkeypatch, tmp_path):
    (tmp_path / "sst2").mkdir()
    for name in ("train", "dev", "test"):
        text = f"a {name} 's “ film\t1\nbad\x85 one\t0\n"
        (tmp_path / "sst2" / f"{name}.tsv").write_text(text, encoding="utf-8")
    monkeypatch.setattr(importlib.import_module("data"), "DATA_DIR", tmp_path)
    found = sst2.load_sst2()
    assert [sentences for sentences, _ in found] == [
        [f"a {name} 's “ film", "bad\x85 one"] for name in ("train", "dev", "test")
    ]
    assert all(labels.tolist() == [1, 0] for _, labels in found)


def test_exits_stand_after_each_block_but_the_last_and_see_no_padding(sst2):
    x = np.random.default_rng(0).integers(2, 12, (24, 5)).astype("int32")
    x[:12, 3:] = sst2.PADDING
    y = np.arange(24) % 2
    network = sst2.transformer(12, blocks=3)
    model = sst2.with_exits(network, x, y)
    assert model.exit_names == ["exit_1", "exit_2", "final"]
    shares = model.compute_costs().shares()
    assert np.allclose(shares, [1 / 3, 2 / 3, 1], atol=0.05)

    dense = np.stack(model.predict(x, verbose=0))
    embedding = next(
        layer for layer in model.layers if isinstance(layer, keras.layers.Embedding)
    )
    vectors = embedding.get_weights()[0]
    # No constant, which the normalizations would take out again.
    vectors[sst2.PADDING] += np.arange(8.0)
    embedding.set_weights([vectors])
    assert np.allclose(np.stack(model.predict(x, verbose=0)), dense, atol=1e-5)

    entropies = -np.sum(dense[0] * np.log(dense[0]), axis=1)
    ranked = np.sort(entropies)
    rule = kd.rules.Entropy([float(ranked[11] + ranked[12]) / 2, None])
    found = model.predict_dynamic(x, batch_size=8, rule=rule, verbose=0)
    leaves = entropies <= ranked[11]
    assert np.array_equal(found.exit_index, np.where(leaves, 0, 2))
    expected = np.where(leaves[:, np.newaxis], dense[0], dense[2])
    assert np.allclose(found.outputs, expected, atol=1e-5)


def test_some_words_are_hidden_in_training_and_padding_is_not(sst2):
    x = np.full((4, 5), 7, "int32")
    x[:, 3:] = sst2.PADDING
    drawn = np.stack([sst2.hide_words(x, 0)[0].numpy() for _ in range(200)])
    assert np.all(drawn[..., 3:] == sst2.PADDING)
    assert set(np.unique(drawn[..., :3])) == {sst2.UNKNOWN, 7}
    # 2,400 draws of 0.2: a standard deviation of 0.008.
    assert abs(np.mean(drawn[..., :3] == sst2.UNKNOWN) - 0.2) < 0.05


def test_ratios_are_taken_turn_by_turn_against_the_faster_one(sst2):
    found = {"ours": [1.0, 9.0, 2.0], "a": [2.0, 9.0, 8.0], "b": [9.0, 9.0, 9.0]}
    # a is the faster in its median, 8 to 9: 1/2, 9/9, 2/8.
    assert sst2.ratio(found, "ours", "b", "a") == 0.5
