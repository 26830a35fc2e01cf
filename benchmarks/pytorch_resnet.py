"""`early_exit.resnet20` written in PyTorch, and a process that runs and times it.

It imports no TensorFlow: `against_pytorch.py` starts it as a process of its own,

    python benchmarks/pytorch_resnet.py FOLDER

with `network.npz` and `inputs.npy` in the folder. It then obeys lines of JSON, one
request each, and answers each with one.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from pytorch_process import median_seconds, serve
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvNorm(nn.Module):
    """Convolution and batch normalization, padded as "same" of Keras pads.

    With stride 2 that is one row below and one column to the right, which PyTorch's
    own padding cannot say.
    """

    def __init__(self, channels, filters, size=3, strides=1):
        super().__init__()
        self.is_uneven = size == 3 and strides == 2
        padding = 0 if self.is_uneven else size // 2
        self.convolution = nn.Conv2d(
            channels, filters, size, strides, padding, bias=False
        )
        self.norm = nn.BatchNorm2d(filters, eps=1e-3)

    def forward(self, x):
        if self.is_uneven:
            x = functional.pad(x, (0, 1, 0, 1))
        return self.norm(self.convolution(x))


class Stem(ConvNorm):
    def forward(self, x):
        return functional.relu(super().forward(x))


class Block(nn.Module):
    def __init__(self, channels, filters, strides=1):
        super().__init__()
        self.first = ConvNorm(channels, filters, strides=strides)
        self.second = ConvNorm(filters, filters)
        self.shortcut = (
            nn.Identity()
            if channels == filters
            else ConvNorm(channels, filters, size=1, strides=strides)
        )

    def forward(self, x):
        h = self.second(functional.relu(self.first(x)))
        return functional.relu(h + self.shortcut(x))


class Part(nn.Module):
    """What runs up to one exit: gives the map that goes on, and the exit's answer."""

    def __init__(self, layers, filters):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(filters, 10)

    def forward(self, x):
        h = self.layers(x)
        return h, torch.softmax(self.head(h.mean((2, 3))), dim=1)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        parts, channels = [], 16
        for filters in (16, 32, 64):
            strides = 1 if filters == channels else 2
            layers = [] if parts else [Stem(3, 16)]
            layers.append(Block(channels, filters, strides))
            layers += [Block(filters, filters) for _ in range(2)]
            parts.append(Part(layers, filters))
            channels = filters
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        """The final answer alone."""
        for part in self.parts[:-1]:
            x = part.layers(x)
        return self.parts[-1](x)[1]


def with_weights(arrays):
    """The network for inference, with the weights that `against_pytorch` took."""
    network = ResNet20()
    pairs = [m for m in network.modules() if isinstance(m, ConvNorm)]
    for index, pair in enumerate(pairs):
        kernel = arrays[f"kernel_{index}"]
        gamma, beta, mean, variance = arrays[f"norm_{index}"]
        fill(pair.convolution.weight, kernel.transpose(3, 2, 0, 1))
        fill(pair.norm.weight, gamma)
        fill(pair.norm.bias, beta)
        fill(pair.norm.running_mean, mean)
        fill(pair.norm.running_var, variance)
    for index, part in enumerate(network.parts):
        fill(part.head.weight, arrays[f"head_{index}"].T)
        fill(part.head.bias, arrays[f"bias_{index}"])
    return network.eval().to(memory_format=torch.channels_last)


def fill(tensor, array):
    if tuple(tensor.shape) != array.shape:
        raise ValueError(f"A weight of shape {tuple(tensor.shape)} got {array.shape}.")
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def folded(network):
    """A copy whose normalization is part of the convolutions."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.convolution = fuse_conv_bn_eval(module.convolution, module.norm)
            module.norm = nn.Identity()
    return network.to(memory_format=torch.channels_last)


def images_of(x):
    """A batch (n, height, width, channels) of NumPy as PyTorch's view, not copied."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


