#!/usr/bin/env bash
# The checks of `python -m benchmarks.device` in one command, on a machine that is at hand for minutes.
#
#   benchmarks/device.sh [--wheels DIR] [--out DIR] [STAGE ...] [--small]
#
# The stages take at most eight minutes. $PYTHON (python3) brings what it has, such as JAX and PyTorch
# for the machine's accelerator. What lm_jax and its tests need besides comes from the wheels in DIR if
# there is no index, and from the package index otherwise, into an environment that is removed after.
# On a machine with an index and the same Python, fill DIR with
#
#   python3 -m pip download --only-binary=:all: -d DIR PACKAGE ...
#
# --out DIR (or $OUT, or device-results) receives table.txt, and logs.tgz with the logs and the
# compiled programs. With --small all sizes are tiny, for a trial on a CPU.
set -euo pipefail
wheels="" out="${OUT:-device-results}" python="${PYTHON:-python3}" stages=()
while (($#)); do
    case "$1" in
    --wheels | --out)
        (($# > 1)) || { echo "$1 needs a folder" >&2 && exit 2; }
        if [[ $1 == --wheels ]]; then wheels="$2"; else out="$2"; fi
        shift 2
        ;;
    *)
        stages+=("$1")
        shift
        ;;
    esac
done
[[ -z $wheels ]] || compgen -G "$wheels/*.whl" >/dev/null || {
    echo "--wheels $wheels: there are no wheels" >&2
    exit 2
}
mkdir -p "$out"
out="$(cd "$out" && pwd)"
[[ -z $wheels ]] || wheels="$(cd "$wheels" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kept="$(mktemp -d)"
collect() {
    # The logs come back from a run that is stopped, too.
    if compgen -G "$kept/results/*.log" >/dev/null; then
        (shopt -s nullglob && cd "$kept/results" && tar czf "$out/logs.tgz" ./*.log ./*.hlo.txt)
    fi
    rm -rf "$kept"
}
trap collect EXIT
trap 'exit 143' TERM INT

# An environment of its own that sees the packages of $PYTHON.
"$python" -m venv --without-pip "$kept/env"
"$python" -c 'import site, sys; print(*site.getsitepackages(), *sys.path, sep="\n")' |
    grep -E 'site-packages|dist-packages' >"$(echo "$kept"/env/lib/python*/site-packages)/parent.pth" || true
install() { "$python" -m pip --python "$kept/env" install --quiet --disable-pip-version-check "$@"; }
if [[ -n $wheels ]]; then
    install --no-index --no-deps "$wheels"/*.whl
else
    needed=(-r requirements.txt beartype hypothesis pytest pytest-xdist)
    # PyTorch with CUDA takes gigabytes: on a GPU alone.
    ! command -v nvidia-smi >/dev/null || needed+=('jax[cuda13]' -r benchmarks/requirements.txt)
    install "${needed[@]}"
fi
"$kept/env/bin/python" -m benchmarks.device --seconds 465 --folder "$kept/results" \
    ${stages[@]+"${stages[@]}"} 2>&1 | tee "$out/table.txt"
