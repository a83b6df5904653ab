"""Alignment against dense oracles: singular values of the Jacobian by automatic differentiation."""

import contextlib

import cases
import keras
import ml_dtypes
import numpy as np
import pytest
from exact_head import fractions, left_of
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from scipy import linalg, optimize

import keras_dal
from keras_dal import _backend
from keras_dal.analysis.alignment import alignment, alignment_from_moments
from keras_dal.analysis.certify import certify
from keras_dal.analysis.width import width_curve
from keras_dal.features.tracing import to_numpy
from keras_dal.losses import resolve_loss
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch
from keras_dal.models.tangent import AutodiffOperator
from keras_dal.solvers.least_squares import StreamedQR, project_moments

N = 31


@pytest.mark.parametrize("gated", [False, True])
def test_samples_of_weight_zero_count_in_the_loss_that_is_proved(gated):
    """By hand: equal features with labels 0 and 1 have no loss below log 2, and Keras divides two such by all four."""
    x, y = np.array([[1.0], [1.0], [2.0], [3.0]]), np.array([[0.0], [1.0], [0.0], [1.0]])
    dense = layers.Dense(1)
    model = keras.Sequential([layers.Input((1,)), GatedBranch(dense, 1, seed=0) if gated else dense])
    report = alignment(
        model, x, y, np.array([1.0, 1.0, 0.0, 0.0]), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    assert report.verdict == "not separable"
    assert float(report.decided_by.split()[-1]) == pytest.approx(np.log(2) / 2, rel=1e-3)


def oracle(jacobian, targets, weights, softmax, use_bias, cut=None):
    """Return what is left of targets, the centred targets, rank and singular values of a Jacobian `(n, C, P)`."""
    cut = cases.within(1e-10) if cut is None else cut
    n, c, p = jacobian.shape
    seen = np.eye(c) - softmax / c
    roots = np.sqrt(weights)
    rows = (roots[:, None, None] * np.einsum("ij,njp->nip", seen, jacobian)).reshape(n * c, p)
    centred = targets @ seen
    if use_bias:
        centred = centred - weights @ centred / weights.sum()
    centred = roots[:, None] * centred
    left, values, _ = linalg.svd(rows, full_matrices=False)
    left = left[:, values > cut * values[0]]
    residual = centred.ravel() - left @ (left.T @ centred.ravel())
    return residual.reshape(n, c), centred, left.shape[1], values


def assert_agrees(report, residual, centred, spacings=64):
    atol = cases.within(1e-9, spacings)
    total = np.sum(centred**2)
    assert report.residual_share == pytest.approx(np.sum(residual**2) / total, abs=atol)
    assert report.alignment == 1.0 - report.residual_share
    per_class = np.sum(residual**2, axis=0) / np.sum(centred**2, axis=0)
    np.testing.assert_allclose(report.residual_share_per_class, per_class, atol=atol)
    per_sample = np.sum(residual**2, axis=1) / total
    np.testing.assert_allclose(report.residual_share_per_sample, per_sample, atol=atol)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_equals_dense_decomposition(case):
    model, x, y = case.build(), case.inputs(N), case.labels(N)
    weights = np.random.default_rng(3).uniform(0.5, 2.0, N)
    weights[[2, 5]] = 0.0
    report = alignment(model, x, y, weights, loss=case.loss, batch_size=8)
    structure = find_structure(model, x)
    dense = cases.dense_jacobian(case, model, x, structure.linear_parameters)
    softmax = case.activation != "sigmoid"
    targets = np.eye(case.num_outputs)[y] if softmax else 2 * y - 1
    cut = cases.within(1e-10, spacings=8)  # near what a rank counts in float32
    residual, centred, rank, values = oracle(dense, targets, weights, softmax, case.use_bias, cut)
    assert_agrees(report, residual, centred, spacings=512 if case.gated else 64)
    assert report.num_samples == N - 2
    assert report.num_parameters == dense.shape[2]
    assert report.sigma_max == pytest.approx(values[0], rel=0.2 if case.gated else cases.within(1e-9))
    assert report.sigma_max >= values[0] * (1 - cases.within(1e-12))
    assert report.rank == rank
    assert report.full_rank == (N - 2) * (case.num_outputs - softmax)


@pytest.mark.parametrize("use_bias", [True, False])
def test_squared_error_equals_dense_decomposition(use_bias):
    case = cases.Case("regression", lambda: cases.sequential(layers.Dense(2, use_bias=use_bias)))
    model, x = case.build(), case.inputs(N)
    y = np.random.default_rng(0).standard_normal((N, 2)) + 3.0
    report = alignment(model, x, y, loss="mse")
    dense = cases.dense_jacobian(case, model, x, model.layers[-1].trainable_variables)
    residual, centred, rank, _ = oracle(dense, y, np.ones(N), False, use_bias)
    assert_agrees(report, residual, centred)
    assert report.rank == rank
    assert report.verdict == "not aligned"


def test_keras_application_equals_dense_decomposition():
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50V2(weights=None, input_shape=(32, 32, 3), classes=3)
    case = cases.Case("resnet", lambda: model, "softmax", input_shape=(32, 32, 3))
    x, y = case.inputs(6), np.array([0, 0, 1, 1, 2, 2])
    report = alignment(model, x, y, loss=case.loss)
    features = keras.Model(model.input, model.layers[-1].input)(x, training=False)
    features = to_numpy(features).astype(np.float64)
    dense = np.einsum("np,ij->nipj", np.column_stack([features, np.ones(6)]), np.eye(3)).reshape(6, 3, -1)
    residual, centred, rank, _ = oracle(dense, np.eye(3)[y], np.ones(6), True, True)
    assert report.residual_share == pytest.approx(np.sum(residual**2) / np.sum(centred**2), abs=1e-6)
    assert report.rank == rank
    assert (report.num_features, report.num_parameters) == (2048, 3 * 2049)


def test_products_with_a_whole_network_are_not_rounded_to_fewer_bits(monkeypatch):
    case, inside = cases.CASES[0], []

    @contextlib.contextmanager
    def full_precision():
        inside.append(True)
        yield
        inside.pop()

    def checked(product):
        def call(operator, vector):
            assert inside
            return product(operator, vector)

        return call

    monkeypatch.setattr(_backend, "full_precision", full_precision)
    for name in ("_matvec", "_rmatvec"):
        monkeypatch.setattr(AutodiffOperator, name, checked(getattr(AutodiffOperator, name)))
    report = alignment(case.build(), case.inputs(N), case.labels(N), loss=case.loss, parameters="all")
    assert "estimate of the rounding" in report.decided_by or report.verdict == "aligned"


@pytest.mark.skipif(cases.BACKEND != "torch", reason="convolutions have a switch of their own in PyTorch")
def test_convolutions_of_torch_are_not_rounded_to_fewer_bits_either(monkeypatch):
    import torch

    monkeypatch.setattr("keras_dal._backend.torch.has_accelerator", lambda: True)
    cudnn = torch.backends.cudnn
    places = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = cudnn.allow_tf32, *(place.fp32_precision for place in places)
    with _backend.full_precision():
        assert [place.fp32_precision for place in places] == ["ieee"] * 3
        assert cudnn.allow_tf32 is False
    assert (cudnn.allow_tf32, *(place.fp32_precision for place in places)) == before


@pytest.mark.skipif(cases.BACKEND != "torch", reason="convolutions have a switch of their own in PyTorch")
def test_switches_of_torch_that_contradict_each_other_are_put_back(monkeypatch):
    import torch

    monkeypatch.setattr("keras_dal._backend.torch.has_accelerator", lambda: True)
    conv, rnn = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = conv.fp32_precision, rnn.fp32_precision
    try:
        conv.fp32_precision, rnn.fp32_precision = "ieee", "tf32"
        with _backend.full_precision():
            assert rnn.fp32_precision == "ieee"
        assert (conv.fp32_precision, rnn.fp32_precision) == ("ieee", "tf32")
    finally:
        conv.fp32_precision, rnn.fp32_precision = before


@pytest.mark.skipif(cases.BACKEND != "torch", reason="convolutions have a switch of their own in PyTorch")
def test_a_module_may_look_at_the_switches_of_torch():
    import torch

    class Module(torch.nn.Module):
        def forward(self, x):
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.allow_tf32):
                return torch.tanh(x)

    module = keras.layers.TorchModuleWrapper(Module(), output_shape=(None, 5))
    model = keras.Sequential([keras.Input((5,)), module, keras.layers.Dense(3)])
    assert find_structure(model).is_plain


