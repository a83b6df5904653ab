"""What epochs add to their logs, by the names that callbacks, histories and plots know."""

import numpy as np

ALIGNMENT, PHASE = "alignment", "phase"


def as_alignment(report=None):
    """Return an `AlignmentReport` by the names of the logs; NaN without one."""
    return {
        ALIGNMENT: np.nan if report is None else report.alignment,
        "alignment_rank": np.nan if report is None else report.rank,
    }


def as_change(value=np.nan):
    """Return the kernel change by its name."""
    return {"kernel_change": value}


def as_phase(explores):
    """Return which phase it is: 0 while exploring, 1 after the switch."""
    return {PHASE: float(not explores)}
