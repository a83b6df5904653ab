"""The two lines in `compile` and `fit`, on whatever backend is set."""

import keras
import pytest
from fits import Snapshots, compiled, fit, images, moved

import keras_dal


def test_two_lines(capsys):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=0.5, finish="descend"))
    snapshots = Snapshots()
    history = fit(model, 4, [keras_dal.AlignmentMonitor(), snapshots], validation_data=images(seed=1))
    taken = snapshots.taken
    assert {"conv/kernel", "norm/moving_mean", "logits/kernel"} <= moved(taken[0], taken[2])
    assert moved(taken[2], taken[4]) == {"logits/kernel", "logits/bias"}
    assert history["phase"] == [0, 0, 1, 1]
    assert all(0 <= value <= 1 for value in history["alignment"])
    assert history["alignment_rank"] == [14] * 4  # six features and a bias, for three outputs less a constant for all
    assert history["kernel_change"][0] > 0
    assert history["kernel_change"][1] == history["kernel_change"][3]
    assert history["alignment"][2] == pytest.approx(history["alignment"][3], abs=1e-6)  # features no longer change
    printed = capsys.readouterr().out
    assert "exploitation begins at epoch 3 of 4" in printed
    assert "logits/kernel, logits/bias (21 parameters)" in printed
