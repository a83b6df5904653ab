"""The change of the feature kernel, as its definition says."""

import keras
import numpy as np
import pytest

from keras_dal.features.tracing import to_numpy
from keras_dal.models.find_structure import find_structure
from keras_dal.training.kernel_change import NUM_PROBES, KernelChange, kernel_change, some_samples


@pytest.mark.parametrize("size", [1e-7, 1.0])
def test_kernel_change_equals_its_definition(size):
    generator = np.random.default_rng(0)
    start = generator.standard_normal((20, 4))
    now = start + size * generator.standard_normal((20, 4))
    expected = np.linalg.norm(now @ now.T - start @ start.T) / np.linalg.norm(start @ start.T)
    assert kernel_change(now, start) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"Received: features of shapes \(20, 4\) and \(20, 3\)"):
        kernel_change(now, start[:, 1:])


@pytest.mark.parametrize("size", [1e-200, 1e-90, 1.0, 1e80, 1e200])
@pytest.mark.parametrize("rows", [3, 30])
def test_kernel_change_holds_in_any_unit(size, rows):
    start = size * np.random.default_rng(0).standard_normal((rows, 4))
    assert kernel_change(2 * start, start) == pytest.approx(3, rel=1e-6)


def test_the_start_is_looked_at_without_a_trace_in_the_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    structure = find_structure(model)
    change, start = KernelChange(structure), structure.features(x)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    moved = [to_numpy(variable).copy() for variable in model.variables]
    assert change.measure(x) == pytest.approx(kernel_change(structure.features(x), start), rel=1e-5)
    for variable, value in zip(model.variables, moved, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


@pytest.mark.parametrize("count", [1, NUM_PROBES - 1, NUM_PROBES, 2 * NUM_PROBES - 1, 3 * NUM_PROBES + 1])
def test_the_samples_are_of_all_rows(count):
    rows = np.arange(count)[:, None]
    found = some_samples((rows, keras.ops.convert_to_tensor(rows)))
    assert min(count, NUM_PROBES) / 2 < len(found[0]) <= NUM_PROBES
    assert found[0][-1] - found[0][0] >= (1 - 2 / NUM_PROBES) * (count - 1) - 1
    np.testing.assert_array_equal(found[0], to_numpy(found[1]))
