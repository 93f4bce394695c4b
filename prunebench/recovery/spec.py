"""What may be done to a pruned model before it is judged: nothing, a closed form, or training under a token budget.

No torch here: a run's configuration and the ids of its cells need these words before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from prunebench.errors import BadParameter, UnknownName
from prunebench.ops import Fold

if TYPE_CHECKING:
    from prunebench.plan import Plan

__all__ = [
    "NAMES",
    "PREFIX",
    "LayerReplacement",
    "Lora",
    "Module",
    "Recovery",
    "ReplaceMe",
    "Tune",
    "dense_recoveries",
    "parse_recovery",
    "recovery_class",
]

PREFIX = "recover"
"""``-P recover.learning_rate=1e-4`` sets a parameter of the recovery, as ``-P topo.k=25`` one of a strategy."""

CLOSED_FORM = "closed-form compensation"

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Module = Literal["decoder_layer", "ffn", "linear"]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class _Recovery(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    trained: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """As it is written on the command line."""
        return self.method  # type: ignore[attr-defined,no-any-return]


class ReplaceMe(_Recovery):
    """A closed form: T = (MᵀM + αI)⁻¹ Mᵀ (h_b − (h_a − M)), folded into the MLP in front of each removed run [a, b).

    M is what the MLP of layer a − 1 adds to the residual stream, one row per token; its last matrix becomes Tᵀ W
    (ReplaceMe, https://arxiv.org/abs/2505.02819). Costs no parameter and no time at inference.

    Args:
        alpha: ridge, 0 as released. Directions that no token takes are left without a coefficient, as in any
            least-squares solution of smallest norm.
    """

    method: Literal["replaceme"]
    alpha: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class _Trained(_Recovery):
    """What both kinds of training share.

    Args:
        tokens: budget of tokens (prompt, media and answer; no padding) that go through the model in training, met by
            whole batches; None stands for `epochs` passes over the calibration samples that are trained on.
        epochs: where no budget of tokens is given.
        batch_size: samples of one forward pass.
        accumulate: forward passes of one step of the optimiser.
        held_out: share of the calibration samples that is never trained on, and that the loss is reported for.
        clip: norm that gradients are clipped to (each trained module by itself); 0 leaves them.
        seed: of the order of samples and of random initial weights.
    """

    trained: ClassVar[bool] = True

    tokens: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=16, ge=1)
    held_out: Share = 0.1
    learning_rate: Rate = 2e-4
    min_learning_rate: float = Field(default=5e-5, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    warmup: Share = 0.0
    clip: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    beta1: Share = 0.9
    beta2: Share = 0.999
    seed: int = Field(default=0, ge=0)


class LayerReplacement(_Trained):
    """LLM-Streamline: one module takes the place of each removed run [a, b), trained by MSE from h_a to h_b.

    The module is a decoder layer (initialised from layer a), a feed-forward network d → ffn → d without residual and
    norm, or one linear map; it stands in slot a, so one layer of each run comes back
    (https://arxiv.org/abs/2403.19135). Released defaults: AdamW 2e-4 falling to 5e-5, weight decay 1e-3, clip 5,
    batches of 8 × 16.

    Args:
        module: what stands in for a run.
        variant: ``paper`` trains with the model's own causal masks and one cosine over all steps. ``released_code``
            does what the published code does: no causal mask in training (the module still runs causally afterwards),
            and a cosine stretched so that only its first eighth is used.
        keep_count: remove as many layers more as modules come back, so that the number asked for is met.
    """

    method: Literal["layer"]
    module: Module = "decoder_layer"
    variant: Literal["paper", "released_code"] = "paper"
    keep_count: bool = False

    @property
    def label(self) -> str:
        return self.method if self.module == "decoder_layer" else f"{self.method}:{self.module}"


class Tune(_Trained):
    """Train some of the layers that stay, on the answers of the calibration samples.

    Loss: mean negative log-likelihood of the answer tokens given prompt and media. Defaults are those of INTERLACE
    (CVPR 2026): the kept neighbours of removed layers, AdamW 1e-5 with 3 % warm-up and a cosine to zero, batches of
    16 × 2, one epoch. No adapters: the layers' own weights are trained.

    Args:
        layers: ``neighbours`` (what the strategy asks for in its plan, else the kept layers next to removed runs, and
            all layers where nothing is removed), ``all``, or original layer ids with commas between them.
    """

    method: Literal["tune"]
    layers: str = "neighbours"
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=2, ge=1)
    learning_rate: Rate = 1e-5
    min_learning_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup: Share = 0.03
    clip: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: str) -> str:
        words = [word.strip() for word in value.split(",")]
        if value not in ("neighbours", "all") and not all(word.isdecimal() for word in words):
            raise ValueError(f"layers is neighbours, all, or layer ids such as 3,5; got {value!r}")
        return value if value in ("neighbours", "all") else ",".join(str(n) for n in sorted({int(w) for w in words}))

    def chosen(self) -> tuple[int, ...] | None:
        """The layers that were named, or None."""
        return None if self.layers in ("neighbours", "all") else tuple(int(word) for word in self.layers.split(","))


class Lora(_Trained):
    """Low-rank adapters on the linear modules of all layers that stay: W + (alpha / r) B A, merged when trained.

    What LLM-Pruner does after pruning (https://arxiv.org/abs/2305.11627); LoRA is https://arxiv.org/abs/2106.09685.
    Loss as for `Tune`. Released defaults: rank 8, alpha 16, dropout 0.05, AdamW 1e-4 with a warm-up (100 of about 1,560
    steps) and a linear decay to zero, batches of 4 × 16, two epochs. Needs ``pip install 'prunebench[lora]'``.

    Args:
        rank: r of A (r, in) and B (out, r).
        lora_alpha: the update is scaled by lora_alpha / rank.
        dropout: share of an adapter's inputs that are zeroed in training.
        targets: ``all``, every linear module of a layer (in Llama's: q, k, v, o, gate, up and down, as released), or
            last words of their names with commas between them (``q_proj,v_proj``).
        schedule: how the learning rate falls after the warm-up.
    """

    method: Literal["lora"]
    rank: int = Field(default=8, ge=1)
    lora_alpha: Rate = 16.0
    dropout: Share = 0.05
    targets: str = "all"
    schedule: Literal["linear", "cosine"] = "linear"
    epochs: int = Field(default=2, ge=1)
    batch_size: int = Field(default=4, ge=1)
    learning_rate: Rate = 1e-4
    min_learning_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup: Share = 0.06
    clip: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @field_validator("targets")
    @classmethod
    def _targets(cls, value: str) -> str:
        words = sorted({word.strip() for word in value.split(",")})
        if not all(words):
            raise ValueError(f"targets is all, or names such as q_proj,v_proj; got {value!r}")
        return ",".join(words)

    def wants(self, module: str) -> bool:
        """Whether the linear module of this path in its layer gets an adapter."""
        return self.targets == "all" or module.rpartition(".")[2] in self.targets.split(",")


Recovery = Annotated[ReplaceMe | LayerReplacement | Tune | Lora, Field(discriminator="method")]

_METHODS: dict[str, tuple[type[_Recovery], dict[str, str]]] = {
    "replaceme": (ReplaceMe, {}),
    "layer": (LayerReplacement, {}),
    "layer:ffn": (LayerReplacement, {"module": "ffn"}),
    "layer:linear": (LayerReplacement, {"module": "linear"}),
    "tune": (Tune, {}),
    "lora": (Lora, {}),
}
NAMES = ("none", *_METHODS)
"""What ``--recover`` takes."""


def parse_recovery(name: str, tokens: int | None = None, params: Mapping[str, Any] | None = None) -> Recovery | None:
    """``layer:ffn`` with its parameters → the recovery; None for ``none``.

    Args:
        name: one of `NAMES`.
        tokens: budget of training tokens; not used by a closed form.
        params: parameter name → value, textual or typed. What another recovery has and this one lacks is ignored, so
            that one run may ask for several.

    Raises:
        UnknownName: no such recovery, or a parameter that none has.
        BadParameter: a value that does not fit.
    """
    if name not in NAMES:
        raise UnknownName("recovery", name, NAMES)
    known = {field for kind, _ in _METHODS.values() for field in kind.model_fields} - {"method", "tokens"}
    for key in params or {}:
        if key not in known:
            raise UnknownName("parameter of recovery", key, known)
    if name == "none":
        return None
    kind, fixed = _METHODS[name]
    values = {key: value for key, value in (params or {}).items() if key in kind.model_fields}
    values |= {"method": name.partition(":")[0], **fixed}
    if kind.trained and tokens is not None:
        values["tokens"] = tokens
    try:
        return TypeAdapter(kind).validate_python(values)  # type: ignore[return-value]
    except ValidationError as error:
        from prunebench.plan import first_problem

        raise BadParameter(f"--recover {name}: {first_problem(error)}") from error


def dense_recoveries(recoveries: Iterable[Recovery | None]) -> tuple[Tune | Lora, ...]:
    """What the dense model gets where pruned ones are trained: the same budget, on all of its layers.

    A replacement has nothing to replace in the dense model: where neither tuning nor adapters are asked for, the dense
    model is tuned with the budget of the replacement and the settings of `Tune` else.
    """
    trained = [recovery for recovery in recoveries if isinstance(recovery, _Trained)]
    found: list[Tune | Lora] = [recovery for recovery in trained if isinstance(recovery, (Tune, Lora))]
    if not found:
        found = [Tune(method="tune", tokens=r.tokens, epochs=r.epochs, held_out=r.held_out) for r in trained]
    whole = [r.model_copy(update={"layers": "all"}) if isinstance(r, Tune) and r.chosen() else r for r in found]
    return tuple(dict.fromkeys(whole))


def recovery_class(recovery: Recovery | None, plan: Plan | None = None) -> str:
    """Rows are ranked among their own class alone: pruned only, closed form, or trained under one budget.

    A method that folds matrices into the weights by itself is of the second class, as if that had been asked for.
    """
    if recovery is None:
        folds = plan is not None and any(isinstance(op, Fold) for op in plan.ops)
        return CLOSED_FORM if folds else ""
    if not recovery.trained:
        return CLOSED_FORM
    if recovery.tokens is not None:
        return f"trained on {recovery.tokens:,} tokens"
    return f"trained for {recovery.epochs} epoch{'s' if recovery.epochs > 1 else ''} of the calibration samples"
