"""Finishing a trained model: its head is solved on cached features, and its predictions change little."""

import functools
import os
from typing import Any, Literal

import numpy as np
from keras import tree

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.batches import BATCH_SIZE, as_arguments, first_inputs
from keras_dal.features.cache import gathered
from keras_dal.features.inputs import check_alike
from keras_dal.features.samples import check_bytes, check_fits, check_positive, check_seed
from keras_dal.features.settled import warn_of_statistics
from keras_dal.finishing import path_table
from keras_dal.finishing.head_data import HeadData
from keras_dal.finishing.history import Path
from keras_dal.finishing.lbfgs import LBFGSTask
from keras_dal.finishing.newton import FEW_RIDGES, RIDGES, has_room
from keras_dal.finishing.result import Result, finished
from keras_dal.finishing.separating import SeparableTask
from keras_dal.finishing.solve import GAP
from keras_dal.finishing.stopping import Ending, Patience, Stopped, TimeLimit, Tolerance
from keras_dal.models.add_head import num_gated_parameters, num_gates, what_was_added, with_gates_beside
from keras_dal.models.solvable import check_solvable, warn_of_precision, warn_of_what_is_not_solved
from keras_dal.models.understood import understood
from keras_dal.output.warning import described, say, warn


def converge(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    tol: float | None = None,
    validation_data: Any = None,
    anchors: Any = None,
    gated: Literal["auto"] | bool = "auto",
    ridge: float | None = None,
    patience: int | None = None,
    time_limit: float | None = None,
    loss: Any = None,
    cache: str | os.PathLike[str] | None = None,
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: int = 1,
) -> Result:
    """Finish the last layer of a model, in seconds, on features that are computed once.

    Classifiers with hard labels: the head is changed until every training sample is on its
    right side, and predictions elsewhere change little. The model's own head is tried first, `min mean_i sum_j max(0,
    delta - gap_ij)^2 + ridge ||change||^2` for falling `ridge` up to the first point where all are right. Where it is
    not found to separate the samples a gated branch is added, whose own part is finished gently, and the samples that
    are still wrong are moved by interpolation, while anchors are held. Multiplying theta_S by `Result.scale` then
    brings the cross-entropy to `tol`, which proves that its infimum is 0; the model keeps the scale, and so the
    confidence, that it had. Samples whose labels contradict those of nearly equal ones are left wrong, with a warning,
    where moving them would cost more than all others (`Result.left`). Where a gated branch is not wanted the loss
    itself is minimized.
    Soft labels, smoothed or mixed, are not separated: the loss itself is minimized, down to their mean entropy at best.
    Regressors: the squared error is minimized with the same measure of change until it is at most `tol`, or at its
    minimum. Our derivation from the framework of Kawaguchi, Zhang and Deng (2022).

    Learned gates that still move with their kernel are frozen first. Interrupting the solver (Ctrl-C) ends it at the
    best point so far; the model's weights change only at the end.

    Args:
        model: a trained Keras model that `find_structure` understands.
        x: training inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; weight 0 removes a sample.
        tol: training loss to reach at `Result.scale`, positive; for soft labels, above their mean entropy. By default
            1e-4 times the mean sample weight, and for the squared error times the variance of the labels. A model that
            is there already stays as it is, where no positive `ridge` is given.
        validation_data: `(x, y)`, or a list of these, or a dataset of such batches; accuracy and calibration on it are
            reported.
        anchors: inputs whose predictions should stay, augmented copies of the training inputs or unlabelled ones, say,
            all of which measure the change; by default the training inputs, 10,000 random ones if there are more. An
            interpolation holds 2,000 of them at most.
        gated: `"auto"` adds a gated head where the own head of a classifier with hard labels is not found to separate
            the samples, True adds it wherever there is anything to do, False never.
        ridge: minimize `loss + ridge ||change||^2` instead, for this one weight, not negative, whatever the loss is
            there; the minimum is reached where the certified gap is at most a hundredth of `tol`. With 0 nothing is
            certified, and the loss is to be at most `tol`.
        patience: points without a better validation accuracy after which the best one is taken, on the path of a
            minimization or of a gated head; trying the own head is not ended by it.
        time_limit: seconds for the solver, looked at between its products; a factorization can be long.
        loss: as for `model.compile`; the compiled one by default.
        cache: directory in which features of arrays are kept and found again.
        max_bytes: memory for features, for gates, for the parameters of a gated head, and for the factor of an
            interpolation, each. Larger features are memory-mapped, more gates are computed again in every product, a
            larger head is not added, and instead of a larger factor there is Newton's method. Beside these, about ten
            copies of the logits `(n, C)` in float32 are in memory, and the parameters at each point of the path in
            float64. Where ten copies are larger than this a plain head whose loss is minimized, by a `ridge` without
            gates or because labels are not hard, has logits for a block of samples at a time, as in `finish`; all else
            is refused where one copy in float64 is larger.
        batch_size: samples in one evaluation of arrays.
        seed: integer for the gates that are added, and for which training inputs are anchors where some are.
        verbose: 0 for silence; else a bar for each pass over data, and a line for each point of the path.

    Returns:
        A `Result`; `result.model` is the given model, or a copy of it with a gated head.

    Raises:
        ValueError: no linear head, one that is not finite, frozen in part or has constraints or a spectral norm, an
            unsupported loss, bad data or bad arguments.
        MemoryError: logits that are needed at once are larger than `max_bytes`.
    """
    validation_data = as_arguments(validation_data)
    check_bytes("max_bytes", max_bytes)
    check_seed(seed)
    gated = check_options(tol, gated, ridge, patience, time_limit, validation_data)
    inputs = first_inputs(x)
    structure, loss = understood(model, inputs, loss, (x, y, sample_weight), verbose=verbose)
    check_solvable(structure)
    warn_of_precision(structure)
    warn_of_what_is_not_solved(structure, knows_penalties=False)
    if inputs is not None:
        warn_of_statistics(model, inputs)
    options = {"batch_size": batch_size, "directory": cache, "max_bytes": max_bytes, "verbose": verbose}
    gather = functools.partial(gathered, structure, **options)
    for name, other in (("anchors", anchors), ("validation data", validation_data and validation_data[0])):
        few = None if inputs is None or other is None else first_inputs(other, name)
        if few is not None:  # as of iterators that a look would use up
            check_alike(name, model, inputs, few)
    train, still, validation = _data(gather, (x, y, sample_weight), anchors, validation_data)
    rules = [TimeLimit(time_limit)] if time_limit is not None else []
    rules += [Patience(patience)] if patience is not None else []
    path = Path(rules, path_table.show if verbose else None)
    samples = structure, loss, train, max_bytes, validation
    task = _task(samples, path, still, seed, minimizes=ridge is not None, adds_gates=gated is True)
    tol = GAP * loss.unit(task.data.targets, train.weights) if tol is None else tol
    if gated is True and structure.place is None and not _fits(task):
        raise ValueError(f"The gated head is too large. Raise max_bytes. Received: {_size(task)}, {max_bytes=:,}")
    add_gates = functools.partial(_with_gated_head, inputs=inputs, seed=seed, verbose=verbose)
    task = _walked(task, gated, ridge, tol, add_gates, verbose)
    goal = {"tol": None if ridge else tol, "scaled_to": tol}
    try:
        return finished(task, **goal)
    except KeyboardInterrupt:  # the path has ended, whatever came after it
        return finished(task, **goal)  # so that a first interrupt loses nothing; a second one is obeyed


