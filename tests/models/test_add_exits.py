"""add_exits: where exits come to stand, what stands there, and what is left alone."""

import contextlib

import keras
import numpy as np
import pytest

import keras_dynamic as kd

RNG = np.random.default_rng(0)


def ladder(widths=(10, 10, 10, 10), activation="softmax"):
    """Dense layers of 10 units on 10 features: 210 FLOPs each, 220 with a tanh."""
    layers = [keras.layers.Dense(w, name=f"step_{i}") for i, w in enumerate(widths, 1)]
    return keras.Sequential(
        [keras.Input((10,)), *layers, keras.layers.Dense(3, activation, name="final")],
        name="ladder",
    )


def residual():
    """Two residual blocks with convolutions, normalization and a pooling."""
    inputs = keras.Input((16, 16, 3))
    stem = keras.layers.Conv2D(8, 3, padding="same", name="stem_conv")(inputs)
    stem = keras.layers.BatchNormalization(name="stem_norm")(stem)
    hidden = keras.layers.ReLU(name="stem_relu")(stem)
    for block in (1, 2):
        branch = keras.layers.Conv2D(
            8, 3, padding="same", activation="relu", name=f"block_{block}_a"
        )(hidden)
        branch = keras.layers.Conv2D(8, 3, padding="same", name=f"block_{block}_b")(
            branch
        )
        hidden = keras.layers.Add(name=f"block_{block}_add")([hidden, branch])
        hidden = keras.layers.ReLU(name=f"block_{block}_relu")(hidden)
    hidden = keras.layers.Conv2D(16, 3, name="top")(hidden)
    hidden = keras.layers.BatchNormalization(name="top_norm")(hidden)
    hidden = keras.layers.GlobalAveragePooling2D(name="pool")(hidden)
    outputs = keras.layers.Dense(5, name="logits")(hidden)
    return keras.Model(inputs, outputs, name="residual")


def names_of(model):
    return [cut.name for cut in kd.suggest_exits(model)]


