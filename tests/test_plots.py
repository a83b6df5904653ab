"""Pictures: what is drawn is read back from the figure that was about to be written."""

import functools
import importlib
import inspect
import sys
from types import SimpleNamespace

import keras
import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

import keras_dal
from keras_dal import plots
from keras_dal.analysis.certify import certify_head
from keras_dal.finishing.history import Point
from keras_dal.heads import DenseHead
from keras_dal.losses import SoftmaxCrossEntropy

HISTORY = {
    "loss": [1.0, 0.5, 0.1], "val_loss": [1.1, 0.7, 0.6], "accuracy": [0.3, 0.6, 0.9],
    "alignment": [0.2, 0.4, 0.5], "phase": [0.0, 0.0, 1.0],
}  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    """Figures in the order in which they are written."""
    seen, write = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), write(self, *a, **k))[1])
    return seen


@pytest.fixture
def certificate():
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((20, 6)), generator.integers(0, 3, 20)
    loss = SoftmaxCrossEntropy()
    return certify_head(DenseHead(6, 3), loss, features, loss.targets(labels, 3), np.zeros(21))


def line(axis, label):
    return next(line for line in axis.lines if line.get_label() == label)


def test_curves_show_both_runs_and_the_switch(figures, tmp_path):
    base = {key: HISTORY[key] for key in ("loss", "accuracy")}
    path = plots.curves({"base": base, "wrapped": HISTORY}, tmp_path / "curves.png", title="A title")
    assert image.imread(path).ndim == 3
    loss, accuracy, alignment = figures[0].axes
    np.testing.assert_array_equal(line(loss, "wrapped, training").get_ydata(), HISTORY["loss"])
    np.testing.assert_array_equal(line(loss, "wrapped, validation").get_ydata(), HISTORY["val_loss"])
    assert line(accuracy, "wrapped, switch").get_xdata()[0] == 2.5  # after the second epoch
    assert len(alignment.lines) == 2  # the base was not measured
    assert figures[0].get_suptitle() == "A title"
    (second_phase,) = loss.patches
    assert (second_phase.get_x(), second_phase.get_width()) == (2.5, 1.0)


def test_runs_can_be_told_apart_without_colour(figures, tmp_path):
    plots.curves(dict.fromkeys("abcdefg", HISTORY), tmp_path / "curves.png")
    drawn = [line for line in figures[0].axes[0].lines if "switch" not in line.get_label()]
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == len(drawn) == 14


def drawn_into_own_axes(draw, columns, width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for axis in np.ravel(axes):
        axis.grid(alpha=0.3)
    drawn = draw(ax=axes)
    assert all(one is other for one, other in zip(np.ravel(drawn), np.ravel(axes), strict=True))
    return figure


def pixels(figure, path):
    figure.savefig(path, dpi=60)
    return image.imread(path)


def test_given_axes_show_what_a_figure_of_its_own_shows(figures, certificate, tmp_path):
    report = SimpleNamespace(
        singular_values=np.array([2.0, 1e-12]), tolerance=1e-9, rank=2, summary=lambda: "rank 1 of 2"
    )
    path = points(validation=True)
    result = SimpleNamespace(path=path, point=path[-1])
    for draw, columns, width, height in (
        (functools.partial(plots.curves, {"run": HISTORY}), 3, 13, 3.8),
        (functools.partial(plots.spectrum, report), 1, 6, 3.8),
        (functools.partial(plots.bound, certificate, losses=[1.1, 0.9, 0.8], accuracies=[0.1, 0.2, 0.3]), 1, 6.5, 4),
        (functools.partial(plots.solution, result), 3, 13.2, 3.8),
        (functools.partial(plots.width, WIDTH), 2, 9.5, 3.8),
    ):
        draw(path=tmp_path / "own.png")
        own = pixels(figures[-1], tmp_path / "own.png")
        given = pixels(drawn_into_own_axes(draw, columns, width, height), tmp_path / "given.png")
        np.testing.assert_allclose(given, own, atol=0.02)


WIDTH = SimpleNamespace(
    widths=(0, 1, 2, 4), draws=3, settled=4, loss_name="softmax cross-entropy",
    residual_share=(0.6, 0.5, 0.3, 0.0), residual_share_spread=(0.0, 0.05, 0.04, 0.0),
    infimum=((0.5, 0.5), (0.2, 0.4), (0.0, 0.3), (0.0, 0.0)),
)  # fmt: skip


@pytest.mark.parametrize("name", ["curves", "spectrum", "bound", "solution", "width"])
@pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=5)
def test_pictures_look_as_they_did(name, certificate):
    report = SimpleNamespace(
        singular_values=np.array([2.0, 1.0, 1e-12]), tolerance=1e-9, rank=2, summary=lambda: "rank 2 of 3"
    )
    path = points(validation=True)
    arguments = {
        "curves": ({"base": {"loss": [1.2, 0.8, 0.4, 0.3], "accuracy": [0.2, 0.5, 0.7, 0.8]}, "wrapped": HISTORY},),
        "spectrum": (report,),
        "bound": (certificate,),
        "solution": (SimpleNamespace(path=path, point=path[-1]),),
        "width": (WIDTH,),
    }
    options = {"losses": [1.1, 0.9, 0.8]} if name == "bound" else {}
    return np.ravel(getattr(plots, name)(*arguments[name], **options))[0].get_figure()


