"""The launches of a program compiled for a GPU, from XLA's dump of its thunks.

A thunk is what the host executes: the launch of a kernel, of a copy or of a library call; a loop;
or a command buffer, which is a CUDA graph and is launched as a whole. XLA writes the thunks of a
program to a file of its dump folder (`FILE`), one on a line, indented by the depth:

    002: kWhile
      body:
        003: kCommandBuffer
            004: kCustomKernel
"""

import dataclasses
import re
from collections.abc import Iterator

from benchmarks.hlo import Body

FILE = "*.thunk_sequence_after_thunk_passes.txt"
COMMAND_BUFFER, WHILE = "kCommandBuffer", "kWhile"


@dataclasses.dataclass
class Thunk:
    """A thunk, with the thunks inside."""

    kind: str
    indent: int
    inside: list["Thunk"] = dataclasses.field(default_factory=list)
    """For a loop, the thunks of its body."""


def parse(text: str) -> Thunk:
    """The whole program, as a thunk with all others inside."""
    top = Thunk("", -1)
    above = [top]
    in_condition: int | None = None
    for line in text.splitlines():
        word = line.strip()
        if word == "condition:":
            in_condition = above[-1].indent
        elif word == "body:":
            in_condition = None
        elif found := re.match(r"( *)\d+: (k\w+)", line):
            indent = len(found[1])
            if in_condition is not None and indent > in_condition:
                continue  # the test of a loop of known length does not run
            in_condition = None
            while above[-1].indent >= indent:
                above.pop()
            thunk = Thunk(found[2], indent)
            above[-1].inside.append(thunk)
            above.append(thunk)
    return top


def with_launches(body: Body, text: str) -> Body:
    """The operations and loops of a program, with the launches that they take.

    Args:
      body: the program, from `benchmarks.hlo.program`.
      text: the dump of the program's thunks.

    Raises:
      ValueError: the dump has other loops than the program.
    """
    top = parse(text)
    loops = list(_loops(top, False))
    if len(loops) != len(list(body.all_loops())):
        raise ValueError(f"{len(list(body.all_loops()))} loops in HLO, {len(loops)} in thunks")
    return _counted(body, top, False, iter(loops))


def _counted(body: Body, thunk: Thunk, in_graph: bool, loops: Iterator[tuple[Thunk, bool]]) -> Body:
    own = body.own._replace(**_launches(thunk, in_graph))
    inside = [
        dataclasses.replace(loop, body=_counted(loop.body, *next(loops), loops))
        for loop in body.loops
    ]
    return Body(own, tuple(inside))


def _loops(thunk: Thunk, in_graph: bool) -> Iterator[tuple[Thunk, bool]]:
    """Yield each loop, before the loops inside, and True if the loop is inside a graph."""
    for each in thunk.inside:
        if each.kind == WHILE:
            yield each, in_graph
        yield from _loops(each, in_graph or each.kind == COMMAND_BUFFER)


def _launches(thunk: Thunk, in_graph: bool) -> dict[str, int]:
    """Count the launches outside the loops inside."""
    launches = in_graphs = 0
    for each in thunk.inside:
        if each.kind == WHILE or each.kind.endswith("Done"):
            continue
        if each.kind == COMMAND_BUFFER or each.inside:
            inside = _launches(each, in_graph or each.kind == COMMAND_BUFFER)
            launches += inside["launches"] + (each.kind == COMMAND_BUFFER and not in_graph)
            in_graphs += inside["in_graphs"]
        else:
            launches, in_graphs = launches + (not in_graph), in_graphs + in_graph
    return {"launches": launches, "in_graphs": in_graphs}
