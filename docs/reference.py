"""The API reference, made of the docstrings: a Sphinx extension of this site.

Each public package has a page in docs/api (ignored by git). The page goes through the modules that
define the names in the package's `__all__`: first the module's docstring, then the names.
Signatures and types read as in the source (`Float[Array, "T n"]`, `Params`), not as evaluated.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
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
    "exchange",
    "figures",
    "sweeps",
    "data",
    "config",
)


def heading(words: str, mark: str) -> list[str]:
    return [words, mark * len(words), ""]


def directive(name: str, argument: str, **options: str) -> list[str]:
    named = [f"   :{option.replace('_', '-')}: {value}" for option, value in options.items()]
    return [f".. {name}:: {argument}", *named, ""]


def indented(lines: list[str]) -> list[str]:
    return [f"   {line}" if line else "" for line in lines]


def ours(cls: type) -> bool:
    return cls.__module__.startswith("lm_jax.")


@functools.cache
def parsed(value: type | types.FunctionType) -> ast.ClassDef | ast.FunctionDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def fields(cls: type) -> dict[str, ast.AnnAssign]:
    """Return the annotated public fields of a class, without inherited fields."""
    return {
        node.target.id: node
        for node in parsed(cls).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }


def annotation(node: ast.AnnAssign) -> str:
    """Return the type of a field, without the marks for lm_jax itself."""
    said = node.annotation
    if isinstance(said, ast.Subscript) and ast.unparse(said.value) == "Annotated":
        assert isinstance(said.slice, ast.Tuple)
        said = said.slice.elts[0]
    return ast.unparse(said)


def class_entry(package: str, name: str, cls: type) -> list[str]:
    """Return the entry of a class: the docstring, the fields with types, the methods."""
    own, bases = fields(cls), [base for base in cls.__mro__[1:] if ours(base)]
    inherited = [field for base in bases for field in fields(base)]
    written = {node.name for node in parsed(cls).body if isinstance(node, ast.FunctionDef)}
    made = [name for name in vars(cls) if name not in written]  # Matplotlib adds a method `set`
    options = {"members": "", "exclude_members": ", ".join([*own, *inherited, *made])}
    if bases:
        options["show_inheritance"] = ""
    lines = directive("autoclass", f"{package}.{name}", **options)
    docs = ModuleAnalyzer.for_module(cls.__module__).find_attr_docs()
    for field, node in own.items():
        value = {} if node.value is None else {"value": ast.unparse(node.value)}
        words = escaped(docs.get((cls.__name__, field), []))
        entry = [*directive("attribute", field, type=annotation(node), **value), *indented(words)]
        lines += indented([*entry, ""])
    return lines


def aliases(package: str) -> dict[str, tuple[str, ast.expr]]:
    """Return the module and the value of each name assigned in a package's modules."""
    found = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        for node in ast.parse(ModuleAnalyzer.for_module(module.name).code).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = module.name, node.value
    return found


def page(package: str) -> str:
    """Return the page of a package, in reStructuredText."""
    module, assigned = importlib.import_module(package), aliases(package)
    by_module: dict[str, list[str]] = {package: []}
    above = []
    for name in module.__all__:
        value = getattr(module, name)
        where, entry = getattr(value, "__module__", package), []
        if package != "lm_jax" and getattr(lm_jax, name, None) is value:
            above.append(f"`lm_jax.{name}`")
        elif name in assigned:
            where, value = assigned[name]
            entry = directive("data", name, value=ast.unparse(value))
        elif inspect.isclass(value):
            entry = class_entry(package, name, value)
        elif callable(value):
            entry = directive("autofunction", f"{package}.{name}")
        by_module.setdefault(where, []).extend(entry)
    lines = [*heading(package, "="), *directive("automodule", package)]
    if above:
        lines += [f"See also {', '.join(above)}.", ""]
    lines += [*directive("currentmodule", package), *by_module.pop(package)]
    for where, entries in sorted(by_module.items()):
        if entries:
            lines += heading(where.removeprefix(f"{package}."), "-")
            lines += directive("automodule", where, no_index="")
            lines += [*directive("currentmodule", package), *entries]
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
        assert isinstance(node, ast.FunctionDef)
        arguments = node.args
        if what == "method" and not isinstance(value, staticmethod):
            first = arguments.posonlyargs or arguments.args
            first[:] = [one for one in first if one.arg not in ("self", "cls")]
        return f"({ast.unparse(arguments)})", node.returns and ast.unparse(node.returns)
    if what == "class" and shown:
        known = {}
        for base in reversed(value.__mro__):
            if ours(base):
                known |= {field: node.value for field, node in fields(base).items()}
        words, keyword = [], False
        for one in inspect.signature(value).parameters.values():
            if one.kind is one.KEYWORD_ONLY and not keyword:
                words, keyword = [*words, "*"], True
            default = known.get(one.name)
            given = f"={ast.unparse(default)}" if default and one.default is not one.empty else ""
            words.append(one.name + given)
        return f"({', '.join(words)})", None
    return None


def escaped(lines: list[str]) -> list[str]:
    """Make indented formulas of a docstring literal blocks, and |x| the length of x."""
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
