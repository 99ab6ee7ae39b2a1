"""Compile the main programs for an H100 and a TPU v5e, without a device, and count their work.

    python -m benchmarks.compiled [--target h100 v5e] [--devices 1 4] [--rows PATTERN]
                                  [--loops] [--folder DIR]

The compilers come with the packages in benchmarks/requirements-compiled.txt (several gigabytes),
best in an environment of their own. Nothing is timed but the compilation. A line for each program:

- operations of the forward and of the backward loop, for each time step, all layers together; on a
  GPU an operation is a kernel or a copy (`benchmarks.hlo`);
- launches for the same; a CUDA graph is one launch, and a loop inside a graph has none
  (`benchmarks.thunks`). Operations and launches of a whole call: of one update, if the program is
  a loop of updates; 0 launches, if a graph holds this loop, too;
- pads, and operations that only copy or transpose, in the loops over time, for each time step;
- collectives of a call, and those of them that stand in a loop over time;
- temporary memory in MB, and seconds of compilation.

A compiler without a device does not try the kernels of a product one after another: the choice of
these kernels may differ on a real GPU. The flags of XLA_FLAGS hold. With --loops each loop has a
line, too; with --folder DIR the optimized HLO of each program is kept there.
"""

import argparse
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import cases, hlo, thunks
from benchmarks.command import pattern
from benchmarks.hlo import Body, Count, Loop
from benchmarks.programs import Case

HIDDEN = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Environment in which the compilers look for no device, and no service that knows of one."""
OTHER_LOOPS = ("fused.py", "trees.py")
"""Files of lm_jax with loops over something else than time: tiles of the loss, parts of a norm."""
UPDATES = "step.py, run_until"
"""Source of the loop of updates."""
UNROLLED = 16
"""Most time steps in one turn of a loop over time."""


class Target(NamedTuple):
    """A kind of device to compile for."""

    platform: str
    """JAX's name."""
    package: str
    """Package with the compiler."""
    most: int
    """Devices of the largest topology here."""


TARGETS = {"h100": Target("cuda", "jax_cuda13_plugin", 8), "v5e": Target("tpu", "libtpu", 4)}


def devices_of(target: Target, count: int) -> Sequence[Any]:
    """The devices to compile for; they need not exist."""
    from jax.experimental import topologies

    if target.platform == "cuda":
        known = Path(__file__).with_name("h100.textproto").read_text()
        found = topologies.get_topology_desc(
            platform="cuda", target_config=known, topology=f"1x1x{count}"
        )
    else:
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return found.devices[:count]


class Found(NamedTuple):
    """A compiled program."""

    platform: str
    body: Body
    """A call, or one update."""
    temporaries: int
    """Bytes."""
    seconds: float
    text: str
    """Optimized HLO."""


def compiled(case: Case, target: Target, count: int) -> Found:
    """Compile a program, and read the result."""
    devices = devices_of(target, count)
    with tempfile.TemporaryDirectory() as dump:
        options: dict[str, str | bool] = {"xla_dump_to": dump} if target.platform == "cuda" else {}
        (lowered,) = case.build(case, devices).lower(target.platform)
        began = time.perf_counter()
        program = lowered.compile(compiler_options=options)
        seconds = time.perf_counter() - began
        text = program.as_text() or ""
        body = hlo.program(text)
        if target.platform == "cuda":
            (written,) = Path(dump).glob(thunks.FILE)
            body = thunks.with_launches(body, written.read_text())
    memory = program.memory_analysis()
    assert memory is not None
    return Found(target.platform, one_update(body), memory.temp_size_in_bytes, seconds, text)


def one_update(body: Body) -> Body:
    """The body of the loop of updates; the program itself if there is no such loop."""
    for loop in body.all_loops():
        if loop.source == UPDATES:
            return loop.body
    return body


def loops_over_time(body: Body, steps: int) -> list[Loop]:
    """Outermost loops of a call that make about one turn for each time step."""

    def reach(loop: Loop) -> int:
        return (loop.turns or 1) * max(map(reach, loop.body.loops), default=1)

    return [
        loop
        for loop in body.loops
        if UNROLLED * (reach(loop) + 1) > steps and not loop.source.startswith(OTHER_LOOPS)
    ]


