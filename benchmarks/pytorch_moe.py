"""Mixtures of experts of `transformers`, and a process that runs and times them.

It imports no TensorFlow: `sparse_moe.py --pytorch` starts it as a process of its own,
with `tokens.npy`, `targets.npy` and `weights.npz` in a folder, and asks it what to run.
"""

from pathlib import Path

import numpy as np
import torch
from pytorch_process import median_seconds, serve
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)


def tensor_of(array):
    return torch.tensor(np.ascontiguousarray(array))


def set_weight(parameter, array):
    with torch.no_grad():
        parameter.copy_(tensor_of(array))


def switch(router, first, second, tokens):
    """The block of Switch transformers, which drops no token here.

    Args:
        router: (features, E).
        first, second: (E, features, hidden) and (E, hidden, features).
        tokens: int, the capacity of each expert.
    """
    number, features, hidden = first.shape
    config = SwitchTransformersConfig(
        d_model=features,
        d_ff=hidden,
        num_experts=number,
        expert_capacity=tokens,
        dense_act_fn="relu",
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    block = SwitchTransformersSparseMLP(config)
    set_weight(block.router.classifier.weight, router.T)
    for index in range(number):
        expert = block.experts[f"expert_{index}"]
        set_weight(expert.wi.weight, first[index].T)
        set_weight(expert.wo.weight, second[index].T)
    return block


def mixtral(router, first, second, implementation):
    """Mixtral's block: two experts a token, gated linear units.

    Args:
        router: (features, E).
        first: (E, features, 2 hidden), the half under the activation first.
        second: (E, hidden, features).
        implementation: "eager", a loop over experts, or "grouped_mm".
    """
    number, hidden, features = second.shape
    config = MixtralConfig(
        hidden_size=features,
        intermediate_size=hidden,
        num_local_experts=number,
        num_experts_per_tok=2,
        router_jitter_noise=0.0,
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config)
    set_weight(block.gate.weight, router.T)
    set_weight(block.experts.gate_up_proj, first.swapaxes(1, 2))
    set_weight(block.experts.down_proj, second.swapaxes(1, 2))
    return block


class Server:
    """Answers what `sparse_moe.py` asks.

    Args:
        folder: path of the folder with tokens, targets and weights.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.x = tensor_of(np.load(self.folder / "tokens.npy"))[None]
        self.x.requires_grad_()
        self.targets = tensor_of(np.load(self.folder / "targets.npy"))[None]
        self.blocks = {}

    def build(self, way):
        """Makes the block `way` from the weights that lie in the folder."""
        with np.load(self.folder / "weights.npz") as arrays:
            weights = [arrays[name] for name in ("router", "first", "second")]
        if way == "switch":
            self.blocks[way] = switch(*weights, self.x.shape[1])
        else:
            self.blocks[way] = mixtral(*weights, way.removeprefix("mixtral "))

    def answers(self, way):
        with torch.no_grad():
            outputs = self.blocks[way](self.x)[0].numpy()
        np.savez(self.folder / "answers.npz", outputs=outputs)

    def seconds(self, way, backward, calls):
        """Median seconds of calls that follow one of their like."""
        block = self.blocks[way]

        def forward():
            with torch.no_grad():
                block(self.x)

        def both():
            block.zero_grad(set_to_none=True)
            self.x.grad = None
            torch.mean(torch.square(block(self.x) - self.targets)).backward()

        run = both if backward else forward
        run()
        return median_seconds(run, calls)


if __name__ == "__main__":
    serve(Server)
