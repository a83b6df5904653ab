"""The second phase on data that are at hand: in a loop of one's own, or after `fit`."""

import itertools
import os
from typing import Any

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.batches import BATCH_SIZE, batches, check_finite, first_inputs
from keras_dal.features.cache import gathered
from keras_dal.features.inputs import are_arrays, check_alike
from keras_dal.features.samples import check_bytes, check_labels, check_seed
from keras_dal.features.settled import warn_of_statistics
from keras_dal.features.tracing import are_finite, feature_array
from keras_dal.finishing.result import Result
from keras_dal.finishing.solve import solve_head
from keras_dal.models.solvable import check_solvable, warn_of_precision, warn_of_what_is_not_solved
from keras_dal.models.understood import understood
from keras_dal.output.warning import say, warn
from keras_dal.training import messages
from keras_dal.training.checks import check_same_model
from keras_dal.training.frozen import Snapshot
from keras_dal.training.inner import parameters_of
from keras_dal.training.state import state_of
from keras_dal.training.statistics import STEPS, BatchStatistics, have_moved
from keras_dal.training.wrap import find_wrap

_LEAST = 32  # samples of a batch of arrays whose statistics count: those of a few mislead a deep network


def finish(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    statistics_from: Any = None,
    loss: Any = None,
    cache: str | os.PathLike[str] | None = None,
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: int = 1,
) -> Result:
    """Solve the convex second phase of a model: its linear parameters, on the features of these data.

    If its optimizer is a `Wrap` that still explores, the average of the weights becomes the weights first, the batch
    statistics are renewed on these data, and everything but the linear parameters freezes. A plain head then minimizes
    `loss + weight * change`, and its L2 penalty if it has one, to within 1e-4 of the minimum, proved in float64. The
    weight is a third of the mean second derivative of the loss in a logit, from 0.003 to 0.01. Weight and gap are
    multiplied by the mean sample weight, the gap for squared errors by the variance of the labels too. The change is
    the mean squared change of the logits, on 10,000 random samples if there are more, plus `||phi||^2`, about the same
    again, which holds directions that no sample sees. A head with gates puts every sample on its right side, if all
    labels are hard, but for those whose move would change the others most (`Result.left`); where they do not do that,
    it minimizes the same, without a proof. This is what `AlignmentMonitor` does at the end of `fit`, with the data that
    flow through it (the framework of Kawaguchi, Zhang and Deng, 2022).

    Args:
        model: a trained Keras model that `find_structure` understands.
        x: training inputs as the model itself takes them, whatever its `test_step` does to them before, or a dataset of
            `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`.
        statistics_from: what batch statistics are renewed on, inputs or a dataset: the first 100 batches, in their
            order, so shuffle what is sorted by class. Those of averaged weights are renewed in any case, by default on
            x, unless the last `fit` has not moved them or, where there was none, they are what they begin with and the
            model's `call` has no `training`; those of other models only where this is given, as after a training too
            short for moving averages. Where images are augmented outside of the model, give the augmented batches:
            statistics of other images than those that were trained on cost accuracy.
        loss: as for `model.compile`; the compiled one by default.
        cache: directory in which features of arrays are kept and found again.
        max_bytes: memory for features, for what is computed from them once, and for ten copies of the logits of a plain
            head, each. Larger features are memory-mapped, and more logits exist for a block of samples at a time. A
            head with gates is refused where one copy of the logits in float64 is larger.
        batch_size: samples in one evaluation of arrays; batch statistics are of batches of 32 at least.
        seed: integer for the random samples on which the change is measured, where there are more.
        verbose: whether to print which weights it takes, what it reads, with a progress bar for the features, and a
            line for each step of the solver.

    Returns:
        The `Result`, whose weights the model has.

    Raises:
        ValueError: no linear head, one that is not finite, frozen in part, has constraints or a spectral norm that
            training keeps, an unsupported loss, or bad data; an optimizer that was switched for another model.
        MemoryError: logits of a head with gates that are larger than `max_bytes`.
    """
    check_bytes("max_bytes", max_bytes)
    check_seed(seed)
    wrap, inputs = find_wrap(getattr(model, "optimizer", None)), first_inputs(x)
    structure, loss = understood(model, inputs, loss, (x, y, sample_weight), parameters_of(wrap), verbose)
    check_solvable(structure)
    if wrap is not None:
        check_same_model(wrap, model, structure.linear_parameters)
        if wrap.phase == "exploit":
            state_of(wrap).progress.check_is_of(structure)
    warn_of_precision(structure)
    warn_of_what_is_not_solved(structure)
    if inputs is not None and are_arrays(statistics_from):
        check_alike("statistics_from", model, inputs, statistics_from)
    averaged = wrap is not None and state_of(wrap).has_average
    source, statistics = x if statistics_from is None else statistics_from, BatchStatistics(model)
    since = state_of(wrap).statistics_before if averaged else None
    renews = statistics.are_there and (statistics_from is not None or (averaged and have_moved(model, since)))
    _check_readable(x, y, renews and inputs is None and source is x)
    if inputs is not None and not averaged and statistics_from is None:
        warn_of_statistics(model, inputs)
    _say_weights(model, wrap, averaged, verbose)
    before = Snapshot(model, wrap)
    try:
        if wrap is not None:
            if wrap.phase == "explore":
                state_of(wrap).switch(model, structure)
            check_solvable(structure)  # again: the average of a training that diverged is not finite
        if verbose and averaged and statistics.are_there and not renews:
            say(messages.keeps_statistics())
        if verbose and renews:
            say(messages.renews_statistics(STEPS))
        if renews:
            _renew(statistics, structure, source, batch_size, "x" if statistics_from is None else "statistics_from")
        options = {"batch_size": batch_size, "directory": cache, "max_bytes": max_bytes, "verbose": verbose}
        train = gathered(structure, "training samples", x, y, sample_weight, labelled=True, **options)
        result = solve_head(structure, loss, train, max_bytes, bool(verbose), seed)
    except BaseException:
        before.restore()
        raise
    if wrap is not None:
        state_of(wrap).mark_solved(renews)
    return result