def test_whole_network_is_bounded_from_below():
    case = cases.CASES[0]
    model, x, y = case.build(), case.inputs(40), case.labels(40)
    whole = alignment(model, x, y, loss=case.loss, parameters="all")
    dense = cases.dense_jacobian(case, model, x, model.trainable_variables)
    residual, centred, _, _ = oracle(dense, np.eye(3)[y], np.ones(40), True, True)
    exact = 1 - np.sum(residual**2) / np.sum(centred**2)
    head = alignment(model, x, y, loss=case.loss)
    assert head.alignment < exact - 0.05
    assert whole.alignment <= exact + cases.within(1e-9)
    clear, _, _, _ = oracle(dense, np.eye(3)[y], np.ones(40), True, True, cut=1e-3)  # ten times what damps LSQR
    assert whole.alignment >= 1 - np.sum(clear**2) / np.sum(centred**2)
    if cases.BACKEND == "tensorflow":  # whose initial weights leave little in the directions between
        assert whole.alignment == pytest.approx(exact, abs=1e-3)
    assert not whole.exact
    assert whole.rank is None


@pytest.mark.parametrize("n", [60, 200, 1000])
def test_the_bound_of_a_network_of_one_layer_is_below_its_head_and_near_it(n):
    generator = np.random.default_rng(n)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    x, y = generator.standard_normal((n, 5)).astype("float32"), generator.integers(0, 3, n)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    exact = alignment(model, x, y, loss=loss).alignment
    bound = alignment(model, x, y, loss=loss, parameters="all").alignment
    assert exact - 1e-4 <= bound <= exact


