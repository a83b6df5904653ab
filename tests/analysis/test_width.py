"""The width curve against dense float64 decompositions of the columns of every width."""

from fractions import Fraction

import cases
import keras
import numpy as np
import pytest
from cases import KERAS_LOSSES, NUM_OUTPUTS
from keras import layers
from scipy import linalg, optimize, special

import keras_dal
from keras_dal import plots
from keras_dal.analysis.width import _WidthData, width_curve
from keras_dal.losses import SoftmaxCrossEntropy
from keras_dal.models.gated_layers import GatedBranch
from keras_dal.solvers.nested_columns import NestedColumns

N, M, WIDTHS, DRAWS = 60, 5, (0, 1, 3, 6, 12), 2


def problem(name, n=N, use_bias=True):
    """Return a model that is its head alone, inputs, and labels."""
    outputs, loss = NUM_OUTPUTS[name], KERAS_LOSSES[name]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((M,)), layers.Dense(outputs, use_bias=use_bias)])
    model.compile(loss=loss)
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((n, M)) + 2.0).astype("float32")
    if name == "squared error":
        return model, x, generator.standard_normal((n, outputs)) + 3.0
    return model, x, generator.integers(0, max(outputs, 2), n)


def columns(x, width, widest, seed, use_bias=True):
    """Return the columns of a head with the first gates of a `GatedBranch`, written out entry by entry."""
    parts = [x.astype(np.float64)] + ([np.ones((len(x), 1))] if use_bias else [])
    if width:
        branch = GatedBranch(layers.Dense(1, dtype="float32"), widest, seed=seed)
        branch.adapt(x)
        mean, scale, kernel, bias = (
            np.float64(v.numpy()) for v in (branch.mean, branch.scale, branch.gate_kernel, branch.gate_bias)
        )
        u = (x - mean) / scale
        gates = cases.gate(branch.sharpness * (u @ kernel + bias))
        parts += [gates[:, [k]] * np.column_stack([u, np.ones(len(x))]) for k in range(width)]
    return np.hstack(parts)


def label_matrix(name, y):
    if name == "softmax":
        return np.eye(3)[y] - 1 / 3
    return (2.0 * y - 1.0)[:, None] if name == "sigmoid" else y


def oracle(matrix, labels, weights, use_bias=True):
    """Return residual share and rank by a dense decomposition, columns centred where that changes no span."""
    centred = labels - weights @ labels / weights.sum() * use_bias
    roots, norms = np.sqrt(weights)[:, None], linalg.norm(matrix, axis=0)
    left, values, _ = linalg.svd(roots * matrix / np.where(norms > 0, norms, 1.0), full_matrices=False)
    rank = int(np.sum(values > 1e-6 * values[0]))
    right = roots * centred
    residual = right - left[:, :rank] @ (left[:, :rank].T @ right)
    return np.sum(residual**2) / np.sum(right**2), rank, np.sum(residual**2)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", NUM_OUTPUTS)
def test_shares_and_ranks_equal_a_dense_decomposition_at_every_width(name, use_bias):
    model, x, y = problem(name, use_bias=use_bias)
    weights = np.random.default_rng(3).uniform(0.5, 2.0, N)
    weights[[2, 5]] = 0.0
    curve = width_curve(model, x, y, weights, widths=WIDTHS, draws=DRAWS, seed=4, verbose=0)
    kept, labels = weights > 0, label_matrix(name, y)
    for index, width in enumerate(WIDTHS):
        found = [
            oracle(columns(x[kept], width, WIDTHS[-1], 4 + draw, use_bias), labels[kept], weights[kept], use_bias)
            for draw in range(DRAWS)
        ]
        shares = [share for share, _, _ in found]
        assert curve.residual_share[index] == pytest.approx(np.mean(shares), abs=1e-8)
        assert curve.residual_share_spread[index] == pytest.approx(np.std(shares), abs=1e-8)
        assert curve.rank[index] == found[0][1] * (labels.shape[1] - (name == "softmax"))
    assert curve.num_samples == N - 2


@pytest.mark.parametrize("most", [2**24, 0], ids=["by a solver", "by fits alone"])
def test_the_squared_error_has_the_infimum_that_its_share_says(monkeypatch, most):
    monkeypatch.setattr("keras_dal.analysis.width._ENCLOSED", most)
    model, x, y = problem("squared error")
    curve = width_curve(model, x, y, widths=WIDTHS[:-1], draws=1, verbose=0)
    for width, (lower, upper) in zip(curve.widths, curve.infimum, strict=True):
        *_, residual = oracle(columns(x, width, WIDTHS[-2], 0), y, np.ones(N))
        assert lower <= residual / y.size <= upper
        assert upper - lower <= 1e-7 * upper


