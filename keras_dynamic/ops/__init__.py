"""Pure functions of tensors: no layer, no weight, no hidden seed."""