@pytest.mark.parametrize("weights", [-np.ones(20), np.full(20, np.nan), np.zeros(20), np.ones(7)])
@pytest.mark.parametrize("parameters", ["head", "all"])
def test_what_is_no_weight_is_refused(weights, parameters):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match=r"[Ww]eights? (must|.*the same number)|positive weight"):
        alignment(model, np.ones((20, 5)), np.arange(20) % 3, weights, loss=loss, parameters=parameters)


class TestVerdicts:
    """Each verdict has its proof, here compared with a linear program or with how the data were made."""

    @staticmethod
    def linear_model(num_features, num_outputs=3):
        with cases.policy(cases.DTYPE):
            return keras.Sequential([layers.Input((num_features,)), layers.Dense(num_outputs)])

    def verdict(self, x, y, num_outputs=3, **arguments):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return alignment(self.linear_model(x.shape[1], num_outputs), x, y, loss=loss, **arguments)

    def test_fewer_samples_than_features_are_aligned(self):
        generator = np.random.default_rng(0)
        report = self.verdict(generator.standard_normal((10, 12)), np.arange(10) % 3)
        assert report.verdict == "aligned"
        assert report.residual_share < 1e-12

    def test_separable_where_least_squares_fail(self):
        x = np.array([[-1.0], [-1.1], [-0.1], [0.1], [1.0], [300.0]])
        report = self.verdict(x, np.array([0, 0, 0, 1, 1, 1]), 2)
        assert report.verdict == "separable"
        assert "least squares" not in report.decided_by
        assert report.alignment < 0.5

    def test_exclusive_or_is_not_separable(self):
        x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        report = self.verdict(x, np.array([0, 1, 1, 0]), 2)
        assert report.verdict == "not separable"
        assert "no parameters have a loss below 6.931e-01" in report.decided_by
        assert report.residual_share == pytest.approx(1.0)

    def test_undecided_without_a_solver(self):
        x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        report = self.verdict(x, np.array([0, 1, 1, 0]), 2, decide_separability=False)
        assert report.verdict == "undecided"

    @pytest.mark.parametrize("seed", range(12))
    def test_agrees_with_a_linear_program(self, seed):
        generator = np.random.default_rng(seed)
        x, y = generator.standard_normal((14, 3)), generator.integers(0, 3, 14)
        features = np.column_stack([x, np.ones(14)])
        gaps = [
            np.kron(z, np.eye(3)[label] - np.eye(3)[other])
            for z, label in zip(features, y, strict=True)
            for other in {0, 1, 2} - {label}
        ]
        rows = np.column_stack([-np.array(gaps), np.ones(len(gaps))])  # margin <= gap, entries of theta in [-1, 1]
        program = optimize.linprog(
            np.append(np.zeros(12), -1.0), A_ub=rows, b_ub=np.zeros(len(gaps)), bounds=[(-1, 1)] * 12 + [(None, 1)]
        )
        expected = "separable" if -program.fun > 1e-9 else "not separable"
        assert self.verdict(x, y).verdict == expected