@pytest.mark.parametrize("name", NUM_OUTPUTS)
def test_width_zero_is_the_alignment_of_the_head(name):
    model, x, y = problem(name)
    report = keras_dal.alignment(model, x, y)
    curve = width_curve(model, x, y, widths=[0], draws=1, verbose=0)
    assert curve.residual_share[0] == pytest.approx(report.residual_share, abs=1e-12)
    assert curve.rank == (report.rank,)


def test_width_zero_of_a_gated_branch_is_the_head_in_it():
    model, x, y = problem("softmax")
    gated = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    plain, beside = (width_curve(each, x, y, widths=[0, 2], draws=1, verbose=0) for each in (model, gated))
    np.testing.assert_allclose(beside.residual_share, plain.residual_share, atol=1e-12)


@pytest.mark.parametrize("name", NUM_OUTPUTS)
def test_wider_heads_reach_more_and_never_less(name):
    model, x, y = problem(name)
    curve = width_curve(model, x, y, verbose=0)
    assert curve.widths == (0, 1, 2, 4, 8, 16)  # 17 (5 + 1) columns are enough for 60 samples
    assert np.all(np.diff(curve.residual_share) <= 1e-12)
    assert np.all(np.diff(curve.rank) >= 0)
    assert np.all(np.diff(curve.infimum, axis=0) <= 0)
    assert all(lower <= upper for lower, upper in curve.infimum)
    assert curve.residual_share[-1] <= 1e-8
    assert curve.rank[-1] == N * (NUM_OUTPUTS[name] - (name == "softmax"))


def test_it_settles_where_all_draws_are_aligned_and_not_before():
    model, x, y = problem("squared error")
    curve = width_curve(model, x, y, widths=[0, 4, 8, 9, 10, 40], draws=3, verbose=0)
    aligned = [share <= 1e-8 for share in curve.residual_share]
    assert curve.settled == curve.widths[aligned.index(True)]
    assert 9 <= curve.settled <= 10  # (9 + 1) (5 + 1) columns for 60 samples
    assert width_curve(model, x, y, widths=[0, 4], draws=1, verbose=0).settled is None


def test_it_does_not_settle_where_another_draw_than_the_first_misses_a_label(monkeypatch):
    model, x, y = problem("squared error")
    asked = []
    monkeypatch.setattr(_WidthData, "misses_some", lambda problem, fit: asked.append(fit) or len(asked) == 2)
    assert width_curve(model, x, y, widths=[0, 40], draws=2, verbose=0).settled is None
    assert len(asked) == 2  # of each draw, at the width that is aligned


def test_a_classifier_settles_where_its_infimum_is_proved_to_be_zero():
    model, x, _ = problem("softmax")
    y = np.digitize(x[:, 0], [1.5, 2.5])  # separable by the features, and not aligned with them
    curve = width_curve(model, x, y, widths=[0, 1], draws=1, verbose=0)
    assert curve.residual_share[0] > 0.01
    assert curve.infimum == ((0.0, 0.0), (0.0, 0.0))
    assert curve.settled == 0


