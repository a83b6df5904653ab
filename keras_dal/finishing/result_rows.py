"""How a `Result` reads, row by row."""

import numpy as np

from keras_dal import _keras
from keras_dal.analysis.assumptions import ROUNDED
from keras_dal.analysis.reports import in_outputs, loss_named
from keras_dal.finishing.stopping import Ending
from keras_dal.output.tables import at_most, counted, percent

WIDTH = 18  # of the names: the longest of them, whatever rows there are
_WORSE = 0.01  # of the validation accuracy, or of its loss as a share, that a reader should know of


def rows_of(result):
    """Yield what a `Result` says, a name and a text for each row."""
    met = "reached" + " at that scale (Result.rescale)" * (result.scale != 1) if result.reached else "not reached"
    least = f" above {result.floor:.4g}, the least of any model" if result.floor else ""
    wanted = "" if result.tol is None else f"; wanted {result.tol:.4g}{least}: {met}"
    at_scale = f"; with the head times {result.scale:,.0f} {result.scaled_loss:.4g}" if result.scale != 1 else ""
    name = loss_named(result.loss_name, np.any(result._data.train.weights != 1))
    yield "training loss", f"{result.loss:.4g} ({name}){at_scale}{wanted}"
    if result.penalty:
        kind = "penalty" if result._data.factors is None else "L2 penalty"
        name = "minimized with it" if result.penalized else "left out"
        scaled = f", scaled {result.scaled_penalty:.4g}" if result.scale != 1 else ""
        yield name, f"{kind} on the head: {result.penalty:.4g}{scaled}"
    if result.accuracy is not None:
        of_all = in_outputs(result._data.loss, result._data.structure.num_outputs)
        yield "training accuracy", f"{percent(result.accuracy)}{of_all}, smallest margin {result.margin:.4g}"
    left, separated = len(result.left), result.stopped_by == Ending.SEPARATED
    if left:
        yield (
            "left wrong" if separated else "wrong",
            f"{left} training samples (Result.left, by their place in what was read)",
        )
    moved, size = f"{result.point.moved:.4g}", f"of {result._run.size:.4g}"
    if result._data.is_centred:
        moved, size = f"{moved} without their mean error", f"where labels deviate by {result._data.deviation:.4g}"
    moved += f", {size} (root mean square on anchors, on training samples)"
    yield ("outputs" if result.margin is None else "logits") + " moved by", moved
    if result.stopped_by.is_of_a_minimum and result.stopped_by != Ending.TOLERANCE and np.isfinite(result.point.gap):
        yield "gap to the minimum", _gap(result)
    yield from _validation(result)
    if not result._data.are_exact:
        yield "not covered", ROUNDED
    if result._run.is_copy:
        of_gates = result._theta[: result._data.head.mixture.num_parameters]
        idle = "" if of_gates.any() else ", whose gates add nothing at this point"
        yield (
            "model",
            f"a copy with a gated head{idle} and a new optimizer, Result.model; the head that was given is as it was",
        )
        if not _keras.is_graph(result.model):
            yield "to save", "model.save_weights: load_model makes a subclassed model anew, without gates"
    count = counted(len(result.path), "point")
    num_samples = len(result._data.train)
    but = f" of {num_samples - left:,} of {num_samples:,} samples" if separated and left else ""
    yield "ended by", f"{result.stopped_by}{but}, {count} in {result.seconds:.2f} s"


def _gap(result):
    proved = result._is_proved
    size = f"at most {at_most(result.point.gap, 2)}" if proved else f"at most about {result.point.gap:.2g}"
    penalty = f" plus the L2 penalty{result._divisor}" if result.penalized else ""
    change = f"the change{' without the mean error' * result._data.is_centred}"
    return f"{size} (of the loss plus {result.point.ridge:g} times {change}{penalty})"


def _validation(result):
    likelihood = "NLL" if result._data.loss.is_likelihood else "loss"
    for name in ("before", "after", "scaled"):
        quality = getattr(result, name)
        if quality is None or (name == "scaled" and result.scale == 1):
            continue
        accuracy = "" if quality.accuracy is None else f"{percent(quality.accuracy)} accuracy, {likelihood} "
        calibration = "" if quality.ece is None else f", ECE {quality.ece:.4g}"
        scaled = f" (with the head times {result.scale:,.0f}, as Result.rescale makes it)" * (name == "scaled")
        yield f"validation {name}", f"{accuracy or 'loss '}{quality.loss:.4g}{calibration}{scaled}"
    worse = [] if result.before is None else list(_what_is_worse(result.before, result.after, likelihood))
    if worse:
        of_loss = result.stopped_by.is_of_a_minimum and result.point.ridge  # a separation weights it in another unit
        less = f"a larger ridge than {result.point.ridge:g}" if of_loss else "ridge=1e-2"
        earlier = ", and patience ends earlier" * (result.stopped_by != Ending.PATIENCE)
        yield "validation worse", f"{' and '.join(worse)}: {less} changes less{earlier}"


def _what_is_worse(before, after, loss_name):
    if before.accuracy is not None and before.accuracy - after.accuracy > _WORSE:
        yield f"accuracy by {100 * (before.accuracy - after.accuracy):.2f} points"
    if (rise := after.loss - before.loss) > _WORSE * abs(before.loss):
        yield f"{loss_name} by {rise / abs(before.loss):.1%}" if before.loss else f"{loss_name} by {rise:.4g}"
