"""The dynamic engine against the same network in PyTorch.

`early_exit.resnet20`, a ResNet-20-like network with three exits on 32 x 32 images, with
random weights and inputs, since only time counts; `pytorch_resnet.py` is its twin with
the same weights. Each survivor goes on and each answer is written to its row, by masks,
as in PyTorch code of early exits. Both have to answer alike before anything is timed.

Rows: one sample that leaves at the first or the second exit, or does not leave, by
`dynamic_function`; and `predict_dynamic` on many inputs in batches of 16 and 128, for
given shares that leave at the three exits. From NumPy arrays to NumPy arrays.

Columns: PyTorch's time over ours, above 1 where ours is shorter, for three ways of
PyTorch: `eager`, in the memory format `channels_last`; `folded`, the same with batch
normalization folded into the convolutions; `compiled`, by `torch.compile` with frozen
weights. `static` are the same on PyTorch's final output alone, over our dynamic time.

PyTorch runs in a process of its own, since two pools of threads in one process disturb
each other, and waits while TensorFlow computes, and the other way round. All is timed
in turns in one run, on all cores; the figures are medians. They need a quiet machine:
where others use its cores, PyTorch's threads spin for one another, many times as long
as they compute. `OMP_WAIT_POLICY=PASSIVE` in the environment lets them sleep instead,
at the price of its times for single samples.

    pip install "keras_dynamic[bench]"
    python benchmarks/against_pytorch.py [--inputs 1024] [--repeats 5] \
        [--no-compile] [--json FILE]
"""

import argparse
import statistics
import tempfile
import time

import keras
import numpy as np
import record
from early_exit import resnet20, thresholds_for
from engine import SHARES, inputs_of, seconds
from pytorch_process import PyTorchProcess

import keras_dynamic as kd

BATCHES = (16, 128)
# Below every score, and above.
OPENED, CLOSED = -1.0, 2.0
ALONE = {
    "leaves first": (OPENED, OPENED),
    "leaves second": (CLOSED, OPENED),
    "stays": (CLOSED, CLOSED),
}
CALLS_ALONE = 300
WARM_UP_SECONDS = 15.0  # after which segments have been tried with XLA
# How far outputs may be apart; a score so near its threshold may fall on either side.
NEAR = 1e-4


