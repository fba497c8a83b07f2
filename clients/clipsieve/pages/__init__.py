"""Parts that pages share, and their way into one file: a page names its stylesheets and scripts, and they are put in.

    <style>{{base.css gallery.css report.css}}</style>
    <script>{{elements.js gallery.js report.js}}</script>

A name is looked for beside the page, then here. The elements are the only ones that may run: a page's
Content-Security-Policy names them by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

_FILES = re.compile(r"\{\{((?:[\w-]+\.(?:css|js)\s*)+)\}\}")


def assembled_page(package: str, name: str) -> str:
    """The text of a package's page with the files that it names inside."""
    folders = resources.files(package), resources.files(__name__)

    def text(file: str) -> str:
        folder = next(folder for folder in folders if (folder / file).is_file())
        return (folder / file).read_text(encoding="utf-8")

    page = (folders[0] / name).read_text(encoding="utf-8")
    return _FILES.sub(lambda match: "\n" + "\n".join(map(text, match[1].split())), page)


def element_hashes(page: str, element: str) -> str:
    """The page's own `style` or `script` elements, as a policy names them."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
