"""How fast are exact zigzag barcodes?  Ours against dionysus on the same graphs, in one run.

    python benchmarks/zigzag.py                       # table on the screen
    python benchmarks/zigzag.py --record benchmarks/records/zigzag.json

Input: nearest-neighbour graphs of a synthetic residual stream (12 latent dimensions; early and late layers move the
points more than middle ones, as in decoders).  Every engine runs in a process of its own, on a file that holds the
graphs.  CPU seconds are compared, since they hold on a busy machine; dionysus' input is built outside its clock, ours
starts from the adjacency array.  Without dionysus the rest is measured and the table says what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from prunebench_topology import barcodes, knn_graph
from prunebench_topology.neighbors import graph_jaccard

REGIMES = [
    ("stream", 32, 128, 15), ("stream", 32, 256, 15), ("stream", 32, 512, 5), ("stream", 32, 512, 15),
    ("stream", 32, 512, 25), ("stream", 32, 1024, 15), ("stream", 80, 512, 15), ("independent", 32, 512, 15),
    ("equal", 32, 512, 15), ("empty", 32, 512, 0), ("complete", 32, 512, 511),
]  # fmt: skip


def residual_stream(n_layers: int, n_samples: int, seed: int = 0, latent: int = 12) -> np.ndarray:
    """Points (L, N, latent): x <- x + step_l tanh(W_l x + b_l), smallest steps a little after the middle."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n_samples, latent))
    layers = []
    for depth in np.linspace(0, 1, n_layers):
        mixing = rng.standard_normal((latent, latent)) / np.sqrt(latent)
        step = 0.09 + 0.62 * (2 * abs(depth - 0.55)) ** 2
        points = points + step * np.tanh(points @ mixing + rng.standard_normal(latent))
        layers.append(points)
    return np.stack(layers)


def make_graphs(kind: str, n_layers: int, n_samples: int, k: int) -> np.ndarray:
    """Adjacency (L, N, N) of one regime."""
    if kind == "stream":
        return knn_graph(residual_stream(n_layers, n_samples), k)
    if kind == "independent":
        return knn_graph(np.random.default_rng(1).standard_normal((n_layers, n_samples, 12)), k)
    if kind == "equal":
        return np.repeat(knn_graph(residual_stream(1, n_samples), k), n_layers, axis=0)
    full = ~np.eye(n_samples, dtype=bool) if kind == "complete" else np.zeros((n_samples, n_samples), dtype=bool)
    return np.repeat(full[None], n_layers, axis=0)


def peak_mib() -> float | None:
    """Largest resident set of this process in MiB (Linux: VmHWM, which a child does not inherit from its parent)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def timed(function, *arguments):
    """(result, CPU seconds, wall seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def child(engine: str, path: str, repeats: int) -> dict:
    """Measure one engine on the graphs in a file; runs in its own process."""
    data = np.load(path)
    adjacency = np.unpackbits(data["bits"], axis=-1)[:, :, : int(data["n"])].astype(bool)
    report: dict = {}
    if engine == "numba":
        _, _, report["first_call_wall_s"] = timed(barcodes, adjacency[:1, :4, :4])
        runs = [timed(barcodes, adjacency) for _ in range(repeats)]
        bars = runs[0][0]
        report["cpu_s_runs"] = [run[1] for run in runs]
        report |= {"cpu_s": min(report["cpu_s_runs"]), "wall_s": min(run[2] for run in runs)}
    elif engine == "dionysus":
        from prunebench_topology.engines import bars_from_diagrams, dionysus_diagrams, dionysus_input

        (simplices, times), report["input_cpu_s"], _ = timed(dionysus_input, adjacency)
        report["simplices"], report["events"] = len(simplices), sum(map(len, times))
        diagrams, report["cpu_s"], report["wall_s"] = timed(dionysus_diagrams, simplices, times)
        report["peak_mib"] = peak_mib()
        bars = bars_from_diagrams(diagrams, len(adjacency))
    else:
        bars, report["cpu_s"], report["wall_s"] = timed(ordinary_homology, adjacency)
    report.setdefault("peak_mib", peak_mib())
    if bars is not None:
        report["bars"] = [len(b) for b in bars]
        report["checksum"] = [int((b.astype(np.int64) @ [1000003, 7919] % 998244353).sum()) for b in bars]
    return report


def ordinary_homology(adjacency: np.ndarray) -> None:
    """Not the same task: H_1 of each layer's complex alone, by gudhi.  What leaving the zigzag out would save."""
    import gudhi

    for graph in adjacency:
        tree = gudhi.SimplexTree()
        tree.insert_batch(np.arange(len(graph))[None], np.zeros(len(graph)))
        edges = np.stack(np.nonzero(np.triu(graph)))
        tree.insert_batch(edges, np.zeros(edges.shape[1]))
        tree.expansion(2)
        tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)


