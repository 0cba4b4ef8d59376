"""The flow transformer over a dense grid of latents: velocities that turn noise into the sparse structure's latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen.attention import (
    Context,
    GuidedContext,
    ModulatedCrossBlock,
    ZeroContext,
    cast_context,
    convert_torso,
    heads_from,
    modulation_network,
    plain_layer_norm,
    prepare_contexts,
    torso_dtype,
)
from reconflow.reconviagen.configuration import refuse_other_than
from reconflow.reconviagen.embeddings import TimestepEmbedder, grid_position_embedding
from reconflow.reconviagen.linear import Linear


@dataclass(frozen=True)
class PreparedCondition:
    """A condition projected for each block of one network: it serves every step of a sampler."""

    contexts: tuple[Context, ...]

    def guided(self) -> PreparedCondition:
        """The same for a batch whose second half has the zero condition; see `GuidedContext`."""
        contexts = []
        for context in self.contexts:
            assert not isinstance(context, (ZeroContext, GuidedContext))
            contexts.append(GuidedContext(context))
        return PreparedCondition(tuple(contexts))


class SparseStructureFlowModel(nn.Module):
    """A transformer with time-dependent modulation; the arguments are those of the official configuration."""

    pos_emb: Tensor

    def __init__(
        self,
        resolution: int = 16,
        in_channels: int = 8,
        model_channels: int = 1024,
        cond_channels: int = 1024,
        out_channels: int = 8,
        num_blocks: int = 24,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4.0,
        patch_size: int = 1,
        pe_mode: str = "ape",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's arguments
        share_mod: bool = False,  # noqa: FBT001, FBT002
        qk_rms_norm: bool = False,  # noqa: FBT001, FBT002
        qk_rms_norm_cross: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__()
        refuse_other_than("pe_mode", pe_mode, "ape")
        if resolution % patch_size:
            raise ModelError(
                f"Patches of {patch_size} do not fill a grid of {resolution} cells.",
                suggestion="Check resolution and patch_size in the model's configuration file.",
            )
        self.resolution, self.in_channels, self.patch_size = resolution, in_channels, patch_size
        heads = heads_from(model_channels, num_heads, num_head_channels)
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation_network(model_channels) if share_mod else None
        self.register_buffer("pos_emb", grid_position_embedding(resolution // patch_size, model_channels))
        self.input_layer = Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedCrossBlock(
                model_channels,
                cond_channels,
                heads,
                mlp_ratio,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
                share_mod=share_mod,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = Linear(model_channels, out_channels * patch_size**3)
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert the torso in place; norms, embeddings, input and output layer stay float32."""
        convert_torso([self.blocks], dtype)

    def prepare(self, condition: Context) -> PreparedCondition:
        """Project a condition [B, L, cond_channels], or views of it, for all blocks; the result serves every step."""
        return PreparedCondition(
            tuple(prepare_contexts(self.blocks, cast_context(condition, torso_dtype(self.blocks))))
        )

    def forward(self, x: Tensor, t: Tensor, condition: Context | PreparedCondition) -> Tensor:
        """Predict the velocity.

        Args:
            x: [B, in_channels, R, R, R].
            t: [B] times, 0 to 1000.
            condition: [B, L, cond_channels], or another `Context`, or one that `prepare` has projected.

        Returns:
            [B, out_channels, R, R, R] in the dtype of `x`.

        Raises:
            ValidationFailedError: `x` has another shape.
        """
        if x.shape[1:] != (self.in_channels, *[self.resolution] * 3) or t.shape != x.shape[:1]:
            raise ValidationFailedError(
                f"Latents of the shape {tuple(x.shape)} at times {tuple(t.shape)} do not fit the flow network.",
                suggestion=f"Give [B, {self.in_channels}, {self.resolution}, {self.resolution}, {self.resolution}].",
            )
        dtype = torso_dtype(self.blocks)
        h = (self.input_layer(patchify(x, self.patch_size)) + self.pos_emb).to(dtype)
        time = self.t_embedder(t)
        time = (time if self.adaLN_modulation is None else self.adaLN_modulation(time)).to(dtype)
        contexts = (
            condition.contexts
            if isinstance(condition, PreparedCondition)
            else [cast_context(condition, dtype)] * len(self.blocks)
        )
        for block, context in zip(self.blocks, contexts, strict=True):
            h = block(h, context, time)
        velocity = self.out_layer(plain_layer_norm(h.to(x.dtype), 1e-5))
        return unpatchify(velocity, self.resolution // self.patch_size, self.patch_size)

    def predict_guided(self, x: Tensor, t: Tensor, condition: PreparedCondition) -> tuple[Tensor, Tensor]:
        """Predict the velocities with a condition and with zeros, in one pass of twice the batch.

        Faster where a single pass does not fill the device, for twice the memory of activations.

        Returns:
            The velocity with the condition, and that with zeros; each as `forward` returns it.
        """
        positive, negative = self(torch.cat([x, x]), torch.cat([t, t]), condition.guided()).chunk(2)
        return positive, negative


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut a grid [B, C, R, R, R] into row-major tokens [B, (R/p)³, C·p³], the offsets in a patch fastest."""
    batch, channels, side = x.shape[0], x.shape[1], x.shape[2] // patch_size
    cut = x.reshape(batch, channels, side, patch_size, side, patch_size, side, patch_size)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, side**3, -1)


def unpatchify(tokens: Tensor, side: int, patch_size: int) -> Tensor:
    """Undo `patchify`: tokens [B, side³, C·p³] to a grid [B, C, side·p, side·p, side·p]."""
    cut = tokens.reshape(len(tokens), side, side, side, -1, patch_size, patch_size, patch_size)
    return cut.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(tokens), -1, *[side * patch_size] * 3)
