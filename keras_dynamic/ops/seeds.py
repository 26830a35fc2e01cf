"""Seeds for stateless sampling, different on every replica."""

import tensorflow as tf

__all__ = ["replica_seed"]


def replica_seed(seed):
    """A seed for stateless sampling on the replica that asks for it.

    A layer calls `replica_seed(self.seed_generator.next())`. Keras keeps the state of
    a `SeedGenerator` equal on all replicas of a `tf.distribute` strategy, so that
    without this they would all draw the same noise.

    Args:
        seed: (2,) integers, such as `keras.random.SeedGenerator.next()` gives.

    Returns:
        (2,) int32: `tfp.distributions` take no int64 seed.
    """
    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    # None where no replica runs: a model that is only being built in a scope.
    context = tf.distribute.get_replica_context()
    if context is None:
        return seed
    return tf.random.experimental.stateless_fold_in(
        seed, context.replica_id_in_sync_group
    )
