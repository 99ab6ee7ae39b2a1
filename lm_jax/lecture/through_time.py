"""Claims about the gradient through time: routes, growth, decay, and remedies."""

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax import figures
from lm_jax import gradients as g
from lm_jax.analysis import probe
from lm_jax.config import GRU, LSTM, RNN, SGD, Cell, Config, Data, Elman, TemporalOrder, Train
from lm_jax.data.tasks import held_out as task_batches
from lm_jax.lecture.shared import elman, held_out, lstm, short
from lm_jax.report.page import Drawing, Section, Table
from lm_jax.report.progress import train
from lm_jax.training import Run
from lm_jax.training.journal import read_rows

RADII = (0.8, 0.95, 1.0, 1.05, 1.2)
LAGS = 60  # the most steps back of the claim `eigenvalue`
FAR = 80  # the step whose loss is asked of in the claim `distance`
LENGTH, GATED_UPDATES = 40, 4000  # steps of a sequence and updates of the claim `gates`
SGD_UPDATES = 1000  # of the claim `clipping`


def bptt(folder: Path) -> Section:
    """Backpropagation through time, written by hand, equals autodiff."""
    run = elman(folder)
    batch = held_out(run, sequences=2, length=32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), run.params)
        carry, norms = run.model.init_carry(2), {}
        for name, route in (("autodiff", g.full_bptt), ("by hand", g.explicit_bptt)):
            *_, info = jax.jit(route(run.model, delta_norms=True))(params, carry, batch)
            norms[name] = np.arange(1, 33), np.asarray(info.delta_norms)
        checks = g.verify(run.model, params, batch)
    hand = next(check for check in checks if check.route == "explicit BPTT")
    quotient = next(check for check in checks if check.route == "finite differences")
    draw = functools.partial(
        figures.lines,
        norms,
        x="step t",
        y="‖δ_t‖, gradient of the loss at h_t",
        log_y=True,
        dots=("by hand",),
    )
    return Section(
        "Is backpropagation through time the gradient?",
        f"The backward pass by hand and autodiff differ by at most {short(hand.difference)} of a "
        f"gradient's length in any block of the parameters, in float64; difference quotients of "
        f"the loss differ by {short(quotient.difference)}. "
        f"{sum(check.agrees for check in checks)} of {len(checks)} comparisons agree.",
        [
            Drawing("bptt", draw, "norm of the gradient at each step, by two routes"),
            Table(
                ("route", "compared with", "largest relative difference", "tolerance"),
                [check[:4] for check in checks],
            ),
        ],
        "δ_t holds the loss at t and, through W_hh, the losses of all later steps. RTRL computes "
        "the gradient forwards in time; a difference quotient needs no derivative at all.",
    )


def eigenvalue(folder: Path) -> Section:
    """Gradients vanish or explode with the largest eigenvalue of the recurrent weights."""
    key_W, key_x = jax.random.split(jax.random.key(0))
    W = jax.random.normal(key_W, (64, 64), jnp.float32)
    W = W / jnp.abs(jnp.linalg.eigvals(W)).max()
    xs = jax.random.normal(key_x, (2 * LAGS, 64), jnp.float32)

    def linear(W, h, x):
        return h @ W + x

    def tanh(W, h, x):
        return jnp.tanh(h @ W + x)

    lags, half = np.arange(1 + LAGS), LAGS // 2
    rows, slopes = {}, []
    for radius in RADII:
        norms, bent = (
            np.asarray(g.lag_norms(step, radius * W, jnp.zeros(64, jnp.float32), xs, LAGS))
            for step in (linear, tanh)
        )
        rows[f"ρ = {radius:g}"] = lags, norms
        grown = [float(np.log(n[-1] / n[half]) / half) for n in (norms, bent)]
        slopes.append([radius, float(np.log(radius)), *grown])
    apart = max(abs(row[2] - row[1]) for row in slopes)
    draw = functools.partial(figures.lines, rows, x="lag l, steps", y="‖∂h_T/∂h_{T−l}‖", log_y=True)
    vanished, *_, exploded = (float(norms[-1]) for _, norms in rows.values())
    return Section(
        "When do gradients vanish, and when explode?",
        f"Without a nonlinearity the norm of ∂h_T/∂h_(T−l) changes by a factor of e^λ a step, and "
        f"λ is within {short(apart)} of ln ρ, with ρ the largest eigenvalue of W_hh. {LAGS} steps "
        f"back the norm is {short(vanished)} at ρ = {RADII[0]} and {short(exploded)} at "
        f"ρ = {RADII[-1]}. With tanh, whose slopes are at most 1, λ is {short(slopes[-1][3])} at "
        f"ρ = {RADII[-1]}.",
        [
            Drawing("eigenvalue", draw, "norm of the product of Jacobians over the lag"),
            Table(("ρ", "ln ρ", "λ without nonlinearity", "λ with tanh"), slopes),
        ],
        "A matrix of 64 × 64 normal entries, scaled to the spectral radius ρ; inputs are normal. "
        f"λ is the slope of the logarithm from lag {half} to lag {LAGS}: at short lags the norm "
        "also depends on how the eigenvectors lie.",
    )


