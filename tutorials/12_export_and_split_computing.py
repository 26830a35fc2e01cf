# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Export and split computing
#
# A network that stops early is worth most where computing is dear: in a service that
# answers all day, or on a device with a battery. Neither wants Python. `model.export`
# writes the network with its conditionals, so that the artifact skips by itself, and
# `kd.split` cuts it in two: a small half answers what is easy where the data is, and
# sends on the rest.
#
# This needs the converters: `pip install "keras_dynamic[export]"`.

# %%
import statistics
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_dynamic as kd

keras.utils.set_random_seed(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A network with two early exits
#
# MNIST, which Keras downloads at its first use (11 MB). Ten thousand images train, two
# thousand calibrate, and the ten thousand of the test set are for the figures.

# %%
(x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
x_train, x_test = x_train[..., None], x_test[..., None]
x_calib, y_calib = x_train[10_000:12_000], y_train[10_000:12_000]
x_train, y_train = x_train[:10_000], y_train[:10_000]

# %% [markdown]
# The images stay as they are, bytes from 0 to 255: preprocessing is a layer of the
# model, so that no client has to know of it. The second convolution has only eight
# channels. That is a bottleneck on purpose, for here the network will be cut.


# %%
def convolution(filters, **options):
    return keras.layers.Conv2D(filters, 3, padding="same", activation="relu", **options)


inputs = keras.Input((28, 28, 1), dtype="uint8", name="image")
h = keras.layers.Rescaling(1 / 255)(inputs)
h = convolution(8, strides=2)(convolution(16, strides=2)(h))
exit_1 = kd.EarlyExit(10, pooling="flatten", loss_weight=0.5, name="exit_1")(h)
h = convolution(48)(convolution(48)(h))
exit_2 = kd.EarlyExit(10, pooling="flatten", loss_weight=0.5, name="exit_2")(h)
for _ in range(3):
    h = convolution(96)(h)
final = keras.layers.Dense(10, "softmax", name="final")(keras.layers.Flatten()(h))

model = kd.DynamicModel(inputs, [exit_1, exit_2, final])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, epochs=3, batch_size=64, verbose=0)
model.calibrate(x_calib, y_calib, max_accuracy_drop=0.005)

p = model.predict_dynamic(x_test, batch_size=256, verbose=0)
accuracy = np.mean(p.outputs.argmax(axis=1) == y_test)
print(f"accuracy {accuracy:.1%}, mean cost {p.mean_cost:.2f}, exits {p.exit_rates}")

# %% [markdown]
# ## SavedModel
#
# `export` writes what `predict_dynamic` does. The rule, its thresholds and the
# temperatures are frozen as they stand, and it says which:

# %%
model.export(folder / "served", verbose=False)
loaded = tf.saved_model.load(folder / "served")

answers = loaded.serve(x_test[:256])
print({name: tensor.shape for name, tensor in answers.items()})
print("same exits:", np.array_equal(answers["exit_index"], p.exit_index[:256]))
print("largest difference:", np.abs(answers["outputs"] - p.outputs[:256]).max())

# %% [markdown]
# The endpoint takes a batch of any size, an empty one too, and the process that loads
# it needs neither this package nor Keras.
#
# ## LiteRT and ONNX
#
# The same road in the formats of other runtimes. After conversion the artifact is *run*
# there on random inputs and compared with the model. If anything differs, or an
# operation is missing, you get an error that names it and no file. Above, `verbose`
# was off; here is what it says:

# %%
model.export(folder / "digits.tflite", format="litert")
model.export(folder / "digits.onnx", format="onnx")

# %% [markdown]
# Running them takes no more than with any other model. One thing to know of LiteRT:
# make an interpreter for each batch size. One that has run and is then resized writes
# beyond its memory (version 2.3), as soon as branches hold branches.

# %%
interpreter = Interpreter(str(folder / "digits.tflite"))
litert = interpreter.get_signature_runner("serve")
session = onnxruntime.InferenceSession(str(folder / "digits.onnx"))
names = [output.name for output in session.get_outputs()]


def serve_saved_model(x):
    return loaded.serve(x)


def serve_litert(x):
    return litert(image=x)


def serve_onnx(x):
    return dict(zip(names, session.run(None, {"image": x}), strict=True))


for serve in (serve_saved_model, serve_litert, serve_onnx):
    found = [serve(x_test[i : i + 1])["exit_index"][0] for i in range(200)]
    print(f"{serve.__name__}: same exits {np.array_equal(found, p.exit_index[:200])}")

# %% [markdown]
# ## What is skipped
#
# Does an easy digit really take less time? One image at a time, fifty that leave at the
# first exit against fifty that go to the end:


# %%
def seconds(serve, images, repeats=9):
    """Median time of a pass over the images, one by one."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for image in images:
            serve(image[None])
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first was to warm up


easy = x_test[p.exit_index == 0][:50]
hard = x_test[p.exit_index == 2][:50]
for serve in (serve_saved_model, serve_litert, serve_onnx):
    ratio = seconds(serve, easy) / seconds(serve, hard)
    print(f"{serve.__name__:18s} leaving first takes {ratio:.2f} of going to the end")
costs = model.compute_costs().exits
print(f"{'in FLOPs':18s} {costs[0] / costs[2]:.2f}")

# %% [markdown]
# The ratio of times is never as small as that of FLOPs: each call has a price of its
# own, and a first segment this small hardly costs more than that.
#
# ## Split computing
#
# A camera that sends every picture to a server pays for the line. `kd.split` gives it
# the network up to an exit. It answers the digits that leave until there, and of the
# others it hands out what the server needs to go on: the live tensors of those samples
# alone.

# %%
device, server = kd.split(model, "exit_1")
local = device(x_test)
print(local)
print({name: (a.dtype.name, a.shape) for name, a in local.sent.tensors.items()})

# %% [markdown]
# The tensor at the cut holds $7 \cdot 7 \cdot 8$ numbers of four bytes, and the image
# has 784 bytes: for one digit the tensor is the *larger* message. What saves is that
# few are sent. With $b$ bytes in the message of one digit, $b_0$ in its image, and a
# share $a$ of the digits answered on the device, the line carries
#
# $$\frac{(1 - a)\, b}{b_0}$$
#
# of what it would carry if every image were sent.

# %%
input_bytes = x_test[0].nbytes
print(f"answered on the device: {local.answered.mean():.1%}")
print(f"bytes sent of a digit: {local.sent.bytes_per_sample}, as image: {input_bytes}")
print(f"bytes in all over those of all images: {local.sent.nbytes / x_test.nbytes:.2f}")

served = server(local.sent)
whole = local.completed(served)
print(f"accuracy {np.mean(whole.outputs.argmax(axis=1) == y_test):.1%}, as before:")
print("same exits:", np.array_equal(whole.exit_index, p.exit_index))
share = local.cost.sum() / (local.cost.sum() + served.cost.sum())
print(f"share of all FLOPs that ran on the device: {share:.2f}")

# %% [markdown]
# Together the halves give what `predict_dynamic` gives, whatever the rule: what
# `Patience` remembers of a sample travels with it. The other cut, for comparison, keeps
# more digits at home and has more to send of each:

# %%
cuts = {"no device": (0.0, 1.0)}
for name in model.exit_names[:-1]:
    sent = kd.split(model, name)[0](x_test).sent
    cuts[f"cut at {name}"] = 1 - len(sent) / len(x_test), sent.nbytes / x_test.nbytes
    print(
        f"{name}: {1 - len(sent) / len(x_test):.1%} answered, "
        f"{sent.bytes_per_sample} bytes a digit, "
        f"{sent.nbytes / x_test.nbytes:.2f} of the images' bytes"
    )

# %%
# Caption: What the two cuts keep on the device, and what they send.
# Alt: Two groups of three horizontal bars, for no device and cuts at either exit: the
# share of the digits answered at home, and the bytes sent over those of all images.
figure, axes = plt.subplots(1, 2, figsize=(9, 2.4), sharey=True, layout="constrained")
titles = "answered on the device", "bytes sent (1: every image)"
for axis, title, values in zip(
    axes, titles, np.transpose(list(cuts.values())), strict=True
):
    bars = axis.barh(list(cuts), values, color=("#999999", "#0072B2", "#E69F00"))
    axis.bar_label(bars, fmt="{:.2f}", padding=3)
    axis.set(title=title, xlim=(0, 1.15 * max(values)))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# And when nobody listens? `local.outputs` holds the device's own best answer for
# everyone, so a lost connection costs accuracy, not the answer:

# %%
offline = np.mean(local.outputs.argmax(axis=1) == y_test)
print(f"accuracy of the device alone: {offline:.1%}")

# %% [markdown]
# Each half is exported by itself. What the device gives as `sent_...` is what the
# server takes.

# %%
device.export(folder / "device", verbose=False)
server.export(folder / "server", verbose=False)
camera = tf.saved_model.load(folder / "device")
cloud = tf.saved_model.load(folder / "server")

first = camera.serve(x_test[:1000])
second = cloud.serve({f"sent_{name}": first[f"sent_{name}"] for name in server.specs})
outputs = first["outputs"].numpy()
outputs[first["sent_rows"]] = second["outputs"]
print("same answers:", np.allclose(outputs, p.outputs[:1000], atol=1e-5))

# %% [markdown]
# ## What to try next
#
# - A narrower bottleneck, or a half-precision policy for the layer at the cut: count
#   the bytes again.
# - `model.exit_rule = kd.rules.MaxProbability([0.5, 0.9])` before splitting: a device
#   that trusts itself more, and sends less.
# - A `kd.SkipGate` inside a segment: it is skipped in the artifact too.
# - `benchmarks/export.py` times all three formats on a larger network.
