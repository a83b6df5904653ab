"""Which samples an interpolation moves and holds, round by round, and which it leaves where they are."""

import numpy as np

_KEPT = 0.1  # part of its margin that a sample keeps, or else it joins in the next round
_JOINED = 0.5  # the same of those that join then, so that few rounds are needed
_GENEROUS = 0.25  # cost of all samples, relative to the mean square of the logits' gaps, up to which none is left
_DEAR = 30.0  # cost of one that is left, in parts of that mean square over n: far above what one costs otherwise
_CHEAPER = 0.5  # by which that falls whenever samples are left, so that this is soon over


class Moves:
    """Moves samples to the nearest logits with a wanted margin.

    Samples that lose their margin on the way join and are held where they were. With `alpha` the multipliers of all
    moves so far, sample i accounts for `moves_i . alpha_i` of the minimum. Samples with nearly equal features and
    different labels, whether a label is wrong or the network tells them not apart, can account for more than all others
    together, and for changes everywhere else: such ones are left.

    Args:
        solver: an `Interpolation`.
        held: the `CachedJacobian` of its mixture on the anchors that it holds.
        criterion: an `objectives.Separation` with the wanted margin.
        margins: function of logits `(n, C)` that returns margins `(n,)`.
        start: logits `(n, C)` from which samples are moved.
        square: mean square of the gaps between these logits.
        num_free: samples that the mixture has independent columns for, at most.
    """

    def __init__(self, solver, held, criterion, margins, start, square, num_free):
        self.solver, self._held, self._margins, self._start = solver, held, margins, start
        self._num_free = num_free
        self._delta, self._wanted = criterion.delta, criterion.nearest(start)
        self._square, self._dear = square, _DEAR * square / len(start)
        self.spared = np.zeros(len(start), bool)
        self._begin()

    def _begin(self):
        self.solver.clear()
        self.solver.hold(self._held)
        self._multipliers = np.zeros(self._start.shape)

    def are_made(self, logits):
        """Return whether every sample, those that are left aside, keeps a part of its margin."""
        return np.min(self._margins(logits), initial=np.inf, where=~self.spared) >= _KEPT * self._delta

    def change(self, logits):
        """Return the change `(P,)` that moves what has come to these logits to where it should be.

        Returns:
            The change, or None where samples were left: then the moves begin again at the start, without them.

        Raises:
            np.linalg.LinAlgError: as for `Interpolation.extend`.
        """
        enough = self._delta if len(self.solver.chosen) == 0 else _JOINED * self._delta
        short = np.flatnonzero((self._margins(logits) < enough) & ~self.spared)
        self.solver.extend(np.setdiff1d(short, self.solver.chosen))
        chosen = self.solver.chosen
        change, multipliers = self.solver.change((self._wanted - logits)[chosen])
        self._multipliers[chosen] += multipliers
        contradicting = self._contradicting()
        if not contradicting.any():
            return change
        self.spared |= contradicting
        self._dear *= _CHEAPER
        self._begin()
        return None

    def _contradicting(self):
        """Return which samples cost too much, of those that were wrong at the start."""
        if not 0 < len(self.solver.chosen) <= self._num_free:
            return np.zeros_like(self.spared)  # it is the mixture that is too small
        costs = np.sum((self._wanted - self._start) * self._multipliers, axis=1)
        if np.sum(costs) <= _GENEROUS * self._square:
            return np.zeros_like(self.spared)
        return (costs > self._dear) & (self._margins(self._start) <= 0)
