"""Writes examples/two_lines.ipynb from docs/notebook.md: one source for both.

python docs/notebook.py
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "notebook.md", ROOT / "examples" / "two_lines.ipynb"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def cells(page):
    """Yield the cells of a page: its text, and its blocks as code."""
    text = re.sub(r"<!--.*?-->\n", "", page, flags=re.DOTALL)  # what only the tests of the page need
    text = re.sub(r"^The same page as a notebook.*?\. ", "", text, flags=re.MULTILINE)
    end = 0
    for found in BLOCK.finditer(text):
        yield "markdown", text[end : found.start()]
        language, code = found.groups()
        yield "code", re.sub(r"^pip", "%pip", code, flags=re.MULTILINE) if language == "bash" else code
        end = found.end()
    yield "markdown", text[end:]


def notebook(page):
    """Return the notebook of a page, in format 4.5."""
    made = []
    for kind, source in cells(page):
        if source.strip():
            code = {"execution_count": None, "outputs": []} if kind == "code" else {}
            made.append(
                {"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}, "source": source.strip(), **code}
            )
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    metadata = {**kernel, "accelerator": "GPU", "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main():
    NOTEBOOK.write_text(json.dumps(notebook(PAGE.read_text()), indent=1) + "\n")


if __name__ == "__main__":
    main()
