"""What TensorBoard's event files hold, for the tests."""

import tensorflow as tf


def events_in(directory):
    """{(run, tag): [(step, array), ...]} in the order written; `run` is a folder."""
    found = {}
    files = [path for path in directory.rglob("*.v2") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name):
        run = str(path.parent.relative_to(directory))
        for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(raw)
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                found.setdefault((run, value.tag), []).append((event.step, array))
    return found


def steps_of(events, run, tag):
    return [step for step, _ in events[run, tag]]


def last(events, run, tag):
    return events[run, tag][-1][1]
