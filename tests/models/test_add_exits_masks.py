"""add_exits: heads leave out the padding that the model's own layers leave out."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd

RNG = np.random.default_rng(0)
SHORT = RNG.integers(1, 20, (8, 7))
PADDED = np.concatenate([SHORT, np.zeros((8, 5), int)], axis=1)


def block(hidden, add=None, **masks):
    """Post-norm attention, the operands of the sum in either order."""
    branch = keras.layers.MultiHeadAttention(2, 8)(hidden, hidden, **masks)
    hidden = keras.layers.Add()([hidden, branch][:: -1 if add == "swapped" else 1])
    return keras.layers.LayerNormalization()(hidden)


def text_model(masks, pooling_mask=True, add=None, first_blocks=0, **layer):
    """Four blocks on token ids of which 0 is padding.

    Args:
        masks: from the (batch, tokens) mask to keyword arguments of the attention.
        first_blocks: how many blocks are no attention, but dense layers.
    """
    ids = keras.Input((None,), dtype="int32")
    mask = keras.ops.not_equal(ids, 0)
    hidden = keras.layers.Embedding(20, 16)(ids)
    for number in range(4):
        if number < first_blocks:
            hidden = keras.layers.Dense(16, "relu")(hidden)
        else:
            hidden = block(hidden, add, **masks(mask))
    given = {"mask": mask} if pooling_mask else {}
    pooled = keras.layers.GlobalAveragePooling1D()(hidden, **given)
    return keras.Model(ids, keras.layers.Dense(3, "softmax")(pooled))


def assert_padding_does_not_count(model, but_the_last=False):
    pairs = list(zip(model(SHORT), model(PADDED), strict=True))
    for one, other in pairs[: -1 if but_the_last else None]:
        np.testing.assert_allclose(one, other, atol=1e-5)


def places(network, start=0):
    return kd.suggest_exits(network).names[start : start + 2]


BY_KEY = {"key": lambda mask: {"key_mask": mask}}
BY_ATTENTION = {"attention": lambda mask: {"attention_mask": mask[:, None, :]}}
MASKS = {**BY_KEY, **BY_ATTENTION}


class TestWhereItIsFound:
    @pytest.mark.parametrize("kind", MASKS)
    @pytest.mark.parametrize("add", ["plain", "swapped"])
    def test_in_the_attention(self, kind, add):
        network = text_model(MASKS[kind], pooling_mask=False, add=add)
        model = kd.add_exits(network, at=places(network))
        # The model's own pooling takes padding for tokens.
        assert_padding_does_not_count(model, but_the_last=True)

    def test_in_the_pooling_alone(self):
        network = text_model(lambda mask: {}, first_blocks=4)
        assert_padding_does_not_count(kd.add_exits(network, at=places(network)))

    def test_in_a_later_block(self):
        network = text_model(MASKS["attention"], pooling_mask=False, first_blocks=2)
        first = kd.suggest_exits(network).names[0]
        model = kd.add_exits(network, at=first)
        assert_padding_does_not_count(model, but_the_last=True)

    def test_the_early_exit_that_a_model_ends_in(self):
        ids = keras.Input((None,), dtype="int32")
        hidden = keras.layers.Embedding(20, 16)(ids)
        for _ in range(3):
            hidden = keras.layers.Dense(16, "relu")(hidden)
        outputs = kd.EarlyExit(3)(hidden, mask=keras.ops.not_equal(ids, 0))
        network = keras.Model(ids, outputs)
        model = kd.add_exits(network, at=places(network))
        assert_padding_does_not_count(model)

    def test_in_a_nested_model(self):
        inner = text_model(MASKS["attention"], pooling_mask=False)
        ids = keras.Input((None,), dtype="int32")
        tower = keras.Model(inner.input, inner.layers[-3].output, name="tower")
        mixed = keras.layers.Dense(16, "relu", name="mixed")(tower(ids))
        mixed = keras.layers.Dense(16, "relu")(mixed)
        pooled = keras.layers.GlobalAveragePooling1D()(mixed)
        network = keras.Model(ids, keras.layers.Dense(3, "softmax")(pooled))
        model = kd.add_exits(network, at=("tower", "mixed"))
        assert_padding_does_not_count(model, but_the_last=True)

    def test_saved_loaded_and_walked(self, tmp_path):
        network = text_model(MASKS["attention"], pooling_mask=False)
        model = kd.add_exits(network, at=places(network, 1))
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        rule = kd.rules.MaxProbability(0.0)
        early = again.predict_dynamic(PADDED, rule=rule, verbose=0).outputs
        np.testing.assert_allclose(early, model(SHORT)[0], atol=1e-5)


class TestWhoseItIs:
    def test_that_of_the_queries_and_not_of_what_they_look_up(self):
        """Cross attention, both sequences of one length: the memory's mask is none."""
        ids, memory_ids = (keras.Input((7,), dtype="int32") for _ in range(2))
        embedding = keras.layers.Embedding(20, 16)
        hidden, memory = embedding(ids), embedding(memory_ids)
        mask, memory_mask = (keras.ops.not_equal(x, 0) for x in (ids, memory_ids))
        for number in range(3):
            branch = keras.layers.MultiHeadAttention(2, 8)(
                hidden, memory, key_mask=memory_mask, query_mask=mask
            )
            normalize = keras.layers.LayerNormalization(name=f"block_{number}")
            hidden = normalize(hidden + branch)
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        network = keras.Model([ids, memory_ids], keras.layers.Dense(3)(pooled))
        model = kd.add_exits(network, at="block_1")
        node = model.get_layer("exit_1")._inbound_nodes[0]
        assert node.arguments.kwargs["mask"] is mask

    def test_none_for_a_vector_as_wide_as_the_text_is_long(self):
        ids = keras.Input((16,), dtype="int32")
        mask = keras.Input((16,), dtype="bool")
        hidden = keras.layers.Embedding(20, 16)(ids)
        hidden = keras.layers.GlobalAveragePooling1D()(hidden, mask=mask)
        for number in range(4):
            hidden = keras.layers.Dense(16, "relu", name=f"wide_{number}")(hidden)
        outputs = keras.layers.Dense(3, "softmax")(hidden)
        network = keras.Model([ids, mask], outputs)
        model = kd.add_exits(network, at="wide_1", hidden_units=None)
        node = model.get_layer("exit_1")._inbound_nodes[0]
        assert node.arguments.kwargs.get("mask") is None

    def test_none_that_would_need_the_rest_of_the_network(self):
        """A halting mask, made from what comes after the exit."""
        inputs = keras.Input((7, 16))
        hidden = keras.layers.Dense(16, "relu", name="first")(inputs)
        last = keras.layers.Dense(16, "relu")(hidden)
        scores = keras.layers.Dense(1)(last)
        mask = keras.ops.squeeze(scores, -1) > 0
        pooled = keras.layers.GlobalAveragePooling1D()(last, mask=mask)
        network = keras.Model(inputs, keras.layers.Dense(3)(pooled))
        with pytest.warns(UserWarning, match="global_average_pooling1d.*'exit_1'"):
            model = kd.add_exits(network, at="first")
        node = model.get_layer("exit_1")._inbound_nodes[0]
        assert node.arguments.kwargs.get("mask") is None


