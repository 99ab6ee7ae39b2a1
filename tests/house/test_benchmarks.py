"""The benchmarks' arithmetic and bookkeeping: what needs no clock and no peer."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import command, device_speed, devices, ours, rows, side_by_side, sizes
from benchmarks.all import BENCHMARKS
from benchmarks.command import Device
from benchmarks.recurrence import SIZES as LAYERS
from benchmarks.side_by_side import Comparison, Maker
from benchmarks.sizes import Size
from benchmarks.steps import SIZES as MODELS

KEYS = {"name", "unit", "ours", "peer", "peer_name", "ratio", "limit_fraction"}
TINY = Size("gru", 4, batch=2, length=3, vocabulary=7, layers=2)


def test_a_ratio_above_one_says_that_ours_is_better():
    assert rows.row("a", "ms", 2.0, 6.0, "peer")["ratio"] == 3
    assert rows.row("a", "MiB", 6.0, 2.0, "peer")["ratio"] == pytest.approx(1 / 3)
    assert rows.row("a", "characters/s", 6.0, 2.0, "peer")["ratio"] == 3


def test_the_mean_is_geometric_and_counts_the_best_peer_of_a_row_alone():
    ratios = {"a": (2.0, 8.0), "b": (0.5, 32.0), "c": (27.0,)}
    found = [rows.row(name, "ms", 1.0, r, "peer") for name, of in ratios.items() for r in of]
    assert rows.geometric_mean(found) == pytest.approx((2 * 0.5 * 27) ** (1 / 3))


def test_results_are_rows_and_what_they_were_taken_on(tmp_path):
    path = tmp_path / "results.json"
    rows.write(path, rows.results([rows.row("a", "ms", 1.0, 2.0, "peer", 0.5)], "a device"))
    found = json.loads(path.read_text())
    assert set(found) == {"machine", "versions", "date", "rows"}
    assert found["machine"]["device"] == "a device"
    assert found["versions"]["jax"]
    (row,) = found["rows"]
    assert set(row) == KEYS
    assert row["limit_fraction"] == 0.5
    with pytest.raises(ValueError, match="JSON"):
        rows.write(path, float("nan"))


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(side_by_side, "PAUSE", 0)
    order = []

    def way(name, figures):
        left = iter(figures)
        return lambda: order.append(name) or next(left)

    figures = side_by_side.in_turn([way("A", [1, 2, 3]), way("B", [4, 5, 6])], 3)
    assert "".join(order) == "ABABAB"
    assert figures == [[1, 2, 3], [4, 5, 6]]


class Scripted:
    """A side that answers from a list."""

    def __init__(self, maker):
        self.turns = iter(maker.settings["seconds"])
        self.about = {"name": maker.function, "seconds": 0.01, "calls": 100, "remarks": []}
        self.about["numbers"] = {maker.function: maker.settings["numbers"]}

    def tell(self, **order):
        if order["do"] == "make":
            return self.about
        return 0.25 if order["do"] == "limit" else next(self.turns) * order["calls"]

    def close(self):
        pass


def comparison(numbers, unit="ms"):
    ours = Maker("m", "ours", {"seconds": [1.0, 9.0, 0.5], "numbers": [4.0, 3.0]})
    peer = Maker("m", "theirs", {"seconds": [3.0, 2.0, 7.0], "numbers": numbers})
    return Comparison("row", ours, (peer,), unit)


def test_a_row_holds_the_medians_and_the_share_of_the_limit(monkeypatch):
    monkeypatch.setattr(side_by_side, "PAUSE", 0)
    monkeypatch.setattr(side_by_side, "Side", Scripted)
    (row,), _ = side_by_side.compare(comparison([4.0]), rounds=3)
    assert (row["ours"], row["peer"], row["ratio"]) == pytest.approx((1e3, 3e3, 3))
    assert row["peer_name"] == "theirs"
    assert row["limit_fraction"] == pytest.approx(0.25)
    (row,), _ = side_by_side.compare(comparison([4.0], "characters/s"), rounds=3)
    assert (row["ours"], row["peer"], row["ratio"]) == pytest.approx((100, 100 / 3, 3))


@pytest.mark.parametrize("numbers", [[4.001, 3.0], [4.0, 3.001], [float("nan")]])
def test_sides_that_disagree_are_not_timed(monkeypatch, numbers):
    monkeypatch.setattr(side_by_side, "Side", Scripted)
    with pytest.raises(RuntimeError, match=r"row: ours gives .* and theirs"):
        side_by_side.compare(comparison(numbers), rounds=3)


def test_a_way_that_cannot_be_had_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(side_by_side, "TURN", 1e-6)

    def broken():
        raise OSError("no compiler")

    def build():
        return side_by_side.Way(lambda calls: None, lambda: [1.0])

    way, about = side_by_side.fastest({"compiled": broken, "eager": build})
    assert about["name"] == "eager"
    assert about["remarks"] == ["compiled left out: OSError: no compiler"]
    assert way.check() == [1.0]
    with pytest.raises(side_by_side.Absent, match="no compiler"):
        side_by_side.fastest({"compiled": broken})


def test_every_process_draws_the_same_weights_and_tokens():
    first, again = sizes.weights(TINY), sizes.weights(TINY)
    assert first["layers"][1]["W_hh"].shape == (4, 12)
    assert not first["layers"][0]["b_hn"].any()
    for name in ("W_xh", "W_hh", "b_h"):
        np.testing.assert_array_equal(first["layers"][1][name], again["layers"][1][name])
        assert (first["layers"][0][name] != first["layers"][1][name]).any()
    np.testing.assert_array_equal(sizes.tokens(TINY), sizes.tokens(TINY))
    x, y = sizes.passage(TINY)
    np.testing.assert_array_equal(x[1:], y[:-1])


@pytest.mark.slow
def test_our_side_compares_the_mean_losses_of_its_first_steps():
    losses = ours.updates(Size("gru", 4, 2, 3, 5), 1).check()
    assert len(losses) == sizes.CHECKED
    assert losses == pytest.approx([np.log(5)] * 3, rel=0.3)  # Nearly uniform predictions.


def test_the_sizes_are_those_that_were_promised():
    assert len(MODELS) == 13
    assert len(LAYERS) == 10
    assert MODELS["word lstm 650, 2 layers"] == Size("lstm", 650, 20, 35, 10_000, 2)
    assert MODELS["char gru 512"] == Size("gru", 512, 32, 128, 65)


def test_every_program_of_the_folder_is_one_of_all_or_is_run_by_itself():
    folder = Path(devices.__file__).parent
    programs = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()}
    alone = {
        "all",
        "awd_torch",
        "checkpoints",
        "compiled",
        "corpus",
        "curve_torch",
        "device",
        "flat",
        "profile",
        "side_by_side",
        "torch_start",
    }
    assert programs == {*BENCHMARKS, *alone}


def test_a_device_a_core_is_beside_one_device_in_every_step_and_nowhere_on_a_gpu():
    found = devices.comparisons(Device("cpu", "cpu"))
    assert [each.name.removeprefix("a device a core, ") for each in found] == [*MODELS]
    for each in found:
        for maker in (each.ours, *each.peers):
            assert callable(getattr(importlib.import_module(maker.module), maker.function))
            assert Size(**maker.settings) in MODELS.values()
    assert not devices.comparisons(Device("gpu", "a GPU"))


def test_operations_and_calls_are_counted_in_a_profile_of_a_gpu_and_of_a_cpu():
    def event(name, pid, tid, **args):
        return {"ph": "X", "name": name, "pid": pid, "tid": tid, "args": args}

    def meta(kind, pid, tid, name):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    gpu = [
        meta("process_name", 1, None, "/device:GPU:0"),
        meta("thread_name", 1, 14, "Stream #14(Compute)"),
        meta("thread_name", 1, 15, "XLA Ops"),
        event("gemm", 1, 14, hlo_op="gemm"),
        event("copy", 1, 14),
        event("gemm", 1, 15, hlo_op="gemm"),
        event("cuGraphLaunch", 2, 3),
        event("cuLaunchKernelEx", 2, 3),
        event("cuStreamSynchronize", 2, 3),
    ]
    kernels, calls = device_speed._counted(gpu)
    assert (kernels, calls) == (2, {"cuGraphLaunch": 1, "cuLaunchKernelEx": 1})
    named = meta("process_name", 7, None, "/host:CPU")
    del named["tid"]  # a process has no thread
    cpu = [named, event("dot", 7, 1, hlo_op="dot"), event("Execute", 7, 1)]
    assert device_speed._counted(cpu) == (1, {})


def test_the_script_for_a_lent_device_names_a_wrong_folder_of_wheels(tmp_path):
    script = Path(devices.__file__).with_name("device.sh")
    for words, said in {
        ("--wheels", str(tmp_path)): f"--wheels {tmp_path}: there are no wheels",
        ("--out",): "--out needs a folder",
    }.items():
        ended = subprocess.run(["bash", script, *words], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (2, said + "\n")


def told(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    return command.options("What it does.")


def test_threads_are_the_cores_of_the_benchmark_and_of_what_it_starts(monkeypatch):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: kept.append(to), raising=False)
    for name in ("OMP_NUM_THREADS", "NPROC"):
        monkeypatch.setenv(name, "7")
    chosen = told(monkeypatch, "--threads", "2", "--rounds", "3")
    assert (chosen.rounds, chosen.rows, chosen.json) == (3, "", None)
    assert kept == [[1, 2]]
    assert os.environ["OMP_NUM_THREADS"] == os.environ["NPROC"] == "2"


@pytest.mark.parametrize("words", [("--threads", "10000"), ("--rounds", "0"), ("--rows", "(")])
def test_what_cannot_be_asked_for_names_its_flag(monkeypatch, capsys, words):
    with pytest.raises(SystemExit):
        told(monkeypatch, *words)
    said = capsys.readouterr().err
    assert words[0] in said.splitlines()[-1]
    assert words[1] in said.splitlines()[-1]
