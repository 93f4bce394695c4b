"""From the quantised GGUF file that a package ships to a safetensors folder that every part of PruneBench can load.

Done once: 4-bit blocks (Q4_1) are expanded to float32, which takes half a minute and 1.2 GB of memory; reading the
result takes under a second. The folder is made beside its final place and moved there whole, so that an interrupted
conversion leaves nothing that could be mistaken for a model.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from prunebench import jsonio
from prunebench.errors import ModelError, first_line
from prunebench.quiet import quiet_transformers
from prunebench_models.smollm2 import GGUF_FILE, GGUF_PACKAGE, GGUF_SHA256, INSTALL
from prunebench_models.smollm2.cache import WEIGHTS, cache_dir, make_folder, sha256_of

__all__ = ["CONVERSION", "find_gguf", "model_folder", "weights_revision"]

CONVERSION = "1"
"""Changes whenever the same file would give other weights: part of the model's revision."""


def weights_revision(source_sha256: str = GGUF_SHA256) -> str:
    """Identity of the converted weights: of the file they come from, not of the library that wrote them."""
    return jsonio.digest({"gguf": source_sha256, "conversion": CONVERSION})


def find_gguf() -> Path:
    """The file inside the installed package, which is not imported (its import needs a C++ runtime).

    Raises:
        ModelError: the package is missing, or ships another file.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"SmolLM2 is not installed: `{INSTALL}` installs the package that ships its weights")
    path = Path(spec.origin).parent / GGUF_FILE
    if not path.is_file():
        raise ModelError(f"the installed {GGUF_PACKAGE} does not ship {GGUF_FILE}: `{INSTALL}` installs the right one")
    return path


def model_folder(say: Callable[[str], None] | None = None) -> Path:
    """The converted model; made on the first call.

    Args:
        say: told what is going on, one line at a time.

    Raises:
        ModelError: the package is missing or not the pinned one, or the conversion fails.
    """
    target = cache_dir() / "smollm2" / weights_revision()[:16]
    if (target / WEIGHTS).is_file() and (target / "config.json").is_file():
        return target
    say = say or (lambda line: None)
    source = find_gguf()
    say(f"checking {source.name} ({source.stat().st_size / 1e6:.0f} MB)")
    if (found := sha256_of(source)) != GGUF_SHA256:
        raise ModelError(
            f"{source} is not the pinned file (SHA-256 {found[:12]}…, expected {GGUF_SHA256[:12]}…): "
            f"`{INSTALL}` installs the right version"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {source.name} needs the package gguf: `{INSTALL}` installs it")
    say(f"converting it to float32 safetensors in {target} (once; about half a minute)")
    with quiet_transformers():
        make_folder(target, lambda folder: _convert(source, folder))
    say("converted")
    return target


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        # Without `dequantize` the model still calls itself quantised and refuses to be saved.
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except OSError:
        raise
    except Exception as error:  # the reader of the format raises types of its own
        raise ModelError(f"cannot read {source}: {first_line(error)}") from error
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id or end
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    try:
        print(f"model: {model_folder(print)}")
    except ModelError as problem:
        sys.exit(f"Error: {problem}")