@pytest.mark.parametrize("most", [2**24, 0], ids=["by a solver", "by fits alone"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_bounds_of_the_infimum_hold(monkeypatch, name, most):
    monkeypatch.setattr("keras_dal.analysis.width._ENCLOSED", most)
    model, x, y = problem(name)
    curve = width_curve(model, x, y, widths=[0, 1], draws=1, verbose=0)
    certificate = keras_dal.certify(model, x, y)
    lower, upper = curve.infimum[0]
    assert lower <= certificate.infimum[1]
    assert upper >= certificate.infimum[0]
    assert certificate.infimum[0] > 0.1
    constant = np.bincount(y) / N  # what the best constant reaches
    assert upper < np.sum(special.entr(constant))
    if most:
        assert upper - lower <= 1e-6
    else:
        assert lower == 0.0


def test_dead_and_repeated_features_count_once():
    model, x, y = problem("softmax")
    x[:, 3], x[:, 4] = 1.7, 2 * x[:, 0]
    curve = width_curve(model, x, y, widths=[0, 2, 5], draws=1, verbose=0)
    for index, width in enumerate(curve.widths):
        share, rank, _ = oracle(columns(x, width, 5, 0), label_matrix("softmax", y), np.ones(N))
        assert curve.rank[index] == 2 * rank
        assert curve.residual_share[index] == pytest.approx(share, abs=cases.within(1e-8, 16))


def test_equal_samples_with_other_labels_never_settle():
    model, x, y = problem("softmax")
    x[1], y[:2] = x[0], (0, 1)
    curve = width_curve(model, x, y, widths=[0, 30], draws=1, verbose=0)
    assert curve.rank[-1] == 2 * (N - 1)
    assert curve.residual_share[-1] == pytest.approx(1.0 / np.sum(centred_squares(y)), rel=1e-6)
    assert curve.settled is None


def centred_squares(y):
    labels = np.eye(3)[y] - 1 / 3
    return (labels - labels.mean(axis=0)) ** 2


def test_equal_labels_are_reached_without_gates():
    model, x, _ = problem("squared error")
    curve = width_curve(model, x, np.full((N, 2), 0.1), widths=[0, 1], draws=1, verbose=0)
    assert curve.residual_share == (0.0, 0.0)
    assert (curve.settled, curve.samples_fitted) == (0, N)


def test_samples_fitted_is_where_labels_leave_the_column_space():
    model, x, y = problem("squared error")
    curve = width_curve(model, x, y, widths=[0], draws=1, verbose=0)
    assert curve.samples_fitted == M + 1  # random labels: as many as there are columns
    linear = width_curve(model, x, x[:, :2] @ np.array([[1.0, 2.0], [3.0, 4.0]]), widths=[0], draws=1, verbose=0)
    assert linear.samples_fitted == N


def test_the_seed_decides_and_draws_differ():
    model, x, y = problem("softmax")
    first, again, other = (width_curve(model, x, y, widths=WIDTHS, draws=2, seed=seed, verbose=0) for seed in (0, 0, 1))
    assert str(first) == str(again)
    assert first.residual_share[1] != other.residual_share[1]
    assert first.residual_share_spread[0] == 0.0
    assert first.residual_share_spread[1] > 0.0


def test_bytes_are_those_of_the_variables_of_a_branch():
    model, x, y = problem("softmax")
    curve = width_curve(model, x, y, widths=[0, 7], draws=1, verbose=0)
    branch = GatedBranch(layers.Dense(3, dtype="float32"), 7)
    branch.build((None, M))
    assert curve.bytes == (4 * (M + 1) * 3, sum(4 * np.prod(v.shape) for v in branch.variables))


def test_soft_labels_have_their_entropy_as_the_least_loss():
    model, x, y = problem("softmax")
    soft = 0.1 / 3 + 0.9 * np.eye(3)[y]
    curve = width_curve(
        model, x, soft, widths=[0, 40], draws=1, loss=keras.losses.CategoricalCrossentropy(True), verbose=0
    )
    entropy = np.sum(special.entr(soft[0]))
    assert curve.infimum[-1] == (pytest.approx(entropy, abs=1e-6),) * 2
    assert curve.settled == 40


def test_coefficients_at_a_rank_are_those_of_a_dense_solver():
    generator = np.random.default_rng(0)
    matrix, targets = generator.standard_normal((40, 12)), generator.standard_normal((40, 2))
    weights = generator.uniform(0.5, 2.0, 40)
    nested = NestedColumns(12, weights, False, 1e-7)
    for stop in (4, 12):
        nested.append(matrix[:, nested.size : stop])
        roots = np.sqrt(weights)[:, None]
        expected = matrix[:, :stop] @ linalg.lstsq(roots * matrix[:, :stop], roots * targets)[0]
        fit = nested.solve(targets)
        assert np.all(np.abs(fit.logits - expected) <= fit.errors + 1e-13)
        assert np.all(fit.errors < 1e-12)
        assert fit.rank == stop
        residual = np.sum(weights[:, None] * (targets - expected) ** 2)
        assert fit.least <= residual * (1 + 1e-14)
        assert fit.least == pytest.approx(residual, rel=1e-10)


def test_products_with_an_offset_are_known_up_to_its_rounding_only():
    """Labels that the products themselves reach are not reached by the rounded ones, and no bound says so."""
    left, right = 1e3 + np.random.default_rng(0).standard_normal((2, 50))
    products = [Fraction(a) * Fraction(b) for a, b in zip(left, right, strict=True)]
    labels = np.array([[float(each - sum(products) / 50)] for each in products])
    nested = NestedColumns(1, np.ones(50), True, 2.0**-23)
    nested.append((left * right)[:, None], products=True)
    fit = nested.solve(labels)
    assert fit.residual.item() > 0
    assert fit.least == 0
    assert np.all(np.abs(fit.logits - labels) <= fit.errors)
    assert np.max(fit.errors) < 1e-7


@pytest.mark.parametrize("constant", [True, False])
def test_a_few_steps_come_near_the_least_loss_within_the_columns(constant):
    generator = np.random.default_rng(0)
    matrix, y = generator.standard_normal((80, 12)) * 10.0 ** generator.uniform(-3, 3, 12), generator.integers(0, 3, 80)
    weights, loss, one_hot = generator.uniform(0.5, 2.0, 80), SoftmaxCrossEntropy(), np.eye(3)[y]
    nested, before, losses = NestedColumns(12, weights, constant, 1e-7), None, []
    for stop in (4, 12):
        nested.append(matrix[:, nested.size : stop])
        nested.solve(one_hot)
        before = nested.descend(loss, one_hot, before)
        inside = np.column_stack([matrix[:, :stop], np.ones((80, int(constant)))])
        outside = before.logits - inside @ linalg.lstsq(inside, before.logits)[0]
        assert np.max(np.abs(outside)) <= 1e-10
        basis = linalg.qr(inside, mode="economic")[0]

        def value(flat, basis=basis):
            logits = basis @ flat.reshape(-1, 3)
            return np.mean(weights * (special.logsumexp(logits, axis=1) - logits[np.arange(80), y]))

        least = optimize.minimize(value, np.zeros(3 * basis.shape[1])).fun
        losses.append(np.mean(weights * loss.values(before.logits, one_hot)))
        assert least - 1e-6 <= losses[-1] <= least + 1e-3
    assert losses[1] < losses[0]


def test_steps_end_where_every_sample_is_on_its_right_side():
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((60, 5))
    one_hot = np.eye(2)[(matrix[:, 0] > 0).astype(int)]
    nested = NestedColumns(5, np.ones(60), True, 1e-7)
    nested.append(matrix)
    nested.solve(one_hot)
    found = nested.descend(SoftmaxCrossEntropy(), one_hot)
    margins = SoftmaxCrossEntropy().margins(found.logits, one_hot)
    assert np.min(margins) > 2 * np.max(found.errors)
    assert np.max(np.abs(found.logits)) < 1e3


def test_ranks_of_a_spectrum_without_a_gap_follow_the_rule_and_shares_never_flatter():
    generator = np.random.default_rng(0)
    left, right = (linalg.qr(generator.standard_normal(shape))[0] for shape in ((80, 80), (40, 40)))
    matrix = left[:, :40] * 10.0 ** -np.linspace(0, 12, 40) @ right
    matrix /= linalg.norm(matrix, axis=0)
    targets = generator.standard_normal((80, 3))
    nested = NestedColumns(40, np.ones(80), False, 2.0**-23)
    for stop in (10, 25, 40):
        nested.append(matrix[:, nested.size : stop])
        fit = nested.solve(targets)
        vectors, values, _ = linalg.svd(matrix[:, :stop], full_matrices=False)
        assert fit.rank == np.sum(values > 2.0**-23 * np.sqrt(stop) * values[0])
        everything = np.sum(targets**2) - np.sum((vectors.T @ targets) ** 2)
        assert fit.least * (1 - 1e-12) <= everything <= fit.residual.sum() * (1 + 1e-12)


def test_bounds_of_rounding_do_not_depend_on_the_unit_of_the_weights():
    generator = np.random.default_rng(0)
    matrix, targets = generator.standard_normal((40, 6)), np.eye(3)[generator.integers(0, 3, 40)]
    weights, found = generator.uniform(0.5, 2.0, 40), []
    for unit in (1.0, 2.0**-40):
        nested = NestedColumns(6, unit * weights, True, 1e-7)
        nested.append(matrix)
        fit = nested.solve(targets)
        found.append((fit.errors, fit.noise))
    np.testing.assert_allclose(*found, rtol=0.1)


def test_a_residual_that_was_not_refined_bounds_the_least_one_all_the_same(monkeypatch):
    """Columns whose Gram matrix has a condition of 1e12: its factor alone leaves what they still reach."""
    monkeypatch.setattr("keras_dal.solvers.nested_columns._REFINEMENTS", 1)
    generator = np.random.default_rng(0)
    left, right = (linalg.qr(generator.standard_normal((size, 8)), mode="economic")[0] for size in (60, 8))
    matrix = left * np.geomspace(1, 1e-6, 8) @ right
    targets = left @ generator.standard_normal((8, 2)) + 1e-4 * generator.standard_normal((60, 2))
    nested = NestedColumns(8, np.ones(60), False, 2.0**-23)
    nested.append(matrix)
    fit = nested.solve(targets)
    least = np.sum((targets - left @ (left.T @ targets)) ** 2)
    assert fit.rank == 8
    assert fit.least <= least * (1 + 1e-9)
    assert fit.residual.sum() >= least * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [2, 1]}, "ascending integers.*Received: widths=.2, 1"),
        ({"widths": 5}, "ascending integers.*Received: widths=5"),
        ({"widths": [-1]}, "not negative"),
        ({"widths": []}, "widths"),
        ({"widths": [0.5]}, "integers"),
        ({"draws": 0}, "draws must be a positive integer. Received: draws=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    model, x, y = problem("softmax")
    with pytest.raises(ValueError, match=message):
        width_curve(model, x, y, **options)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([0, 500], "The columns of 500 gates need .* bytes.*Raise max_bytes, or pass fewer gates or samples.*Received"),
        (None, "The features need .* bytes.*Raise max_bytes, or pass fewer samples.*Received: max_bytes=10,000"),
    ],
)
def test_columns_that_are_too_large_are_refused_as_features_are_elsewhere(widths, message):
    model, x, y = problem("softmax")
    with pytest.raises(MemoryError, match=message):
        width_curve(model, x, y, widths=widths, max_bytes=10_000)


