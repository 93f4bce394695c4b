"""What a plan and a table need to know of a model, without its weights."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

__all__ = ["Cost", "LayerCost", "ModelInfo"]


class Cost(BaseModel):
    """Parameters, bytes, operations and cache of something that a model is made of."""

    model_config = ConfigDict(frozen=True)

    params: int
    bytes: int
    prefill_flops: float = Field(description="for one prompt of ModelInfo.reference_tokens tokens")
    kv_bytes_per_token: int


class LayerCost(Cost):
    """What one decoder layer costs; its parts with the norms that serve them alone, where they can be told apart."""

    attention: Cost | None = None
    mlp: Cost | None = None


class ModelInfo(BaseModel):
    """Shape, size and identity of a loaded model.

    ``revision`` identifies the weights (a hash of the checkpoint's files, or a hub commit): results of two different
    revisions are never put in one table.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    adapter: str
    revision: str
    n_layers: int
    hidden_size: int
    dtype: str
    layers: tuple[LayerCost, ...]
    lm_params: int = Field(description="decoder layers, embeddings, final norm and head; tied weights counted once")
    model_params: int
    model_bytes: int
    lm_prefill_flops: float
    kv_bytes_per_token: int
    reference_tokens: int
    protected: tuple[int, ...] = Field(default=(), description="layers that this architecture cannot lose")
    modalities: tuple[str, ...] = ()
    planted_roles: dict[str, tuple[int, ...]] | None = Field(
        default=None, description="layers by role, for models whose redundancy is known by construction"
    )
    linear_params: int | None = Field(
        default=None, description="weights of the linear maps in decoder layers: what can be thinned; null: not counted"
    )

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the linear weights where they were not counted: such a model reads as it always did."""
        said = handler(self)
        if said.get("linear_params", 0) is None:
            del said["linear_params"]
        return said

    @property
    def planted_removable(self) -> frozenset[int] | None:
        """Layers that are redundant by construction, or None where nothing is planted."""
        if self.planted_roles is None:
            return None
        return frozenset(self.planted_roles.get("redundant", ())) | frozenset(self.planted_roles.get("decoy", ()))
