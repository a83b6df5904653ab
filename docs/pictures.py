"""Draws the pictures of docs/start.md into docs/images, by the code that the page shows.

python docs/pictures.py
"""

import os
import shutil
import tempfile
from pathlib import Path

from notebook import BLOCK

DOCS = Path(__file__).parent
PICTURES = {"curves.png": "digits_curves.png", "path.png": "digits_path.png"}


def main():
    page, before = (DOCS / "start.md").read_text(), Path.cwd()
    code = "\n".join(code for language, code in BLOCK.findall(page) if language == "python")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(code, "docs/start.md", "exec"), {"__name__": "__main__"})
        os.chdir(before)
        for drawn, kept in PICTURES.items():
            shutil.copy(Path(folder) / drawn, DOCS / "images" / kept)


if __name__ == "__main__":
    main()