def test_heads_after_gated_units_and_missing_labels_are_refused():
    model, x, y = problem("softmax")
    with pytest.raises(ValueError, match=r"Labels are needed.*Received"):
        width_curve(model, x)
    before = keras_dal.add_gated_head(model, x, place="before", seed=0, verbose=False)
    with pytest.raises(ValueError, match=r"after gated units.*GatedDense"):
        width_curve(before, x, y)


def test_the_table_and_the_picture_say_what_was_found(tmp_path, capsys):
    model, x, y = problem("softmax")
    curve = width_curve(model, x, y, widths=WIDTHS, draws=1)
    assert capsys.readouterr().out.count("residual share") == len(WIDTHS)
    for text in (str(curve), curve._repr_html_()):
        assert f"{curve.residual_share[1]:.6f}" in text
        assert SoftmaxCrossEntropy.name in text
    share, infimum = plots.width(curve)
    np.testing.assert_array_equal(share.lines[0].get_ydata(), curve.residual_share)
    np.testing.assert_array_equal(infimum.lines[0].get_ydata(), [upper for _, upper in curve.infimum])
    assert [line.get_xdata()[0] for line in share.lines if line.get_label() == "settled"] == [curve.settled]
    assert plots.width(curve, tmp_path / "width.png").is_file()


