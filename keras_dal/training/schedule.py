"""When to average and when to switch: `Wrap(explore=..., average=...)` as epochs."""

PATIENCE = 0.1  # of all epochs without a better alignment, for explore="auto"
EARLIEST, LATEST = 0.5, 0.8  # of all epochs, for explore="auto"
IMPROVEMENT = 1e-3  # of the alignment, that counts as one


class SwitchSchedule:
    """Says at which epochs the average of the weights begins and exploration ends.

    With `explore="auto"` the average begins when the alignment no longer improves, and the switch follows when it has
    had its share of the epochs.

    Args:
        explore: as in `Wrap`.
        average: as in `Wrap`.
        epochs: number of the last epoch of `fit`, counted from 0 whatever `initial_epoch` is.

    Raises:
        ValueError: a fraction of the epochs that leaves none to one of the phases.
    """

    def __init__(self, explore, average, epochs):
        self.switch: int | None = None
        self._auto, self._average, self._epochs = explore == "auto", average, epochs
        self._best, self._best_at = -1.0, 0
        self._patience = max(2, round(PATIENCE * epochs))
        if explore is None:
            return
        self.switch = explore if isinstance(explore, int) else round((LATEST if self._auto else explore) * epochs)
        if not (isinstance(explore, int) or 1 <= self.switch < epochs):
            raise ValueError(
                "Both phases need at least one epoch. Train for more epochs, or give `explore` as a number of epochs, "
                f"which may be reached by a later fit. Received: explore={explore!r}, epochs={epochs}"
            )

    def observe(self, epoch, alignment):
        """Takes the alignment measured at the end of an epoch; epochs without a measurement are not told."""
        if alignment > self._best + IMPROVEMENT:
            self._best, self._best_at = alignment, epoch
        waited = epoch - self._best_at
        if self._auto and waited >= self._patience and epoch + 1 >= EARLIEST * self._epochs:
            self.switch, self._auto = min(self.switch or self._epochs, epoch + 1 + self._window(epoch + 1)), False

    def _window(self, explored):
        """Return over how many epochs weights are averaged where so many are explored."""
        return max(1, round(self._average * explored)) if self._average else 0

    def average_is_due(self, epoch):
        """Return whether the steps of this epoch belong to the average."""
        return self.switch is not None and self.switch - self._window(self.switch) <= epoch < self.switch

    def average_is_early(self, epoch):
        """Return whether steps before this epoch do not belong to the average."""
        return self.switch is not None and epoch <= self.switch - self._window(self.switch)

    def is_due(self, epoch):
        """Return whether the switch happens before this epoch."""
        return self.switch is not None and epoch >= self.switch

    def postpone(self):
        """Leave everything to exploration from now on."""
        self.switch, self._auto = None, False