def in_turns(loops: Sequence[Loop]) -> Count:
    """The operations of all turns of some loops."""
    total = Count()
    for loop in loops:
        total = total.plus(loop.body.total, loop.turns or 1)
    return total


HEADINGS = (
    ("operations a step", 19),
    ("launches a step", 18),
    ("operations", 11),
    ("launches", 9),
    ("pads", 6),
    ("copies", 8),
    ("collectives", 12),
    ("MB", 9),
    ("s", 5),
)
NAMES = 58
"""Width of the first column."""


def line_of(name: str, found: Found, case: Case) -> str:
    """The line of a program in the table."""
    loops = loops_over_time(found.body, case.steps) if case.steps else []
    steps = case.steps or 1
    ways = [[loop for loop in loops if loop.backward == way] for way in (False, True)]
    inside, call = in_turns(loops), found.body.total
    on_gpu = found.platform == "cuda"

    def each(field: str) -> str:
        shown = [f"{getattr(in_turns(way), field) / steps:.3g}" if way else "-" for way in ways]
        return " + ".join(shown)

    columns = (
        each("operations"),
        each("launches") if on_gpu else "",
        f"{call.operations:,}",
        f"{call.launches:,}" if on_gpu else "",
        f"{inside.pads / steps:.2g}",
        f"{inside.copies / steps:.2g}",
        f"{call.collectives}, {inside.collectives}",
        f"{found.temporaries / 1e6:,.1f}",
        f"{found.seconds:.0f}",
    )
    cells = [f"{cell:>{width}}" for cell, (_, width) in zip(columns, HEADINGS, strict=True)]
    return f"{name:{NAMES}}" + "".join(cells)


def lines_of_loops(body: Body, depth: int = 1) -> list[str]:
    """A line for each loop, indented by depth: the counts of one turn that are not 0."""
    lines = []
    for loop in body.loops:
        counts = loop.body.own._asdict().items()
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts if count)
        lines.append(
            f"{'  ' * depth}{loop.turns or 'unknown'} turns of {loop.source or 'a loop'}"
            f"{', backward' if loop.backward else ''}: {said or 'nothing'}"
        )
        lines += lines_of_loops(loop.body, depth + 1)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(TARGETS)
    parser.add_argument("--target", nargs="+", choices=known, default=known, help="devices")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--rows", type=pattern, default="", metavar="PATTERN", help="of names")
    parser.add_argument("--loops", action="store_true", help="a line for each loop, too")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the optimized HLO there")
    chosen = parser.parse_args()
    targets = {name: TARGETS[name] for name in chosen.target}
    for name, target in targets.items():
        if importlib.util.find_spec(target.package) is None:
            sys.exit(
                f"--target {name}: no compiler, package {target.package}; "
                "pip install -r benchmarks/requirements-compiled.txt"
            )
        for count in chosen.devices:
            if not 1 <= count <= target.most:
                parser.error(f"--devices {count}: {name} has 1 to {target.most}")
    os.environ |= HIDDEN
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if chosen.folder is not None:
        chosen.folder.mkdir(parents=True, exist_ok=True)
    print(f"jax {jax.__version__}, XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}")
    print(" " * NAMES + "".join(f"{heading:>{width}}" for heading, width in HEADINGS))
    failed = 0
    for kind, target in targets.items():
        for count in chosen.devices:
            for name, case in cases.CASES.items():
                title = f"{kind} x {count}, {name}"
                if (count > 1 and name not in cases.SHARED) or not re.search(chosen.rows, title):
                    continue
                try:
                    found = compiled(case, target, count)
                except Exception as error:  # the other programs go on
                    failed += 1
                    print(
                        f"{title}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                    )
                    continue
                print(line_of(title, found, case), flush=True)
                for line in lines_of_loops(found.body) if chosen.loops else ():
                    print(line, flush=True)
                if chosen.folder is not None:
                    path = chosen.folder / f"{re.sub('[^0-9a-zA-Zδ‖Ω]+', '_', title)}.hlo.txt"
                    path.write_text(found.text, encoding="utf-8")
    if failed:
        sys.exit(f"{failed} programs do not compile")


if __name__ == "__main__":
    main()