def vary_norms(model):
    """Gives batch normalization other numbers than those that it starts with."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            gamma, variance = rng.uniform(0.7, 1.3, (2, *shape))
            beta, mean = rng.normal(0, 0.1, (2, *shape))
            layer.set_weights([gamma, beta, mean, variance])


def weights_of(model):
    """A dict of arrays from which `pytorch_resnet.with_weights` builds the twin."""

    def those(kind):
        return [layer for layer in model.layers if isinstance(layer, kind)]

    arrays = {}
    for index, layer in enumerate(those(keras.layers.Conv2D)):
        arrays[f"kernel_{index}"] = layer.get_weights()[0]
    for index, layer in enumerate(those(keras.layers.BatchNormalization)):
        arrays[f"norm_{index}"] = np.stack(layer.get_weights())
    for index, name in enumerate(("exit_1", "exit_2", "final")):
        kernel, bias = model.get_layer(name).get_weights()[-2:]
        arrays |= {f"head_{index}": kernel, f"bias_{index}": bias}
    return arrays


def check_alike(ours, theirs, thresholds):
    """Raises unless two answers agree; both are dicts of arrays, a row a sample.

    Args:
        ours, theirs: outputs, exit_index, confidence.
        thresholds: one number for each early exit.
    """
    same = ours["exit_index"] == theirs["exit_index"]
    for row in np.flatnonzero(~same):
        # At the earlier of the two exits they parted; its score is one of the two.
        exit_index, score = min(
            (int(each["exit_index"][row]), float(each["confidence"][row]))
            for each in (ours, theirs)
        )
        if abs(score - thresholds[exit_index]) > NEAR:
            raise AssertionError(
                f"Sample {row} leaves at exit {ours['exit_index'][row]} here and at "
                f"{theirs['exit_index'][row]} in PyTorch; its score at exit "
                f"{exit_index} is {score}, the threshold {thresholds[exit_index]}."
            )
    if np.mean(same) < 0.98:
        raise AssertionError(f"Only {np.mean(same):.1%} of the samples leave alike.")
    check_outputs(ours["outputs"][same], theirs["outputs"][same])


def check_outputs(ours, theirs):
    """Raises unless two arrays agree."""
    apart = np.max(np.abs(ours - theirs))
    if not apart < NEAR:
        raise AssertionError(f"The outputs differ by up to {apart}.")


class PyTorch(PyTorchProcess):
    """The process that runs the twin; it lives as long as a `with` block.

    Args:
        folder: path of an empty folder for weights, inputs and answers.
        model: an `early_exit.resnet20`.
        x: (n, 32, 32, 3), the inputs.
    """

    def __init__(self, folder, model, x):
        super().__init__(folder, "pytorch_resnet.py")
        np.savez(self.folder / "network.npz", **weights_of(model))
        np.save(self.folder / "inputs.npy", x)


def compare(name, ours, pytorch, ways, batch_size, thresholds, calls, repeats):
    """Times both in turns; prints a row, and returns it with all seconds.

    Args:
        ours: function without arguments.
        calls: int, of which a median is taken in each turn.
    """

    def theirs(way, thresholds):
        return pytorch.ask(
            "seconds",
            way=way,
            batch_size=batch_size,
            thresholds=thresholds,
            calls=calls,
        )

    roads = {"ours": lambda: seconds(ours, calls)}
    for way in ways:
        roads[way] = lambda way=way: theirs(way, thresholds)
        roads[f"static {way}"] = lambda way=way: theirs(way, None)
    times = {road: [] for road in roads}
    for run in roads.values():
        run()
    for _ in range(repeats):
        for road, run in roads.items():
            times[road].append(run())
    medians = {road: statistics.median(values) for road, values in times.items()}
    mine = medians.pop("ours")
    dynamic = [f"{way} {medians[way] / mine:.2f}" for way in ways]
    static = [f"{way} {medians[f'static {way}'] / mine:.2f}" for way in ways]
    print(
        f"batch {batch_size:3d}, {name:13s} PyTorch / ours: {', '.join(dynamic)}; "
        f"static / ours: {', '.join(static)} ({1000 * mine:.2f} ms)",
        flush=True,
    )
    row = {"batch": batch_size, "samples": name}
    row |= {f"{road}_over_ours": median / mine for road, median in medians.items()}
    return row | {f"seconds_{road}": values for road, values in times.items()}


def one_at_a_time(model, x, pytorch, ways, repeats):
    one, rows = x[:1], []
    for name, thresholds in ALONE.items():
        rule = kd.rules.MaxProbability(
            [0.0 if threshold == OPENED else None for threshold in thresholds]
        )
        function = model.dynamic_function(batch_size=1, rule=rule)

        def ours(function=function):
            return {name: tensor.numpy() for name, tensor in function(one).items()}

        check_ways(pytorch, ways, ours(), 1, thresholds)
        arguments = ours, pytorch, ways, 1, thresholds, CALLS_ALONE, repeats
        rows.append(compare(name, *arguments))
    return rows


def many_inputs(model, x, pytorch, ways, repeats):
    final, rows = model.predict(x, verbose=0)[-1], []
    for shares in SHARES:
        thresholds = thresholds_for(model, x, shares)
        model.exit_rule = kd.rules.MaxProbability(thresholds)
        name = "/".join(f"{100 * share:.0f}" for share in shares)
        for batch in BATCHES:

            def ours(batch=batch):
                return model.predict_dynamic(x, batch_size=batch, verbose=0)

            started = time.perf_counter()
            while time.perf_counter() - started < WARM_UP_SECONDS:
                found = ours()
            check_ways(pytorch, ways, vars(found), batch, thresholds)
            for way in ways:
                static = pytorch.answers("static_answers", way=way, batch_size=batch)
                check_outputs(final, static["outputs"])
            arguments = ours, pytorch, ways, batch, thresholds, 1, repeats
            rows.append(compare(name, *arguments))
    return rows


def check_ways(pytorch, ways, ours, batch_size, thresholds):
    for way in ways:
        theirs = pytorch.answers(way=way, batch_size=batch_size, thresholds=thresholds)
        check_alike(ours, theirs, thresholds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    record.add_option(parser)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = resnet20()
    vary_norms(model)
    x = inputs_of(model, arguments.inputs)
    with (
        tempfile.TemporaryDirectory() as folder,
        PyTorch(folder, model, x) as pytorch,
    ):
        if not arguments.no_compile:
            pytorch.ask("compile")
        ways = pytorch.ask("ways")
        rows = one_at_a_time(model, x, pytorch, ways, arguments.repeats)
        rows += many_inputs(model, x, pytorch, ways, arguments.repeats)
    record.write(arguments.json, rows, [0], lists="turns", packages=["torch"])


if __name__ == "__main__":
    main()