def test_rank_ignores_the_rounding_of_float32_features():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 5)).astype("float32")
    mixing = np.array([[1, 0, 0.3], [0, 1, -0.7], [0, 0, 0.0], [0, 0, 0.0], [0, 0, 0.0]], "float32")
    loss = keras.losses.MeanSquaredError()
    model = keras.Sequential([layers.Input((5,)), layers.Dense(3, use_bias=False), layers.Dense(2)])
    model.layers[0].kernel.assign(mixing)
    report = alignment(model, x, generator.standard_normal((200, 2)), loss=loss)
    features = to_numpy(model.layers[0](x)).astype(np.float64)
    assert np.linalg.matrix_rank(features) == 3  # in float64 rounding looks like a direction
    assert report.rank == 2 * (2 + 1)
    assert report.singular_values[-1] < report.tolerance * report.singular_values[0]


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
def test_rounding_of_features_far_from_zero_is_no_direction(offset):
    """16 features that are affine functions of two numbers, by construction, and a constant."""
    generator = np.random.default_rng(0)
    latent, y = generator.standard_normal((200, 2)), generator.integers(0, 3, 200)
    x = (offset + latent @ generator.standard_normal((2, 16)) * 1e-3).astype("float32")
    model = keras.Sequential([layers.Input((16,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    columns, labels = np.column_stack([latent, np.ones(200)]), np.eye(3)[y]
    left = labels - columns @ linalg.lstsq(columns, labels)[0]
    share = np.sum(left**2) / np.sum((labels - labels.mean(axis=0)) ** 2)
    reports = [each(model, x, y, loss=loss) for each in (alignment, certify)]
    curve = width_curve(model, x, y, loss=loss, widths=[0], draws=1, verbose=0)
    assert [each.rank for each in reports] == [2 * 3] * 2
    assert curve.rank == (2 * 3,)
    for found in (*(each.residual_share for each in reports), *curve.residual_share):
        assert found == pytest.approx(share, rel=1e-4)


def test_dead_and_tiny_features():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 4))
    y = x[:, :2] + 0.1 * generator.standard_normal((60, 2))
    case = cases.Case("linear", lambda: keras.Sequential([layers.Input((4,)), layers.Dense(2)]), input_shape=(4,))
    shares = []
    for scale in ([1.0, 1.0, 0.0, 1.0], [1.0, 2.0**-40, 0.0, 2.0**20]):  # a head can undo any scale but zero
        report = alignment(case.build(), x * scale, y, loss="mse")
        assert report.rank == 2 * 4
        shares.append(report.residual_share)
    assert shares[0] == pytest.approx(shares[1], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 8), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 2**31)
)
def test_streamed_projection_equals_least_squares(n, m, c, batch, use_bias, seed):
    generator = np.random.default_rng(seed)
    rank = generator.integers(1, m + 1)
    z = generator.standard_normal((n, rank)) @ generator.standard_normal((rank, m))
    y, weights = generator.standard_normal((n, c)), generator.uniform(0.1, 2.0, n)
    qr = StreamedQR(m, c, use_bias)
    for start in range(0, n, batch):
        rows = slice(start, start + batch)
        qr.update(z[rows], y[rows], weights[rows])
    projection = qr.project(np.finfo(np.float64).eps)
    columns = np.column_stack([z, np.ones(n)]) if use_bias else z
    roots = np.sqrt(weights)[:, None]
    solution, _, expected_rank, values = linalg.lstsq(roots * columns, roots * y, cond=1e-10)
    np.testing.assert_allclose(
        projection.residual, np.sum((roots * (y - columns @ solution)) ** 2, axis=0), rtol=1e-6, atol=1e-10
    )
    assert projection.rank == expected_rank
    assert projection.sigma_max == pytest.approx(values[0])
    np.testing.assert_allclose(columns @ projection.coefficients, columns @ solution, rtol=1e-6, atol=1e-6)
    mean = weights @ y / weights.sum() if use_bias else 0.0
    np.testing.assert_allclose(projection.squares.centred, weights @ (y - mean) ** 2, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("use_bias", [True, False])
def test_blocks_of_the_streamed_factorization_do_not_matter(use_bias):
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((5000, 9)), generator.standard_normal((5000, 2))
    qr = StreamedQR(9, 2, use_bias)  # its buffer holds 1035 rows
    for start in range(0, 5000, 1700):
        qr.update(z[start : start + 1700], y[start : start + 1700])
    columns = np.column_stack([z, np.ones(5000)]) if use_bias else z
    residual = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    np.testing.assert_allclose(qr.project(1e-16).residual, np.sum(residual**2, axis=0), rtol=1e-12)


@pytest.mark.parametrize("case", [case for case in cases.CASES if not case.gated], ids=lambda case: case.name)
def test_moments_give_the_same(case):
    model, x, y = case.build(), case.inputs(N), case.labels(N)
    structure, loss = find_structure(model, x), resolve_loss(case.loss)
    weights = np.random.default_rng(3).uniform(0.5, 2.0, N)
    rows = np.column_stack([structure.features(x), np.ones(N), loss.targets(y, case.num_outputs)])
    sums = rows.T @ (weights[:, None] * rows)
    report = alignment_from_moments(sums, N, structure, loss, eps=2.0**-52)
    exact = alignment(model, x, y, weights, loss=case.loss)
    atol = cases.within(1e-9)
    in_step = alignment_from_moments(
        sums, N, structure, loss
    )  # whose sums may be in float32, with digits that are left out
    assert -atol <= in_step.residual_share - exact.residual_share <= 2 * atol
    assert in_step.rank == exact.rank
    assert report.residual_share == pytest.approx(exact.residual_share, abs=atol)
    np.testing.assert_allclose(report.residual_share_per_class, exact.residual_share_per_class, atol=atol)
    assert report.rank == exact.rank
    assert report.sigma_max == pytest.approx(exact.sigma_max, rel=cases.within(1e-6))
    assert report.verdict == "undecided"


@pytest.mark.parametrize("offset", [0, 30])
def test_moments_in_float32_do_not_invent_directions(offset):
    generator = np.random.default_rng(0)
    z = generator.standard_normal((500, 3)) @ generator.standard_normal((3, 6)) + offset
    rows = np.column_stack([z, np.ones(500), generator.standard_normal((500, 2))]).astype("float32")
    projection = project_moments((rows.T @ rows).astype(np.float64), 2, True, np.finfo(np.float32).eps, 500)
    assert projection.rank == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_find_no_directions_in_the_rounding_of_features(dtype):
    generator, coarse = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, dtype, dtype))
    z = generator.standard_normal((2000, 10)) @ generator.standard_normal((10, 40))
    rows = np.column_stack([z.astype(coarse).astype(np.float64), np.ones(2000), generator.standard_normal((2000, 2))])
    eps, streamed = float(ml_dtypes.finfo(coarse).eps), StreamedQR(40, 2, True)
    streamed.update(rows[:, :40], rows[:, -2:])
    projection = project_moments(rows.T @ rows, 2, True, np.finfo(np.float32).eps, 2000, eps)
    assert projection.rank == streamed.project(eps).rank == 11
    assert projection.residual_share == pytest.approx(streamed.project(eps).residual_share, rel=1e-3)