def test_titles_and_labels_are_everywhere(figures, certificate, tmp_path):
    path = points(validation=True)
    plots.curves({"run": HISTORY}, tmp_path / "curves.png")
    plots.bound(certificate, path=tmp_path / "bound.png")
    plots.solution(SimpleNamespace(path=path, point=path[-1]), tmp_path / "path.png")
    for axis in [axis for figure in figures for axis in figure.axes]:
        assert axis.get_title()
        assert axis.get_xlabel()
        assert axis.get_ylabel()


def test_only_what_is_drawn_and_the_path_have_no_name():
    functions = [value for value in vars(plots).values() if inspect.isfunction(value)]
    drawn = [each for each in functions if each.__module__ == plots.__name__ and each.__name__[0] != "_"]
    assert len(drawn) >= 5
    for draw in drawn:
        parameters = list(inspect.signature(draw).parameters.values())
        assert parameters[1].name == "path"
        assert [each.name for each in parameters[2:4]] == ["ax", "title"]
        assert all(each.kind is each.KEYWORD_ONLY for each in parameters[2:])


def test_a_title_stands_above_the_figure_whoever_made_it():
    axes = Figure().subplots(1, 2)
    assert plots.width(WIDTH, ax=axes, title="A title")[0].get_figure() is axes[0].get_figure()
    assert axes[0].get_figure().get_suptitle() == "A title"
    assert plots.width(WIDTH)[0].get_figure().get_suptitle() == ""


def test_the_number_of_given_axes_is_checked():
    with pytest.raises(ValueError, match="needs 3 matplotlib axes. Received: 1"):
        plots.curves({"run": HISTORY}, ax=Figure().subplots())


def test_spectrum_shows_singular_values_above_and_below_the_tolerance(figures, tmp_path):
    values = np.array([2.0, 1.0, 1e-12])
    report = SimpleNamespace(singular_values=values, tolerance=1e-9, rank=18, summary=lambda: "rank 18")
    plots.spectrum(report, tmp_path / "spectrum.png")
    points, tolerance = figures[0].axes[0].lines
    assert points.get_label() == "singular values, counted 9 times"
    np.testing.assert_allclose(points.get_ydata(), values / 2)
    assert tolerance.get_ydata()[0] == 1e-9


def test_spectrum_needs_singular_values(tmp_path):
    report = SimpleNamespace(singular_values=None, summary=lambda: "alignment at least 0.5")
    with pytest.raises(ValueError, match="Received: alignment at least 0.5"):
        plots.spectrum(report, tmp_path / "spectrum.png")


