"""A process in which PyTorch runs, from the side of TensorFlow and from its own.

Two pools of threads in one process disturb each other, so that PyTorch has one of its
own. Each waits while the other computes.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np


class PyTorchProcess:
    """Lives as long as a `with` block.

    Args:
        folder: path of a folder for arrays that both read and write.
        script: name of the script beside this one that calls `serve`.
    """

    def __init__(self, folder, script):
        self.folder = Path(folder)
        self._script = Path(__file__).with_name(script)

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, self._script, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception):
        with self._process:  # closes its pipes, at which it ends, and waits
            pass

    def ask(self, name, **arguments):
        """Calls a method of the other side's `Server`; returns what it returns."""
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"PyTorch's process ended at {name}({arguments}).")
        return json.loads(line)

    def answers(self, name="answers", **arguments):
        """Calls a method that writes `answers.npz`; returns a dict of its arrays."""
        self.ask(name, **arguments)
        with np.load(self.folder / "answers.npz") as arrays:
            return dict(arrays)


def serve(make):
    """Calls the methods that the other side asks for, until it closes the pipe.

    Args:
        make: function of the folder, which comes on the command line, that makes the
            object with the methods.
    """
    import torch  # TensorFlow's side, which imports this file as well, has none

    warnings.simplefilter("ignore")
    torch.set_num_threads(os.cpu_count())
    server = make(sys.argv[1])
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(server, name)(**arguments)), flush=True)


def median_seconds(run, calls):
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