def test_an_offset_of_one_feature_hides_no_others_in_moments_of_float32():
    generator, columns = np.random.default_rng(0), np.linalg.qr(np.random.default_rng(0).standard_normal((500, 8)))[0]
    columns[:, 1] = columns[:, 0] + 0.02 * columns[:, 1]  # an eigenvalue of a hundredth
    columns *= np.sqrt(500)
    labels = columns[:, 1:2] - columns[:, :1]
    for offset in (0, 50):
        far = generator.standard_normal((500, 1)) + offset
        rows = np.column_stack([columns, far, np.ones(500), labels]).astype("float32").astype(np.float64)
        projection = project_moments(rows.T @ rows, 1, True, np.finfo(np.float32).eps, 500)
        assert projection.rank == 10


@pytest.mark.parametrize("seed", range(25))
def test_an_alignment_from_sums_is_not_above_that_of_fractions(seed):
    """Whole numbers; one column is a sum of the others up to its last places, a direction that just counts."""
    generator = np.random.default_rng(seed)
    whole, extra = generator.integers(-50, 51, (40, 3)), generator.integers(-3, 4, 40)
    last = whole @ generator.integers(-3, 4, 3) + 2.0 ** -int(generator.integers(13, 18)) * extra
    labels = (extra + generator.integers(-3, 4, 40)).astype(float)[:, None]
    columns = np.column_stack([whole, last, np.ones(40)])
    rows = np.column_stack([columns, labels])
    projection = project_moments(rows.T @ rows, 1, True, np.finfo(float).eps, 40)
    left = left_of(fractions(columns), fractions(np.ones(40)), fractions(labels))
    centred = fractions(labels) - fractions(labels).sum() / 40
    assert projection.residual_share >= float((left**2).sum() / (centred**2).sum()) - 1e-12


