"""The change of the feature kernel, as its definition says."""

import numpy as np
import pytest

from keras_dal.training.kernel_change import kernel_change


@pytest.mark.parametrize("size", [1e-7, 1.0])
def test_kernel_change_equals_its_definition(size):
    generator = np.random.default_rng(0)
    start = generator.standard_normal((20, 4))
    now = start + size * generator.standard_normal((20, 4))
    expected = np.linalg.norm(now @ now.T - start @ start.T) / np.linalg.norm(start @ start.T)
    assert kernel_change(now, start) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"Received: features of shapes \(20, 4\) and \(20, 3\)"):
        kernel_change(now, start[:, 1:])