class TestMasksThatCannotBeUsed:
    def pairwise(self, mask):
        return {"attention_mask": mask[:, None, :] & mask[:, :, None]}

    def test_are_named(self):
        network = text_model(self.pairwise, pooling_mask=False)
        name = next(n.name for n in network.layers if "attention" in n.name)
        message = f"'{name}' is called with a mask.*exit_1"
        with pytest.warns(UserWarning, match=message) as caught:
            kd.add_exits(network, at=kd.suggest_exits(network).names[0])
        assert caught[0].filename == __file__

    def test_no_word_where_another_one_can_be(self):
        network = text_model(self.pairwise)
        assert_padding_does_not_count(kd.add_exits(network, at=places(network)))

    def test_no_word_where_the_head_needs_none(self):
        network = text_model(self.pairwise, pooling_mask=False)
        kd.add_exits(network, at=places(network), pooling="first")

    def test_no_word_of_a_causal_mask(self):
        causal = np.tri(12, dtype="bool")[None]
        inputs = hidden = keras.Input((12, 16))
        for _ in range(3):
            hidden = block(hidden, attention_mask=keras.ops.convert_to_tensor(causal))
        pooled = keras.layers.GlobalAveragePooling1D()(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3)(pooled))
        kd.add_exits(network, at=places(network))