def test_what_moments_leave_of_equal_labels_is_not_negative():
    for seed in range(300):
        generator = np.random.default_rng(seed)
        n = generator.integers(3, 60)
        label = np.full((n, 1), generator.standard_normal())
        rows = np.hstack([generator.standard_normal((n, 2)), np.ones((n, 1)), label])
        assert 0 <= project_moments(rows.T @ rows, 1, True, np.finfo(float).eps, n).residual_share <= 1


@pytest.mark.filterwarnings("error:overflow:RuntimeWarning")
@pytest.mark.parametrize("call", [alignment, keras_dal.certify, keras_dal.finish, keras_dal.converge])
def test_tiny_features_need_no_square_that_overflows(call):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 5)).astype("float32"), generator.integers(0, 3, 60)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    call(model, 1e-20 * x, y, verbose=0)


@pytest.mark.parametrize("weight", [1.0, 2.0**-20])
def test_the_largest_singular_value_from_moments_is_a_bound_in_any_unit_of_the_weights(weight):
    """By hand: beside a one, each of 2^20 squares of 2^-25 is lost in a sum in float32, and all of them are 2^-5."""
    n, lost = 2**20, np.float32(2.0**-25)
    assert np.float32(1.0) + lost == 1.0
    sums = weight * np.array([[1.0, 0.0, 0.0], [0.0, n, 0.0], [0.0, 0.0, 1.0]])
    projection = project_moments(sums, 1, False, np.finfo(np.float32).eps, n)
    assert projection.sigma_max**2 >= weight * (1 + n * 2.0**-25)


def moments_of(y, num_features, dtype):
    """Return sums in a dtype, the structure of a regressor, its loss, and the share of the labels by least squares."""
    generator, n = np.random.default_rng(0), len(y)
    x = generator.standard_normal((n, num_features))
    rows = np.column_stack([x, np.ones(n), y]).astype(dtype)
    structure = find_structure(keras.Sequential([keras.Input((num_features,)), layers.Dense(1)]))
    columns, centred = np.column_stack([x, np.ones(n)]), y - y.mean()
    residual = centred - columns @ linalg.lstsq(columns, centred)[0]
    return (rows.T @ rows).astype(np.float64), structure, np.sum(residual**2) / np.sum(centred**2)


