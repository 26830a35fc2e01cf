"""Two roads, one answer: the sparse road equals the dense one on random graphs."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.random_graphs import build, dense_road, exit_rules, plans


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
    model, x, counters = build(rank=rank, **plan)
    expected = dense_road(model, x, rule)
    for counter in counters:
        counter.seen.assign(0)
    prediction = model.predict_dynamic(x, rule=rule, verbose=0, batch_size=16)

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
