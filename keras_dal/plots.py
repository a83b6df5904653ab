"""Pictures of a two-phase run, one call each. Needs matplotlib: `pip install keras_dal[plots]`.

Every function draws into given axes, or into a figure of its own, and writes that to `path` where one is given. What is
drawn and the path are positional; all else has a name.
Colours are Okabe and Ito's, which colour-blind readers can tell apart; line styles tell the same lines apart in grey.
"""

import numbers
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, and the user's own backend stays as it is
from matplotlib.ticker import MaxNLocator

from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.reports import AlignmentReport, WidthCurve
from keras_dal.finishing.result import Result
from keras_dal.output.warning import warn
from keras_dal.training.logs import ALIGNMENT, PHASE

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _RED, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
_RUNS = (_BLUE, _RED, _GREEN, _ORANGE, _PURPLE, _SKY, _BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DECADE = 10  # from which a logarithmic axis has ticks to read
_PANELS = (("loss", "loss"), ("accuracy", "accuracy"), (ALIGNMENT, "alignment"))


def curves(histories: Any, path: Any = None, *, ax: Any = None, title: str = "", validation_freq: Any = 1) -> Any:
    """Draw loss, accuracy and alignment of one or more runs over their epochs, the second phase shaded.

    The accuracy is the first metric whose name is or ends with that, as `sparse_categorical_accuracy` does.

    Args:
        histories: what `fit` returned, or its `history`, by the name of the run; or of one run alone.
        path: file to write; its ending says the format.
        ax: three matplotlib axes to draw into; a figure of its own by default.
        title: text above the figure.
        validation_freq: as `fit` had it, since a history does not say of which epochs its validation is; where it
            cannot have been that, validation is left out with a warning.

    Returns:
        The path where one is given, else the axes.

    Raises:
        ValueError: axes that are not three, or several runs without names.
    """
    if not (hasattr(histories, "history") or isinstance(histories, dict)):
        raise ValueError(
            "Several runs are given by their names, as {'alone': first, 'two lines': second}. Received: histories of "
            f"type {type(histories).__name__}"
        )
    if hasattr(histories, "history") or not any(map(_is_run, histories.values())):
        histories = {"run": histories}
    runs = {name: _Run.of(history, validation_freq) for name, history in histories.items()}
    figure, axes = _axes(ax, title, 13, 3.8, columns=len(_PANELS))
    for axis, (key, label) in zip(axes, _PANELS, strict=True):
        for number, (name, run) in enumerate(runs.items()):
            _draw(axis, run, key, name, _RUNS[number % len(_RUNS)], _MARKERS[number % len(_MARKERS)])
        axis.set(xlabel="epoch", ylabel=label, title=f"{label} by epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses = [value for run in runs.values() for key in ("loss", "val_loss") for value in run.history.get(key, ())]
    _scale(axes[0], losses)
    if axes[0].lines:
        axes[0].legend(frameon=False, fontsize="small")
    return _written(figure, axes, path)


def spectrum(report: AlignmentReport, path: Any = None, *, ax: Any = None, title: str = "") -> Any:
    """Draw the singular values on which an `AlignmentReport` decided its rank, and its tolerance.

    Args:
        report: an `AlignmentReport` with singular values.
        path: file to write.
        ax: the matplotlib axes to draw into; a figure of its own by default.
        title: text above the figure.

    Returns:
        The path where one is given, else the axes.

    Raises:
        ValueError: a report without singular values, as an iterative method leaves it, or several axes.
    """
    if report.singular_values is None or report.tolerance is None:
        raise ValueError(f"This report has no singular values to draw. Received: {report.summary()}")
    figure, axis = _axes(ax, title, 6, 3.8)
    values = report.singular_values / report.singular_values.max()
    times = (report.rank or 0) // max(1, np.count_nonzero(values > report.tolerance))  # outputs share those of a head
    label = "singular values" if times <= 1 else f"singular values, counted {times} times"
    axis.semilogy(range(1, len(values) + 1), values, ".", color=_BLUE, label=label)
    axis.axhline(report.tolerance, color=_RED, linestyle="--", label=f"tolerance {report.tolerance:.0e}")
    axis.set(xlabel="index", ylabel="singular value / largest")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(report.summary(), fontsize="small", wrap=True)
    axis.legend(frameon=False)
    return _written(figure, axis, path)


def bound(
    certificate: Certificate,
    path: Any = None,
    *,
    ax: Any = None,
    title: str = "",
    losses: Any = None,
    accuracies: Any = None,
) -> Any:
    """Draw the bound that a `Certificate` gave before the first step of gradient descent, above the losses it bounds.

    Args:
        certificate: the `Certificate` at the switch.
        path: file to write.
        ax: the matplotlib axes to draw into; a figure of its own by default.
        title: text above the figure.
        losses: the objective after 0, 1, 2, ... steps of size `certificate.step`, or None to draw the bound alone.
        accuracies: test accuracy after as many steps, or None.

    Returns:
        The path where one is given, else the axes.

    Raises:
        ValueError: several axes, a certificate without beta, or other numbers of accuracies than of losses.
    """
    if accuracies is not None and (losses is None or len(losses) != len(accuracies)):
        count = "no losses" if losses is None else f"{len(losses)} losses"
        raise ValueError(f"Pass one loss for each accuracy. Received: {len(accuracies)} accuracies, {count}")
    figure, axis = _axes(ax, title, 6.5, 4)
    steps = np.arange(1, len(losses)) if losses is not None else np.geomspace(1, 1e7, 100)
    if losses is not None:
        axis.plot(steps, losses[1:], color=_BLUE, label="training loss")
    axis.plot(steps, [certificate.bound(t) for t in steps.tolist()], "--", color=_RED, label="certified bound")
    if certificate.infimum[0] > 0:
        axis.axhline(certificate.infimum[0], color=_BLACK, linewidth=0.8, label="no lower than this")
    _scale(axis, np.concatenate([line.get_ydata() for line in axis.lines]))
    axis.set(xscale="log", xlabel="gradient descent steps after the switch", ylabel="loss")
    axis.set_title(f"{certificate.verdict}: {certificate.decided_by}", fontsize="small", wrap=True)
    axis.legend(framealpha=1, edgecolor="none", fontsize="small", loc="best")  # over whatever it cannot avoid
    if accuracies is not None:
        other = axis.twinx()
        other.plot(steps, accuracies[1:], "-.", color=_GREEN)
        other.set_ylabel("test accuracy (dash-dotted)", color=_GREEN)
    return _written(figure, axis, path)


def solution(result: Result, path: Any = None, *, ax: Any = None, title: str = "") -> Any:
    """Draw the path that `converge` took: accuracy and smallest margin, or the loss of a regressor, and the change.

    Args:
        result: the `Result` of `converge`.
        path: file to write.
        ax: matplotlib axes to draw into, three of them, or two for a regressor; a figure of its own by default.
        title: text above the figure.

    Returns:
        The path where one is given, else the axes.

    Raises:
        ValueError: axes that are not three, for a regressor two.
    """
    points, steps = result.path, range(len(result.path))  # as `Result.choose` counts them
    classifies = points[0].accuracy is not None
    names = {"accuracy": "accuracy", "margin": "smallest training margin (logits)"} if classifies else {"loss": "loss"}
    names["moved"] = f"{'logits' if classifies else 'outputs'} moved (RMS over anchors)"
    headings = ("right samples", "the worst sample") if classifies else ("loss",)
    headings += ("change on the anchors",)  # the training samples by default
    kept = next(step for step, point in zip(steps, points, strict=True) if point is result.point)
    sizes = [0 if point.theta is None else len(point.theta) for point in points]  # none is let go of beside gates
    gates = next((step for step in steps if sizes[step] > sizes[0]), 0)
    figure, axes = _axes(ax, title, 4.4 * len(names), 3.8, columns=len(names))
    for axis, heading, (name, label) in zip(axes, headings, names.items(), strict=True):
        axis.plot(steps, [getattr(point, name) for point in points], "o-", color=_BLUE, markersize=4, label="training")
        axis.axvline(kept, color=_BLACK, linewidth=0.8, linestyle="--", label="kept")
        if gates > 0:
            axis.axvline(gates - 0.5, color=_GREY, linewidth=0.8, linestyle=":", label="gated head added")
        axis.set(xlabel="step", ylabel=label, title=heading)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if points[0].validation is not None:
        validation = [point.validation for point in points]
        axes[0].plot(steps, validation, "s:", color=_RED, markersize=4, label="validation")
    if classifies:
        axes[1].axhline(0, color=_RED, linewidth=0.8, label="right above")
        axes[1].legend(frameon=False, fontsize="small")
    axes[0].legend(frameon=False, fontsize="small")
    return _written(figure, axes, path)


def width(curve: WidthCurve, path: Any = None, *, ax: Any = None, title: str = "") -> Any:
    """Draw the residual share and the bounds of the infimum that a `WidthCurve` predicts, over the number of gates.

    Args:
        curve: a `WidthCurve`.
        path: file to write.
        ax: two matplotlib axes to draw into; a figure of its own by default.
        title: text above the figure.

    Returns:
        The path where one is given, else the axes.

    Raises:
        ValueError: axes that are not two.
    """
    figure, axes = _axes(ax, title, 9.5, 3.8, columns=2)
    share, spread = np.array(curve.residual_share), np.array(curve.residual_share_spread)
    lower, upper = np.array(curve.infimum).T
    axes[0].fill_between(curve.widths, share - spread, share + spread, color=_BLUE, alpha=0.2, linewidth=0)
    axes[0].plot(curve.widths, share, "o-", color=_BLUE, markersize=4, label=f"mean of {curve.draws} draws")
    axes[0].set(ylabel="residual share", ylim=(0, None), title="labels out of reach")
    axes[1].fill_between(curve.widths, lower, upper, color=_RED, alpha=0.2, linewidth=0)
    axes[1].plot(curve.widths, upper, "o-", color=_RED, markersize=4, label="no higher than this")
    axes[1].plot(curve.widths, lower, "s:", color=_BLACK, markersize=4, label="no lower than this")
    axes[1].set(ylabel=f"infimum of the loss ({curve.loss_name})", title="least training loss")
    for axis in axes:
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks(curve.widths, [f"{each:,}" for each in curve.widths])
        axis.set(xlabel="gates beside the head")
        if curve.settled is not None:
            axis.axvline(curve.settled, color=_GREEN, linestyle="--", label="settled")
        axis.legend(frameon=False, fontsize="small")
    return _written(figure, axes, path)


def _axes(ax, title, width, height, columns=1) -> tuple[Any, Any]:
    """Return a figure under its title and its axes, one or an array of them: those that were given, or new ones."""
    if ax is None:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns)
        for axis in np.ravel(axes):
            axis.grid(alpha=0.3)
    else:
        given = np.ravel(ax)
        if len(given) != columns:
            raise ValueError(f"This picture needs {columns} matplotlib axes. Received: {len(given)}")
        figure, axes = given[0].get_figure(root=True), given[0] if columns == 1 else given
    if title:
        figure.suptitle(title)
    return figure, axes


def _is_run(history):
    return isinstance(history, dict) or hasattr(history, "history")


class _Run(NamedTuple):
    history: Any
    epochs: list[int]  # counted from one
    validated: list[int]

    @classmethod
    def of(cls, history, validation_freq):
        """Return the run of what `fit` returned, or of its `history`, which begins with the first epoch."""
        values = getattr(history, "history", history)
        count = max((len(each) for name, each in values.items() if not name.startswith("val_")), default=0)
        given = getattr(history, "epoch", ())
        epochs = [epoch + 1 for epoch in (given if len(given) == count else range(count))]
        if isinstance(validation_freq, numbers.Integral):
            return cls(values, epochs, [epoch for epoch in epochs if epoch % validation_freq == 0])
        return cls(values, epochs, [epoch for epoch in epochs if epoch in validation_freq])

    def validation(self, key):
        """Return the validation of a metric, None where there is none or it is not known of which epochs."""
        values = self.history.get(f"val_{key}")
        if not values or len(values) == len(self.validated):
            return values
        warn(
            "The validation is not drawn, as it is not known of which epochs it is: pass validation_freq= as fit had "
            f"it. Received: {len(values)} values of val_{key} in {len(self.epochs)} epochs"
        )
        return None


def _draw(axis, run, key, name, color, marker):
    history, epochs = run.history, run.epochs
    longer = [metric for metric in history if metric.endswith(f"_{key}") and not metric.startswith("val_")]
    key = next((metric for metric in (key, *longer) if metric in history), None)
    if key is None:
        return
    values = np.array(history[key], float)
    drawn = np.full(len(values), True)
    if key == ALIGNMENT:  # which is logged once more where it was not measured anew
        drawn[1:-1] = values[1:-1] != values[:-2]
    often = max(1, np.count_nonzero(drawn) // 10)  # markers on some epochs only
    style = {"color": color, "marker": marker, "markevery": often, "markersize": 4}
    axis.plot(np.array(epochs)[: len(values)][drawn], values[drawn], **style, label=f"{name}, training")
    if values := run.validation(key):
        axis.plot(run.validated, values, **style, linestyle=":", label=f"{name}, validation")
    switch = [epoch for epoch, phase in zip(epochs, history.get(PHASE, []), strict=False) if phase]
    if switch:
        axis.axvspan(switch[0] - 0.5, epochs[-1] + 0.5, color=color, alpha=0.08, linewidth=0)
        axis.axvline(switch[0] - 0.5, color=color, linewidth=0.8, linestyle="--", label=f"{name}, switch")


def _scale(axis, losses):
    """Make an axis of losses logarithmic where they span a decade, and none is below 0, as those of counts may be."""
    positive = [value for value in losses if 0 < value < np.inf]
    is_wide = bool(positive) and max(positive) > _DECADE * min(positive)
    if is_wide and not any(value < 0 for value in losses):
        axis.set_yscale("log")


def _written(figure, axes, path):
    if path is None:
        return axes
    figure.savefig(path, dpi=120)
    return path