def run_child(engine: str, path: Path, repeats: int) -> dict:
    """Start ``child`` in a fresh interpreter."""
    command = [sys.executable, __file__, "--child", engine, str(path), str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
    """What ran it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    packages = {}
    for name in ("numpy", "numba", "dionysus", "gudhi", "prunebench"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "cpu": cpu, "cores": os.cpu_count(), "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(), "python": platform.python_version(), "packages": packages,
    }  # fmt: skip


def jaccard_range(adjacency: np.ndarray) -> list[float]:
    """Smallest and largest Jaccard index of adjacent layers' graphs."""
    values = [graph_jaccard(a, b) for a, b in itertools.pairwise(adjacency)]
    return [round(float(min(values)), 3), round(float(max(values)), 3)] if values else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--neighbours", type=int, default=15)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="runs of our engine, the best counts (dionysus: one)")
    parser.add_argument("--no-regimes", action="store_true", help="the comparison only")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    record = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graphs.npz"

        def measure(engine: str, graphs: np.ndarray, repeats: int) -> dict:
            np.savez(path, bits=np.packbits(graphs, axis=-1), n=graphs.shape[1])
            return run_child(engine, path, repeats)

        graphs = make_graphs("stream", arguments.layers, arguments.samples, arguments.neighbours)
        record["input"] = {
            "layers": arguments.layers, "samples": arguments.samples, "neighbours": arguments.neighbours,
            "edges_per_layer": int(graphs.sum()) // (2 * len(graphs)), "jaccard": jaccard_range(graphs),
        }  # fmt: skip
        print("input:", record["input"])
        rows = record["engines"] = {"numba": measure("numba", graphs, arguments.repeats)}
        names = {"numba": "prunebench_topology", "dionysus": "dionysus fast_zigzag", "gudhi": "gudhi, no zigzag"}
        for peer in ("dionysus", "gudhi"):
            if importlib.util.find_spec(peer):
                rows[peer] = measure(peer, graphs, 1)
        print(f"{'engine':<24}{'CPU s':>9}{'wall s':>9}{'peak MiB':>10}{'ratio':>8}")
        for engine, name in names.items():
            if engine not in rows:
                print(f"{name:<24}  not measured: {engine} is not installed")
                continue
            row = rows[engine]
            ratio = row["cpu_s"] / rows["numba"]["cpu_s"]
            peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] is not None else "-"
            print(f"{name:<24}{row['cpu_s']:>9.3f}{row['wall_s']:>9.3f}{peak:>10}{ratio:>8.1f}")
        if "dionysus" in rows:
            if rows["dionysus"]["checksum"] != rows["numba"]["checksum"]:
                raise SystemExit("the engines disagree: this is a bug, the times mean nothing")
            record["ratio_cpu"] = rows["dionysus"]["cpu_s"] / rows["numba"]["cpu_s"]
            record["ratio_wall"] = rows["dionysus"]["wall_s"] / rows["numba"]["wall_s"]
        if not arguments.no_regimes:
            print(f"\n{'regime (ours)':<14}{'layers':>7}{'N':>6}{'k':>5}{'CPU s':>9}{'peak MiB':>10}  bars H0, H1")
            record["regimes"] = []
            for kind, n_layers, n_samples, k in REGIMES:
                row = measure("numba", make_graphs(kind, n_layers, n_samples, k), 1)
                setting = {"kind": kind, "layers": n_layers, "samples": n_samples, "neighbours": k}
                record["regimes"].append(setting | row)
                peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] is not None else "-"
                print(f"{kind:<14}{n_layers:>7}{n_samples:>6}{k:>5}{row['cpu_s']:>9.3f}{peak:>10}  {row['bars']}")
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