def _task(samples, path, still, seed, minimizes, adds_gates):
    """Return the task of the own head; one block of samples at a time has logits where all would be too many.

    Args:
        samples: what `HeadData.of` takes.
        path: the `Path`.
        still: features of anchors, or None.
        seed: as for `Task`.
        minimizes: whether a minimum is asked for, which can be found so, whatever the labels are.
        adds_gates: whether gates are to be added, beside which it cannot.

    Raises:
        MemoryError: all logits are needed, and are larger than `max_bytes`.
    """
    structure, _, train, max_bytes, validation = samples
    num_anchors, outputs = 0 if still is None else len(still), structure.num_outputs
    num_rows = max(len(train) + num_anchors, 0 if validation is None else len(validation))
    if not has_room(num_rows, outputs, max_bytes):
        if structure.is_plain and not adds_gates and has_room(num_anchors, outputs, max_bytes):
            data = HeadData.of(*samples, lazy=True)
            if minimizes or not data.has_hard_labels:
                return LBFGSTask(data, path, still, seed)
        blocks = structure.is_plain and minimizes and not adds_gates
        instead = "or fewer anchors" if blocks else "or a ridge= without gates"
        check_fits(num_rows, (structure.num_features, outputs), max_bytes, instead)
    return SeparableTask(HeadData.of(*samples), path, still, seed)


