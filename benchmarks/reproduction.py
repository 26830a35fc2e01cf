"""What was published beside what comes out here: the first table of the benchmarks.

    python benchmarks/reproduction.py            # prints the table
    python benchmarks/reproduction.py --write    # puts it into docs/benchmarks.md

Figures come from the JSON files in docs/results/, which the other scripts of this
folder write, and from nowhere else. What has no file there has no row.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "results"
BEGIN, END = (
    "<!-- the reproduction begins: benchmarks/reproduction.py --write -->\n",
    "<!-- the reproduction ends -->\n",
)
NONE = "no published figure"


@dataclass(frozen=True)
class Row:
    claim: str
    published: str
    here: str
    setting: str


def shown(row, name, factor=100, digits=2):
    """Mean and half of its 95 % interval, or the number itself."""
    if f"{name}_interval" not in row:
        return f"{factor * one(row[name]):z.{digits}f}"
    mean, half = factor * row[f"{name}_mean"], factor * row[f"{name}_interval"]
    return f"{mean:z.{digits}f} ± {half:.{digits}f}"


def signed(row, name, factor=100, digits=2):
    text = shown(row, name, factor, digits)
    zero = float(text.split()[0]) == 0
    return text if zero or text.startswith("-") else f"+{text}"


def one(value):
    """A number that may be a list of one."""
    return value[0] if isinstance(value, list) else value


def those(rows, **wanted):
    """The rows with these values."""
    return [
        row
        for row in rows
        if all(row.get(name) == value for name, value in wanted.items())
    ]


def the(rows, **wanted):
    """The row with these values."""
    (row,) = those(rows, **wanted)
    return row


def span(values, digits=2):
    """One number, or the least and the greatest."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def mnist_lenet(rows):
    (row,) = rows
    paper = "BranchyNet (Teerapittayanon et al., 2016)"
    network = (
        "MNIST, 5 epochs on 50,000 images; the main network is a LeNet-5 with ReLU, "
        "the branch a pooled 7 x 7 grid and 64 hidden units; the paper's differ"
    )
    yield Row(
        f"B-LeNet keeps LeNet's accuracy. {paper}",
        "LeNet 99.20 %, B-LeNet 99.25 %",
        f"plain {shown(row, 'plain')} %; with its branch, all to the end "
        f"{shown(row, 'final')} %, calibrated {shown(row, 'calibrated')} %, entropy "
        f"below 0.025 {shown(row, 'paper')} %",
        f"{network}; thresholds by `max_accuracy_drop=0.002` on 10,000 held-out images "
        "rather than by hand",
    )
    yield Row(
        f"B-LeNet is faster, one sample at a time. {paper}",
        "5.4 x on a CPU, 94.3 % leave at the branch, entropy below 0.025",
        f"calibrated: {shown(row, 'leave_calibrated', 100, 1)} % leave, "
        f"{shown(row, 'speed_calibrated_xla', 1)} x where XLA compiles the plain "
        f"network, {shown(row, 'speed_calibrated', 1)} x where it does not, "
        f"{shown(row, 'cost_calibrated', 1, 3)} of the FLOPs; entropy below 0.025: "
        f"{shown(row, 'leave_paper', 100, 1)} % leave, "
        f"{shown(row, 'speed_paper_xla', 1)} x and {shown(row, 'speed_paper', 1)} x, "
        f"{shown(row, 'cost_paper', 1, 3)} of the FLOPs",
        "the same networks, the first 500 test images; `dynamic_function`, which has "
        "constants for weights and takes XLA where it is faster, against the compiled "
        "call of the plain network (Chainer in the paper), where a LeNet takes "
        "fractions of a millisecond, most of it not arithmetic (3.37 ms in the paper)",
    )


