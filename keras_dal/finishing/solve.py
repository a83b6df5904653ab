"""The convex phase on cached features: one solve, with a proof of how near it is to the minimum."""

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.samples import check_fits
from keras_dal.finishing import path_table
from keras_dal.finishing.head_data import HeadData
from keras_dal.finishing.history import Path
from keras_dal.finishing.lbfgs import LBFGSTask
from keras_dal.finishing.newton import has_room
from keras_dal.finishing.result import finished
from keras_dal.finishing.separating import SeparableTask
from keras_dal.finishing.stopping import Stopped

LEAST, MOST = 0.003, 0.01  # weights of the change of the head, for sample weights of mean one
OF_CURVATURE = 1 / 3  # the weight between them, in the mean curvature of the loss
GAP = 1e-4  # in the unit of the loss, to which a minimum is proved to be reached, and a loss is wanted by default


def solve_head(structure, loss, train, max_bytes=MAX_BYTES, verbose=False, seed=0):
    """Solve for the linear parameters of a model on cached features, and write them into the model.

    A plain head minimizes `loss + weight_of_change(...) * change`, and its L2 penalty if it has one; there is one
    minimum, and how far the head may still be from it is computed in float64. The gap is in the unit of the loss. The
    change is the mean squared change of the logits, of 10,000 random samples if there are more, plus `||phi||^2`, the
    squared distance in coordinates in which it is about the same and that leave no direction free (see `Whitening`).
    For the squared error it is measured from the head without its mean error: the offset of the labels is no change.
    With gates and hard labels every sample is put on its right side instead, as in `converge`; where they do not do
    that, the same sum is minimized, without a proof.

    Args:
        structure: the `Structure` of the model.
        loss: a `losses.Loss`.
        train: `CachedFeatures` of the samples.
        max_bytes: as in `converge`; where ten copies of the logits of a plain head are larger, which Newton's method
            has, L-BFGS has logits for a block of samples at a time.
        verbose: whether to print the path.
        seed: of the samples on which the change is measured, where these are some.

    Returns:
        A `Result`.

    Raises:
        MemoryError: logits of a head with gates that are larger than `max_bytes`.
    """
    samples = train.weighted
    if not structure.is_plain:
        widths = structure.num_features, structure.num_outputs
        check_fits(len(samples), widths, max_bytes, "or a plain head")
    path = Path(on_point=path_table.show if verbose else None)
    large = structure.is_plain and not has_room(len(samples), structure.num_outputs, max_bytes)
    data = HeadData.of(structure, loss, samples, max_bytes, lazy=large).centred()
    task = (LBFGSTask if large else SeparableTask)(data, path, seed=seed)
    gap = GAP * loss.unit(data.targets, samples.weights)
    try:
        wants_sides = structure.place is not None and data.has_hard_labels
        if not (wants_sides and task.separate()):
            path.begin()
            task.minimize_to(weight_of_change(data), gap)
    except Stopped as stop:
        path.cut_short(stop.ending)
    return finished(task, None, scaled_to=gap)


def weight_of_change(data):
    """Return the weight of the change for a head before it is solved: a third of the mean curvature of the loss.

    So the change weighs about as much against the loss, however well samples are fitted, and however many classes share
    what curvature there is. From 0.003 to 0.01 times the mean sample weight, the range in which it was measured; less
    where the loss is above that of a head that tells nothing: a way back to that costs no more than for one as good.

    Args:
        data: the `HeadData`.
    """
    fitted = data.fitted(data.theta)
    wanted = OF_CURVATURE * fitted.mean_curvature() / data.mean_weight
    above, most = (value - data.floor for value in (fitted.mean_loss(), data.loss_of_nothing))
    worse = max(above / most, 1.0) if most > 0 else 1.0
    weight = min(max(LEAST, wanted), MOST) / worse ** (1 if data.loss.quadratic else 2)  # both grow as a square does
    return float(f"{weight:.1e}") * data.mean_weight  # two digits, which are printed
