"""Figures: each draws from plain arrays, at both widths, in colours that a page can change."""

import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_jax import figures
from lm_jax.figures.arguments import marks
from lm_jax.figures.colours import robust_norm
from lm_jax.figures.style import COLOURS, plain, spread, styled, themed

STEPS, NORMS = np.arange(1, 7) * 10, 0.5 ** np.arange(6)
NAN = float("nan")
DRAWN = {
    "loss_curve": (STEPS, NORMS),
    "gradient_norms": (STEPS, NORMS, 2 * NORMS, NORMS / 2),
    "over_training": (STEPS, {"a": NORMS, "b": -NORMS}, "radius"),
    "horizon": (STEPS, {"within 50 %": STEPS, "within 1 %": [1, NAN, 3, 4, 5, 6]}),
    "runs": ({"a": (STEPS, NORMS), "b": (STEPS[:3], NORMS[:3])}, "loss"),
    "lag_norms": (NORMS, {"bound": 9.0 ** np.arange(6), "none": np.zeros(6)}),
    "gradient_by_lag": ([1.0, 0.0, NAN],),
    "truncation_curve": (NORMS, 1 - NORMS, {"within 10 %": 3.0, "within 1 %": NAN}),
    "over_training_by_lag": (STEPS, np.outer(NORMS, NORMS), "norm"),
    "eigenvalues": ({"a": np.array([1j, -0.5]), "b": np.array([2 + 0j])},),
    "eigenvalues_over_training": ({"a": {0: [1j], 9: [0.5]}, "b": {0: [1.0, 2.0], 9: [3j, 0.0]}},),
    "lyapunov_convergence": (np.outer(NORMS, [1, 0.5, 0.1]),),
    "local_exponents": (NORMS - 0.2, ["a b", "c\n", "␣"] * 2),
    "credit_map": (np.tril(np.ones((3, 3))), ["</b>", " ", "漢"], ["a", "b", "c"]),
    "by_lag": ({"rare": NORMS, "often": 2 * NORMS}, "credit"),
    "estimator_cosines": ({"RTRL": [1.0, 1.0], "UORO": [0.1, NAN]},),
    "loss_slices": (STEPS - 30, NORMS, NORMS),
    "exposure": (NORMS,),
    "learning_curves": ({"a": (STEPS, NORMS), "b": (STEPS, 9 * NORMS)},),
    "lines": ({"a": (STEPS, NORMS), "b": (NORMS, STEPS)}, "V, words", "MB"),
    "next_token": (NORMS, [" ", "</b>", "\n", "漢", "e", "f"], 5),
}


@pytest.mark.filterwarnings("ignore:Glyph")  # of the PDF; a browser has more fonts
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_from_plain_arrays_and_saved(name, tmp_path):
    for width in (figures.WIDE, figures.NARROW):
        figure = getattr(figures, name)(*DRAWN[name], width=width)
        svg = themed(figure.svg())
        assert svg.startswith("<svg")
        assert "var(--grey, #666666)" in svg
        # Every colour of the style is a variable: none is left outside `var`.
        bare = re.sub(r"var\(--\w+, #\w+\)", "", svg)
        assert not [colour for colour in COLOURS.values() if colour in bare]
        assert len(re.findall(r'id="([^"]+)"', svg)) == len(set(re.findall(r'id="([^"]+)"', svg)))
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


SETTINGS = {
    "heat_map": {"values": [[1.0, 2.0]], "rows": ["a"], "columns": ["b", "c"], "x": "", "y": ""}
    | {"words": [["d", "e"]]},
    "setting_curve": {"settings": [0.1, 1.0], "means": [1.0, 2.0], "x": "", "y": ""}
    | {"words": ["", "×2"]},
    "parallel_coordinates": {"columns": {"a": [1.0, 2.0]}, "scores": [1.0, 2.0], "score": "loss"},
    "smoothed": {"values": [1.0, 2.0]},
}
CALLS = SETTINGS | {
    name: inspect.signature(getattr(figures, name)).bind(*given).arguments
    for name, given in DRAWN.items()
}


