"""Two-phase training with a certificate: explore with any optimizer, then solve the convex rest."""

import importlib

from keras_dal.add_head import add_gated_head
from keras_dal.alignment import AlignmentReport, alignment
from keras_dal.certificate import Certificate, certify
from keras_dal.converge import converge
from keras_dal.gated import GatedBranch, GatedDense
from keras_dal.monitor import AlignmentMonitor
from keras_dal.result import Result
from keras_dal.structure import Structure, find_structure
from keras_dal.tangent import tangent_operator
from keras_dal.wrap import Wrap


def __getattr__(name):
    if name != "plots":  # matplotlib is an extra, so that it is imported when it is asked for
        raise AttributeError(f"module 'keras_dal' has no attribute {name!r}")
    return importlib.import_module("keras_dal.plots")


__all__ = [
    "AlignmentMonitor",
    "AlignmentReport",
    "Certificate",
    "GatedBranch",
    "GatedDense",
    "Result",
    "Structure",
    "Wrap",
    "add_gated_head",
    "alignment",
    "certify",
    "converge",
    "find_structure",
    "tangent_operator",
]
