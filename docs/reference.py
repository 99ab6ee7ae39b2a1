"""The API reference, made of the docstrings: a Sphinx extension of this site.

For each public package there is a page in docs/api (ignored by git): under the module that defines
a name, the module's docstring and the entries of the names in the package's `__all__`. Signatures
and types stand there as in the source (`Float[Array, "T n"]`, `Params`), not as evaluated.
"""

import ast
import functools
import importlib
import inspect
import textwrap
import types
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import lm_jax

API = Path(__file__).parent / "api"
PACKAGES = (
    "gradients",
    "models",
    "analysis",
    "scoring",
    "generation",
    "sweeps",
    "data",
    "config",
)


def heading(words: str, mark: str) -> list[str]:
    return [words, mark * len(words), ""]


def directive(name: str, argument: str, **options: str) -> list[str]:
    named = [f"   :{option.replace('_', '-')}: {value}" for option, value in options.items()]
    return [f".. {name}:: {argument}", *named, ""]


@functools.cache
def parsed(value: type | types.FunctionType) -> ast.ClassDef | ast.FunctionDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def fields(cls: type) -> dict[str, ast.AnnAssign]:
    """Return the annotated public fields in a class's own body, by name."""
    return {
        node.target.id: node
        for node in parsed(cls).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }


def class_entry(package: str, name: str, cls: type) -> list[str]:
    """Return the entry of a class: its docstring, each field with its type, and its methods."""
    own = fields(cls)
    ours = [base for base in cls.__bases__ if base.__module__.startswith("lm_jax")]
    options = {"members": "", "exclude_members": ", ".join(own)}
    lines = directive(
        "autoclass", f"{package}.{name}", **options, **({"show_inheritance": ""} if ours else {})
    )
    docs = ModuleAnalyzer.for_module(cls.__module__).find_attr_docs()
    for field, node in own.items():
        value = {} if node.value is None else {"value": ast.unparse(node.value)}
        entry = directive("attribute", field, type=ast.unparse(node.annotation), **value)
        words = docs.get((cls.__name__, field), [])
        lines += [f"   {line}" for line in [*entry, *(f"   {one}" for one in escaped(words)), ""]]
    return lines


def entry(package: str, name: str) -> list[str]:
    """Return the entry of a public name of a package, in reStructuredText."""
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value):
        return class_entry(package, name, value)
    function = inspect.isfunction(inspect.unwrap(value)) if callable(value) else False
    return directive("autofunction" if function else "autodata", f"{package}.{name}")


def page(package: str) -> str:
    """Return the page of a package: for each module, its docstring and its public names."""
    module = importlib.import_module(package)
    lines = [*heading(package, "="), *directive("automodule", package)]
    by_module: dict[str, list[str]] = {}
    above = []
    for name in module.__all__:
        value = getattr(module, name)
        if package != "lm_jax" and getattr(lm_jax, name, None) is value:
            above.append(f"`lm_jax.{name}`")
        elif name != "__version__" and not isinstance(value, types.ModuleType):
            by_module.setdefault(getattr(value, "__module__", package), []).append(name)
    if above:
        lines += [f"See also {', '.join(above)}.", ""]
    for where, names in sorted(by_module.items(), key=lambda pair: (pair[0] != package, pair[0])):
        if where.startswith(f"{package}."):
            lines += heading(where.removeprefix(f"{package}."), "-")
            lines += directive("automodule", where, no_index="")
        lines += directive("currentmodule", package)
        for name in names:
            lines += entry(package, name)
    return "\n".join(lines)


def write_pages(app) -> None:
    API.mkdir(exist_ok=True)
    for package in ("lm_jax", *(f"lm_jax.{name}" for name in PACKAGES)):
        path, text = API / f"{package}.rst", page(package)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")  # Sphinx reads only the pages that changed


def signature(app, what, name, value, options, shown, returns):
    """Return the signature in the words of the source; of a class, without the types."""
    if what in ("function", "method"):
        node = parsed(inspect.unwrap(getattr(value, "__func__", value)))
        arguments = node.args
        if what == "method" and not isinstance(value, staticmethod):
            first = arguments.posonlyargs or arguments.args
            first[:] = [one for one in first if one.arg not in ("self", "cls")]
        return f"({ast.unparse(arguments)})", node.returns and ast.unparse(node.returns)
    if what == "class" and shown:
        known = {}
        for base in reversed(value.__mro__):
            if base.__module__.startswith("lm_jax"):
                known |= {field: node.value for field, node in fields(base).items()}
        parameters = inspect.signature(value).parameters.values()
        words, keyword = [], False
        for one in parameters:
            if one.kind is one.KEYWORD_ONLY and not keyword:
                words, keyword = [*words, "*"], True
            default = known.get(one.name)
            given = f"={ast.unparse(default)}" if default and one.default is not one.empty else ""
            words.append(one.name + given)
        return f"({', '.join(words)})", None
    return None


def escaped(lines: list[str]) -> list[str]:
    """Show an indented formula of a docstring as it is, and |x| as the length of x."""
    shown: list[str] = []
    above, formula = "", False
    for line in lines:
        if line and not line.startswith(" "):
            formula = False
        elif line.startswith("    ") and above[:1] not in ("", " ", ":", ".", "-", "*"):
            if not shown[-1]:
                shown, formula = [*shown, "::", ""], True
        shown.append(line if formula else line.replace("|", r"\|"))
        above = line or above
    return shown


def before_napoleon(app, what, name, value, options, lines: list[str]) -> None:
    """Keep a property's docstring whole: Napoleon takes the words before a colon for a type."""
    if what in ("attribute", "data", "property"):
        lines[:] = ["..", "", *lines]  # an empty comment


def after_napoleon(app, what, name, value, options, lines: list[str]) -> None:
    lines[:] = escaped(lines)


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    return {"parallel_read_safe": True}