class TestPlaces:
    def test_shares_are_those_of_the_flops(self):
        # 10 x 10 x 2 + 10 = 210 FLOPs a step; 10 x 3 x 2 + 3 + softmax 5 x 3 = 78.
        suggestions = kd.suggest_exits(ladder())
        assert suggestions.flops == 4 * 210 + 78
        assert suggestions.names == ["step_1", "step_2", "step_3"]  # the 4th: its foot
        shares = [cut.share for cut in suggestions]
        np.testing.assert_allclose(shares, [210 / 918, 420 / 918, 630 / 918])
        assert all(cut.live_tensors == 1 for cut in suggestions)

    def test_cost_of_the_head_is_that_of_the_head_put_there(self):
        network = residual()
        suggestions = {cut.name: cut for cut in kd.suggest_exits(network)}
        model = kd.add_exits(network, at=["stem_relu", "block_1_relu"])
        costs = model.compute_costs()
        shares = [
            suggestions["stem_relu"].head_share,
            suggestions["block_1_relu"].head_share,
        ]
        np.testing.assert_allclose(
            shares, np.array(costs.heads[:2]) / costs.reference, rtol=1e-6
        )

    def test_a_block_takes_its_activation_and_normalization_along(self):
        assert names_of(residual()) == ["stem_relu", "block_1_relu", "block_2_relu"]

    def test_a_bottleneck_is_left_for_the_end_of_its_block(self):
        inputs = keras.Input((8, 8, 4))
        wide = keras.layers.Conv2D(32, 1, name="expand")(inputs)
        narrow = keras.layers.Conv2D(4, 1, name="project")(wide)
        wide = keras.layers.Conv2D(32, 1, name="expand_2")(narrow)
        narrow = keras.layers.Conv2D(8, 1, name="project_2")(wide)
        hidden = keras.layers.GlobalAveragePooling2D()(narrow)
        network = keras.Model(inputs, keras.layers.Dense(2)(hidden))
        cuts = {cut.name: cut for cut in kd.suggest_exits(network)}
        assert [cut.ends_block for cut in cuts.values()] == [False, True, True]
        # FLOPs a pixel: expand 288, project 260, expand_2 288, project_2 520, beside
        # the pooling 8 and the head 34 / 64: so shares of about 0.21, 0.40 and 0.61.
        assert [round(cut.share, 2) for cut in cuts.values()] == [0.21, 0.40, 0.61]
        for share, name in ((0.36, "project"), (0.22, "expand"), (0.34, "project")):
            with contextlib.ExitStack() as stack:
                if share == 0.34:  # 0.40 is nearer than 0.21, but 6 points off
                    stack.enter_context(pytest.warns(UserWarning, match="'project'"))
                model = kd.add_exits(network, at=share)
            foot = network.get_layer(name).output
            assert model.get_layer("exit_1").input is foot

    def test_the_end_of_a_block_is_chosen_before_what_is_a_little_nearer(self):
        # FLOPs a pixel: expand 72, project 68, wide 2336: the first two end at about
        # 0.03 and 0.06 of the cost.
        inputs = keras.Input((8, 8, 4))
        hidden = keras.layers.Conv2D(8, 1, name="expand")(inputs)
        hidden = keras.layers.Conv2D(4, 1, name="project")(hidden)
        hidden = keras.layers.Conv2D(32, 3, padding="same", name="wide")(hidden)
        hidden = keras.layers.GlobalAveragePooling2D()(hidden)
        network = keras.Model(inputs, keras.layers.Dense(2)(hidden))
        model = kd.add_exits(network, at=0.03)
        foot = network.get_layer("project").output
        assert model.get_layer("exit_1").input is foot

    def test_two_towers_have_no_clean_cut_but_names_do(self):
        inputs = keras.Input((6,))
        one = keras.layers.Dense(6, "tanh", name="one")(inputs)
        other = keras.layers.Dense(6, "tanh", name="other")(inputs)
        merged = keras.layers.Concatenate()([one, other])
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(merged))
        assert names_of(network) == []
        with pytest.raises(ValueError, match="nowhere does a single tensor.*at=0.5"):
            kd.add_exits(network, at=0.5)
        model = kd.add_exits(network, at="one")
        x = RNG.normal(size=(4, 6)).astype("float32")
        p = model.predict_dynamic(x, rule=kd.rules.MaxProbability([None]), verbose=0)
        np.testing.assert_allclose(p.outputs, network.predict(x, verbose=0), atol=1e-6)

    def test_the_table(self):
        text = str(kd.suggest_exits(ladder()))
        assert "cost 1.0 is 918 FLOPs at (10,)" in text
        row = next(line for line in text.splitlines() if "step_2" in line)
        # 420 / 918; a head of 10 x 3 x 2 + 3 + softmax 15 = 78.
        assert "0.458" in row and "0.0850" in row

    def test_open_sizes_are_taken_for_tokens_or_as_given(self):
        inputs = keras.Input((None,), dtype="int32")
        hidden = keras.layers.Embedding(20, 8)(inputs)
        hidden = keras.layers.LSTM(8, return_sequences=True, name="lstm")(hidden)
        hidden = keras.layers.LSTM(8, name="last")(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        assert kd.suggest_exits(network).input_shapes == ((128,),)
        suggestions = kd.suggest_exits(network, input_shape=(4,))
        assert suggestions.input_shapes == ((4,),)
        model = kd.add_exits(network, at="lstm", input_shape=(4,))
        assert model.predict(np.ones((2, 7), "int32"), verbose=0)[0].shape == (2, 3)

    def test_layers_that_cannot_be_counted_are_named(self):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(6)(inputs)
        hidden = Loop(name="loop")(hidden)
        hidden = keras.layers.Dense(6, name="after")(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        with pytest.warns(UserWarning, match=r"cannot be counted: \['loop'\]"):
            suggestions = kd.suggest_exits(network)
        assert suggestions.names == [network.layers[1].name]


class Loop(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, x), (0, inputs)
        )[1]

    def compute_output_shape(self, input_shape):
        return input_shape


class TestHeads:
    def test_logits_for_logits(self):
        model = kd.add_exits(residual(), at="block_1_relu")
        assert model.get_layer("exit_1").activation is keras.activations.linear
        model.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_its_activation_and_units(self, activation):
        model = kd.add_exits(ladder(activation=activation), at=0.45)
        head = model.get_layer("exit_1")
        assert head.units == 3
        assert head.activation is getattr(keras.activations, activation)

    def test_an_activation_layer_of_its_own(self):
        network = ladder(activation=None)
        outputs = keras.layers.Softmax()(network.outputs[0])
        model = kd.add_exits(keras.Model(network.inputs, outputs), at=0.45)
        assert model.get_layer("exit_1").activation is keras.activations.softmax

    def test_hidden_layers_and_dropout(self):
        inputs = keras.Input((16, 16, 3))
        hidden = keras.layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
        hidden = keras.layers.Conv2D(32, 3, activation="relu")(hidden)
        hidden = keras.layers.Flatten()(hidden)
        hidden = keras.layers.Dense(24, "gelu")(hidden)
        hidden = keras.layers.Dropout(0.3)(hidden)
        network = keras.Model(inputs, keras.layers.Dense(5, "softmax")(hidden))
        model = kd.add_exits(network, at=["first"])
        head = model.get_layer("exit_1")
        assert head.hidden_units == [24]
        assert head.hidden_activation is keras.activations.gelu
        dropout = model.get_layer("exit_1_dropout")
        assert isinstance(dropout, keras.layers.SpatialDropout2D)
        assert dropout.rate == 0.3
        model = kd.add_exits(network, at=["first"], hidden_units=None, loss_weight=0.2)
        head = model.get_layer("exit_1")
        assert head.hidden_units is None and head.loss_weight == 0.2

    def test_hidden_layers_wider_than_what_they_are_given_are_left_out(self):
        inputs = keras.Input((16, 16, 3))
        hidden = keras.layers.Conv2D(8, 3, name="first")(inputs)
        hidden = keras.layers.Conv2D(8, 3)(hidden)
        hidden = keras.layers.Dense(4096, "relu")(keras.layers.Flatten()(hidden))
        network = keras.Model(inputs, keras.layers.Dense(5, "softmax")(hidden))
        model = kd.add_exits(network, at=["first"])
        assert model.get_layer("exit_1").hidden_units is None

    def test_a_normalization_before_the_classifier(self):
        """A pre-norm stream, as in GPT-2 and DenseNet."""
        inputs = keras.Input((8, 8, 4))
        hidden = inputs
        for block in (1, 2):
            branch = keras.layers.BatchNormalization(axis=3)(hidden)
            branch = keras.layers.Conv2D(4, 3, padding="same")(branch)
            hidden = keras.layers.Add(name=f"block_{block}")([hidden, branch])
        hidden = keras.layers.BatchNormalization(axis=3, epsilon=0.01)(hidden)
        hidden = keras.layers.ReLU(6.0)(hidden)
        hidden = keras.layers.GlobalAveragePooling2D()(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model = kd.add_exits(network, at="block_1")
        normal = model.get_layer("exit_1_normalization")
        assert isinstance(normal, keras.layers.BatchNormalization)
        assert normal.epsilon == 0.01
        assert model.get_layer("exit_1_activation").max_value == 6.0

    def test_a_normalization_of_somebody_else(self):
        """keras-hub's has no axis, and only its name tells what it is."""
        inputs = keras.Input((5, 8))
        hidden = keras.layers.Dense(8, name="block_1")(inputs)
        hidden = keras.layers.Add()([hidden, keras.layers.Dense(8)(hidden)])
        hidden = OwnRMSNorm(gain=3.0)(hidden)
        hidden = keras.layers.GlobalAveragePooling1D()(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3)(hidden))
        model = kd.add_exits(network, at="block_1")
        assert model.get_layer("exit_1_normalization").gain == 3.0

    def test_a_normalization_of_a_convolution_is_not_taken_over(self):
        model = kd.add_exits(residual(), at="block_1_relu")
        assert not any("normalization" in layer.name for layer in model.layers)

    def test_a_class_token(self):
        inputs = keras.Input((5, 8))
        hidden = keras.layers.Dense(8, "tanh", name="block_1")(inputs)
        hidden = keras.layers.Dense(8, "tanh", name="block_2")(hidden)
        hidden = keras.layers.LayerNormalization()(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden[:, 0]))
        model = kd.add_exits(network, at="block_1")
        assert model.get_layer("exit_1").pooling == "first"
        x = RNG.normal(size=(2, 5, 8)).astype("float32")
        other = x.copy()
        other[:, 1:] += 1.0
        early, _ = model.predict(x, verbose=0)
        np.testing.assert_allclose(early, model.predict(other, verbose=0)[0])

    def test_a_mask_that_is_an_argument(self):
        """Padded tokens do not count, as they do not in the blocks."""
        inputs = keras.Input((None, 8))
        mask = keras.Input((None,), dtype="int32")
        hidden = inputs
        for block in (1, 2):
            hidden = Block(name=f"block_{block}")(hidden, padding_mask=mask)
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        outputs = keras.layers.Dense(3, "softmax")(pooled)
        network = keras.Model([inputs, mask], outputs)
        model = kd.add_exits(network, at="block_1")
        x = RNG.normal(size=(2, 5, 8)).astype("float32")
        kept = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
        other = np.where(kept[..., None], x, 100.0).astype("float32")
        early, _ = model.predict([x, kept], verbose=0)
        np.testing.assert_allclose(
            early, model.predict([other, kept], verbose=0)[0], atol=1e-6
        )

    def test_a_backbone_gets_a_last_exit_too(self):
        network = residual()
        backbone = keras.Model(network.input, network.get_layer("top").output)
        model = kd.add_exits(backbone, at="block_1_relu", units=7)
        assert model.exit_names == ["exit_1", "final"]
        assert model.output_shape == [(None, 7), (None, 7)]
        with pytest.raises(
            ValueError, match=r"or `units` must say.*\(None, 14, 14, 16"
        ):
            kd.add_exits(backbone)

    def test_a_pooling_layer_is_copied_for_each(self):
        pooling = keras.layers.Conv2D(2, 3, strides=2)
        model = kd.add_exits(residual(), ["stem_relu", "block_1_relu"], pooling=pooling)
        own = [model.get_layer(f"exit_{i}").pooling for i in (1, 2)]
        assert len({id(layer) for layer in (pooling, *own)}) == 3
        assert not pooling.built and own[0].built

    def test_a_head_that_costs_more_than_it_saves(self):
        network = ladder((10, 10, 10, 200))
        with pytest.warns(UserWarning, match="'exit_1'.*costs.*more than.*saves"):
            kd.add_exits(network, at="step_3", hidden_units=[1000])


