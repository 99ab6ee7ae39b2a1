"""The command `lecture`."""

import os
import platform
import time
from pathlib import Path
from typing import Annotated

import jax
import tyro

from lm_jax.lecture import CLAIMS
from lm_jax.report.page import Quote, write_page
from lm_jax.report.terminal import waiting
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

Claims = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[CLAIM ...]")]
TITLE = "The lecture, told by experiments"


def lecture(claims: Claims, out: Path = Path("runs/lecture")) -> int:
    """Measure the claims of the lecture on language models, and write a page of findings.

    Each claim trains models or reads trained models back, prints a finding, and draws figures. The
    page of all claims is lecture.html, the page of some claims lecture-CLAIM.html; both open
    without a network.

    The claims: sparsity, growth, places, sharing, speed, forcing, loss, bptt, eigenvalue, clipping,
    gates, truncation, distance, million.

    Args:
      claims: names of claims; all claims if none is given.
      out: directory of the page, the figures and the trained models.
    """
    for name in claims:
        if name not in CLAIMS:
            raise UserError(
                f"there is no claim {name!r}{nearest(name, CLAIMS)} (there are {', '.join(CLAIMS)})"
            )
    sections, began = [], time.monotonic()
    for name in claims or CLAIMS:
        start = time.monotonic()
        with waiting(name):
            section = CLAIMS[name](out)
        taken = f"{time.monotonic() - start:.0f} s"
        print(f"{name} ({taken}): {section.finding}", flush=True)
        alone = Quote(f"this claim alone ({taken} here)", f"lm-jax lecture {name}")
        sections.append(section._replace(parts=[*section.parts, alone]))
    facts = {
        "command": " ".join(["lm-jax lecture", *claims]),
        "time": f"{time.monotonic() - began:,.0f} s",
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "versions": f"python {platform.python_version()}, jax {jax.__version__}",
    }
    lead = (
        "Each section asks a question of the lecture on language models and answers by a "
        "measurement. The program writes each answer from the numbers just measured."
    )
    path = out / f"{'-'.join(['lecture', *claims])}.html"
    print(write_page(path, TITLE, lead, sections, facts))
    return 0
