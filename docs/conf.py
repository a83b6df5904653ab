"""Sphinx settings of the site: everything it shows is built here, and nothing is fetched when it is read."""

import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.inspect import stringify_signature

import keras_dal

project = "keras_dal"
version = release = keras_dal.__version__
copyright = "the keras_dal contributors, Apache License 2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "runs"]
default_role = "code"  # docstrings write `code` with single backticks

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the generated tables begin where a page would

autodoc_typehints = "none"  # the docstrings say more than the annotations
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

highlight_language = "none"  # of blocks that name no language: what is printed, and commands

html_theme = "furo"
html_title = f"keras_dal {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False


def _inline_math(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    _skip()


def _display_math(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    _skip()


def _skip():
    from docutils.nodes import SkipNode

    raise SkipNode


def _tex_in_docstrings(app, what, name, obj, options, lines):
    """Docstrings have their mathematics between backslashed parentheses, as Markdown does."""
    lines[:] = [re.sub(r"\\\(\s*(.+?)\s*\\\)", r":math:`\1`", line) for line in lines]


def _public_signature(app, what, name, obj, options, signature, return_annotation):
    """The arguments of a layer, which Keras hides behind `*args`, and of a record only those without an underscore."""
    if what != "class" or not signature:
        return None
    if issubclass(obj, keras.layers.Layer):
        found = inspect.signature(obj.__init__)
        kept = [each for each in found.parameters.values() if each.name != "self"]
    elif not dataclasses.is_dataclass(obj):
        return None
    else:
        found = inspect.signature(obj)
        kept = [each for each in found.parameters.values() if not each.name.startswith("_")]
    return stringify_signature(found.replace(parameters=kept), show_annotation=False), return_annotation


def setup(app):
    # browsers draw MathML by themselves: no MathJax, which would come from another server
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.connect("autodoc-process-docstring", _tex_in_docstrings)
    app.connect("autodoc-process-signature", _public_signature)
