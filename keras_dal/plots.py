"""Pictures of a two-phase run. Needs matplotlib: `pip install keras_dal[plots]`."""

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, and the user's own backend stays as it is
from matplotlib.ticker import MaxNLocator

_COLORS = {"base": "0.55", "wrapped": "tab:blue", "bound": "tab:red", "alignment": "tab:green"}


def curves(histories, path, title=""):
    """Draw loss, accuracy and alignment of one or more runs over their epochs, with the switch as a vertical line.

    Args:
        histories: what `fit` returned as `history.history`, one dict per run, by the name of the run.
        path: file to write; its ending says the format.
        title: text above the picture.

    Returns:
        The path.
    """
    panels = [("loss", "loss", "log"), ("accuracy", "accuracy", "linear"), ("alignment", "alignment", "linear")]
    figure, axes = _figure(13, 3.8, columns=len(panels))
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        for run, (name, history) in enumerate(histories.items()):
            _draw(axis, history, key, name, _COLORS.get(name, f"C{run}"))
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(title)
    return _written(figure, path)


def spectrum(report, path):
    """Draw the singular values on which an `AlignmentReport` decided its rank, and its tolerance.

    Args:
        report: an `AlignmentReport` with singular values.
        path: file to write.

    Returns:
        The path.

    Raises:
        ValueError: a report without singular values, as an iterative method leaves it.
    """
    if report.singular_values is None:
        raise ValueError(f"This report has no singular values to draw. Received: {report.summary()}")
    figure, axis = _figure(6, 3.8)
    values = report.singular_values / report.singular_values.max()
    axis.semilogy(range(1, len(values) + 1), values, ".", color=_COLORS["wrapped"])
    axis.axhline(report.tolerance, color=_COLORS["bound"], linestyle="--", label=f"tolerance {report.tolerance:.0e}")
    axis.set(xlabel="index", ylabel="singular value / largest")
    axis.set_title(report.summary(), fontsize="small")
    axis.legend(frameon=False)
    return _written(figure, path)


def bound(certificate, losses, path, accuracies=None):
    """Draw the bound that a `Certificate` gave before the first step of gradient descent, above the losses it bounds.

    Args:
        certificate: the `Certificate` at the switch.
        losses: the objective after 0, 1, 2, ... steps of size `certificate.step`, or None to draw the bound alone.
        path: file to write.
        accuracies: test accuracy after as many steps, or None.

    Returns:
        The path.
    """
    figure, axis = _figure(6.5, 4)
    steps = np.arange(1, len(losses)) if losses is not None else np.geomspace(1, 1e7, 100)
    if losses is not None:
        axis.plot(steps, losses[1:], color=_COLORS["wrapped"], label="training loss")
    axis.plot(steps, [certificate.bound(t) for t in steps], "--", color=_COLORS["bound"], label="certified bound")
    if certificate.infimum[0] > 0:
        axis.axhline(certificate.infimum[0], color="black", linewidth=0.8, label="no lower than this")
    axis.set(xscale="log", yscale="log", xlabel="gradient descent steps after the switch", ylabel="loss")
    axis.set_title(f"{certificate.verdict}: {certificate.decided_by}", fontsize="small", wrap=True)
    axis.legend(frameon=False, loc="lower left")
    if accuracies is not None:
        other = axis.twinx()
        other.plot(steps, accuracies[1:], color=_COLORS["alignment"])
        other.set_ylabel("test accuracy", color=_COLORS["alignment"])
    return _written(figure, path)


def solution(result, path):
    """Draw the path that `converge` took: accuracy and smallest margin, or the loss of a regressor, and the change.

    Args:
        result: the `Result` of `converge`.
        path: file to write.

    Returns:
        The path.
    """
    points, steps = result.path, range(1, len(result.path) + 1)
    classifies = points[0].accuracy is not None
    names = {"accuracy": "accuracy", "margin": "smallest training margin"} if classifies else {"loss": "loss"}
    names["moved"] = f"change of the anchors' {'logits' if classifies else 'outputs'}"
    kept = next(step for step, point in zip(steps, points, strict=True) if point is result.point)
    gates = next(
        (step for step, point in zip(steps, points, strict=True) if len(point.theta) > len(points[0].theta)), 1
    )
    figure, axes = _figure(4.4 * len(names), 3.8, columns=len(names))
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        axis.plot(steps, [getattr(point, name) for point in points], ".-", color=_COLORS["wrapped"], label="training")
        axis.axvline(kept, color="black", linewidth=0.8, linestyle="--", label="kept")
        if gates > 1:
            axis.axvline(gates - 0.5, color="0.55", linewidth=0.8, linestyle=":", label="gated head added")
        axis.set(xlabel="step", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if points[0].validation is not None:
        validation = [point.validation for point in points]
        axes[0].plot(steps, validation, ".:", color=_COLORS["alignment"], label="validation")
    if classifies:
        axes[1].axhline(0, color=_COLORS["bound"], linewidth=0.8)
    axes[0].legend(frameon=False, fontsize="small")
    return _written(figure, path)


def _figure(width, height, columns=1):
    """Return a figure and its axes, one or an array of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for axis in np.ravel(axes):
        axis.grid(alpha=0.3)
    return figure, axes


def _draw(axis, history, key, name, color):
    if key not in history:
        return
    epochs = range(1, len(history[key]) + 1)
    axis.plot(epochs, history[key], color=color, label=f"{name}, training")
    if f"val_{key}" in history:
        axis.plot(epochs, history[f"val_{key}"], color=color, linestyle=":", label=f"{name}, test")
    switch = [epoch for epoch, phase in zip(epochs, history.get("phase", []), strict=False) if phase]
    if switch:
        axis.axvline(switch[0] - 0.5, color=color, linewidth=0.8, linestyle="--", label=f"{name}, switch")


def _written(figure, path):
    figure.savefig(path, dpi=120)
    return path
