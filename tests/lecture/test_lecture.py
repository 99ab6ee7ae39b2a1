"""The lecture's claims: what they find is so, every figure draws, the command writes the page."""

import re
from pathlib import Path

import pytest

from lm_jax import figures
from lm_jax.commands.lecture import lecture
from lm_jax.commands.main import main
from lm_jax.lecture import CLAIMS, context, sequence, shared, through_time
from lm_jax.report.page import Drawing, Table

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A function that gives a claim's section, of models that have hardly learnt."""
    folder = tmp_path_factory.mktemp("lecture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "UPDATES", 2)
        patch.setattr(shared, "H", 16)
        patch.setattr(context, "H", 16)
        patch.setattr(context, "ORDERS", (2, 6))
        patch.setattr(sequence, "TOKENS", 1024)
        patch.setattr(sequence, "UNITS", 16)
        patch.setattr(sequence, "MILLION", 20_000)
        patch.setattr(through_time, "SGD_UPDATES", 20)
        patch.setattr(through_time, "GATED_UPDATES", 2)
        yield lambda name: drawn(CLAIMS[name](folder))


def drawn(section):
    """The section, after each of its figures has been drawn at both widths."""
    assert section.title.endswith("?")
    assert section.finding.endswith(".")
    assert "nan" not in section.finding
    for part in section.parts:
        if isinstance(part, Drawing):
            assert all(part.draw(width=width).axes for width in (figures.WIDE, figures.NARROW))
    return section


def table(section):
    return next(part for part in section.parts if isinstance(part, Table))


def curves(section):
    """The numbers of each line of the first figure."""
    return [line.get_ydata() for line in section.parts[0].draw(width=figures.WIDE).axes[0].lines]


@pytest.mark.slow
def test_the_cross_entropy_is_minus_the_logarithm_of_one_entry(found):
    apart = re.search(r"differ by at most (\S+) nats", found("loss").finding)
    assert apart
    assert apart[1] == "0" or re.search("10⁻([⁵⁶⁷⁸]|¹.)", apart[1])


@pytest.mark.slow
def test_backpropagation_by_hand_is_autodiff(found):
    rows = table(found("bptt")).rows
    assert [row[0] for row in rows[:3]] == ["explicit BPTT", "RTRL", "finite differences"]
    assert all(difference < tolerance for *_, difference, tolerance in rows)


@pytest.mark.slow
def test_gradients_follow_the_largest_eigenvalue_and_tanh_bends_them_down(found):
    for _, log_radius, linear, bent in table(found("eigenvalue")).rows:
        assert linear == pytest.approx(log_radius, abs=5e-3)
        assert bent < linear


@pytest.mark.slow
def test_the_first_state_has_less_effect_on_the_last_loss_than_the_last_state(found):
    elman, lstm = curves(found("distance"))
    assert elman.shape == lstm.shape == (through_time.FAR,)
    assert elman[0] < 1e-3 * elman[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in {"loss", "bptt"}])
def test_every_claim_says_what_it_found_and_draws(found, name):
    assert found(name).words


def test_the_command_writes_a_page_of_the_claims_that_are_named(tmp_path, capsys):
    assert main(["lecture", "eigenvalue", "--out", str(tmp_path)], "run.py") == 0
    said = capsys.readouterr().out
    assert said.startswith("eigenvalue (")
    page = tmp_path / "lecture-eigenvalue.html"
    assert said.endswith(f"{page}\n")
    assert "lm-jax lecture eigenvalue" in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "eigenvalue.svg").exists()


def test_a_claim_that_is_not_there_and_a_flag_that_is_not_there(tmp_path, capsys):
    assert main(["lecture", "eigenvalues"], "run.py") == 2
    assert "there is no claim 'eigenvalues'; did you mean 'eigenvalue'?" in capsys.readouterr().err
    for command in ("lecture", "report"):
        assert main([command, "--output", "page"], "run.py") == 2
        said = capsys.readouterr().err
        assert said == "error: there is no flag --output; did you mean --out page?\n"


def test_the_help_and_the_docs_name_every_claim():
    page = (DOCS / "lecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^python run\.py lecture (\w+)$", page, re.MULTILINE)
    assert told == list(CLAIMS)
    assert ", ".join(CLAIMS) in " ".join((lecture.__doc__ or "").split())
    for name in re.findall(r"\]\(([\w/-]+\.svg)\)", page):
        assert (DOCS / name).exists(), name
