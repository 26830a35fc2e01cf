"""The constructors of the layers and routers: arguments at random."""

import math

import keras

import keras_dynamic as kd
from keras_dynamic.ops.estimators import ESTIMATORS
from tests.abuse import drawing as d
from tests.abuse.judging import Entry


def made(cls):
    """Makes a layer, and brings it to its config and back."""

    def call(**arguments):
        layer = cls(**arguments)
        config = layer.get_config()
        assert cls.from_config(config).get_config().keys() == config.keys()
        return layer

    return call


def dense(r):
    return keras.layers.Dense(r.randint(1, 3))


def several(r):
    return [dense(r) for _ in range(r.randint(1, 3))]


one = keras.layers.Dense(2)
NO_LAYER = d.of("nonsense", 3, 0.5, True, [], [None], keras.layers.Dense, *d.JUNK)
NO_LIST = d.of("nonsense", 3, True, [], [None], ["a"], [one, one], one, *d.JUNK)
NO_ACTIVATION = d.of("nonsense", 3.5, d.NOTHING, {1, 2}, b"bytes", 1j)
LAYER, LAYERS = d.required(d.Kind(dense, NO_LAYER)), d.Kind(several, NO_LIST)
ACTIVATION = d.Kind(d.of("relu", "tanh", None, keras.activations.gelu), NO_ACTIVATION)
WEIGHT = d.required(d.number(0))
ESTIMATOR = d.name(*ESTIMATORS, wrong=(None,))
TEMPERATURE = d.Kind(
    d.number(1).right,
    d.of(0, -1.0, math.nan, math.inf, 1e-50, True, "0.5", None, [], [1, 2], *d.JUNK),
)
SEED = d.Kind(d.of(None, 0, 7), d.of("nonsense", 2.5, [], *d.JUNK))
INITIALIZER = d.Kind(
    d.of("zeros", "ones", "glorot_uniform"), d.of("nonsense", 3.5, d.NOTHING, b"bytes")
)
UNITS = d.required(d.integer(1, wrong=(0, None)))
HIDDEN = d.Kind(
    d.of(None, 3, [3], [4, 2], (3,)),
    d.of(0, -1, 2.5, True, "3", [0], [-2], [2.5], [True], ["a"], *d.JUNK, math.nan),
)
POOLING = d.Kind(
    d.of("auto", "average", "max", "first", "flatten"),
    d.of("nonsense", "", 3, None, True, [], 0.5, *d.JUNK),
)
FORMAT = d.Kind(
    d.of(None, "channels_last", "channels_first"), d.of("nonsense", 3, ["a"], 1j)
)
PRIOR = d.Kind(
    d.of(None, "uniform", [0.5, 0.5], (0.25, 0.75)),
    d.of("a", 3, [0.5], [0.5, 0.6], [1.0, 0.0], [-1.0, 2.0], [math.nan, 0.5], *d.JUNK),
)
EXIT_COSTS = d.Kind(
    d.of("auto", [0.5, 1.0], (0.2, 1)),
    d.of("a", 3, [0.5], [-1.0, 1.0], [math.nan, 1.0], ["a", "b"], [math.inf, 1], {}),
)
CHOICE = {"estimator": ESTIMATOR, "temperature": TEMPERATURE, "seed": SEED}
SELECTOR = {
    **CHOICE,
    "num_exits": d.required(d.integer(2, 2, right=d.of(2))),
    "hidden_units": HIDDEN,
    "entropy_weight": WEIGHT,
    "prior": PRIOR,
    "prior_weight": WEIGHT,
    "prior_per_sample": d.required(d.boolean()),
    "exit_costs": EXIT_COSTS,
    "cost_weight": WEIGHT,
    "pooling": POOLING,
}
SELECTOR["num_exits"] = d.Kind(
    d.of(2), d.of(1, 0, -1, 2.5, True, "2", [], [2], math.nan, *d.JUNK)
)
ROUTER = {
    "num_experts": d.required(d.integer(2, wrong=(0,))),
    "noise_stddev": d.Kind(
        d.of("auto", 0.0, 0.5), d.of("nonsense", -1, math.nan, True, None, [], *d.JUNK)
    ),
    "kernel_initializer": INITIALIZER,
    "seed": SEED,
}
ROUTER["num_experts"] = d.Kind(
    d.of(2, 3), d.of(0, -1, 2.5, True, "2", None, [], math.nan, *d.JUNK)
)
FACTOR = d.optional(d.number(0, above=True))
RATE = d.number(0, 1, above=True)
MIXTURE = {
    "num_experts": d.Kind(d.of(2, 3), ROUTER["num_experts"].wrong),
    "hidden_units": UNITS,
    "top_k": d.Kind(d.of(1, 2), d.of(0, -1, 9, 1.5, True, "1", None, [], *d.JUNK)),
    "router": d.Kind(
        d.of("top_k", "top_k", "dense", "expert_choice"),
        d.of("nonsense", "", 3, None, True, [], one, kd.routers.TopKRouter(9), *d.JUNK),
    ),
    "route": d.name("token", "input", wrong=(None,)),
    "noise_stddev": ROUTER["noise_stddev"],
    "capacity_factor": FACTOR,
    "balance_loss": d.Kind(
        d.of(None, "kl", "importance", ["kl", "importance"], []),
        d.of("nonsense", 3, True, ["a"], ["kl", "kl"], [3], *d.JUNK),
    ),
    "balance_weight": d.Kind(
        d.of(0, 0.1), d.of(-1, math.nan, math.inf, True, "0.1", None, [1] * 9, *d.JUNK)
    ),
    "activation": ACTIVATION,
    "gated": d.required(d.boolean()),
    "use_bias": d.required(d.boolean()),
    "renormalize": d.required(d.boolean()),
    "inference_capacity_factor": FACTOR,
    "batch_prioritized": d.required(d.boolean()),
    "z_weight": WEIGHT,
    "dispatch": d.name("auto", "ragged", "dense", "capacity", wrong=(None,)),
    "devices": d.Kind(
        d.of(None), d.of("CPU:0", [], ["TPU:9"], [None], [3], 3, True, *d.JUNK)
    ),
    "kernel_initializer": INITIALIZER,
    "bias_initializer": INITIALIZER,
    "kernel_regularizer": d.Kind(
        d.of(None, "l2"), d.of("nonsense", d.NOTHING, 3.5, b"bytes")
    ),
    "seed": SEED,
}
OWN = {
    "experts": LAYERS,
    "top_k": d.Kind(d.of(1), d.of(0, -1, 9, 1.5, True, "1", None, [], *d.JUNK)),
}
AXES = d.Kind(
    d.of(None, 1, [1, 2], (1,)),
    d.of(0, [0], 1.5, True, "1", [1.5], {"a": 1}, d.NOTHING),
)
ENTRIES = [
    Entry(
        "EarlyExit",
        made(kd.EarlyExit),
        {
            "units": UNITS,
            "pooling": POOLING,
            "hidden_units": HIDDEN,
            "activation": d.Kind(d.of("softmax", "sigmoid", None), NO_ACTIVATION),
            "loss_weight": WEIGHT,
            "grid": d.optional(d.integer(1)),
            "hidden_activation": ACTIVATION,
            "loss": d.Kind(
                d.of("auto", "mse", keras.losses.MeanSquaredError()),
                d.of("nonsense", None, 3.5, d.NOTHING, b"bytes", True),
            ),
            "data_format": FORMAT,
        },
        may_refuse=True,
    ),
    Entry("ExitSelector", made(kd.ExitSelector), SELECTOR, may_refuse=True),
    Entry("LayerwiseSelector", made(kd.LayerwiseSelector), SELECTOR, may_refuse=True),
    Entry(
        "GumbelSoftmax",
        made(kd.GumbelSoftmax),
        {
            **CHOICE,
            "axis": d.required(d.integer(wrong=(1.5,))),
            "sample_at_inference": d.required(d.boolean()),
        },
    ),
    Entry(
        "SkipGate",
        made(kd.SkipGate),
        {
            **CHOICE,
            "layer": LAYER,
            "target_rate": d.optional(RATE),
            "rate_weight": WEIGHT,
            "cost_weight": WEIGHT,
            "initial_open_rate": d.required(d.number(0, 1, above=True, below=True)),
            "shortcut": d.Kind(
                d.any_of(d.of("auto", None), dense), d.of("nonsense", 3, True, *d.JUNK)
            ),
            "additive": d.required(d.boolean()),
            "cost": d.Kind(
                d.of("auto", 0.0, 0.5, 1), d.of("a", -1, math.nan, True, None, *d.JUNK)
            ),
            "data_format": FORMAT,
        },
        may_refuse=True,
    ),
    Entry(
        "SkipGate(gate=)",
        made(kd.SkipGate),
        {
            "layer": LAYER,
            "gate": d.Kind(lambda r: keras.layers.Dense(1), NO_LAYER),
        },
    ),
    Entry(
        "BlendedActivation",
        made(kd.BlendedActivation),
        {
            **CHOICE,
            "activations": d.required(
                d.Kind(
                    d.of(["relu", "tanh"], ("gelu",), ["relu", keras.activations.elu]),
                    d.of("relu", [], ["a"], [3], ["relu"] * 2, 3, [one], *d.JUNK),
                )
            ),
            "constraint": d.name(
                "softmax", "softmax", "positive", "unrestricted", wrong=(None,)
            ),
            "shared_axes": AXES,
            "initial_activation": d.Kind(
                d.of(None, 0), d.of("nonsense", 9, -1, True, 0.5, [0], *d.JUNK)
            ),
        },
        may_refuse=True,
    ),
    Entry(
        "LayerChoice",
        made(kd.LayerChoice),
        {
            **CHOICE,
            "layers": d.required(LAYERS),
            "entropy_weight": WEIGHT,
            "costs": d.Kind(
                d.of("auto"), d.of("a", 3, [-1], [1] * 9, [math.nan], *d.JUNK)
            ),
            "cost_weight": WEIGHT,
        },
    ),
    Entry("SparseMoE", made(kd.SparseMoE), MIXTURE, may_refuse=True),
    Entry("SparseMoE(experts=)", made(kd.SparseMoE), OWN),
    Entry("routers.Router", made(kd.routers.Router), ROUTER),
    Entry("routers.DenseRouter", made(kd.routers.DenseRouter), ROUTER),
    Entry(
        "routers.TopKRouter",
        made(kd.routers.TopKRouter),
        {
            **ROUTER,
            "top_k": MIXTURE["top_k"],
            "renormalize": d.required(d.boolean()),
        },
        may_refuse=True,
    ),
    Entry(
        "routers.ExpertChoiceRouter",
        made(kd.routers.ExpertChoiceRouter),
        {
            **ROUTER,
            "top_k": d.Kind(
                d.of(0.5, 1.0, 2),
                d.of(0, -1, 9, True, "1", None, [], *d.JUNK, math.nan),
            ),
        },
        may_refuse=True,
    ),
]