@torch.inference_mode()
def predict(parts, x, batch_size, thresholds):
    """(outputs, exit_index, confidence) of all `x`, mask and gather at each exit."""
    outputs = torch.empty(len(x), 10)
    exits, confidence = torch.empty(len(x), dtype=torch.int32), torch.empty(len(x))
    for start in range(0, len(x), batch_size):
        h = images_of(x[start : start + batch_size])
        rows = torch.arange(start, start + len(h))
        for index, part in enumerate(parts):
            h, p = part(h)
            score = p.amax(dim=1)
            if index == len(parts) - 1:
                outputs[rows], exits[rows], confidence[rows] = p, index, score
                break
            leaves = score > thresholds[index]
            here = rows[leaves]
            outputs[here], confidence[here] = p[leaves], score[leaves]
            exits[here] = index
            stays = ~leaves
            rows = rows[stays]
            if not len(rows):
                break
            h = h[stays]
    return outputs.numpy(), exits.numpy(), confidence.numpy()


@torch.inference_mode()
def answer_one(parts, x, thresholds):
    """The same of one sample, which needs no mask."""
    h = images_of(x)
    for index, part in enumerate(parts):
        h, p = part(h)
        score = p.max().item()
        if index == len(parts) - 1 or score > thresholds[index]:
            return p.numpy(), [index], [score]


@torch.inference_mode()
def predict_static(network, x, batch_size):
    """The final answers of all `x`."""
    batches = [
        network(images_of(x[start : start + batch_size]))
        for start in range(0, len(x), batch_size)
    ]
    return torch.cat(batches).numpy()


class Server:
    """Answers requests on the ways to run the network: see `ways`.

    Args:
        folder: path of the weights and the inputs.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.x = np.load(self.folder / "inputs.npy")
        network = with_weights(np.load(self.folder / "network.npz"))
        self.networks = {"eager": network, "folded": folded(network)}
        self.parts = {way: each.parts for way, each in self.networks.items()}

    def compile(self):
        """Adds the way `compiled`, by `torch.compile` with frozen weights."""
        import torch._dynamo.config as tracing
        import torch._inductor.config as generating

        generating.freezing = True  # folds normalization, fuses what follows
        # All parts have the same method; past the limit they would run uncompiled.
        tracing.recompile_limit = 64
        network = self.networks["eager"]
        self.networks["compiled"] = torch.compile(network, dynamic=False)
        # Survivors come in any number.
        self.parts["compiled"] = [
            torch.compile(part, dynamic=True) for part in network.parts
        ]

    def ways(self):
        return list(self.parts)

    def answers(self, way, batch_size, thresholds):
        """Writes the answers of all inputs, or of the first, to `answers.npz`."""
        if batch_size > 1:
            found = predict(self.parts[way], self.x, batch_size, thresholds)
        else:
            found = answer_one(self.parts[way], self.x[:1], thresholds)
        names = "outputs", "exit_index", "confidence"
        np.savez(self.folder / "answers.npz", **dict(zip(names, found, strict=True)))

    def static_answers(self, way, batch_size):
        """Writes the final answers of all inputs to `answers.npz`."""
        outputs = predict_static(self.networks[way], self.x, batch_size)
        np.savez(self.folder / "answers.npz", outputs=outputs)

    def seconds(self, way, batch_size, thresholds, calls):
        """Median seconds: of one sample, or of all inputs in batches.

        Without thresholds, of the final answers alone.
        """
        network, parts = self.networks[way], self.parts[way]
        x = self.x if batch_size > 1 else self.x[:1]

        def run():
            if thresholds is None:
                predict_static(network, x, batch_size)
            elif batch_size > 1:
                predict(parts, x, batch_size, thresholds)
            else:
                answer_one(parts, x, thresholds)

        return median_seconds(run, calls)


if __name__ == "__main__":
    serve(Server)
