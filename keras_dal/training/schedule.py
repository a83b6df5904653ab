"""When to average and when to switch: `Wrap(explore=..., average=...)` as epochs."""

EARLIEST, LATEST = 0.7, 0.8  # of all epochs, for explore="auto"
ALIGNED = 0.25  # an alignment from which the convex phase has enough to work with, for explore="auto"


class SwitchSchedule:
    """Says at which epochs the average of the weights begins and exploration ends.

    With `explore="auto"` the end is looked at once: where too little of the labels lies in the column space when
    exploration could end, representations are learned for a while longer, and the average begins anew.

    Args:
        explore: as in `Wrap`.
        average: as in `Wrap`.
        epochs: number of the last epoch of `fit`, counted from 0 whatever `initial_epoch` is.

    Attributes:
        switch: the epoch before which exploration ends; None where it does not.

    Raises:
        ValueError: a fraction of the epochs that leaves none to one of the phases.
    """

    def __init__(self, explore, average, epochs):
        self.switch: int | None = None
        self._latest: int | None = None  # while there is something to decide
        self._begin = 0  # of the average
        if explore is None:
            return
        share = EARLIEST if explore == "auto" else explore
        self.switch = explore if isinstance(explore, int) else round(share * epochs)
        if not (isinstance(explore, int) or 1 <= self.switch < epochs):
            raise ValueError(
                "Both phases need at least one epoch. Train for more epochs, or give `explore` as a number of epochs, "
                f"which may be reached by a later fit. Received: explore={explore!r}, epochs={epochs}"
            )
        self._begin = self.switch - (max(1, round(average * self.switch)) if average else 0)
        latest = min(round(LATEST * epochs), epochs - 1)
        if explore == "auto" and latest > self.switch:
            self._latest = latest

    def begin(self, epoch, has_decided):
        """Start with this epoch.

        Args:
            epoch: the first of the fit.
            has_decided: whether the average that a stopped fit left began when exploration was to go on.
        """
        if self._latest is not None and (epoch > self.switch or (epoch == self.switch and has_decided)):
            self._explore_on()

    def decides_after(self, epoch):
        """Return whether the alignment at the end of this epoch says when to switch."""
        return self._latest is not None and epoch + 1 == self.switch

    def decide(self, alignment):
        """Take the alignment at the end of that epoch, nan where it is not known, and return whether to explore on."""
        if alignment < ALIGNED:
            self._explore_on()
        else:
            self._latest = None
        return alignment < ALIGNED

    def _explore_on(self):
        self._begin, self.switch, self._latest = self.switch, self._latest, None

    def average_is_due(self, epoch):
        """Return whether the steps of this epoch belong to the average."""
        return self.switch is not None and self._begin <= epoch < self.switch

    def average_is_early(self, epoch):
        """Return whether steps before this epoch do not belong to the average."""
        return self.switch is not None and epoch <= self._begin

    def is_due(self, epoch):
        """Return whether the switch happens before this epoch."""
        return self.switch is not None and epoch >= self.switch

    def postpone(self):
        """Leave everything to exploration from now on."""
        self.switch = self._latest = None