def clipping(folder: Path) -> Section:
    """Clipping the gradient's norm mends exploding gradients."""
    rate, threshold = 10.0, 0.1
    runs = {
        "without": _by_sgd(folder, "without-clipping", rate, None),
        "with": _by_sgd(folder, "with-clipping", rate, threshold),
    }
    rows = {
        name: [row for row in read_rows(run.path / "metrics.jsonl") if row["kind"] == "train"]
        for name, run in runs.items()
    }
    losses = {
        f"{name} clipping": ([row["step"] for row in part], [row["nats"] for row in part])
        for name, part in rows.items()
    }
    largest = {name: max(row["grad_norm_max"] for row in part) for name, part in rows.items()}
    clipped = rows["with"]
    last = {name: found[1][-1] for name, found in losses.items()}
    norms = functools.partial(
        figures.gradient_norms,
        [row["step"] for row in clipped],
        [row["grad_norm"] for row in clipped],
        [row["grad_norm_max"] for row in clipped],
        [row["grad_norm_clipped"] for row in clipped],
        threshold=threshold,
    )
    curves = functools.partial(figures.lines, losses, x="updates", y="nats a character", log_y=True)
    return Section(
        "Does clipping mend exploding gradients?",
        f"Plain SGD with a learning rate of {rate:g} ends at {last['without clipping']:.3g} nats a "
        f"character, and the gradient's norm reaches {largest['without']:.3g}. With the norm "
        f"clipped at {threshold:g}, the same run ends at {last['with clipping']:.3g} nats, and the "
        f"norm before clipping is at most {largest['with']:.3g}.",
        [
            Drawing("clipping", curves, "training loss with and without clipping"),
            Drawing("clipping-norms", norms, "norm of the gradient before and after clipping"),
        ],
        "An Elman RNN of 64 units. Clipping keeps the gradient's direction and limits the length; "
        "clipping cannot bring back a vanished gradient.",
    )