def training_regimes(rows):
    plain, joint = the(rows, regime="plain"), the(rows, regime="joint")
    stages, mixed = the(rows, regime="two stages"), the(rows, regime="mixed")
    setting = (
        "CIFAR-10, 10,000 images, 9 epochs in all, a network of three blocks with "
        "three exits; in two stages the trunk has six of the epochs"
    )
    name = "final_less_joint"
    gain = {**plain, f"{name}_mean": -plain[f"{name}_mean"]}
    yield Row(
        "Joint training costs the last exit nothing, and mixed training is better "
        "than joint and than separate",
        "ResNet-34 on CIFAR-100, last exit: separate 73.79, joint 74.17, mixed "
        "75.88 % (quoted second-hand; Kubaty et al., 2024, compare these regimes)",
        f"last exit: two stages {shown(stages, 'final', 100, 1)}, joint "
        f"{shown(joint, 'final', 100, 1)}, mixed {shown(mixed, 'final', 100, 1)}, the "
        f"plain network {shown(plain, 'final', 100, 1)} %; joint less plain "
        f"{signed(gain, name, 100, 1)} points, mixed less joint "
        f"{signed(mixed, name, 100, 1)}, two stages less joint "
        f"{signed(stages, name, 100, 1)}",
        f"{setting}: a ResNet-34 on CIFAR-100 does not fit on two cores",
    )
    layerwise = the(rows, regime="layer-wise")
    yield Row(
        "Early exits are better when the trunk is trained for them (Scardapane et al., "
        "2020)",
        "qualitative",
        "less joint, exit 1 and 2: two stages "
        f"{signed(stages, 'exit_1_less_joint', 100, 1)} and "
        f"{signed(stages, 'exit_2_less_joint', 100, 1)} points, layer-wise "
        f"{signed(layerwise, 'exit_1_less_joint', 100, 1)} and "
        f"{signed(layerwise, 'exit_2_less_joint', 100, 1)}",
        setting,
    )


def exit_selection(rows):
    def points(name, weight):
        row = the(rows, part="d", selector=name, cost_weight=weight)
        return signed(row, "points", 1)

    yield Row(
        "A learned selector is better than thresholds",
        NONE,
        "accuracy, less that of the calibrated threshold at the selector's mean cost "
        f"(its largest, where that is less): in advance {points('at once', 0.15)} "
        f"points at a cost weight of 0.15, {points('at once', 0.4)} at 0.4; layer-wise "
        f"{points('layer-wise', 0.15)} and {points('layer-wise', 0.4)}",
        "MNIST, 20,000 images, a network with two early exits, 5 epochs",
    )


def gated_resnet(rows):
    plain = the(rows, gates="none")
    gated = [row for row in rows if "open_rate" in row]
    times = [row["time_ratio"] for row in those(rows, way="tf.function")]
    cells = [
        f"{100 * row['accuracy']:.1f} % at {row['mflops'] / plain['mflops']:.2f} of "
        f"the FLOPs (narrower network: {100 * row['narrower_accuracy']:.1f} % at "
        f"{row['narrower_mflops'] / plain['mflops']:.2f})"
        for row in gated
    ]
    yield Row(
        "Gates on residual blocks save compute at equal accuracy. Conv-AIG (Veit and "
        "Belongie, 2018), SkipNet (Wang et al., 2018)",
        "Conv-AIG on ImageNet: better than ResNet-50 and -101 at 20 and 38 % (in "
        "another version 33 %) less compute; SkipNet-110 on CIFAR-10: 93.30 % at 0.495 "
        "of the compute",
        f"without gates {100 * plain['accuracy']:.1f} %; with, {'; '.join(cells)}; "
        f"time over no gates {', '.join(f'{time:.2f}' for time in times)}",
        "CIFAR-10, 15,000 images, 8 epochs, a network of six blocks, gates on four of "
        "them: the papers' networks and hundreds of epochs do not fit on two cores; "
        "compiled calls, beside other work",
    )


