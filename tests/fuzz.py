"""Search for bytes that a reader of files does not survive, led by the coverage of its code.

    python tests/fuzz.py [SECONDS [READER ...]]    SECONDS (60) for each reader

Readers and first files are those of `training/test_hostile.py`; a reader must give a value or one
line. Needs atheris (requirements-fuzz.txt). Bytes that break a reader are kept in fuzz-READER-….
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lm_jax"]):
    import hostile


def fuzz(name: str, seconds: str) -> None:
    """Search for one reader in this process, which libFuzzer ends."""
    warnings.simplefilter("ignore")
    place = Path(tempfile.mkdtemp())
    hostile.write_files(place)
    first = place / "first"
    first.mkdir()
    (first / name).write_bytes((place / name).read_bytes())
    limits = ["-max_len=20000", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0"]
    kept = ["-print_final_stats=1", f"-artifact_prefix=fuzz-{name}-", str(first)]
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", *limits, *kept],
        lambda content: hostile.attempt(place / name, content),
    )
    atheris.Fuzz()


def main() -> None:
    seconds, *names = sys.argv[1:] or ["60"]
    names = names or list(hostile.READERS)
    unknown = sorted({*names} - {*hostile.READERS})
    if unknown:
        sys.exit(f"{unknown[0]}: the readers are {', '.join(hostile.READERS)}")
    if len(names) == 1:
        fuzz(names[0], seconds)
    failed = []
    for name in names:
        print(name, flush=True)
        if subprocess.run([sys.executable, __file__, seconds, name]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"broken: {', '.join(failed)}")


if __name__ == "__main__":
    main()