def test_bound_is_drawn_over_the_losses_it_bounds(figures, certificate, tmp_path):
    losses = [certificate.objective, 0.9, 0.8]
    plots.bound(certificate, tmp_path / "bound.png", losses=losses, accuracies=[0.1, 0.2, 0.3])
    axis, accuracy = figures[0].axes
    np.testing.assert_array_equal(line(axis, "training loss").get_ydata(), losses[1:])
    expected = [certificate.bound(1), certificate.bound(2)]
    np.testing.assert_array_equal(line(axis, "certified bound").get_ydata(), expected)
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [0.2, 0.3])


def test_accuracies_without_the_losses_beside_them_are_refused(certificate):
    for options in ({"accuracies": [0.1, 0.2]}, {"accuracies": [0.1, 0.2], "losses": [1.0, 0.9, 0.8]}):
        with pytest.raises(ValueError, match="one loss for each accuracy. Received: 2 accuracies"):
            plots.bound(certificate, **options)


def test_bound_alone(figures, certificate, tmp_path):
    plots.bound(certificate, tmp_path / "bound.svg")
    drawn = line(figures[0].axes[0], "certified bound").get_ydata()
    assert np.all(np.diff(drawn) <= 0)
    assert drawn[-1] >= certificate.infimum[0]


def points(validation):
    rows = [(0.0, 0.5, -1.0), (0.2, 0.9, -0.1), (0.5, 1.0, 0.3)]
    return tuple(
        Point(2 * moved, 0.1, 1.0, accuracy, margin, moved, 0.0, 0.7 if validation else None, np.zeros(2))
        for moved, accuracy, margin in rows
    )


@pytest.mark.parametrize("validation", [True, False])
def test_solution_shows_accuracy_margin_and_change_over_its_steps(figures, tmp_path, validation):
    path = points(validation)
    plots.solution(SimpleNamespace(path=path, point=path[-1]), tmp_path / "path.png")
    accuracy, margin, moved = figures[0].axes
    np.testing.assert_array_equal(line(accuracy, "training").get_ydata(), [0.5, 0.9, 1.0])
    np.testing.assert_array_equal(line(accuracy, "training").get_xdata(), [0, 1, 2])  # as `choose` counts
    assert line(accuracy, "kept").get_xdata()[0] == 2
    assert "gated head added" not in [each.get_label() for each in accuracy.lines]
    assert ("validation" in [each.get_label() for each in accuracy.lines]) == validation
    np.testing.assert_array_equal(margin.lines[0].get_ydata(), [-1.0, -0.1, 0.3])
    np.testing.assert_array_equal(moved.lines[0].get_ydata(), [0.0, 0.2, 0.5])


def test_solution_of_a_regression_shows_its_loss(figures, tmp_path):
    path = [
        Point(0.0, 0.1, 1.0, None, None, 0.0, 0.0, 2.0, np.zeros(2)),
        Point(0.5, 0.1, 0.7, None, None, 0.1, 0.0, 1.5, np.zeros(5)),
    ]
    plots.solution(SimpleNamespace(path=path, point=path[0]), tmp_path / "path.png")
    loss, moved = figures[0].axes
    np.testing.assert_array_equal(line(loss, "training").get_ydata(), [1.0, 0.7])
    np.testing.assert_array_equal(line(loss, "validation").get_ydata(), [2.0, 1.5])
    np.testing.assert_array_equal(moved.lines[0].get_ydata(), [0.0, 0.1])
    assert line(loss, "kept").get_xdata()[0] == 0
    assert line(loss, "gated head added").get_xdata()[0] == 0.5


def test_a_loss_below_zero_is_drawn_to_scale():
    of_counts, of_classes = (plots.curves({"run": {"loss": losses}})[0] for losses in ([-1.0, -20.0], [20.0, 1.0]))
    assert (of_counts.get_yscale(), of_classes.get_yscale()) == ("linear", "log")


@pytest.mark.parametrize("losses", [[2.3, 0.1, 1e-4, 0.0], [np.nan, 2.3, 1e-3]])
def test_a_loss_of_zero_or_none_leaves_the_axis_logarithmic(losses):
    assert plots.curves({"run": {"loss": losses}})[0].get_yscale() == "log"


def test_losses_within_a_decade_have_an_axis_with_numbers_to_read():
    assert plots.curves({"run": {"loss": [2.0, 1.0]}})[0].get_yscale() == "linear"