def blended_activation(rows):
    def percent(contender):
        return shown(the(rows, contender=contender, less=None), "accuracy", 1)

    def less(name):
        row = the(rows, contender="blend, softmax", less=name)
        return signed(row, "difference", 1)

    names = {"relu": "ReLU", "swish": "Swish", "elu": "ELU", "tanh": "tanh"}
    yield Row(
        "A learned blend is at least as good as the best single activation. ABU "
        "(Sütfeld et al., 2018)",
        "qualitative; the paper's networks are others",
        f"blend under a softmax {percent('blend, softmax')} %, without a constraint "
        f"{percent('blend, unrestricted')} %; less "
        + ", ".join(f"{name} {less(key)}" for key, name in names.items())
        + " points",
        "CIFAR-10, 10,000 images, 6 epochs, a small convolutional network, the best of "
        "two learning rates for each",
    )


def estimators(rows):
    def bias(estimator, tau, function="quadratic"):
        row = the(rows, estimator=estimator, tau=tau, function=function)
        return shown(row, "bias", 1, 3)

    def spread(estimator, tau):
        row = the(rows, estimator=estimator, tau=tau, function="quadratic")
        return f"{row['deviation_mean']:.1f}"

    reinmax = the(rows, estimator="reinmax", tau=1.0, function="quadratic")
    gumbel, taus = "gumbel_straight_through", (1.0, 0.5, 0.1)
    last = the(rows, estimator=gumbel, tau=0.1, function="quadratic")
    setting = (
        "five categories, random quadratic functions, all enumerated, 100,000 draws; "
        "bias and deviation over the length of the exact gradient"
    )
    yield Row(
        "ReinMax is exact for quadratic functions (Liu et al., 2023)",
        "no bias to second order, by proof",
        f"bias {bias('reinmax', 1.0)} at tau = 1, of which chance alone gives "
        f"{reinmax['error_mean']:.3f}; {bias('reinmax', 2.0)} at tau = 2; cubic "
        f"functions, tau = 1: {bias('reinmax', 1.0, 'cubic')}; straight-through "
        f"of the largest probability, without sampling: "
        f"{bias('straight_through', 1.0)}",
        setting,
    )
    yield Row(
        "Gumbel straight-through: less bias and more variance at lower temperatures "
        "(Jang et al., 2017; Maddison et al., 2017)",
        "qualitative",
        "tau = 1, 0.5, 0.1: bias "
        + ", ".join(bias(gumbel, tau) for tau in taus)
        + f" (of the last, chance gives {last['error_mean']:.3f}); deviation of a draw "
        + ", ".join(spread(gumbel, tau) for tau in taus),
        setting,
    )


def sparse_moe(rows):
    passes = ("forward", "forward and backward")

    def ratios(network, name, what):
        return "/".join(
            f"{row[name]:.2f}" for row in those(rows, network=network, what=what)
        )

    sizes = " / ".join(
        str(row["experts"]) for row in those(rows, network="K = 1", what="forward")
    )
    setting = (
        f"one layer, 4,096 tokens of 256 features, hidden layers of 1,024, {sizes} "
        "experts, two cores, random router; papers: accelerators and whole models"
    )
    forward, both = (ratios("K = 1", "over_dense", what) for what in passes)
    dense = those(rows, network="dense", what="forward")[0]["seconds"]
    yield Row(
        "A mixture costs as much as the experts that it uses. Switch (Fedus et al., "
        "2022)",
        "qualitative",
        f"one expert a token over one dense network: forward {forward}, forward and "
        f"backward {both}",
        f"{setting}; the dense network takes {1000 * dense:.0f} ms forward: where it "
        "is faster, router and further weights count for more (below)",
    )
    forward, both = (ratios("one-hot", "over_one", what) for what in passes)
    yield Row(
        "Sorting tokens is faster than one-hot dispatch (GShard, Lepikhin et al., "
        "2020)",
        "none for this; MegaBlocks: up to 40 % over Tutel, on GPUs",
        f"one-hot dispatch over ours: forward {forward}, forward and backward {both}",
        f"{setting}; one-hot: all tokens in one group, capacity 1.25, so that it drops "
        "what does not fit; GShard's smaller groups make it cheaper and were not run",
    )
    forward, both = (ratios("all experts", "over_one", what) for what in passes)
    yield Row(
        "Sorting tokens is faster than all experts for all tokens",
        NONE,
        f"all experts over ours: forward {forward}, forward and backward {both}",
        setting,
    )
    blocks = [row for row in rows if "block" in row]
    if blocks:
        cells = [
            f"{row['block']}, E = {row['experts']}, {row['what']} "
            f"{row['theirs_over_ours']:.2f}"
            for row in blocks
        ]
        yield Row(
            "Against the blocks of `transformers`, above 1 ours is faster",
            NONE,
            "; ".join(cells),
            "the same weights, tokens and answers; PyTorch eagerly, in a process of "
            "its own, in turns; Switch: one ReLU expert a token; Mixtral: two of 8 "
            "gated ones, by a loop or PyTorch's grouped product",
        )


