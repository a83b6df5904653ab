"""Two-phase training with a certificate: explore with any optimizer, then solve the convex rest."""

import importlib

try:
    import keras  # noqa: F401
except ModuleNotFoundError as error:
    if str(error.name).split(".")[0] not in ("tensorflow", "jax", "torch"):
        raise
    raise ModuleNotFoundError(
        "Keras needs a backend: pip install tensorflow, or set KERAS_BACKEND to jax or torch where one of these is "
        f"installed. Received: {error}",
        name=error.name,
    ) from error

from keras_dal.analysis.alignment import alignment
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify
from keras_dal.analysis.reports import AlignmentReport, WidthCurve
from keras_dal.analysis.width import width_curve
from keras_dal.finishing.converge import converge
from keras_dal.finishing.evaluation import Quality
from keras_dal.finishing.history import Point
from keras_dal.finishing.result import Result
from keras_dal.finishing.stopping import Ending
from keras_dal.models.add_head import add_gated_head
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch, GatedDense
from keras_dal.models.structure import Structure
from keras_dal.models.tangent import tangent_operator
from keras_dal.training.finish import finish
from keras_dal.training.monitor import AlignmentMonitor
from keras_dal.training.wrap import Wrap

__version__ = "0.1.0.dev0"


def __getattr__(name):
    if name != "plots":  # matplotlib is an extra, so that it is imported when it is asked for
        raise AttributeError(f"module 'keras_dal' has no attribute {name!r}")
    try:
        return importlib.import_module("keras_dal.plots")
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            f"keras_dal.plots needs matplotlib: pip install 'keras_dal[plots]'. Received: {error}", name=error.name
        ) from error


__all__ = [
    "AlignmentMonitor",
    "AlignmentReport",
    "Certificate",
    "Ending",
    "GatedBranch",
    "GatedDense",
    "Point",
    "Quality",
    "Result",
    "Structure",
    "WidthCurve",
    "Wrap",
    "add_gated_head",
    "alignment",
    "certify",
    "converge",
    "find_structure",
    "finish",
    "tangent_operator",
    "width_curve",
]
