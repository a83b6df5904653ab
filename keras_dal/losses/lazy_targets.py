"""Targets that are made from labels when they are asked for."""


class LazyTargets:
    """What a loss takes for labels, a few rows at a time: n x C numbers never exist at once.

    Args:
        loss: a `losses.Loss`.
        labels: as Keras takes them, `(n, ...)`.
        num_outputs: C.
    """

    def __init__(self, loss, labels, num_outputs):
        self._loss, self._labels, self._num_outputs = loss, labels, num_outputs

    def __getitem__(self, rows):
        return self._loss.targets(self._labels[rows], self._num_outputs)
