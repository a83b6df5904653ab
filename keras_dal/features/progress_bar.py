"""How far a pass over data is: a bar on a terminal or in a notebook, one line at its end elsewhere."""

import sys

import keras

from keras_dal.features.inputs import are_arrays, num_samples
from keras_dal.output.warning import say


def progress_bar(of, x):
    """Say whose features are computed, and return a Keras progress bar that is updated with the number of samples.

    Args:
        of: whose, in words.
        x: inputs, whose number is known where they are arrays.
    """
    say(f"features of the {of}")
    size = num_samples(x) if are_arrays(x) else None
    is_redrawn = sys.stdout.isatty() or "ipykernel" in sys.modules  # else no escape codes
    return keras.utils.Progbar(size, unit_name="sample", verbose=1 if is_redrawn else 2)


def complete(bar, count):
    """Let a bar end that did not know at how many samples."""
    if bar.target is None:
        bar.target = count
        bar.update(count, finalize=True)


def watched(batches, bar):
    """Yield batches whose first part has a row for each sample, while a bar, if there is one, follows."""
    if bar is None:
        yield from batches
        return
    count = 0
    for batch in batches:
        bar.update(count := count + len(batch[0]))
        yield batch
    complete(bar, count)