def test_faint_samples_on_their_wrong_side_do_not_settle():
    model = keras.Sequential([layers.Input((1,)), layers.Dense(2)])
    model.compile(loss=KERAS_LOSSES["softmax"])
    x, y = np.array([[0.0], [1.0], [0.5], [0.6]], "float32"), np.array([0, 1, 1, 0])
    curve = width_curve(model, x, y, np.array([1.0, 1.0, 1e-12, 1e-12]), widths=[0], draws=1, verbose=0)
    assert curve.infimum[0][0] > 0
    assert curve.settled is None


def test_an_outlier_does_not_hide_how_many_samples_are_fitted():
    model, _, _ = problem("squared error", n=100)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, M)).astype("float32")
    x[-1] = 1e6
    y = x[:, :2] + 1e-2 * generator.standard_normal((100, 2))
    curve = width_curve(model, x, y, widths=[0], draws=1, verbose=0)
    assert (curve.settled, curve.samples_fitted) == (None, 100)


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e6])
def test_the_infimum_of_wide_heads_is_in_the_unit_of_the_weights(unit, monkeypatch):
    monkeypatch.setattr("keras_dal.analysis.width._ENCLOSED", 0)  # as where a solver would take too long
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 5)).astype("float32"), generator.integers(0, 3, 60)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    usual, scaled = (
        keras_dal.width_curve(model, x, y, np.full(60, each), widths=[0, 1, 2], draws=1, verbose=0).infimum
        for each in (1.0, unit)
    )
    np.testing.assert_allclose([upper / unit for _, upper in scaled], [upper for _, upper in usual], rtol=1e-3)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"max_bytes": "4GB"}])
def test_nothing_is_said_before_arguments_are_checked(wrong, capsys):
    class Prepares(keras.Sequential):
        def test_step(self, data):
            return super().test_step(data)

    model = Prepares([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="Received"):
        width_curve(model, np.ones((4, 2)), np.ones((4, 2)), loss="mse", **wrong)
    assert not capsys.readouterr().out
