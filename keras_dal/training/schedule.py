"""When to switch: `Wrap(explore=...)` as an epoch."""

PATIENCE = 0.1  # of all epochs without a better alignment, for explore="auto"
LATEST = 0.8  # of all epochs, for explore="auto"
IMPROVEMENT = 1e-3  # of the alignment, that counts as one


class SwitchSchedule:
    """Says at which epoch exploration ends.

    Args:
        explore: as in `Wrap`.
        epochs: number of the last epoch of `fit`, counted from 0 whatever `initial_epoch` is.

    Raises:
        ValueError: a fraction of the epochs that leaves none to one of the phases.
    """

    def __init__(self, explore, epochs):
        self._epoch: int | None = None
        self._auto = explore == "auto"
        self._best, self._waited = -1.0, 0
        self._patience = max(2, round(PATIENCE * epochs))
        if isinstance(explore, int):
            self._epoch = explore
            return
        if explore is None:
            return
        self._epoch = round((LATEST if self._auto else explore) * epochs)
        if not 1 <= self._epoch < epochs:
            raise ValueError(
                "Both phases need at least one epoch. Train for more epochs, or give `explore` as a number of epochs, "
                f"which may be reached by a later fit. Received: explore={explore!r}, epochs={epochs}"
            )

    def observe(self, alignment):
        """Takes the alignment measured at the end of an epoch."""
        if alignment > self._best + IMPROVEMENT:
            self._best, self._waited = alignment, 0
        else:
            self._waited += 1

    def is_due(self, epoch):
        """Return whether the switch happens before this epoch."""
        if self._epoch is None:
            return False
        return epoch >= self._epoch or (self._auto and epoch > 0 and self._waited >= self._patience)