def _renew(statistics, structure, source, batch_size, name):
    """Set `BatchStatistics` to the means over the first batches of some inputs."""
    size = max(batch_size, _LEAST) if isinstance(batch_size, int) else batch_size
    for inputs, _, _ in itertools.islice(batches(source, batch_size=size, name=name), STEPS):
        if not are_finite(inputs):  # which the means need not show
            check_finite(feature_array(structure.feature_function(inputs, fused=False)[0]), structure.layer)
        statistics.add((inputs,))
    if not statistics.count:
        raise ValueError(f"There are no samples to renew batch statistics on. Received: {type(source).__name__}")
    statistics.settle()
    statistics.warn()


def _say_weights(model, wrap, averaged, verbose):
    """Say of which weights the head is about to be solved, and warn where an average was wanted and is not there."""
    explores = wrap is not None and wrap.phase == "explore"
    if explores and state_of(wrap).averages.are_lacking:
        warn(messages.lacks_average())
    elif verbose and averaged:
        say(messages.replaces(model, wrap) if explores else messages.is_averaged())
    elif verbose and explores and state_of(wrap).averages.has_own:
        say(messages.averaged_none(model, wrap))
    elif verbose and getattr(model, "optimizer", None) is None:
        say(messages.knows_no_optimizer())


def _check_readable(x, y, twice):
    """Raise a ValueError where the data have no labels, or can be read once and are needed twice."""
    if are_arrays(x):
        check_labels(y, x)
    if twice:
        raise ValueError(
            "The data are read twice, for batch statistics and for features: pass arrays or a dataset, not what can be "
            f"read only once. Received: x={type(x).__name__}"
        )
