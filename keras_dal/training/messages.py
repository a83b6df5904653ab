"""What the monitor says, one function for each moment of a fit, and `finish`."""

import numpy as np

from keras_dal import _keras
from keras_dal.analysis.assumptions import TO_FLOAT32
from keras_dal.analysis.conflicts import num_conflicting
from keras_dal.analysis.reports import in_outputs
from keras_dal.features.tracing import HALVES, to_numpy
from keras_dal.features.variables import num_entries
from keras_dal.finishing.stopping import Ending
from keras_dal.models.add_head import num_gated_parameters
from keras_dal.output.tables import counted, percent
from keras_dal.output.warning import described
from keras_dal.training.inner import path_to
from keras_dal.training.state import state_of
from keras_dal.training.statistics import have_moved

_FEW = 5  # samples for each feature, with which a solved head fits what it saw and not much else


def only_measures():
    """Return that there are no two phases."""
    return "the optimizer is no Wrap: the alignment is measured, and nothing will be frozen or solved"


def begins(model, wrap, schedule, epoch, epochs):
    """Return what a reader must know where a fit begins in the middle of things, or None."""
    solves = state_of(wrap).solves
    if solves and state_of(wrap).progress.is_solved:
        return (
            "this fit begins in the second phase, as the optimizer has switched: the last layer was solved, "
            "and it ends at once, with the loss and metrics of one batch in its history. "
            f"{path_to(wrap, model)}.restart() before fit goes back to the first phase, to train on or where other "
            "weights were put back, and so does compiling the model with a new Wrap; "
            "keras_dal.finish(model, x, y) solves again, on other data"
        )
    if wrap.phase == "exploit":
        return (
            "this fit begins in the second phase, as the optimizer has switched: only the linear parameters "
            f"will be {'solved' if solves else 'trained'}. {path_to(wrap, model)}.restart() before fit goes back "
            "to the first phase"
        )
    if schedule.switch is not None and schedule.switch >= epochs:
        return (
            f"the switch comes after {schedule.switch} epochs, and this fit ends after {epochs}: nothing "
            "will be solved in it"
        )
    if schedule.switch is not None and schedule.switch < epoch:
        return f"the switch was due at epoch {schedule.switch + 1}; it comes now, at epoch {epoch + 1}"
    return None


def trains_nothing(wrap, epoch, epochs):
    """Return what a warning says where an optimizer that has taken no step is to switch at once."""
    if wrap.explore == "auto":
        why = "one epoch is left, and each phase needs one. Train for more epochs"
    else:
        counts = ", or use explore='auto', which counts from it" if epochs - epoch > 1 else ""
        why = f"epochs are counted from 0. Leave initial_epoch out{counts}"
    return (
        f"This optimizer has taken no step, and its first phase is over before it begins: {why}. Received: "
        f"explore={wrap.explore!r}, initial_epoch={epoch}"
    )


def has_nothing_to_explore():
    """Return that all that is trainable is what the second phase solves for."""
    return (
        "nothing but the last layer is trainable, and there is nothing to explore: keras_dal.converge(model, x, y) or "
        "keras_dal.finish(model, x, y) solve for it without training"
    )


def own_train_step():
    """Return what the head is solved for where a training step of the user's own may minimize something else."""
    return (
        "train_step is the model's own: where it only prepares its inputs, leave it as it is. What it adds to "
        "the compiled loss, a distillation say, is not in what the last layer is solved for; with "
        "Wrap(..., finish='descend') the last layer is trained with it, too. Where it augments its inputs, batch "
        "statistics are renewed without that: keras_dal.finish(model, x, y, statistics_from=augmented) after fit makes "
        "them of what was trained on"
    )


def explores_on(alignment, epoch, schedule):
    """Return why exploration does not end yet."""
    return (
        f"{alignment:.0%} of the labels lie in the column space of the head after {epoch + 1} epochs, which "
        f"is little: exploration goes on to the end of epoch {schedule.switch}"
    )


def descends(epoch, epochs, structure, loss, report, certificate):
    """Return what is trained, frozen and minimized from the switch on."""
    trained, frozen = structure.linear_parameters, structure.nonlinear_parameters
    summary = "not measured yet" if report is None else report.summary().removesuffix(", undecided")
    measured = (
        [f"  labels in the column space of the head: {summary}"] if certificate is None else []
    )  # which has its own
    penalties = ["its regularizers"] if any(v.regularizer is not None for v in trained) else []
    lines = [
        f"exploitation begins at epoch {epoch + 1} of {epochs}",
        *measured,
        f"  trained:   {', '.join(v.path for v in trained)} ({num_entries(trained):,} parameters)",
        f"  frozen:    {len(frozen)} variables, {num_entries(frozen):,} parameters, batch statistics and dropout too",
        f"  minimized: {' plus '.join([loss.name, *penalties])}, convex in what is trained",
    ]
    return "\n".join(lines if certificate is None else [*lines, str(certificate)])


