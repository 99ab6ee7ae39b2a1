"""The documentation site: `make docs` builds docs/_build/html from the pages beside this file.

README.md, CONTRIBUTING.md and CHANGELOG.md stay at the top of the repository, and the site shows
them as pages, too. reference.py makes the API reference.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from lm_jax import __version__ as release  # noqa: E402
from lm_jax.report.page import with_dark_colours  # noqa: E402

project = "lm_jax"
author = "The lm_jax authors"
version = release
copyright = "2026, the lm_jax authors, under the Apache License 2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "reference",
]
exclude_patterns = ["_build"]
nb_execution_mode = "cache"  # a notebook runs again if its cells have changed
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
highlight_language = "none"  # of a block that names none: commands, output, formulas
default_role = "py:obj"  # a name in backticks is a link if the site has an entry of that name
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

pygments_dark_style = "github-dark"
html_theme = "furo"
html_title = "lm_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

INK, BLUE, FONTS = "#1c1c1c", "#1f6fb2", "system-ui, sans-serif"
html_theme_options = {
    "light_css_variables": {
        "font-stack": FONTS,
        "font-stack--headings": FONTS,
        "code-font-size": "0.77rem",
        "color-foreground-primary": INK,
        "color-brand-primary": BLUE,
        "color-brand-content": BLUE,
        "color-brand-visited": BLUE,
        "color-api-name": INK,
        "color-api-pre-name": INK,
    },
    "dark_css_variables": {
        "color-brand-primary": "#6db3ee",
        "color-brand-content": "#6db3ee",
        "color-brand-visited": "#6db3ee",
        "color-api-name": "#f2f2f2",
        "color-api-pre-name": "#f2f2f2",
    },
}

TOP_PAGES = {"readme": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}


def read_page(app, page: str, source: list[str]) -> None:
    """Fill in the pages of the top, and lead all links to these pages into the site."""
    top = page in TOP_PAGES
    if top:
        file = DOCS.parent / TOP_PAGES[page]
        app.env.note_dependency(str(file))
        source[0] = file.read_text(encoding="utf-8")
    parts = re.split(r"(^```.*?^```$)", source[0], flags=re.MULTILINE | re.DOTALL)
    for at in range(0, len(parts), 2):  # between the blocks of code
        if top:
            parts[at] = re.sub(r"\]\((?!https?:|#)", "](../", parts[at]).replace("](../docs/", "](")
        for name, file in TOP_PAGES.items():
            parts[at] = parts[at].replace(f"](../{file}", f"]({name}.md")
    source[0] = "".join(parts)


def darken_figures(app, error: Exception | None) -> None:
    """Give the figures that a notebook has drawn the dark colours that a run's figures have."""
    for path in Path(app.outdir, "_images").glob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        if "prefers-color-scheme" not in svg:
            path.write_text(with_dark_colours(svg), encoding="utf-8")


def setup(app) -> None:
    app.connect("source-read", read_page)
    app.connect("build-finished", darken_figures)