def test_moments_that_have_lost_the_variation_of_labels_say_nothing():
    y = 2000 + 0.5 * np.random.default_rng(1).standard_normal(200)
    sums, structure, _ = moments_of(y, 6, "float32")
    loss = resolve_loss(keras.losses.MeanSquaredError())
    report = alignment_from_moments(sums, 200, structure, loss, eps=2.0**-23)
    assert np.isnan(report.alignment)
    assert np.isnan(report.residual_share_per_class).all()


def test_the_eps_of_moments_comes_with_them():
    y = 2000 + 0.5 * np.random.default_rng(1).standard_normal(200)
    sums, structure, share = moments_of(y, 6, "float64")
    loss = resolve_loss(keras.losses.MeanSquaredError())
    report = alignment_from_moments(sums, 200, structure, loss, eps=2.0**-52)
    assert report.residual_share == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(("offset", "is_bound"), [(0.0, False), (1e4, True)])
def test_moments_that_have_lost_the_variation_of_a_feature_bound_the_alignment_from_below(offset, is_bound):
    generator, loss = np.random.default_rng(0), resolve_loss(keras.losses.MeanSquaredError())
    x, y = generator.standard_normal((200, 3)), generator.standard_normal(200)
    for some in ([1], [0, 1, 2]):
        moved = np.isin(np.arange(3), some) * offset
        rows = np.column_stack([x + moved, np.ones(200), y]).astype("float32")
        structure = find_structure(keras.Sequential([keras.Input((3,)), layers.Dense(1)]))
        sums = (rows.T @ rows).astype(np.float64)
        report = alignment_from_moments(sums, 200, structure, loss, eps=2.0**-23)
        assert report.exact == (not is_bound)
        assert np.isnan(report.alignment) == (is_bound and len(some) == 3)


@cases.TENSORFLOW_TAKES_FLOAT64
@pytest.mark.parametrize("decide_separability", [True, False])
def test_labels_that_features_reach_in_their_last_place_alone_are_not_called_missed(decide_separability):
    """By hand: they are the difference of two features, which float64 takes for rounding."""
    generator = np.random.default_rng(0)
    first, y = 1 + generator.random(50), generator.integers(0, 2, 50).astype(float)
    x = np.column_stack([first, first + y * 2.0**-52])
    np.testing.assert_array_equal(x[:, 1] - x[:, 0], y * 2.0**-52)
    with cases.policy("float64"):
        model = keras.Sequential([keras.Input((2,), dtype="float64"), layers.Dense(1)])
    report = alignment(model, x, y[:, None], loss="mse", decide_separability=decide_separability)
    assert report.verdict != "not aligned"


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_labels_may_come_by_the_name_of_an_output(parameters):
    case = cases.CASES[0]
    model, x, y, weights = case.build(), case.inputs(N), case.labels(N), np.linspace(1, 2, N)
    named = alignment(model, x, {"out": y}, [weights], loss=case.loss, parameters=parameters)
    plain = alignment(model, x, y, weights, loss=case.loss, parameters=parameters)
    assert named.residual_share == plain.residual_share


def test_report_reads_well():
    case = cases.CASES[0]
    text = str(alignment(case.build(), case.inputs(N), case.labels(N), loss=case.loss))
    assert "rank 10 (62 reaches any labels)" in text
    assert "n = 31, m = 4, C = 3, P = 15" in text
    assert "decided by" in text


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_chance_is_the_mean_alignment_of_random_labels(use_bias, gated):
    generator, dense = np.random.default_rng(0), layers.Dense(3, use_bias=use_bias)
    model = keras.Sequential([layers.Input((4,)), GatedBranch(dense, 2, seed=0) if gated else dense])
    x = generator.standard_normal((30, 4)).astype("float32")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    draws = [np.eye(3)[generator.permutation(np.arange(30) % 3)] for _ in range(25)]
    found = [alignment(model, x, y, decide_separability=False, loss=loss, verbose=0) for y in draws]
    assert {report.chance for report in found} == {found[0].chance}
    assert np.mean([report.alignment for report in found]) == pytest.approx(found[0].chance, rel=0.15)
    assert f"about {found[0].chance:.2g}" in str(found[0])