def odd(value):
    """Odd values in the place of an array, of a pair of arrays, or of a dict of these."""
    yield from (None, [], 3.0, object())
    if isinstance(value, dict):
        first = next(iter(value))
        yield from ({**value, first: other} for other in odd(value[first]))
        return
    if isinstance(value, tuple):
        yield from ((value[0], other) for other in odd(value[1]))
        return
    if not np.ndim(value):
        yield "word"
        return
    few = list(value)
    yield from ([*few, few[0]], [few, few[:1]], [few], ["word"] * len(few))
    if np.asarray(value).dtype.kind != "U":
        for strange in (NAN, float("inf"), -float("inf")):
            yield np.full(np.shape(value), strange)
        yield [None] * len(few)
        yield [np.multiply(few[0], NAN), *few[1:]]


def unchecked(name):
    """The function without the check of types that only the tests have."""
    return styled(inspect.unwrap(getattr(figures, name)))


def test_every_public_function_is_tried_with_odd_arguments():
    functions = {name for name in figures.__all__ if inspect.isfunction(getattr(figures, name))}
    assert functions - {"plain"} == {*CALLS}


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_leaves_gaps_or_is_named(name):
    for argument, value in CALLS[name].items():
        if isinstance(value, str | int | float):
            continue
        for strange in odd(value):
            said = argument
            try:
                drawn = unchecked(name)(**{**CALLS[name], argument: strange})
                if isinstance(drawn, figures.Figure):
                    drawn.draw_without_rendering()
            except ValueError as error:
                said = str(error)
            assert re.search(rf"\b{argument}\b", said), (argument, strange, said)


def test_a_figure_has_a_least_width_and_levels_are_numbers():
    with pytest.raises(ValueError, match="width=20 must be 150 pixels or more"):
        figures.gradient_by_lag(NORMS, width=20)
    with pytest.raises(ValueError, match="level must be a dict"):
        marks([1.0], "level")
    assert marks({"none": None, "one": 1, "off": float("inf")}, "level") == {"one": 1.0}
    with pytest.raises(ValueError, match="nats has the length 2, steps the length 6"):
        figures.loss_curve(STEPS, NORMS[:2])


def test_maps_and_curves_over_settings():
    values = [[1.0, 2.0], [3.0, NAN]]
    shown = figures.heat_map(values, ["a", "b"], ["x", "y"], x="rate", y="cell")
    assert [text.get_text() for text in shown.axes[0].texts][1:] == ["1", "2", "3", ""]
    rates = [0.001, 0.01, 0.1]
    shown = figures.setting_curve(
        rates, [2.0, 1.0, None], x="rate", y="loss", trials=[(0.001, 2.1)], words=["", "", "×2"]
    )
    assert shown.axes[0].get_xscale() == "log"
    assert "×2" in [text.get_text() for text in shown.axes[0].texts]
    shown = figures.setting_curve(["True", "False"], [1.0, 2.0], x="tied", y="loss")
    assert [tick.get_text() for tick in shown.axes[0].get_xticklabels()] == ["True", "False"]


def test_dots_stand_beside_lines_on_logarithmic_axes():
    rows = {"predicted": (STEPS, NORMS), "measured": (STEPS, NORMS)}
    axes = figures.lines(rows, "x", "y", log_x=True, log_y=True, dots=["measured"]).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [(line.get_linestyle(), line.get_marker()) for line in axes.lines] == [
        ("-", "None"),
        ("None", "o"),
    ]


def test_the_token_that_follows_is_drawn_though_it_is_unlikely():
    axes = figures.next_token([0.5, 0.3, 0.1, 0.06, 0.04], "abcde", 4, count=3).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "e"]
    red, *others = {bar.get_facecolor() for bar in axes.patches[:2]}
    assert (others, axes.patches[2].get_facecolor() != red) == ([], True)


def test_the_best_trial_stands_out_and_one_that_diverged_has_a_cross():
    trials = {"a": (STEPS, NORMS), "b": (STEPS, [5, NAN, NAN, NAN, NAN, NAN])}
    axes = figures.learning_curves(trials, best="a", diverged=["b"], level={"guess": 2.0}).axes[0]
    assert [line.get_marker() for line in axes.lines].count("x") == 1
    assert axes.get_ylim()[1] < 2.2  # the diverged trial does not flatten the others


