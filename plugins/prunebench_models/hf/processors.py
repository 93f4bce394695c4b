"""A checkpoint's processor on a machine without torchvision.

Image processors and feature extractors need only Pillow and numpy, video processors torchvision. A processor that
holds one of each is put together from its other parts here; videos go in by `prunebench_models.hf.videos`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from prunebench.checkpoint import read_json
from prunebench.errors import MissingExtra, ModelError, first_line
from prunebench.quiet import quiet_transformers
from prunebench_models.hf.families import Family

__all__ = ["PixtralPrompts", "load_processor", "settings_of"]


def load_processor(folder: Path, family: Family, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a plain model, the processor of any other.

    Raises:
        ModelError: files are missing, or need a package that is not installed.
        MissingExtra: a tokenizer of Mistral's own format without mistral-common.
    """
    import transformers

    more = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        with quiet_transformers():
            if family.is_plain:
                return transformers.AutoTokenizer.from_pretrained(folder, padding_side="left", **more)
            found = _whole(folder, more)
            if found is None and _class_name(folder) == "PixtralProcessor":
                return PixtralPrompts(folder)
            return found if found is not None else _put_together(folder)
    except Exception as error:  # tokenizers, Pillow and the library raise types of their own
        if (folder / "tekken.json").is_file() and importlib.util.find_spec("mistral_common") is None:
            raise MissingExtra("mistral-common", "voxtral", f"the tokenizer of {folder} (tekken.json)") from error
        what = "tokenizer" if family.is_plain else "processor"
        raise ModelError(f"cannot load the {what} of {folder}: {first_line(error)}") from error


def settings_of(folder: Path, part: str) -> dict[str, Any]:
    """Settings of one part (``video_processor``, ``image_processor``) in any of the files that hold them."""
    merged = folder / "processor_config.json"
    if merged.is_file() and isinstance(found := read_json(merged).get(part), dict):
        return found
    names = {"video_processor": ("video_preprocessor_config.json", "preprocessor_config.json")}
    for name in names.get(part, ("preprocessor_config.json",)):
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}


def _whole(folder: Path, more: dict[str, Any]) -> Any:
    """As the library builds it, or None where that asks for more than is installed."""
    from transformers import AutoProcessor, ProcessorMixin

    try:
        found = AutoProcessor.from_pretrained(folder, **more)
    except (ImportError, ValueError, OSError, TypeError, AttributeError):
        return None
    return found if isinstance(found, ProcessorMixin) else None  # it falls back to a part


def _put_together(folder: Path) -> Any:
    import transformers

    real = _processor_class(folder)
    parts = [_part(name, folder) for name in real.get_attributes()]

    class WithoutVideo(real):  # type: ignore[misc, valid-type]
        """The same processor; the part that needs torchvision is left out."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    WithoutVideo.__name__ = real.__name__  # the name is written when the processor is saved
    parameters = inspect.signature(real.__init__).parameters
    merged = folder / "processor_config.json"
    settings = read_json(merged) if merged.is_file() else {}
    names = dict(zip(real.get_attributes(), parts, strict=True))
    names |= {key: value for key, value in settings.items() if key in parameters and not isinstance(value, dict)}
    if (template := _chat_template(folder)) is not None:
        names["chat_template"] = template
    processor = WithoutVideo(**{key: value for key, value in names.items() if key in parameters})
    if not isinstance(processor, transformers.ProcessorMixin):
        raise TypeError(f"{real.__name__} is no processor")
    return processor


def _class_name(folder: Path) -> str:
    """What the files name, or what belongs to the model type."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = None
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if name is None and (folder / file).is_file():
            name = read_json(folder / file).get("processor_class")
    name = name or PROCESSOR_MAPPING_NAMES.get(read_json(folder / "config.json").get("model_type"))
    if name is None:
        raise ValueError("no file names a processor class")
    return name


def _processor_class(folder: Path) -> Any:
    """The class, also where the library hides it."""
    import transformers

    name = _class_name(folder)
    shown = getattr(transformers, name)
    # A class that asks for torchvision is hidden behind a stand-in that knows where it lives.
    return getattr(importlib.import_module(shown.__module__), name)


def _part(name: str, folder: Path) -> Any:
    import transformers

    if name == "video_processor":
        return _NoVideo(settings_of(folder, "video_processor"))
    if name == "tokenizer":
        return transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    if name == "image_processor":
        return _image_processor(folder)
    return transformers.AutoFeatureExtractor.from_pretrained(folder)


def _image_processor(folder: Path) -> Any:
    """The Pillow variant by its name: some versions' automatic look-up asks for torchvision."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    kind = settings_of(folder, "image_processor").get("image_processor_type")
    if kind is None:
        names = IMAGE_PROCESSOR_MAPPING_NAMES[read_json(folder / "config.json")["model_type"]]
        names = names.values() if isinstance(names, dict) else [names] if isinstance(names, str) else names
        kind = next(name for name in names if name)
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    return getattr(transformers, f"{kind}Pil", getattr(transformers, kind, None)).from_pretrained(folder)


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return read_json(folder / "chat_template.json").get("chat_template")
    return None


class PixtralPrompts:
    """What Pixtral's processor does, whose module cannot be imported without torchvision.

    An image is resized to whole patches by the library's image processor; in the prompt every row of merged patches is
    a run of ``[IMG]`` that ends with ``[IMG_BREAK]``, the last one with ``[IMG_END]``.
    """

    image_token, break_token, end_token = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

    def __init__(self, folder: Path) -> None:
        import transformers

        settings = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.image_processor = _image_processor(folder)
        self.patch = settings.get("patch_size", 16) * settings.get("spatial_merge_size", 1)
        self.chat_template = _chat_template(folder) or self.tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **settings)

    def batch_decode(self, *args: Any, **settings: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **settings)

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        self.tokenizer.save_pretrained(folder, **settings)
        self.image_processor.save_pretrained(folder)

    def __call__(self, text: list[str], images: list[list[Any]] | None = None, **settings: Any) -> dict[str, Any]:
        output: dict[str, Any] = {}
        if images is not None:
            flat = [image for row in images for image in row]
            output = dict(self.image_processor(flat, patch_size=self.patch, return_tensors="pt"))
            text = self._expanded(text, output["image_sizes"])
        return {**self.tokenizer(text, **settings), **output}

    def _expanded(self, text: list[str], sizes: Any) -> list[str]:
        spans = iter([self._span(int(height) // self.patch, int(width) // self.patch) for height, width in sizes])
        found = []
        for prompt in text:
            pieces = prompt.split(self.image_token)
            found.append(pieces[0] + "".join(next(spans) + piece for piece in pieces[1:]))
        return found

    def _span(self, rows: int, columns: int) -> str:
        row = self.image_token * columns
        return self.break_token.join([row] * rows) + self.end_token


class _NoVideo:
    """Stands where a video processor would, with its numbers (``merge_size``), which some processors read."""

    model_input_names: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        vars(self).update({name: value for name, value in settings.items() if isinstance(value, int)})

    def __call__(self, *_args: Any, **_settings: Any) -> Any:
        raise ModelError("this processor reads videos only with torchvision: pip install torchvision")

    def to_dict(self) -> dict[str, Any]:
        return {}