def goes_on(error):
    """Return what a warning says where the second phase failed."""
    return (
        "The second phase could not begin, and exploration goes on with the weights from before. Fix what the end "
        f"of this message names and call keras_dal.finish after training. Received: {described(error)}"
    )


def stops(error):
    """Return what a warning says where training was stopped while the data were read."""
    return (
        "Another callback stops training before the head is solved: the weights are those from before, and what was "
        "averaged is kept. keras_dal.finish(model, x, y) does after training what the switch would have done, and so "
        f"does a fit with initial_epoch. Received: {described(error)}"
    )


def ends_unsolved(error):
    """Return what a warning says where the second phase failed in an epoch after which training is to stop."""
    return (
        "The second phase could not begin, and another callback stops training: the weights are those from before, and "
        "what was averaged is kept. Fix what the end of this message names and call keras_dal.finish. Received: "
        f"{described(error)}"
    )


def reads_again(error):
    """Return what a warning says where one epoch was shorter than others."""
    return (
        "Not all data were read in this epoch, and nothing was solved: the next one reads them again. An epoch is "
        "shorter where steps_per_epoch does not divide the number of batches. Where the data have come to their end, "
        f"call keras_dal.finish after training. Received: {described(error)}"
    )


def put_back(model):
    """Return what a warning says where a callback put other weights back as training ended."""
    return (
        "The model no longer has the weights that were solved: a callback put others back when training ended. Leave "
        "restore_best_weights out of it, or call keras_dal.finish(model, x, y), which solves for the weights there "
        f"are. Received: model {model.name!r}"
    )


def other_weights(model):
    """Return what a warning says where a result is no longer that of the model."""
    return (
        "The model no longer has the weights that were solved, and the monitor's result speaks of those. It was "
        "trained on, or got weights from elsewhere, as from a callback with restore_best_weights: "
        "keras_dal.finish(model, x, y) solves for those there are. Or keras_dal.finish or converge solved it again: "
        f"take the result that they returned. Received: model {model.name!r}"
    )


def seldom_measured(interval, epochs, at_switch, reason):
    """Return how often the alignment is measured, where that is not every epoch, and why."""
    never = "is measured at the switch only" if at_switch else "is not measured in this fit"
    how_often = f"is measured every {interval} epochs" if interval <= epochs else never
    return f"the alignment {how_often}: {reason}. keras_dal.alignment(model, x, y) measures it at any time"


def reads(phase, epoch, epochs):
    """Return what the epoch of the switch is for."""
    steps = phase.averaged_steps
    mean = "the inner optimizer's averages" if steps is None else f"the mean of the weights over {steps:,} steps"
    weights = "the last weights" if steps == 0 else mean
    return f"exploration is over; epoch {epoch + 1} of {epochs} reads the data once more, for the features of {weights}"


def ends(phase, result, epoch, epochs, validates):
    """Return what was solved, what is proved about it, and whether `fit` has not validated it as it did before."""
    structure, left = phase.structure, epochs - epoch - 1
    spared = f": {left} spared" if left else ""
    samples = int(np.sum(phase.train.weights > 0))
    count = f"{samples:,} samples of {structure.num_features:,} features"
    separated = result.stopped_by == Ending.SEPARATED
    over = "the head is solved" if result.reached or separated else "the solver ended"
    if separated and len(result.left):
        over += f" but for {counted(len(result.left), 'sample')} on the wrong side"
    lines = [f"{over}, and training ends at epoch {epoch + 1} of {epochs}{spared}"]
    if phase.steps_of_statistics:
        lines.append(f"  statistics: means over {phase.steps_of_statistics:,} batches")
    if samples < _FEW * (structure.num_features + 1):
        lines.append(f"  few:        fewer than {_FEW} samples for each feature")
    if steps := _keras.steps_per_epoch(structure.model):
        lines.append(
            f"  part:       the {steps:,} batches of steps_per_epoch were read; if there are more in the data,"
        )
        lines.append("              keras_dal.finish(model, x, y) solves on all of them")
    lines.append(
        f"  solved:     {num_entries(structure.linear_parameters):,} parameters on {count}, {result.seconds:.2f} s"
    )
    lines += [f"  {line}" for line in result.proof()]
    lines += _not_proved(result)
    if (dtype := structure.output_layer.compute_dtype) in HALVES:
        lines.append(f"  rounding:   the model computes its logits in {dtype}: this is of the head in float64")
    if result.penalty and not result.penalized:
        lines.append("  left out:   the regularizer of the head: it is in the logged loss, and was not minimized")
    read = "what this epoch read" + (" with a weight" if samples < len(phase.train) else "")  # perhaps augmented
    of_all = in_outputs(phase.loss, structure.num_outputs)
    right = "" if result.accuracy is None else f"{percent(result.accuracy)} of {read} is right{of_all}, "
    weight = _keras.loss_weight(structure.model)
    logged = f", {weight * result.loss:.4g} with its loss weight" if weight != 1 else ""
    lines.append(f"  training:   {right}loss {result.loss:.4g}{logged}")
    has_sides = result.accuracy is not None and not result.floor  # soft labels have no right ones
    if has_sides and result.accuracy < 1 and structure.place is None:
        lines.append(
            "  more:       keras_dal.converge(model, x, y) looks for a head with all of them right, and where there"
        )
        lines.append(f"              is none gives a copy of the model gates: {_wider(phase)}")
    if not validates:
        lines.append("  validation: none of this model, validation_freq skips its epoch: model.evaluate does it")
    return "\n".join(lines)