def test_parallel_coordinates_take_numbers_and_words():
    columns = {"train.learning_rate": [0.1, 1.0, 10.0], "model.cell": ["gru", "lstm", "gru"]}
    shown = figures.parallel_coordinates(columns, [1.0, NAN, 2.0], score="validation")
    names = [tick.get_text() for tick in shown.axes[0].get_xticklabels()]
    assert names == ["learning rate", "cell", "validation"]


def test_an_outlier_does_not_take_the_colours_from_the_others():
    losses = np.array([1.0, 1.1, 1.2, 1.3, 2000.0])
    shades = robust_norm(losses, log=False)(losses[:4])
    assert np.ptp(shades) > 0.3
    capped = robust_norm(losses, log=False, worst=4.0)
    assert (capped.vmax <= 4.0, float(capped(2000.0))) == (True, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_names_are_spread_without_overlap_and_stay_in_order(heights):
    placed = spread(heights, 0.1)
    for i in range(len(heights)):
        for j in range(len(heights)):
            if heights[i] < heights[j]:
                assert placed[i] <= placed[j] - 0.1 + 1e-9
    assert max(placed) <= 1.0 + 1e-9
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]


def test_smoothing_keeps_a_line_and_leaves_out_what_is_not_finite():
    line = np.arange(200.0)
    np.testing.assert_allclose(figures.smoothed(line)[5:-5], line[5:-5])
    line[100] = NAN
    assert np.isfinite(figures.smoothed(line)).all()
    assert figures.smoothed([1.0, 2.0]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (1500, "1,500"),
        (0.25, "0.25"),
        (1e-7, "10⁻⁷"),
        (-2.5e9, "−2.5·10⁹"),
        (-1, "−1"),
        (float("inf"), "∞"),
    ],
)
def test_a_number_is_written_as_a_reader_writes_it(value, said):
    assert plain(value) == said


def test_a_notebook_shows_the_figure_as_svg():
    assert figures.gradient_by_lag(NORMS)._repr_svg_().startswith("<?xml")


def test_a_dollar_is_a_dollar_and_a_long_name_fits():
    svg = figures.runs({"x" * 200: ([1, 2], [1.0, 2.0]), "$x_^$": ([1, 2], [2, 3])}, "$5").svg()
    assert "$x_^$" in svg
    assert "$5" in svg


def test_a_phone_s_credit_map_has_every_token_in_readable_letters():
    """Sixty tokens do not fit beside each other: the map is cut into parts, and no cell is lost."""
    read, said = [f"{k}" for k in range(60)], [f"{k}" for k in range(1, 61)]
    shown = figures.credit_map(np.tril(np.ones((60, 60))), read, said, width=figures.NARROW)
    *parts, _ = shown.axes
    assert len(parts) > 1
    named = [tick for axes in parts for tick in axes.get_xticklabels()]
    assert [tick.get_text() for tick in named] == read
    assert [tick.get_text() for tick in parts[-1].get_yticklabels()][-1] == said[-1]
    named += [tick for axes in parts for tick in axes.get_yticklabels()]
    assert min(tick.get_fontsize() for tick in named) > 8
    cells = [np.ma.count(axes.collections[0].get_array()) for axes in parts]
    assert sum(cells) == 60 * 61 / 2
    heights = [axes.get_window_extent().height for axes in parts]
    rows = [len(axes.get_yticks()) for axes in parts]
    np.testing.assert_allclose(np.divide(heights, rows), heights[0] / rows[0])  # one scale
    assert len(figures.credit_map(np.ones((60, 60)), read, said).axes) == 2


def test_a_phone_shows_the_words_of_every_window():
    words = [f"window {k}" for k in range(40)]
    axes = figures.local_exponents(np.linspace(-1, 1, 40), words, width=figures.NARROW).axes[0]
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == words
    assert {label.get_fontsize() for label in labels} == {11}
    assert axes.get_window_extent().width > figures.NARROW / 2