def engine(rows):
    walks, alone = those(rows, part="a"), those(rows, part="b")
    ideal = span([row["dynamic_over_ideal"] for row in walks])
    best = span([row["dynamic_over_best_ideal"] for row in walks])
    leaving = span([row["leaving_median"] for row in alone])
    staying = span([row["staying_median"] for row in alone])
    yield Row(
        "A sample pays only for what it uses",
        NONE,
        f"time of many inputs over the ideal {ideal}, over the best ideal {best}; one "
        f"sample: leaving first over segment 1 alone {leaving}, staying over the "
        f"static network {staying}; medians, ours with constants for weights, which "
        "the others read",
        "a ResNet-20 and a transformer of six layers, 2 shares of leavers, batches of "
        "128 and 16; one sample: a LeNet too; random weights and inputs",
    )


def against_pytorch(rows):
    def ratios(way):
        return span([row[f"{way}_over_ours"] for row in rows])

    yield Row(
        "Against masks in PyTorch, above 1 ours is faster",
        NONE,
        f"eager {ratios('eager')}, with normalization folded {ratios('folded')}; "
        f"PyTorch's static network over our dynamic time {ratios('static eager')}, "
        f"folded {ratios('static folded')}",
        "a ResNet-20 with three exits, the same weights and answers; batches of 1, 16 "
        "and 128, several shares of leavers; `torch.compile` was left out: in an "
        "earlier run it was faster than ours in most cases (below)",
    )


CLAIMS = {
    "mnist_lenet": mnist_lenet,
    "training_regimes": training_regimes,
    "exit_selection": exit_selection,
    "gated_resnet": gated_resnet,
    "blended_activation": blended_activation,
    "estimators": estimators,
    "sparse_moe": sparse_moe,
    "engine": engine,
    "against_pytorch": against_pytorch,
}


def records():
    """The results that are there, by name, in the order of `CLAIMS`."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        for name in CLAIMS
        if (RESULTS / f"{name}.json").is_file()
    }


def table(found):
    """Markdown from what `records` gives."""
    titles = (
        "claim examined",
        "published",
        "here",
        "setting, what differs, how to repeat it",
    )
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for name, record in found.items():
        seeds = ", ".join(map(str, record["seeds"]))
        repeat = f"Seeds {seeds}: `{record['command']}`, [{name}](results/{name}.json)."
        for row in CLAIMS[name](record["rows"]):
            setting = f"{row.setting}. {repeat}"
            cells = row.claim, row.published, row.here, setting
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(text):
    """Puts the table between its two marks on the page."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="also into the page")
    arguments = parser.parse_args()
    found = records()
    text = table(found)
    print(text)
    for name in (name for name in CLAIMS if name not in found):
        print(f"docs/results/{name}.json is not there: no row.")
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
