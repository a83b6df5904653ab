"""When to average and when to switch: `Wrap(explore=..., average=...)` as epochs."""

import enum

LOOK, EARLIEST, LATEST = 0.6, 0.71, 0.8  # of all epochs, for explore="auto"; what follows takes a few per cent
ENOUGH = 0.25  # an alignment from which the convex phase has enough to work with, for explore="auto"


class Decision(enum.IntEnum):
    """What `explore="auto"` has decided."""

    NONE = 0
    EARLIEST = 1
    LATEST = 2


class SwitchSchedule:
    """Says at which epochs the average of the weights begins and exploration ends.

    The average begins a while before, so the switch is known ahead. With `explore="auto"` the alignment is looked at
    once, after 0.6 of the epochs, or as the average begins where that is earlier: where too little of the labels lies
    in the column space, representations are learned for a while longer.

    Args:
        explore: as in `Wrap`.
        average: as in `Wrap`.
        epochs: number of the last epoch of `fit`, counted from 0 whatever `initial_epoch` is.
        first: epoch with which the optimizer began, from which shares of the epochs are counted where two are left.

    Attributes:
        switch: the epoch before which exploration ends; None where it does not.

    Raises:
        ValueError: a fraction of the epochs that leaves none to one of the phases.
    """

    def __init__(self, explore, average, epochs, first=0):
        self.switch: int | None = None
        self._average, self._epochs, self._has_tried_again = average, epochs, False
        self._first = first = first if epochs - first > 1 else 0
        of_all = epochs - first
        self._look: int | None = None  # while there is something to decide
        self._averaged_until: int | None = None  # epochs
        self._latest = first + min(round(LATEST * of_all), of_all - 1)
        if explore is None:
            return
        if not isinstance(explore, int) and of_all < 2:
            raise ValueError(
                "Both phases need at least one epoch. Train for more epochs, or give `explore` as a number of epochs, "
                f"which may be reached by a later fit. Received: explore={explore!r}, epochs={epochs}"
            )
        share = EARLIEST if explore == "auto" else explore
        after = min(max(1, round(share * of_all)), of_all - 1)  # whole epochs, one at least for each phase
        self.switch = explore if isinstance(explore, int) else first + after
        self._averaged_until = self.switch
        if explore == "auto" and self._latest > self.switch:
            self._look = max(first + 1, min(first + round(LOOK * of_all), self._begin))

    @classmethod
    def never(cls):
        """Return the schedule of a fit that does not switch."""
        return cls(None, 0, 1)

    @classmethod
    def begun(cls, average, epochs, first, epoch):
        """Return the schedule of a fit whose optimizer had switched before this epoch, with which it begins.

        Args:
            average, epochs, first: as for the class, for the exploration where the second phase fails.
            epoch: its number.
        """
        schedule = cls(None, average, epochs, first)
        schedule.switch = epoch
        return schedule

    def resume(self, epoch, decision):
        """Take over what an earlier fit has decided, where this one begins after that; return what holds of it."""
        if self._look is None:  # nothing is to be decided
            return decision
        if epoch < self._look:
            return Decision.NONE
        if decision:
            self._take(decision)
        return decision

    def decides_after(self, epoch):
        """Return whether the alignment at the end of this epoch says when to switch; a resumed fit may look late."""
        return self._look is not None and self.switch is not None and self._look <= epoch + 1 <= self.switch

    def decide(self, alignment):
        """Take the alignment, nan where it is not known, and return the `Decision`."""
        decision = Decision.LATEST if alignment < ENOUGH else Decision.EARLIEST
        self._take(decision)
        return decision

    def _take(self, decision):
        self._look = None
        if decision == Decision.LATEST:
            self.switch = self._averaged_until = self._latest

    @property
    def _begin(self):
        """The first epoch of the average."""
        until = self._averaged_until
        return until - (max(1, round(self._average * (until - self._first))) if self._average else 0)

    def average_is_due(self, epoch):
        """Return whether the steps of this epoch belong to the average."""
        return self._averaged_until is not None and self._begin <= epoch < self._averaged_until

    def average_is_early(self, epoch):
        """Return whether steps before this epoch do not belong to the average."""
        return self._averaged_until is not None and epoch <= self._begin

    def is_due(self, epoch):
        """Return whether the switch happens before this epoch."""
        return self.switch is not None and epoch >= self.switch

    def tries_again_after(self, epoch):
        """Return whether a switch that failed in this epoch is due with the next one: once."""
        again = not self._has_tried_again and self.is_due(epoch + 1) and epoch + 1 < self._epochs
        self._has_tried_again |= again
        return again

    def postpone(self):
        """Leave everything to exploration from now on, whose last epochs are averaged in place of those so far."""
        self.switch, self._look, self._averaged_until = None, None, self._epochs
