"""Saving that leaves the old file whole, and loading that leaves the model whole."""

import io
import os

from keras_dynamic._compat import ask_to_proceed_with_overwrite
from keras_dynamic._files import whole_file

__all__ = ["WholeFiles"]


class WholeFiles:
    """Mixin whose files are written beside the old ones, then renamed.

    Keras writes in place: a full disk, or a process that is killed, costs the old file
    as well. What is no single local file (a folder, shards, `gs://`, `hf://`) is left
    to Keras; so is `keras.saving.save_model(model, path)`, which never comes here and
    writes in place.
    """

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "`filepath` must end in .keras: Keras' former format, HDF5, cannot "
                f"hold exits and their rule. Received: filepath={str(filepath)!r}."
            )
        if not _is_local(filepath, ".keras") or zipped is False:
            return super().save(filepath, overwrite, zipped, **kwargs)
        if _may_write(filepath, overwrite):
            with whole_file(filepath, ".keras") as partial:
                super().save(partial, True, zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """As in Keras, written beside an older file and then renamed, as by `save`.

        `keras.callbacks.BackupAndRestore` uses it. After a kill, training goes on from
        the end of the last epoch to the same weights, moving averages, optimizer state,
        temperatures and loss weights, bit by bit, where nothing is random. What is
        random goes on otherwise: no file of Keras holds the state of seeds. With
        `save_freq` in batches Keras begins the epoch anew, with the steps it had made.

        Args:
            filepath, overwrite, max_shard_size: as in Keras; shards are written in
                place.

        Raises:
            OSError: where the file cannot be written.
            ValueError: for an ending other than `.weights.h5`.
        """
        if not _is_local(filepath, ".weights.h5") or max_shard_size is not None:
            return super().save_weights(filepath, overwrite, max_shard_size)
        if _may_write(filepath, overwrite):
            with whole_file(filepath) as partial:
                content = _InMemory()
                super().save_weights(content, True)
                # No `getbuffer`: an error would hold the view, and free it too late.
                partial.write_bytes(content.getvalue())

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """As in Keras; what fails changes no weight.

        Args:
            filepath, skip_mismatch: as in Keras.

        Raises:
            OSError: for a file that is not there or cannot be read, a truncated one
                for instance. No format but `.keras` has a checksum: bits that flipped
                within the numbers of a `.weights.h5` are not found.
            ValueError: for a file with other weights than the model's, or with
                thresholds or temperatures that mean nothing.
        """
        kept = [(each, each.numpy()) for each in _state(self)]
        try:
            return super().load_weights(filepath, skip_mismatch, **kwargs)
        except BaseException as error:
            for variable, value in kept:
                variable.assign(value)
            if not isinstance(error, Exception) or getattr(error, "errno", None):
                raise
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(
                "No weights were loaded: `filepath` must hold those of this model, "
                f"whole. Received: filepath={str(filepath)!r}, in which Keras found: "
                f"{error}"
            ) from error


class _InMemory(io.BytesIO):
    """What HDF5 writes: on a disk that is full it would end the whole process."""

    def __str__(self):
        return "memory.weights.h5"  # Keras looks at the ending


def _is_local(filepath, ending):
    name = str(filepath)
    return name.endswith(ending) and "://" not in name


def _may_write(filepath, overwrite):
    exists = os.path.exists(filepath)
    return overwrite or not exists or ask_to_proceed_with_overwrite(str(filepath))


def _state(model):
    """All variables that a file of weights may hold, once each."""
    variables = [*model.variables, *model.metrics_variables]
    if getattr(model, "optimizer", None) is not None:  # there is none before `compile`
        variables += model.optimizer.variables
    return list({id(each): each for each in variables}.values())
