"""The house: a floor imports only the floors below it, and movable libraries have one door each."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = (
    "figures",
    "trees",
    "synonyms",
    "suggestions",
    "fields",
    "settings",
    "files",
    "frames",
    "config",
    "data",
    "models",
    "gradients",
    "scoring",
    "generation",
    "training",
    "exchange",
    "track",
    "analysis",
    "sweeps",
    "report",
    "lecture",
    "experiment",
    "commands",
    "__main__",
)  # bottom up
DOORS = {
    "orbax": "lm_jax/training/arrays.py",
    "tensorflow_datasets": "lm_jax/data/tfds.py",
    "tokenizers": "lm_jax/data/bpe.py",
    "flax": "lm_jax/models/custom_cell.py",
    "rich": "lm_jax/report/terminal.py",
    "matplotlib": "lm_jax/figures/",
    "tyro": "lm_jax/commands/",
    "shtab": "lm_jax/commands/completion.py",
    "pandas": "lm_jax/frames.py",
    "polars": "lm_jax/frames.py",
    "ray": "lm_jax/sweeps/ray_nodes.py",
    "submitit": "lm_jax/sweeps/slurm.py",
    "optuna": "lm_jax/sweeps/optuna_search.py",
    "tensorboardX": "lm_jax/track.py",
    "wandb": "lm_jax/track.py",
    "safetensors": "lm_jax/exchange/torch_files.py",
}


FUNCTION = ast.FunctionDef | ast.ClassDef


def imports(path):
    """Every module that a file imports, and from it: `lm_jax.data.corpus`."""
    return imported_by(ast.parse(path.read_text()))


def imported_by(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(module):
    parts = module.split(".")
    return FLOORS.index(parts[1]) if parts[0] == "lm_jax" and parts[1:2] != [] else None


FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "lm_jax").rglob("*.py")
}


def test_a_floor_imports_only_floors_below_it():
    for name, path in FILES.items():
        if name == "lm_jax.__init__":
            continue
        for module in imports(path):
            if module.startswith("lm_jax."):
                assert floor_of(module) <= floor_of(name), (
                    f"{name} imports {module}, which stands above it in FLOORS: pass what it needs "
                    "as an argument, or move the function down"
                )


def test_no_test_imports_from_another():
    paths = [*(ROOT / "tests").rglob("*.py")]
    tests = {path.stem for path in paths if path.stem.startswith("test_")}
    for path in paths:
        found = tests & {module.partition(".")[0] for module in imports(path)}
        assert not found, (
            f"{path} imports {', '.join(found)}: move what both need into a module of tests/"
        )


def test_no_file_imports_its_way_round_in_a_circle():
    below = {
        name: {module for module in imports(path) if module in FILES}
        for name, path in FILES.items()
        if path.name != "__init__.py"
    }
    done = set()
    while len(done) < len(below):
        free = {name for name in below if name not in done and below[name] <= done}
        assert free, (
            f"a circle of imports among {sorted(set(below) - done)}: move what two of them share "
            "into a module that both import"
        )
        done |= free


def test_a_function_of_a_package_is_not_lost_behind_a_module_of_its_name():
    """Python binds a module to its name in its package when it is imported, whenever that is."""
    for name, path in FILES.items():
        if path.name != "__init__.py":
            continue
        package = name.removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != package:
                for alias in node.names:
                    module = f"{package}.{alias.name}"
                    assert module not in FILES or node.module == module, (
                        f"{name} takes {alias.name} from {node.module}, and {module} is a module: "
                        "rename the module or the function"
                    )


def test_a_library_that_moves_has_one_door():
    for path in [*(ROOT / "lm_jax").rglob("*.py"), ROOT / "run.py"]:
        for module in imports(path):
            door = DOORS.get(module.split(".")[0], "")
            assert path.relative_to(ROOT).as_posix().startswith(door), (
                f"{path} imports {module}: only {door} may; call a function there"
            )


def declared(name):
    """The modules that a requirements file stands for."""
    lines = (ROOT / name).read_text().splitlines()
    names = {line.split(">=")[0].strip() for line in lines if line and not line.startswith("#")}
    return {name.replace("-", "_").replace("orbax_checkpoint", "orbax") for name in names}


def declared_optional():
    return declared("requirements-sweeps.txt") | declared("requirements-track.txt")


def outside(modules):
    """The libraries among some modules, neither Python's own nor of the house."""
    top = {module.split(".")[0] for module in modules}
    return top - set(sys.stdlib_module_names) - {"lm_jax", "pydoc_data"}


def test_every_import_is_declared():
    """Two lists: what lm_jax needs, and what it can do without; none of both, none for nothing."""
    everywhere = [*FILES.values(), ROOT / "run.py"]
    imported = outside(module for path in everywhere for module in imports(path))
    needed, optional = declared("requirements.txt"), declared_optional()
    assert not needed & optional, (
        f"{needed & optional} stand in both requirements files: keep them in requirements.txt"
    )
    assert imported <= needed | optional, (
        f"{imported - needed - optional} are imported and not declared: add them to "
        "requirements.txt, or to requirements-sweeps.txt or -track.txt if lm_jax can do without"
    )
    assert optional <= imported, (
        f"nothing imports {optional - imported}: remove them from requirements-*.txt"
    )
    # Not imported: TFDS needs two and does not say so everywhere, and `jax.export` the third.
    unused = needed - imported - {"array_record", "importlib_resources", "flatbuffers"}
    assert not unused, f"nothing imports {unused}: remove them from requirements.txt"
    assert {"array_record", "importlib_resources"} <= needed - imported, (
        "array_record and importlib_resources must stay in requirements.txt for TFDS; if lm_jax "
        "now imports them, take them out of this test"
    )


def test_what_is_optional_is_imported_only_when_it_is_asked_for():
    optional = declared_optional()
    for path in [*FILES.values(), ROOT / "run.py"]:
        at_once = ast.Module(
            [node for node in ast.parse(path.read_text()).body if not isinstance(node, FUNCTION)],
            [],
        )
        found = outside(imported_by(at_once)) & optional
        assert not found, (
            f"{path} imports {found}, which may be missing: import them within the function that "
            "uses them"
        )


def test_nothing_is_pickled():
    """A pickle runs code when it is read: a file of another's could do anything."""
    for path in [*FILES.values(), ROOT / "run.py"]:
        assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {
            module.split(".")[0] for module in imports(path)
        }, f"{path} pickles: write JSON, or arrays by lm_jax.training.checkpoint"
        assert "allow_pickle=True" not in path.read_text(), f"{path} reads pickles"
