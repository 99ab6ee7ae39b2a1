"""Functions of a model as `jax.export` writes them, to be called without lm_jax.

A folder holds three functions for CPUs, NVIDIA GPUs and TPUs, for any numbers T and B:

    start(tokens[B]) -> carry                        the carry before the first token
    score(params, carry, x[T, B], y[T, B]) -> (carry, nats[T, B])
    draw(params, carry, token[B], key[2], temperature) -> (carry, token[B], logits[B, V])

x are the tokens that the model reads, and y the next tokens, each with its -ln P. A text begins
after the boundary token: x is then the boundary, followed by all of y but the last token. `draw`
reads a token and draws the next from softmax(logits / temperature) without the token `<unk>`; at
temperature 0 it takes the likeliest. The params are an argument, because constants in a function
would be written once in each function: a dict of arrays by name, in weights.safetensors. The carry
is a list of arrays. about.json tells shapes, types and the vocabulary.

With a symbolic T no loop is unrolled, and a linear recurrence is read step by step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, Int, UInt32

from lm_jax import files
from lm_jax.config import Network
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.exchange.torch_files import save_tensors
from lm_jax.models import LanguageModel
from lm_jax.models.base import NO_HOOK, Params
from lm_jax.settings import UserError
from lm_jax.training import Run

PLATFORMS = "cpu", "cuda", "tpu"
VERSION = 1
"""Version of the folder's files."""


def export_functions(run: Run, folder: str | Path) -> None:
    """Write the functions, the parameters and the vocabulary of a run into a new folder.

    Args:
      run: a run of a neural model of text.
      folder: a new folder, or an empty one.

    Raises:
      UserError: the folder holds files; the model is counted; or the model reads no text.
    """
    if not isinstance(run.config.model, Network):
        raise UserError(f"model={run.config.model.kind} cannot be exported: only networks can")
    vocabulary = run.vocabulary
    with files.new_folder(Path(folder)) as partial:
        found = exported(run.model, run.params, vocabulary.unknown)
        for name, function in found.items():
            (partial / f"{name}.jaxexport").write_bytes(function.serialize())
        weights = {name: np.asarray(leaf) for name, leaf in by_name(run.params).items()}
        save_tensors(partial / "weights.safetensors", weights, {})
        files.write_json(partial / "about.json", _about(found, vocabulary), indent=1)


def exported(
    model: LanguageModel, params: Params, unknown: int | None = None
) -> dict[str, export.Exported]:
    """The functions `start`, `score` and `draw` of a model, exported (see module head).

    Args:
      model: a neural model of tokens.
      params: its parameters, of which only names, shapes and types are read.
      unknown: a token that is never drawn; None: there is none.
    """
    T, B = export.symbolic_shape("T, B")
    tokens = jax.ShapeDtypeStruct((B,), jnp.int32)
    many = jax.ShapeDtypeStruct((T, B), jnp.int32)
    leaves = jax.eval_shape(lambda: model.init_carry(1))
    carry = [
        jax.ShapeDtypeStruct((B, *leaf.shape[1:]), leaf.dtype) for leaf in jax.tree.leaves(leaves)
    ]
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in by_name(params).items()}
    number = jax.ShapeDtypeStruct((), jnp.zeros(()).dtype)
    given = {
        "start": (tokens,),
        "score": (shapes, carry, many, many),
        "draw": (shapes, carry, tokens, jax.ShapeDtypeStruct((2,), jnp.uint32), number),
    }
    made = functions(model, jax.tree.structure(params), jax.tree.structure(leaves), unknown)
    found = {}
    for name, shapes_of in given.items():
        jitted = jax.jit(made[name], keep_unused=True)
        found[name] = export.export(jitted, platforms=PLATFORMS)(*shapes_of)
    return found


def functions(
    model: LanguageModel, structure: Any, carries: Any, unknown: int | None
) -> dict[str, Callable]:
    """The functions `start`, `score` and `draw` of a model (see module head).

    Args:
      model, unknown: as for `exported`.
      structure: of the params.
      carries: structure of the carry.
    """

    def read(
        params: dict[str, Array], carry: list[Array], x: Int[Array, "T B"]
    ) -> tuple[Params, list[Array], Array]:
        whole = structure.unflatten(params[name] for name in _names(structure))
        last, h = model.hidden(whole, carries.unflatten(carry), x, NO_HOOK)
        return whole, jax.tree.leaves(last), h

    def start(tokens: Int[Array, " B"]) -> list[Array]:
        one = jax.tree.leaves(model.init_carry(1))
        return [jnp.broadcast_to(leaf, (*tokens.shape, *leaf.shape[1:])) for leaf in one]

    def score(
        params: dict[str, Array],
        carry: list[Array],
        x: Int[Array, "T B"],
        y: Int[Array, "T B"],
    ) -> tuple[list[Array], Float[Array, "T B"]]:
        whole, carry, h = read(params, carry, x)
        return carry, model.nats(whole, h, y)

    def draw(
        params: dict[str, Array],
        carry: list[Array],
        token: Int[Array, " B"],
        key: UInt32[Array, "2"],
        temperature: Float[Array, ""],
    ) -> tuple[list[Array], Int[Array, " B"], Float[Array, "B V"]]:
        whole, carry, h = read(params, carry, token[None])
        logits = model.logits(whole, h)[0]
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        if unknown is not None:
            scaled = jnp.where(jnp.arange(logits.shape[-1]) == unknown, -jnp.inf, scaled)
        noise = jax.random.gumbel(jax.random.wrap_key_data(key, impl="threefry2x32"), logits.shape)
        drawn = jnp.argmax(scaled + jnp.where(temperature > 0, noise, 0), axis=-1)
        return carry, drawn.astype(jnp.int32), logits

    return {"start": start, "score": score, "draw": draw}


def by_name(params: Params) -> dict[str, Array]:
    """The arrays of a tree under names like `layers/0/W_hh`."""
    leaves, structure = jax.tree.flatten(params)
    return dict(zip(_names(structure), leaves, strict=True))


def _names(structure: Any) -> list[str]:
    numbered = structure.unflatten(range(structure.num_leaves))
    paths, _ = jax.tree_util.tree_flatten_with_path(numbered)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _about(found: dict[str, export.Exported], vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of about.json."""

    def spelled(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.str_short(), tree)

    return {
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "functions": {
            name: {
                "file": f"{name}.jaxexport",
                "arguments": spelled(jax.tree.unflatten(one.in_tree, one.in_avals)[0]),
                "returns": spelled(jax.tree.unflatten(one.out_tree, one.out_avals)),
            }
            for name, one in found.items()
        },
        "vocabulary": {
            "tokenizer": vocabulary.tokenizer,
            "tokens": list(vocabulary.tokens),
            "boundary": vocabulary.boundary,
            "unknown": vocabulary.unknown,
            "rules": vocabulary.rules,
        },
    }
