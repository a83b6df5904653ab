"""What the batches of a fit are used for."""

import enum


class Stage(enum.Enum):
    """Where `AlignmentMonitor` is in its fit."""

    BEGINS = "no step was taken yet"
    EXPLORES = "steps train everything"
    DESCENDS = "steps train the linear parameters"
    READS = "batches are read for the convex phase, to SOLVED or WAITS"
    WAITS = "the reading failed, and exploration goes on with the next epoch"
    SOLVED = "the head is solved, and the epoch is not over"
    OVER = "nothing is left to do, and training is to stop"
