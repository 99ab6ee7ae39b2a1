"""The loops of a compiled program, and the operations of each turn, from its optimized HLO text.

An operation is an instruction that runs by itself: a fusion, a product, a copy, a call of a
library. On a GPU an operation is a kernel or a copy, and `benchmarks.thunks` tells how many
launches the operations take.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

FREE = frozenset(
    "add-dependency after-all async-update bitcast constant get-dimension-size get-tuple-element "
    "iota opt-barrier parameter partition-id replica-id tuple".split()
)
"""Opcodes without work; an opcode that ends with -done has none, either."""
COLLECTIVES = frozenset(
    "all-gather all-reduce all-to-all collective-broadcast collective-permute ragged-all-to-all "
    "reduce-scatter".split()
)
MOVES = frozenset("copy copy-start transpose".split())
"""Opcodes that only move numbers."""
WRAPPERS = frozenset("async-start fusion fusion-start".split())
"""Opcodes of operations whose work is in a computation of its own."""


class Count(NamedTuple):
    """Number of operations, and how many of them pad, only move numbers, or reach other devices.

    `launches` and `in_graphs` are 0 until `benchmarks.thunks` has counted them.
    """

    operations: int = 0
    launches: int = 0
    """Launches by the host; a CUDA graph is one launch, and a loop inside a graph has none."""
    in_graphs: int = 0
    """Kernels and copies inside CUDA graphs."""
    pads: int = 0
    copies: int = 0
    collectives: int = 0

    def plus(self, other: "Count", times: int = 1) -> "Count":
        return Count(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Body:
    """A turn of a loop, or the whole program."""

    own: Count
    """Operations outside the loops inside."""
    loops: tuple["Loop", ...] = ()
    """In the order in which they run."""

    @property
    def total(self) -> Count:
        """The operations with those of the loops inside; a loop of unknown length counts once."""
        total = self.own
        for loop in self.loops:
            total = total.plus(loop.body.total, loop.turns or 1)
        return total

    def all_loops(self) -> Iterator["Loop"]:
        """Yield the loops inside at any depth, each before its own."""
        for loop in self.loops:
            yield loop
            yield from loop.body.all_loops()


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program."""

    turns: int | None
    """Number of turns; None if the compiler does not know the number."""
    backward: bool
    """True in the backward pass of a derivative."""
    source: str
    """File and function that made the loop, such as "recurrence.py, explicit.<locals>.forward"."""
    body: Body


class _Instruction(NamedTuple):
    opcode: str
    text: str
    """Operands and attributes."""

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that some attributes refer to."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|[^,\s]+)", self.text)
        return [name.strip("% ") for group in found for name in group.strip("{}").split(",")]

    @property
    def branches(self) -> list[str]:
        return self.called(
            "to_apply", "true_computation", "false_computation", "branch_computations"
        )


class _Module(NamedTuple):
    computations: dict[str, list[_Instruction]]
    entry: str
    sources: dict[str, str]
    """File and function of each stack frame."""


def program(text: str) -> Body:
    """The operations and loops of a compiled program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    module = _parsed(text)
    return _body(module, module.entry)


def _parsed(text: str) -> _Module:
    computations: dict[str, list[_Instruction]] = {}
    inside: list[_Instruction] = []
    entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            inside = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif made := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*)$", line):
            rest = made[1]
            # The type of the result comes first; that of several results stands in parentheses.
            after = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
            rest = rest[after:].strip()
            if opcode := re.match(r"[\w\-]+", rest):
                inside.append(_Instruction(opcode[0], rest))
    return _Module(computations, entry, _sources(text))


def _sources(text: str) -> dict[str, str]:
    """File and innermost function of each stack frame, from the tables before the module."""

    def names(table: str) -> dict[str, str]:
        listed = text.partition(f"\n{table}\n")[2].partition("\n\n")[0]
        return dict(re.findall(r'^(\d+) "(.*)"$', listed, re.M))

    files, functions = names("FileNames"), names("FunctionNames")
    place = r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)"
    places = {
        number: f"{files.get(file, '').rpartition('/')[2]}, {functions.get(function, '')}"
        for number, file, function in re.findall(place, text, re.M)
    }
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", text, re.M)
    return {frame: places.get(place, "") for frame, place in frames}


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index
    return len(text)


def _body(module: _Module, computation: str) -> Body:
    own, loops = Count(), []
    for each in module.computations.get(computation, []):
        if each.opcode == "while":
            loops.append(_loop(module, each))
        elif each.opcode in ("call", "conditional"):
            inside = [_body(module, name) for name in each.branches]
            # Of the branches of a conditional only one runs: the largest counts.
            own = own.plus(max((body.own for body in inside), default=Count()))
            own = own.plus(Count(operations=int(each.opcode == "conditional")))
            loops += [loop for body in inside for loop in body.loops]
        elif each.opcode not in FREE and not each.opcode.endswith("-done"):
            own = own.plus(_operation(module, each))
    return Body(own, tuple(loops))


def _loop(module: _Module, each: _Instruction) -> Loop:
    (body,), (condition,) = each.called("body"), each.called("condition")
    turns = re.search(r"known_trip_count\D*(\d+)", each.text)
    if turns is None:
        # A count from 0 with a constant limit.
        tests = module.computations.get(condition, [])
        limits = [one for one in tests if one.opcode == "constant"]
        counts = any("direction=LT" in one.text for one in tests)
        if counts and len(limits) == 1 and len(tests) <= 4:
            turns = re.match(r"constant\((\d+)\)", limits[0].text)
    frame = re.search(r"stack_frame_id=(\d+)", each.text)
    path = re.search(r'op_name="([^"]*)"', each.text)
    return Loop(
        int(turns[1]) if turns else None,
        path is not None and "transpose(" in path[1],
        module.sources.get(frame[1], "") if frame else "",
        _body(module, body),
    )


def _operation(module: _Module, each: _Instruction) -> Count:
    inside = [each.opcode]
    if each.opcode in WRAPPERS:
        called = each.called("calls")
        inside = [one.opcode for name in called for one in module.computations.get(name, [])]
    work = {opcode for opcode in inside if opcode not in FREE}
    return Count(
        operations=1,
        pads=int("pad" in work),
        copies=int(bool(work) and work <= MOVES),
        collectives=sum(opcode.removesuffix("-start") in COLLECTIVES for opcode in inside),
    )
