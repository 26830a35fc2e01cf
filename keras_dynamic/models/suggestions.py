"""Where exits could sit, as a record that prints as a table."""

import dataclasses
import io

from rich.console import Console
from rich.table import Table

__all__ = ["ExitSuggestions"]


@dataclasses.dataclass(frozen=True)
class ExitSuggestions:
    """The places where a model can be cut for an exit; `print` it.

    Attributes:
        cuts: tuple of `Cut`s in order, each with `name`, `shape`, `share`,
            `live_tensors`, `ends_block`, `head_share` and `has_name`.
        flops: of the whole network for one sample.
        input_shapes: tuple of the inputs' shapes for which they were counted.
    """

    cuts: tuple
    flops: int
    input_shapes: tuple

    @property
    def names(self):
        """Names of the cuts, as `add_exits(at=...)` takes them.

        Without those that have none of their own, which a share of the cost comes to.
        """
        return [cut.name for cut in self.cuts if cut.has_name]

    def __len__(self):
        return len(self.cuts)

    def __iter__(self):
        return iter(self.cuts)

    def __str__(self):
        shapes = ", ".join(str(shape) for shape in self.input_shapes)
        table = Table(title=f"Cuts (cost 1.0 is {self.flops:,} FLOPs at {shapes})")
        table.add_column("After", overflow="fold")
        table.add_column("Shape")
        table.add_column("Block", justify="center")
        table.add_column("Cost", justify="right")
        table.add_column("Head", justify="right")
        table.add_column("Live", justify="right")
        for cut in self.cuts:
            head = "unknown" if cut.head_share is None else f"{cut.head_share:.4f}"
            table.add_row(
                cut.name if cut.has_name else f"{cut.name} (no name of its own)",
                str(cut.shape),
                "ends" if cut.ends_block else "",
                f"{cut.share:.3f}",
                head,
                f"{cut.live_tensors}",
            )
        text = io.StringIO()
        Console(file=text, width=80, color_system=None).print(table)
        return text.getvalue().rstrip()