@pytest.mark.parametrize(("freq", "epochs"), [(4, [4]), (3, [3, 6]), ([1, 5], [1, 5]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_curves_show_validation_where_there_was_some(freq, epochs):
    history = {"loss": np.arange(7.0, 0.0, -1.0).tolist(), "val_loss": [3.5] * len(epochs)}  # a fit that ended early
    axes = plots.curves({"base": history}, validation_freq=freq)
    np.testing.assert_array_equal(line(axes[0], "base, validation").get_xdata(), epochs)


@pytest.mark.parametrize("values", [[3.5], [3.5] * 9])
def test_curves_leave_out_validation_of_unknown_epochs(values):
    with pytest.warns(UserWarning, match=f"pass validation_freq=.*Received: {len(values)} values of val_loss in 7 epo"):
        axes = plots.curves({"loss": [1.0] * 7, "val_loss": values})
    assert [each.get_label() for each in axes[0].lines] == ["run, training"]


@pytest.mark.parametrize(
    "history", [{"d_loss": [3.0, 2.0]}, {"accuracy": [0.1, 0.2]}, {"loss": [3.0, 2.0, 1.0], "alignment": [0.5]}, {}]
)
def test_curves_of_whatever_a_history_has_are_drawn(history):
    axes = plots.curves({"run": history})
    drawn = sum(len(each.get_xdata()) for axis in axes for each in axis.lines)
    assert drawn == sum(map(len, history.values()))


def test_curves_of_a_fit_that_was_resumed_begin_where_it_did():
    history = keras.callbacks.History()
    history.epoch, history.history = [5, 6, 7], HISTORY
    axes = plots.curves(history)
    np.testing.assert_array_equal(line(axes[0], "run, training").get_xdata(), [6, 7, 8])
    assert line(axes[0], "run, switch").get_xdata()[0] == 7.5


def test_a_history_without_a_loss_is_one_run():
    axes = plots.curves({"d_loss": [1.0, 0.5], "g_loss": [2.0, 1.0], "accuracy": [0.5, 0.6]})
    assert list(axes[1].lines[0].get_ydata()) == [0.5, 0.6]


def test_an_alignment_that_was_not_measured_anew_is_no_point():
    history = {"loss": [3.0, 3.0, 1.0, 1.0, 1.0], "alignment": [0.2, 0.2, 0.4, 0.4, 0.4]}
    axes = plots.curves({"run": history})
    assert list(axes[0].lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(axes[2].lines[0].get_xdata()) == [1, 3, 5]  # the last, up to which it is known
    assert list(axes[2].lines[0].get_ydata()) == [0.2, 0.4, 0.4]
    long = {"loss": [1.0] * 60, "alignment": np.repeat(np.arange(5) / 5, 12).tolist()}
    assert plots.curves({"run": long})[2].lines[0].get_markevery() == 1


def test_curves_show_an_accuracy_by_its_long_name():
    names = {"accuracy": "sparse_categorical_accuracy", "val_accuracy": "val_sparse_categorical_accuracy"}
    renamed = {names.get(name, name): values for name, values in (HISTORY | {"val_accuracy": [0.2, 0.5, 0.8]}).items()}
    _, axis, _ = plots.curves(dict(reversed(renamed.items())))
    assert [line.get_ydata().tolist() for line in axis.lines[:2]] == [HISTORY["accuracy"], [0.2, 0.5, 0.8]]


def test_plots_are_there_when_the_package_is():
    assert keras_dal.plots is plots
    with pytest.raises(AttributeError, match="no attribute 'plot'"):
        keras_dal.plot  # noqa: B018


def test_importing_it_leaves_the_users_backend_alone(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    importlib.reload(plots)
    assert matplotlib.get_backend() == "svg"


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "keras_dal.plots")
    monkeypatch.delattr(keras_dal, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras_dal\[plots\]'"):
        _ = keras_dal.plots


def test_several_runs_want_names():
    with pytest.raises(ValueError, match="given by their names.*Received: histories of type list"):
        plots.curves([{"loss": [1.0]}, {"loss": [2.0]}])