class OwnRMSNorm(keras.layers.Layer):
    def __init__(self, gain, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def call(self, inputs):
        square = keras.ops.mean(inputs * inputs, axis=-1, keepdims=True)
        return self.gain * inputs * keras.ops.rsqrt(square + 1e-6)

    def get_config(self):
        return {**super().get_config(), "gain": self.gain}


class Block(keras.layers.Layer):
    """Adds to each token what a mask lets through of it."""

    def call(self, inputs, padding_mask=None):
        mask = keras.ops.expand_dims(padding_mask, -1)
        return inputs + keras.ops.cast(mask, inputs.dtype) * inputs

    def compute_output_shape(self, inputs_shape, **kwargs):
        return inputs_shape


def traces(model):
    """What a user sees of a model: names, flags, nodes by their names."""
    return {
        "config": model.get_config(),
        "layers": [(layer.name, layer.trainable) for layer in model.layers],
        "trainable": [w.path for w in model.trainable_weights],
        "optimizer": getattr(model, "optimizer", None),
        "compiled": model.compiled,
    }


class TestOriginal:
    def nested(self):
        """A backbone called by another model, compiled, with a frozen layer."""
        backbone = residual()
        backbone.get_layer("stem_conv").trainable = False
        inputs = keras.Input((16, 16, 3))
        outputs = keras.layers.Softmax(name="answer")(backbone(inputs * 2.0))
        model = keras.Model(inputs, outputs, name="outer")
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    @pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
    def test_it_stays_what_it_was(self, kind, tmp_path):
        if kind == "sequential":
            network, x = ladder(), RNG.normal(size=(6, 10)).astype("float32")
            network.compile("adam", "sparse_categorical_crossentropy")
        else:
            network = self.nested() if kind == "nested" else residual()
            x = RNG.normal(size=(6, 16, 16, 3)).astype("float32")
        before, answers = traces(network), network.predict(x, verbose=0)
        model = kd.add_exits(network, at=0.43)
        assert traces(network) == before
        np.testing.assert_array_equal(network.predict(x, verbose=0), answers)
        # Weights are shared, and the last exit gives the model's own answer.
        own = {id(w) for w in network.weights}
        assert own <= {id(w) for w in model.weights}
        outputs = model.predict(x, verbose=0)
        np.testing.assert_allclose(outputs[-1], answers, atol=1e-6)
        # Both can be saved, loaded, copied.
        network.save(tmp_path / "network.keras")
        again = keras.models.load_model(tmp_path / "network.keras", compile=False)
        np.testing.assert_allclose(again.predict(x, verbose=0), answers, atol=1e-6)
        keras.models.clone_model(network)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        for one, other in zip(outputs, again.predict(x, verbose=0), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        plain = kd.strip_exits(model)
        np.testing.assert_allclose(plain.predict(x, verbose=0), answers, atol=1e-6)

    def test_a_nested_model_stays_one_where_no_cut_lies_in_it(self):
        inputs = keras.Input((10,))
        inner = keras.Sequential(
            [keras.Input((10,)), keras.layers.Dense(10, name="in_1")], name="inner"
        )
        hidden = keras.layers.Dense(10, name="out_1")(inner(inputs))
        hidden = keras.layers.Dense(10, name="out_2")(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model = kd.add_exits(network, at=["inner", "out_1"])
        assert inner in model.layers
        # By the inner layer's name it is cut within.
        model = kd.add_exits(network, at="in_1")
        x = RNG.normal(size=(3, 10)).astype("float32")
        np.testing.assert_allclose(
            model.predict(x, verbose=0)[-1], network.predict(x, verbose=0), atol=1e-6
        )

    def test_masks_within_a_nested_model(self):
        """Embedding with `mask_zero` inside, cut inside, read outside."""
        tokens = keras.Input((5,), dtype="int32")
        hidden = keras.layers.Embedding(9, 6, mask_zero=True)(tokens)
        hidden = keras.layers.LSTM(6, return_sequences=True, name="inside")(hidden)
        hidden = keras.layers.LSTM(6, return_sequences=True)(hidden)
        inner = keras.Model(tokens, hidden, name="inner")
        inputs = keras.Input((5,), dtype="int32")
        pooled = keras.layers.GlobalAveragePooling1D()(inner(inputs))
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(pooled))
        x = RNG.integers(0, 9, (6, 5)) * np.array([1, 1, 1, 1, 0])
        model = kd.add_exits(network, at="inside")
        early, final = model.predict(x, verbose=0)
        np.testing.assert_allclose(final, network.predict(x, verbose=0), atol=1e-6)
        alone = keras.Model(tokens, inner.get_layer("inside").output)(x)
        kept = (x != 0)[..., None]
        mean = (np.asarray(alone) * kept).sum(1) / kept.sum(1)
        kernel, bias = model.get_layer("exit_1").classifier.get_weights()
        scores = np.exp(mean @ kernel + bias)
        wanted = scores / scores.sum(1, keepdims=True)
        np.testing.assert_allclose(early, wanted, atol=1e-5)
        p = model.predict_dynamic(x, rule=kd.rules.MaxProbability(0.4), verbose=0)
        rows = p.exit_index == 1
        np.testing.assert_allclose(p.outputs[rows], final[rows], atol=1e-6)


class Scaled(keras.layers.Layer):
    """Writes down more than it takes, as layers of keras-hub do."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[-1], name="inner")
        self.dense.build(input_shape)

    def call(self, inputs):
        return inputs + self.factor * self.dense(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        computed = {"factor": self.factor, "computed": 2 * self.factor}
        return {**super().get_config(), **computed}


class Encoder(keras.layers.Layer):
    """Runs blocks one after the other, as ViT's of keras-hub does."""

    def __init__(self, twice=False, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim, self.twice = 6, twice

    def build(self, input_shape):
        self.dropout = keras.layers.Dropout(0.1, name="encoder_dropout")
        self.encoder_layers = [Scaled(0.5, name=f"block_{i}") for i in (1, 2, 3)]
        self.layer_norm = keras.layers.LayerNormalization(name="encoder_norm")
        for layer in (*self.encoder_layers, self.layer_norm):
            layer.build(input_shape)

    def call(self, inputs):
        hidden = self.dropout(inputs)
        for layer in self.encoder_layers:
            hidden = layer(layer(hidden)) if self.twice else layer(hidden)
        return self.layer_norm(hidden)

    def compute_output_shape(self, input_shape):
        return input_shape


class TestEncoders:
    def network(self, **arguments):
        inputs = keras.Input((4, 6))
        hidden = Encoder(name="encoder", **arguments)(inputs)
        return keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden[:, 0]))

    def test_taken_apart_saved_and_loaded(self, tmp_path):
        network = self.network()
        model = kd.add_exits(network, at=["block_1", "block_2"])
        x = RNG.normal(size=(5, 4, 6)).astype("float32")
        outputs = model.predict(x, verbose=0)
        np.testing.assert_allclose(
            outputs[-1], network.predict(x, verbose=0), atol=1e-6
        )
        assert {id(w) for w in network.weights} <= {id(w) for w in model.weights}
        assert model.get_layer("exit_1_normalization").built
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(
            tmp_path / "model.keras", custom_objects={"Scaled": Scaled}
        )
        for one, other in zip(outputs, again.predict(x, verbose=0), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_not_where_the_parts_give_something_else(self):
        with pytest.raises(ValueError, match="'block_1', which stands inside of 'enc"):
            kd.add_exits(self.network(twice=True), at="block_1")


class TestBadInput:
    @pytest.mark.parametrize(
        ("at", "error", "message"),
        [
            (0.0, ValueError, r"in \(0, 1\).*Received: 0.0"),
            ((0.5, 1.0), ValueError, r"in \(0, 1\).*Received: 1.0"),
            (float("nan"), ValueError, r"in \(0, 1\).*nan"),
            ((0.5, 0.25), ValueError, r"ascending order.*\(0.5, 0.25\)"),
            ((0.5, 0.5), ValueError, r"ascending order.*\(0.5, 0.5\)"),
            ((), ValueError, r"at least one.*at=\(\)"),
            ([None], TypeError, "shares of the cost or names.*None"),
            (True, TypeError, "shares of the cost or names.*True"),
            ("stp_2", ValueError, "'stp_2', which is not there. Did you mean 'step_2'"),
            ("final", ValueError, "'final', which gives the model's output"),
            (["step_2", "step_1"], ValueError, "order of depth.*'step_2'.*'step_1'"),
            (["step_2", 0.2], ValueError, "order of depth.*'step_2'.*0.2"),
            (["step_2", "step_2"], ValueError, "different place.*'step_2' and"),
        ],
    )
    def test_at(self, at, error, message):
        with pytest.raises(error, match=message):
            kd.add_exits(ladder(), at=at)

    def test_two_shares_on_one_cut(self):
        with pytest.raises(
            ValueError, match=r"0.44 and 0.47, both of which come to 'step_2'.*step_3"
        ):
            kd.add_exits(ladder(), at=(0.44, 0.47))

    def test_a_share_far_from_any_cut_is_named(self):
        with pytest.warns(
            UserWarning, match="nearest to 0.9 .* after 'step_3', at 0.6"
        ):
            model = kd.add_exits(ladder(), at=0.9)
        assert model.get_layer("exit_1").input is model.get_layer("step_3").output

    def test_names_that_are_taken(self):
        network = ladder()
        layers = [keras.layers.Dense(10, name="exit_1"), *network.layers[-2:]]
        model = kd.add_exits(
            keras.Sequential([keras.Input((10,)), *layers]), at="exit_1"
        )
        assert model.exit_names == ["exit_1_1", "final"]

    def test_several_outputs(self):
        network = ladder()
        two = keras.Model(network.inputs, dict.fromkeys("ab", network.outputs[0]))
        with pytest.raises(ValueError, match=r"one output.*2 outputs: \['a', 'b'\]"):
            kd.add_exits(two)
        dynamic = kd.add_exits(network, at=0.45)
        with pytest.raises(ValueError, match="has exits already.*strip_exits"):
            kd.add_exits(dynamic)

    def test_models_without_a_graph(self):
        class Subclassed(keras.Model):
            def call(self, inputs):
                return inputs

        for model in (Subclassed(), keras.Sequential([keras.layers.Dense(3)]), "model"):
            with pytest.raises(ValueError, match="functional or built Sequential"):
                kd.add_exits(model)

    def test_layers_within_layers(self):
        inputs = keras.Input((5, 8))
        hidden = keras.layers.RNN(
            [keras.layers.LSTMCell(8, name="cell_1"), keras.layers.GRUCell(8)],
            return_sequences=True,
            name="stack",
        )(inputs)
        hidden = keras.layers.LSTM(8)(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        with pytest.raises(
            ValueError, match=r"'cell_1', which stands inside of 'stack' \(RNN\)"
        ):
            kd.add_exits(network, at="cell_1")

    def test_layers_called_twice_and_integers(self):
        inputs = keras.Input((4,), dtype="int32")
        embedded = keras.layers.Embedding(9, 4, name="embed")(inputs)
        shared = keras.layers.Dense(4, name="shared")
        hidden = keras.layers.Flatten()(shared(shared(embedded)))
        network = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        with pytest.raises(ValueError, match="'shared', which is called 2 times"):
            kd.add_exits(network, at="shared")
        counted = keras.layers.Rescaling(2, dtype="int32", name="twice")(inputs)
        network = keras.Model(inputs, keras.layers.Dense(3)(counted))
        with pytest.raises(ValueError, match=r"float tensor.*int32 of shape \(None, 4"):
            kd.add_exits(network, at="twice")
        with pytest.raises(ValueError, match="output depends on.*'input_layer"):
            kd.add_exits(network, at=network.layers[0].name)

    def test_layers_of_one_name_in_nested_models(self):
        def part(width):
            inputs = keras.Input((6,))
            hidden = keras.layers.Dense(width, name="same")(inputs)
            return keras.Model(inputs, hidden)

        inputs = keras.Input((6,))
        hidden = part(6)(part(6)(inputs))
        outputs = keras.layers.Dense(3, "softmax")(hidden)
        deep = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(6, name="in"), part(6)]
        )
        network = keras.Model(inputs, outputs)
        assert kd.suggest_exits(network)
        outputs = keras.layers.Dense(3, "softmax")(part(6)(deep(inputs)))
        with pytest.raises(ValueError, match="same name.*two layers 'same'"):
            kd.add_exits(keras.Model(inputs, outputs), at="in")