def test_nothing_is_said_of_chance_of_a_single_sample():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    report = alignment(
        model, np.ones((1, 6), "float32"), np.ones(1, int), loss=keras.losses.SparseCategoricalCrossentropy(True)
    )
    assert report.chance is None
    assert "by chance" not in str(report)


def test_nothing_is_said_of_chance_where_samples_weigh_differently():
    """Labels of a few heavy samples are fitted by chance; by hand, of one sample that is nearly all, by the bias."""
    x, y = np.random.default_rng(0).standard_normal((30, 4)).astype("float32"), np.arange(30) % 3
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    report = alignment(model, x, y, np.where(np.arange(30) < 3, 50.0, 1.0), verbose=0)
    assert report.chance is None
    assert "by chance" not in str(report)
    assert alignment(model, x, y, np.full(30, 50.0), verbose=0).chance == pytest.approx(12 / 87)


class TestBadInput:
    """One sentence that says what to do, before any work."""

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            ({"y": np.full(N, 3)}, r"Integer labels must lie in 0..2"),
            ({"y": np.zeros(4, int)}, r"same number of samples.*\(31, 5\), \(4,\)"),
            ({"y": None}, "Labels are needed"),
            ({"x": np.zeros((0, 5)), "y": np.zeros(0)}, "at least one sample"),
            ({"x": np.zeros((N, 6))}, r"inputs of shape \(None, 5\)"),
            ({"x": iter([])}, "no samples"),
            ({"x": 3}, "iterable of batches"),
            ({"sample_weight": np.zeros(N)}, "positive weight"),
            ({"sample_weight": -np.ones(N)}, "not negative"),
            ({"sample_weight": np.ones(3)}, "same number of samples"),
            ({"loss": "mae"}, "supported losses"),
            ({"loss": "sparse_categorical_crossentropy"}, "from_logits=True"),
            ({"loss": None}, "Compile the model with a loss"),
            ({"parameters": "missing"}, "No layer of the model has this name"),
            ({"batch_size": 0}, "positive integer"),
        ],
        ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
    )
    def test_says_what_to_do(self, change, pattern):
        case = cases.CASES[0]
        arguments = {"x": case.inputs(N), "y": case.labels(N), "loss": case.loss, **change}
        if not hasattr(arguments["x"], "shape"):
            arguments["y"] = None
        with pytest.raises(ValueError, match=pattern) as error:
            alignment(case.build(), **arguments)
        assert "Received: " in str(error.value)

    def test_features_that_are_not_finite(self):
        case = cases.CASES[0]
        x = case.inputs(N)
        x[21, 0] = np.nan  # not among the samples that `find_structure` looks at
        with pytest.raises(ValueError, match=r"features must be finite.*Received: 4 such values"):
            alignment(case.build(), x, case.labels(N), loss=case.loss)


@pytest.mark.parametrize("call", [keras_dal.alignment, keras_dal.certify, keras_dal.converge, keras_dal.finish])
def test_labels_that_a_loss_does_not_take_are_refused_before_any_pass_over_the_data(call, monkeypatch):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).standard_normal((600, 4)).astype("float32"), np.arange(600) % 4
    calls, predicted = [], model.call
    monkeypatch.setattr(model, "call", lambda *args, **kwargs: calls.append(args) or predicted(*args, **kwargs))
    keras_dal.find_structure(model, x[:300])
    looks = len(calls)
    with pytest.raises(ValueError, match="Received"):
        call(model, x, y, verbose=0)
    assert len(calls) <= 2 * looks


@pytest.mark.parametrize("weights", [np.full(60, 5e-324), np.r_[np.full(30, 1e308), np.ones(30)]])
@pytest.mark.parametrize("call", [keras_dal.certify, keras_dal.converge])
def test_weights_whose_sum_no_number_holds_are_refused(call, weights):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).standard_normal((60, 4)).astype("float32")
    with pytest.raises(ValueError, match="Sample weights must have a sum that float64 holds"):
        call(model, x, np.arange(60) % 3, weights, verbose=0)
