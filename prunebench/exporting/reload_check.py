"""Load a checkpoint the plain way and say what came of it. Runs as a program of its own, in a fresh process.

It knows nothing of PruneBench: what it can load, anyone can. The one exception are layers of different widths, for
which config.json has no words but PruneBench's own. `digests` and `logits` are also what the exporting process calls on
the model in memory, so that both sides do the same.
"""

import hashlib
import importlib
import json
import sys


def digests(model):
    """Name → SHA-256 (hex) of number format, shape and bytes of each tensor in the model's state."""
    import torch

    found = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        found[name] = digest.hexdigest()
    return found


def logits(model, input_ids):
    """Logits (batch, tokens, vocabulary) of token ids (batch, tokens), on the CPU."""
    import torch

    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        output = model(input_ids=input_ids.to(device), attention_mask=torch.ones_like(input_ids).to(device))
    return output.logits.cpu().contiguous()


def main(folder, model_class, probe, result, device, threads):
    """Load `folder` with ``module:Class`` and write what was found into the folder `result`."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(int(threads))
    module, _, name = model_class.partition(":")
    kind = getattr(importlib.import_module(module), name)
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        narrow = "widths" in (json.load(file).get("prunebench") or {})
    if narrow:
        from prunebench.checkpoint.narrowing import folder_class

        kind = folder_class(kind, folder)
    model, report = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    model = model.eval().to(device)
    found = {key: sorted(map(str, report.get(key) or ())) for key in ("missing_keys", "unexpected_keys")}
    found["mismatched_keys"] = sorted(map(str, report.get("mismatched_keys") or ()))
    found["digests"] = digests(model)
    save_file({"logits": logits(model, load_file(probe)["input_ids"])}, f"{result}/logits.safetensors")
    with open(f"{result}/found.json", "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