def _walked(own, gated, ridge, tol, add_gates, verbose):
    """Walk the path to its end, or to where it is cut short, and return the task whose head was solved for."""
    task, path = own, own.path
    try:
        enough = [] if ridge else [Tolerance(tol, own.data.floor)]
        if enough and own.is_done(enough):
            return own
        has_gates = own.data.structure.place is not None
        if gated is True and not has_gates:
            task = add_gates(own)
        if ridge is not None or not own.data.has_hard_labels:
            task.minimize(_in_unit(own, RIDGES) if ridge is None else [ridge], tol, enough)
            return task
        more_follows = gated is False or (gated == "auto" and not has_gates)
        path.begin(patient=not more_follows)  # trying the own head takes few steps
        if task.separate() or not more_follows:
            return task
        path.begin()
        gates = _gated_or_none(own, add_gates) if gated == "auto" else None
        if gates is not None:
            task = gates
            task.separate()
            return task
        if verbose and gated is False:
            say("the own head was not found to separate the samples: the path begins again, and its loss is minimized")
        own.minimize(_in_unit(own, FEW_RIDGES), tol, enough)
    except Stopped as stop:
        path.cut_short(stop.ending)
    except KeyboardInterrupt:
        path.cut_short(Ending.INTERRUPT)
    return task


def _gated_or_none(own, add_gates):
    """Return the task for a gated head, or None, with a warning, where there can be none."""
    if not _fits(own):
        warn(
            "The own head was not found to separate the samples, and a gated one is too large: its own loss is "
            "minimized. Raise max_bytes, or pass fewer samples. Received: "
            f"{_size(own)}, max_bytes={own.data.max_bytes:,}"
        )
        return None
    try:
        return add_gates(
            own, "the own head was not found to separate the samples, and the path begins again with gates"
        )
    except Exception as error:  # of whatever kind, as of a layer that cannot be made again: the path so far counts
        warn(
            "The own head was not found to separate the samples, and a gated one cannot be made: its own loss is "
            f"minimized. Received: {described(error)}",
            error,
        )
        return None


def _in_unit(task, ridges):
    """Return weights of the change for a loss in the unit of the sample weights."""
    return [task.data.mean_weight * ridge for ridge in ridges]


def _data(gather, training, anchors, validation_data):
    """Return the `CachedFeatures` of the samples, the features of anchors and the validation data, or None for none."""
    train = gather("training samples", *training, labelled=True)
    still = None if anchors is None else gather("anchors", anchors).features
    if validation_data is None:
        return train.weighted, still, None
    validation = gather("validation data", *validation_data)
    _check_validation(validation)
    return train.weighted, still, validation


def _fits(task):
    return 4 * _gated_parameters(task) <= task.data.max_bytes


def _size(task):
    return f"{_gated_parameters(task):,} parameters for {len(task.data.train):,} samples"


def _gated_parameters(task):
    return num_gated_parameters(task.data.train, task.data.structure)


def _with_gated_head(task, why=None, *, inputs, seed, verbose):
    """Return the task for a copy of the model with a gated head for its features; the path goes on."""
    if why and verbose:
        say(why)
    few = None if inputs is None else tree.map_structure(lambda part: part[:2], inputs)
    structure, train = task.data.structure, task.data.train
    count = num_gates(len(train), train.num_independent(structure))
    gated = with_gates_beside(structure, count, few, seed=seed)
    if verbose:
        say(what_was_added(structure, gated.model, count, "beside", len(train)))
    return task.with_head(gated)


def check_options(tol, gated, ridge, patience, time_limit, validation_data):
    """Raise a ValueError for bad options; return `gated` as "auto" or a bool."""
    for name, value in (("tol", tol), ("patience", patience), ("time_limit", time_limit)):
        if value is not None:
            check_positive(name, value)
    if gated not in ("auto", True, False):
        raise ValueError(f"gated must be 'auto', True or False. Received: gated={gated!r}")
    if ridge is not None and not (isinstance(ridge, (int, float, np.number)) and 0 <= ridge < np.inf):
        raise ValueError(f"ridge must be a number that is not negative. Received: ridge={ridge!r}")
    if validation_data is not None and len(validation_data) not in (1, 2):
        raise ValueError(f"validation_data must be (x, y). Received: {len(validation_data)} parts")
    if patience is not None and validation_data is None:
        raise ValueError(f"patience needs validation_data=(x, y). Received: patience={patience}, validation_data=None")
    return gated if gated == "auto" else bool(gated)


def _check_validation(data):
    if data.labels is None:
        raise ValueError("validation_data must be (x, y) or a dataset of such batches. Received: no labels")
    if np.any(data.weights != 1.0):
        raise ValueError(
            "validation_data must have no sample weights: its accuracy and calibration are those of all samples. "
            f"Received: weights from {data.weights.min()} to {data.weights.max()}"
        )