def _not_proved(result):
    known = result.stopped_by.is_of_a_minimum and np.isfinite(result.point.gap)
    gap = f", at most about {result.point.gap:.2g} above the minimum" if known else ""
    if result.stopped_by not in (Ending.SEPARATED, Ending.CERTIFIED):
        yield f"  not proved: the solver was ended by {result.stopped_by}{gap}"


def _wider(phase):
    """Return what a gated head would add."""
    structure, train = phase.structure, phase.train.weighted
    more = num_gated_parameters(train, structure)
    wrong = num_conflicting(train.features, phase.targets(train), phase.loss)
    rounded = "" if train.are_exact(structure) else f", {TO_FLOAT32},"
    but = f" but {wrong:,}, whose features{rounded} are those of samples with other labels" if wrong else ""
    return f"{more:,} more parameters, which can put every sample on its right side{but}"


def ended_early(model, schedule, wrap):
    """Return that a fit was over before its switch."""
    if not all(np.isfinite(to_numpy(variable)).all() for variable in model.trainable_variables):
        return "training ended before the switch, with weights that are not finite: nothing was solved, or can be"
    mean = f", of the averaged weights, or after {path_to(wrap, model)}.drop_average() of those there are"
    mean *= wrap.is_averaging
    moved = have_moved(model, state_of(wrap).statistics_before)
    unsettled = moved and not wrap.is_averaging  # those of an average are renewed anyway
    return (
        f"training ended before the switch, which comes after {schedule.switch} epochs: nothing was solved. "
        f"keras_dal.finish(model, x, y{', statistics_from=x' * unsettled}) solves the head now{mean}; "
        "a fit with initial_epoch goes on"
    )


def solves_nothing(structure):
    """Return that a fit which somebody else switched ends with a trained last layer."""
    trained = ", ".join(variable.path for variable in structure.linear_parameters)
    return (
        f"after switch() gradient steps trained {trained}, "
        "and nothing was solved, as with explore=None fit never does: keras_dal.finish(model, x, y) solves for it"
    )


def replaces(model, wrap):
    """Return which weights `finish` puts in the place of those of the model."""
    if wrap.averaged_steps is None:
        return "the inner optimizer's averages become the weights"
    return (
        f"the mean of the weights over {wrap.averaged_steps:,} steps becomes the weights; call "
        f"{path_to(wrap, model)}.drop_average() before to keep those there are, as after EarlyStopping("
        "restore_best_weights=True)"
    )


def is_averaged():
    """Return that averaged weights are there since a switch after which nothing was solved."""
    return "the weights are averages since the switch; their batch statistics are renewed, and the head is solved"


def averaged_none(model, wrap):
    """Return that there are no averaged weights, and how there would be."""
    begins = f". In a loop of your own {path_to(wrap, model)}.begin_average() before the last steps averages them"
    return f"no steps were averaged, and the weights stay as they are{begins * (wrap.explore is None)}"


def lacks_average():
    """Return what a warning says where averaged weights were wanted and are not there."""
    return (
        "No step was averaged since begin_average(), and the weights stay as they are. Where stateless_apply takes "
        "the steps, it was given the state from before: assign that to optimizer.variables, call begin_average(), "
        "and take the state from them again. Received: averaged_steps=0"
    )


def knows_no_optimizer():
    """Return that averages of an optimizer are found only where the model is compiled with it."""
    return (
        "the model has no optimizer in which averaged weights could be, and is solved with those it has: "
        "model.compile(optimizer, loss) names one"
    )


def renews_statistics(most):
    """Return that a pass over batches begins, for the statistics of layers that keep some."""
    return f"batch statistics of the first batches, at most {most}"


def keeps_statistics():
    """Return that averaged weights come with the batch statistics there are."""
    return (
        "no step of training has moved the batch statistics, and they stay as they are: their layers are frozen, or "
        "the model's call has no training argument, and it is trained in inference mode. statistics_from=x renews them "
        "all the same"
    )
