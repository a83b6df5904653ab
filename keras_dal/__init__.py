"""Two-phase training with a certificate: explore with any optimizer, then solve the convex rest."""

from keras_dal.monitor import AlignmentMonitor
from keras_dal.structure import find_structure
from keras_dal.wrap import Wrap

__all__ = ["AlignmentMonitor", "Wrap", "find_structure"]
