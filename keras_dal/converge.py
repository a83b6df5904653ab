"""Finishing a trained model: its head is solved on cached features, and its predictions change little."""

import keras
from keras import tree

from keras_dal.add_head import add_gated_head
from keras_dal.cache import cached_features
from keras_dal.features import first_inputs
from keras_dal.losses import loss_of
from keras_dal.path import Path, Stopped
from keras_dal.result import finished
from keras_dal.structure import find_structure
from keras_dal.task import RIDGES, Task


def converge(
    model,
    x,
    y=None,
    sample_weight=None,
    *,
    tol=1e-4,
    loss=None,
    validation_data=None,
    anchors=None,
    gated="auto",
    ridge=None,
    patience=None,
    time_limit=None,
    cache=None,
    max_bytes=2**32,
    batch_size=256,
    verbose=1,
):
    """Train the last layer of a model to its global optimum, in seconds, on features that are computed once.

    Classifiers: the head is changed until every training sample is on its right side, and predictions elsewhere change
    little. The model's own head is tried first, `min mean_i sum_j max(0, delta - gap_ij)^2 + ridge ||change||^2` for
    falling `ridge` up to the first point where all are right. Where it cannot separate the samples a gated branch is
    added, whose own part is finished gently, and the samples that are left are moved by interpolation, while anchors
    are held. Multiplying theta_S by `Result.scale` then brings the cross-entropy to `tol`, which proves
    that its infimum is 0; the model keeps the scale, and so the confidence, that it had. Where a gated branch is not
    wanted the loss itself is minimized.
    Regressors: the squared error is minimized with the same measure of change until it is at most `tol`, or at its
    minimum. Our derivation from the framework of Kawaguchi, Zhang and Deng (2022).

    Learned gates that still move with their kernel are frozen first. Interrupting it (Ctrl-C) ends it at the best point
    so far; the model's weights change only at the end.

    Args:
        model: a trained Keras model that `find_structure` understands.
        x: training inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; weight 0 removes a sample.
        tol: training loss to reach at `Result.scale`, positive.
        loss: as for `model.compile`; the compiled one by default.
        validation_data: `(x, y)`, or a dataset of such batches; accuracy and calibration on it are reported.
        anchors: inputs whose predictions should stay, augmented copies of the training inputs or unlabelled ones, say;
            the training inputs by default. All of them measure the change; an interpolation holds 2,000 of them.
        gated: `"auto"` adds a gated head where a classifier's own head does not separate the samples, True adds it in
            any case, False never.
        ridge: minimize `loss + ridge ||change||^2` instead, for this one weight, not negative.
        patience: Newton steps without a better validation accuracy after which the best one is taken.
        time_limit: seconds for the solver, looked at after each of its steps; one of an interpolation can be long.
        cache: directory in which features are kept and found again.
        max_bytes: memory for features, for gates, and for the factor of an interpolation, each; larger features are
            memory-mapped, more gates are computed again in every product, and instead of a larger factor there is
            Newton's method.
        batch_size: samples per evaluation of the features.
        verbose: 0 for silence.

    Returns:
        A `Result`; `result.model` is the given model, or a copy of it with a gated head.

    Raises:
        ValueError: no linear head, an unsupported loss, bad data or bad arguments.
    """
    _check(tol, gated, ridge, patience, time_limit, validation_data)
    inputs = first_inputs(x)
    structure = find_structure(model, inputs)
    for layer in structure.gated_layers:
        layer.freeze_gates()  # learned gates would move with the kernel that is solved for
    loss = loss_of(model, structure.activation, loss)

    def gather(x, y=None, sample_weight=None):
        bar = keras.utils.Progbar(None, unit_name="batch") if verbose else None
        on_batch = bar and (lambda rows: bar.add(1))
        return cached_features(structure, x, y, sample_weight, batch_size, cache, max_bytes, on_batch)

    train = gather(x, y, sample_weight).weighted()
    if train.labels is None:
        raise ValueError(f"The solver needs labels: pass y, or a dataset of (x, y). Received: x={type(x).__name__}")
    still = None if anchors is None else gather(anchors).features
    validation = None
    if validation_data is not None:
        validation = gather(*validation_data) if isinstance(validation_data, tuple) else gather(validation_data)
    path = Path(patience, time_limit, bool(verbose))
    task = Task(structure, loss, train, still, validation, path, max_bytes)
    separable = loss.margins(task.start[:1], task.targets[:1]) is not None and ridge is None
    try:
        plain = not structure.gated_layers
        if not separable:
            if gated is True and plain:
                task = task.with_head(_gated(structure, train, inputs))
            task.minimize(RIDGES if ridge is None else [ridge], tol)
        elif (gated is True and plain) or not task.separate():
            if gated is not False and plain:
                task = task.with_head(_gated(structure, train, inputs))
                path.restart()
                task.separate()
            elif gated is False:
                task.minimize(RIDGES[-1:], tol)
    except Stopped as stop:
        path.cut_short(str(stop))
    except KeyboardInterrupt:
        path.cut_short("an interrupt")
    if not path.points:
        path.points.append(task.unchanged())
    return finished(task, path, tol)


def _gated(structure, train, inputs):
    """Return the structure of a copy of the model with a gated head for these features."""
    few = None if inputs is None else tree.map_structure(lambda part: part[:2], inputs)
    copy = add_gated_head(structure.model, few, num_samples=len(train), seed=0, verbose=False)
    structure = find_structure(copy, few)
    structure.layer.adapt(train.features)
    return structure


def _check(tol, gated, ridge, patience, time_limit, validation_data):
    for name, value in (("tol", tol), ("patience", patience), ("time_limit", time_limit)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive. Received: {name}={value!r}")
    if gated not in ("auto", True, False):
        raise ValueError(f"gated must be 'auto', True or False. Received: gated={gated!r}")
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"ridge must not be negative. Received: ridge={ridge!r}")
    if isinstance(validation_data, tuple) and len(validation_data) != 2:
        raise ValueError(f"validation_data must be (x, y). Received: {len(validation_data)} parts")
    if patience is not None and validation_data is None:
        raise ValueError(f"patience needs validation_data=(x, y). Received: patience={patience}, validation_data=None")
