"""Pictures of a two-phase run. Needs matplotlib: `pip install keras_dal[plots]`."""

import matplotlib

matplotlib.use("Agg", force=False)  # only where nothing else was chosen: pictures go to files

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

_COLORS = {"base": "0.7", "wrapped": "tab:blue", "bound": "tab:red", "alignment": "tab:green"}


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
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.8), layout="constrained")
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        for run, (name, history) in enumerate(histories.items()):
            _draw(axis, history, key, name, _COLORS.get(name, f"C{run}"))
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
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
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    values = report.singular_values / report.singular_values.max()
    axis.semilogy(range(1, len(values) + 1), values, ".", color=_COLORS["wrapped"])
    axis.axhline(report.tolerance, color=_COLORS["bound"], linestyle="--", label=f"tolerance {report.tolerance:.0e}")
    axis.set(xlabel="index", ylabel="singular value / largest", title=report.summary())
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return _written(figure, path)


def bound(certificate, losses, path, accuracies=None):
    """Draw the loss of full-batch gradient descent below the bound that a `Certificate` gave before its first step.

    Args:
        certificate: the `Certificate` at the switch.
        losses: the loss after 0, 1, 2, ... steps of size `certificate.step`.
        path: file to write.
        accuracies: test accuracy after as many steps, or None.

    Returns:
        The path.
    """
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    steps = range(1, len(losses))
    axis.loglog(steps, losses[1:], color=_COLORS["wrapped"], label="training loss")
    axis.loglog(steps, [certificate.bound(t) for t in steps], "--", color=_COLORS["bound"], label="certified bound")
    axis.set(xlabel="gradient descent steps after the switch", ylabel="loss")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower left")
    if accuracies is not None:
        other = axis.twinx()
        other.plot(steps, accuracies[1:], color=_COLORS["alignment"])
        other.set_ylabel("test accuracy", color=_COLORS["alignment"])
    return _written(figure, path)


def _draw(axis, history, key, name, color):
    if key not in history:
        return
    epochs = range(1, len(history[key]) + 1)
    width = 3.5 if name == "base" else 1.5  # runs that coincide stay visible
    axis.plot(epochs, history[key], color=color, linewidth=width, label=f"{name}, training")
    if f"val_{key}" in history:
        axis.plot(epochs, history[f"val_{key}"], ":", color=color, linewidth=width, label=f"{name}, test")
    switch = [epoch for epoch, phase in zip(epochs, history.get("phase", []), strict=False) if phase]
    if switch:
        axis.axvline(switch[0] - 0.5, color=color, linewidth=0.8, linestyle="--", label=f"{name}, switch")


def _written(figure, path):
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
