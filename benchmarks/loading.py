"""What does loading a pruned model cost?  Ours against loading all and dropping afterwards, in one run.

    python benchmarks/loading.py                       # table on the screen
    python benchmarks/loading.py --record benchmarks/records/loading.json

A Llama with random weights (about 300 million parameters, bfloat16, in shards) is written to a temporary folder and
loaded as float32, which makes every tensor be read and cast.  Each load runs in a process of its own, after the files
were put out of the page cache.  Counted are: the growth of the largest resident set over what the imports took, the
bytes of the tensors that were read, the bytes that the system fetched from the disk for it (memory-mapped pages and
read-ahead included; null where the file system does not say), and CPU seconds.  The logits of both ways on fixed token
ids have to be equal, bit for bit.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": True,
}  # fmt: skip
DROPPED = (0.25, 0.5, 0.75)


def write_model(folder: Path) -> dict[str, int]:
    """Random weights as bfloat16, in shards of 100 MB; returns sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16"))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="100MB")
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    return {"params": sum(p.numel() for p in model.parameters()), "params_per_layer": layer}


def forget_pages(folder: Path) -> None:
    """Put the files out of the page cache, so that reading them is seen."""
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


class Counter:
    """Counts the bytes of the tensors that are taken out of files, by transformers and by us."""

    def __init__(self) -> None:
        import transformers.modeling_utils

        import prunebench.checkpoint.reading
        from prunebench.checkpoint.reading import LazyTensor

        self.nbytes = 0
        real, counter = transformers.modeling_utils.safe_open, self

        class Counted(LazyTensor):
            def read(self) -> Any:
                counter.nbytes += self.entry.nbytes
                return super().read()

        class Slice:
            def __init__(self, inner: Any) -> None:
                self.inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def __getitem__(self, index: Any) -> Any:
                tensor = self.inner[index]
                counter.nbytes += tensor.numel() * tensor.element_size()
                return tensor

        class File:
            def __init__(self, *arguments: Any, **options: Any) -> None:
                self.inner = real(*arguments, **options)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def __enter__(self) -> File:
                self.inner.__enter__()
                return self

            def __exit__(self, *error: Any) -> Any:
                return self.inner.__exit__(*error)

            def get_slice(self, key: str) -> Slice:
                return Slice(self.inner.get_slice(key))

        transformers.modeling_utils.safe_open = File
        prunebench.checkpoint.reading.LazyTensor = Counted


def proc_value(file: str, name: str) -> int | None:
    """A number of /proc/self, or None elsewhere than on Linux."""
    path = Path("/proc/self") / file
    if not path.exists():
        return None
    line = next((line for line in path.read_text().splitlines() if line.startswith(f"{name}:")), None)
    return int(line.split()[1]) if line else None


def child(way: str, folder: Path, kept: list[int]) -> dict[str, Any]:
    """Load in one way; runs in its own process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prunebench import LoadOptions
    from prunebench.checkpoint import load_pretrained
    from prunebench.layer_config import config_changes

    torch.set_num_threads(1)
    counter = Counter()
    config = LlamaConfig.from_pretrained(folder)
    n_layers = config.num_hidden_layers
    start, fetched = proc_value("status", "VmHWM"), proc_value("io", "read_bytes")
    cpu = time.process_time()
    if way == "ours":
        model = load_pretrained(LlamaForCausalLM, folder, config, LoadOptions(), kept=kept)
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.model.layers = torch.nn.ModuleList([model.model.layers[layer] for layer in kept])
        for position, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = position
        for name, value in config_changes(model.config, kept, n_layers).items():
            setattr(model.config, name, value)
        gc.collect()
    cpu = time.process_time() - cpu
    peak, after = proc_value("status", "VmHWM"), proc_value("io", "read_bytes")
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(3, 19)[None]).logits
    return {
        "peak_growth_mib": None if start is None else (peak - start) / 1024,
        "peak_mib": None if start is None else peak / 1024,
        "tensor_mib": counter.nbytes / 2**20,
        "fetched_mib": (after - fetched) / 2**20 if fetched is not None and after != fetched else None,
        "cpu_s": cpu,
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    }


def measure(way: str, folder: Path, kept: list[int], repeats: int) -> dict[str, Any]:
    """`child` in fresh interpreters; the smallest of each figure counts."""
    runs = []
    for _ in range(repeats):
        forget_pages(folder)
        command = [sys.executable, __file__, "--child", way, str(folder), json.dumps(kept)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stderr}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    if len({run["logits"] for run in runs}) != 1:
        raise SystemExit(f"{way} gives other logits each time: this is a bug, the figures mean nothing")
    best = {key: min((run[key] for run in runs if run[key] is not None), default=None) for key in runs[0]}
    return best


def machine() -> dict[str, Any]:
    """What ran it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu, "cores": os.cpu_count(), "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(), "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "safetensors", "accelerate")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way, the best counts (default 3)")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    record |= {"machine": machine(), "repeats": arguments.repeats, "rows": []}
    with tempfile.TemporaryDirectory(prefix="prunebench-loading-") as name:
        folder, n_layers = Path(name), SHAPE["num_hidden_layers"]
        record["model"] = {**SHAPE, **write_model(folder), "stored": "bfloat16", "loaded": "float32"}
        print(f"{record['model']['params']:,} parameters, {n_layers} layers, bfloat16 on disk, float32 in memory")
        titles = ("peak MiB", "tensors MiB", "disk MiB", "CPU s")
        print(f"{'':<8}{'way':<18}" + "".join(f"{title:>13}" for title in titles))
        for share in DROPPED:
            count = n_layers - round(share * n_layers)
            kept = [round(i * (n_layers - 1) / (count - 1)) for i in range(count)]
            row: dict[str, Any] = {"kept": count, "of": n_layers, "ways": {}}
            for way in ("all, then drop", "ours"):
                row["ways"][way] = measure(way, folder, kept, arguments.repeats)
            whole, ours = row["ways"]["all, then drop"], row["ways"]["ours"]
            if whole.pop("logits") != ours.pop("logits"):
                raise SystemExit("the two ways give other logits: this is a bug, the figures mean nothing")
            keys = ("peak_growth_mib", "tensor_mib", "fetched_mib", "cpu_s")
            row["ratios"] = {key: whole[key] / ours[key] if whole[key] and ours[key] else None for key in keys}
            record["rows"].append(row)
            for way, found in (*row["ways"].items(), ("ratio", row["ratios"])):
                cells = ("-" if found[key] is None else f"{found[key]:.2f}" for key in keys)
                print(f"{f'{count}/{n_layers}':<8}{way:<18}" + "".join(f"{cell:>13}" for cell in cells))
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
