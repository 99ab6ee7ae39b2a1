"""Every main program lowers for a GPU and for a TPU, without what they could not run well.

A program may not call back into Python, hold float64, have a shape unknown to the compiler, or call
a library other than for QR. A scatter-add with two additions to one place is summed by a GPU in an
order of its own, so its bits change from run to run.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases import CASES, shrunk

PLATFORMS = "cuda", "tpu"
LIBRARY = {"Qr", "ProductOfElementaryHouseholderReflectors"} | {
    f"cusolver_{name}_ffi" for name in ("geqrf", "orgqr")
}
KERNEL = "__gpu$xla.gpu.triton"
"""The call of a kernel of `lm_jax.models.kernels`, which has neither a library nor a callback."""

ATOMIC = "update, char elman 128, flossing"
"""The program that does not repeat its bits on a GPU: `jax.linearize` inlines the rows of the
embedding, and forgets their rule for derivatives."""


def problems(module: str) -> set[str]:
    """Properties of a StableHLO module that no main program may have."""
    calls = set(re.findall(r"custom_call @([\w$.]+)", module)) - LIBRARY - {KERNEL}
    found = {f"calls {name}" for name in calls}
    host = "send", "recv", "infeed", "outfeed"
    found |= {f"has {name}" for name in host if f"stablehlo.{name}" in module}
    if re.search(r"\bf64>|xf64>", module):
        found.add("float64")
    if re.search(r"tensor<[^>]*\?", module):
        found.add("dynamic shape")
    return found


def scatter_adds(module: str) -> int:
    """Number of scatter-adds with several additions, of which two may have the same place."""
    scatter = (
        r'"stablehlo\.scatter"\([^)]*\) <\{(.*?)\}> \(\{(.*?)\}\) : '
        r"\(tensor<([^>]*)>, tensor<([^>]*)>"
    )
    count = 0
    for attributes, combine, sums, indices in re.findall(scatter, module, re.DOTALL):
        whole = re.search(r"i\d+$", sums)  # the order of additions does not matter
        if "stablehlo.add" not in combine or "unique_indices = true" in attributes or whole:
            continue
        sizes = dict(enumerate(map(int, indices.split("x")[:-1])))
        vector = re.search(r"index_vector_dim = (\d+)", attributes)
        sizes.pop(int(vector[1]) if vector else 0, None)
        batching = re.search(r"scatter_indices_batching_dims = \[([^\]]*)\]", attributes)
        for axis in batching[1].split(",") if batching else ():
            del sizes[int(axis)]
        count += math.prod(sizes.values()) > 1
    return count


@pytest.mark.quick(
    "update, char lstm 512",
    "update, char lru 512",
    "update, char gru 128, pallas",
    "update, convolution, 3 layers of 256",
    "update, char elman 64, rtrl",
    "lanes, char gru 64",
    "loss, million words, 64 units",
    "score in segments, char lstm 512",
    "draw, char lstm 512",
)
@pytest.mark.parametrize("name", CASES)
def test_a_program_lowers_for_a_gpu_and_a_tpu(name):
    if name.startswith("lanes") and "pallas" in name and jax.__version_info__ > (0, 10, 2):
        pytest.skip("this JAX makes kernels for the devices of the lanes, here CPUs")
    case = shrunk(CASES[name])
    with jax.enable_x64(False):
        lowered = case.build(case, jax.devices()[:1]).lower(*PLATFORMS)
        modules = [each.as_text() for each in lowered]
    assert [KERNEL in module for module in modules] == ["pallas" in name, False]
    for module in modules:
        assert not problems(module)
        assert (scatter_adds(module) > 0) == (name == ATOMIC)


def lowered(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_what_a_program_may_not_have_is_found():
    x = jnp.ones(3, jnp.float32)

    def callback(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    # For another platform than the present one, JAX refuses to lower a callback.
    (said,) = problems(jax.jit(callback).lower(x).as_text())
    assert "callback" in said
    assert problems(lowered(lambda x: x.astype(jnp.float64), x)) == {"float64"}
    (size,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(lambda x: 2 * x))(jax.ShapeDtypeStruct((size,), x.dtype))
    assert "dynamic shape" in problems(exported.mlir_module())
    assert not problems(lowered(lambda x: 2 * x, x))


def test_a_scatter_add_counts_if_two_additions_may_meet():
    table, places = jnp.zeros((5, 2)), jnp.array([1, 3, 1])
    assert scatter_adds(lowered(lambda table, at: table.at[at].add(1.0), table, places)) == 1
    assert scatter_adds(lowered(lambda table, at: table.at[at].set(1.0), table, places)) == 0
    assert scatter_adds(lowered(lambda table, at: table.at[at[:1]].add(1.0), table, places)) == 0
    unique = lowered(lambda table, at: table.at[at].add(1.0, unique_indices=True), table, places)
    assert scatter_adds(unique) == 0
    rows = lowered(jax.grad(lambda table, at: jnp.sum(table[at] ** 2)), table, places)
    assert scatter_adds(rows) == 1