def _by_sgd(folder: Path, name: str, rate: float, threshold: float | None) -> Run:
    settings = Train(
        steps=SGD_UPDATES,
        learning_rate=rate,
        optimizer=SGD(),
        clip_norm=threshold,
        validate_every=SGD_UPDATES,
        log_every=20,
        checkpoint_every=SGD_UPDATES,
    )
    model = RNN(cell=Elman(), embedding_size=32, hidden_size=64)
    config = Config(data=Data(batch_size=16, length=32), model=model, train=settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the run has learned nothing")  # the claim says so
        return train(config, folder / name)


def gates(folder: Path) -> Section:
    """Gates mend vanishing gradients: a gated state can be kept for many steps."""
    rows, norms = [], {}
    for name, cell in {"Elman": Elman(), "GRU": GRU(), "LSTM": LSTM()}.items():
        run = _on_order(folder, cell)
        example = g.single_example(run.model)
        batch = task_batches(run.config.data, "validation")[0]()
        lag_norms = jax.vmap(
            lambda x, params=run.params, example=example: g.lag_norms(
                example.step, params, example.carry, x, LENGTH - 1
            ),
            in_axes=1,
        )
        found = np.asarray(lag_norms(batch.x[:, :8])).mean(axis=0)
        norms[name] = np.arange(LENGTH), found
        assert run.result is not None
        rows.append([name, run.result["splits"]["test"]["success"], float(found[-1])])
    (first, share, norm), *gated = rows
    right = "".join(f", the {name} in {share:.0%}" for name, share, _ in gated)
    kept = "".join(f", {short(norm)} in the {name}" for name, _, norm in gated)
    draw = functools.partial(
        figures.lines, norms, x="lag l, steps", y="‖∂s_T/∂s_{T−l}‖", log_y=True
    )
    return Section(
        "Do gates mend vanishing gradients?",
        f"Asked after {LENGTH} steps for the order of two symbols, the {first} RNN is right in "
        f"{share:.0%} of new sequences{right}; a guess is right in 25%. A change of the first "
        f"state changes the last {short(norm)} times as much in the {first} RNN{kept}.",
        [
            Drawing("gates", draw, "norm of the product of Jacobians over the lag, by cell"),
            Table(("cell", "share right", f"norm at lag {LENGTH - 1}"), rows),
        ],
        "The task is temporal order (lm_jax/data/tasks.py), with 50 units and the same updates "
        "for each cell. s is the whole state: h, and c of the LSTM. Eight new sequences, "
        "parameters after training.",
    )


def _on_order(folder: Path, cell: Cell) -> Run:
    settings = Train(
        steps=GATED_UPDATES,
        learning_rate=0.003,
        clip_norm=1.0,
        validate_every=GATED_UPDATES,
        log_every=500,
        checkpoint_every=GATED_UPDATES,
    )
    config = Config(
        data=Data(source=TemporalOrder(), length=LENGTH, batch_size=20),
        model=RNN(cell=cell, hidden_size=50, embedding_size=None),
        train=settings,
    )
    return train(config, folder / f"order-{cell.kind}")


def truncation(folder: Path) -> Section:
    """Truncated backpropagation is cheap, and the gradient is biased."""
    few, many = (
        probe(elman(folder), length=64, sequences=count, only=["by_lag"]).reach.by_lag
        for count in (1, 32)
    )
    assert few is not None
    assert many is not None
    cosine, error = (np.asarray(part) for part in many.truncations[1:])
    draw = functools.partial(
        figures.truncation_curve,
        cosine,
        error,
        {f"{1 - float(share):.0%}": steps for share, steps in many.horizon.items()},
    )
    return Section(
        "How much bias does truncation cost?",
        f"Cut after 5 steps, the gradient of the recurrent weights is off by {error[4]:.0%} of the "
        f"length; after 10, by {error[9]:.0%}; after 20, by {error[19]:.0%}. From "
        f"{many.horizon['0.9']:.0f} steps on the error is within 10%. These are errors of the mean "
        f"of 32 passages; on a single passage a cut after 5 steps costs "
        f"{float(few.truncations.relative_error[4]):.0%}.",
        [Drawing("truncation", draw, "error of the truncated gradient over k2")],
        "The trained Elman RNN on 32 passages of 64 characters of the validation text; the "
        "gradient of the mean loss, k2 steps back from every loss. From the dotted lines on the "
        "error is within 50, 10 and 1%. An error of the mean gradient is a bias.",
    )


def distance(folder: Path) -> Section:
    """H_1 has next to no effect on the loss at H_80."""
    rows, steps = {}, np.arange(1, 1 + FAR)
    for name, run in (("Elman", elman(folder)), ("LSTM", lstm(folder))):
        example = g.single_example(run.model)
        batch = held_out(run, sequences=16, length=FAR)

        def last(x, y, params=run.params, example=example):
            """‖∂J_80/∂h_k‖ for k = 1 … 80."""
            return g.credit_map(example.step, example.loss, params, example.carry, x, y)[-1]

        rows[name] = steps, np.asarray(jax.vmap(last, in_axes=1)(batch.x, batch.y)).mean(axis=0)
    plain, gated = (found for _, found in rows.values())
    draw = functools.partial(
        figures.lines,
        rows,
        x="k, step of the state",
        y=f"‖∂J_{FAR}/∂h_k‖, nats per unit of the state",
        log_y=True,
    )
    return Section(
        f"How much does H_1 change the loss at H_{FAR}?",
        f"In the Elman RNN a small change of h_1 changes the loss at step {FAR} "
        f"{short(plain[-1] / plain[0])} times less than the same change of h_{FAR}, in the LSTM "
        f"{short(gated[-1] / gated[0])} times less. For a change ten steps back the factors are "
        f"{short(plain[-1] / plain[-11])} and {short(gated[-1] / gated[-11])}.",
        [Drawing("distance", draw, "effect of each state on the last loss")],
        "The two models trained on characters, 16 passages of the validation text, each from an "
        "empty state. The state of the LSTM is h and c together.",
    )
