"""Two roads, one answer: the sparse road equals the dense one on random graphs."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_dynamic as kd
from tests.models.random_graphs import (
    build,
    build_selected,
    dense_road,
    exit_rules,
    plans,
)


# Keras warns where a nested model is given a mask, and passes it on all the same.
@pytest.mark.filterwarnings("ignore:.*does not support masking.*:UserWarning")
@settings(
    max_examples=110,
    suppress_health_check=list(HealthCheck),
)
@pytest.mark.parametrize("rank", [2, 3])  # vectors; masked sequences
@given(plan=plans, data=st.data())
def test_predict_dynamic_equals_running_everything_and_selecting(rank, plan, data):
    rule = data.draw(exit_rules(len(plan["chunks"]) - 1))
    # Batches of 2: survivors of several of them wait at each segment.
    size = data.draw(st.sampled_from([16, 2]))
    model, x, counters = build(rank=rank, **plan)
    expected = dense_road(model, x, rule)
    for counter in counters:
        counter.seen.assign(0)
    prediction = model.predict_dynamic(x, rule=rule, verbose=0, batch_size=size)

    sure = ~expected["close"]
    np.testing.assert_array_equal(
        prediction.exit_index[sure], expected["exit_index"][sure]
    )
    np.testing.assert_allclose(
        prediction.outputs[sure], expected["outputs"][sure], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        prediction.confidence[sure], expected["confidence"][sure], rtol=1e-5, atol=1e-5
    )
    reached = [int(np.sum(prediction.exit_index >= k)) for k in range(len(counters))]
    assert [int(counter.seen) for counter in counters] == reached
    assert prediction.segment_rows.tolist() == reached


# Calls that change the masks of tensors which other layers read: attention takes them
# off, a nested model leaves them behind, and the walk calls layers in another order.
ENTANGLED = {
    "a nested model after attention": [[("attend", 1, 0)], [], [("nested", 0, 1)]],
    "attention on one tensor thrice": [
        [("attend", 0, 1)],
        [("attend", 1, 0)],
        [("attend", 0, 2)],
    ],
    "both in turns": [[("nested", 1, 0)], [("attend", 0, 1)], [("nested", 0, 1)]],
}


@pytest.mark.filterwarnings("ignore:.*does not support masking.*:UserWarning")
@pytest.mark.parametrize("layerwise", [None, True])
@pytest.mark.parametrize("case", ENTANGLED)
def test_every_layer_sees_the_masks_of_the_dense_road(case, layerwise):
    plan = {"chunks": ENTANGLED[case], "logits": False, "seed": 3, "rows": 7}
    if layerwise is None:
        model, x, _ = build(rank=3, **plan)
        outputs = model(x, training=False)
    else:
        model, x, *_ = build_selected(rank=3, layerwise=True, deep=False, **plan)
        *outputs, weights = model(x, training=False)
        chosen = np.argmax(weights, axis=1)
        p = model.predict_dynamic(x, verbose=0)
        np.testing.assert_array_equal(p.exit_index, chosen)
    for index, output in enumerate(outputs):
        thresholds = [0.0 if exit_index == index else None for exit_index in range(2)]
        rule = kd.rules.MaxProbability(thresholds)
        p = model.predict_dynamic(x, rule=rule, verbose=0)
        assert (p.exit_index == index).all()
        np.testing.assert_allclose(p.outputs, output, rtol=1e-5, atol=1e-5)
