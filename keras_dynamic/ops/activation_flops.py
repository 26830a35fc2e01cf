"""What an activation function counts, for each element."""

__all__ = ["activation_flops"]

# Multiply-adds and exponentials per element that an activation stands for; the figure
# of softmax is that of TensorFlow's profiler.
_FLOPS = {"linear": 0, "softmax": 5, "log_softmax": 5, "sparsemax": 5}


def activation_flops(function):
    """FLOPs for each element of an activation function, 1 whatever its form but for
    Keras' linear one (0) and its softmaxes (5)."""
    return _FLOPS.get(getattr(function, "__name__", None), 1)
