"""The flow transformer over sparse voxels: velocities that turn noise into the structured latent.

Residual convolutions bring the voxels to half resolution and back; between them the transformer of the dense flow runs
over the tokens of each batch item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from reconflow.errors import ValidationFailedError
from reconflow.reconviagen.attention import (
    Context,
    GuidedContext,
    KeysValues,
    LayerNorm32,
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
from reconflow.reconviagen.elementwise import silu
from reconflow.reconviagen.embeddings import TimestepEmbedder, absolute_position_embedding
from reconflow.reconviagen.linear import Linear
from reconflow.reconviagen.sparse_conv import SubmanifoldConv3d
from reconflow.reconviagen.sparse_tensor import SparseTensor, concatenate
from reconflow.reconviagen.structure_flow import PreparedCondition


class SparseResidualBlock(nn.Module):
    """Two sparse convolutions with norms, the second one shifted and scaled by the time's embedding."""

    def __init__(self, channels: int, out_channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm32(channels, eps=1e-6)
        self.conv1 = SubmanifoldConv3d(channels, out_channels)
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels)
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(time_channels, 2 * out_channels))
        self.skip_connection = nn.Identity() if channels == out_channels else Linear(channels, out_channels)

    def forward(self, x: SparseTensor, embedded_time: Tensor) -> SparseTensor:
        """Transform [T, channels] to [T, out_channels] at a time [B, time_channels]."""
        scale, shift = self.emb_layers(embedded_time).chunk(2, dim=-1)
        h = self.conv1(x.with_feats(silu(self.norm1(x.feats))))
        modulated = plain_layer_norm(h.feats, 1e-6) * (1 + x.voxels.spread(scale)) + x.voxels.spread(shift)
        h = self.conv2(x.with_feats(silu(modulated)))
        return x.with_feats(h.feats + self.skip_connection(x.feats))


class SLatFlowModel(nn.Module):
    """The flow of the structured latent; the arguments are those of the official configuration.

    Raises:
        ModelError: An argument has a value that no published weights use.
    """

    def __init__(
        self,
        resolution: int = 64,
        in_channels: int = 8,
        model_channels: int = 1024,
        cond_channels: int = 1024,
        out_channels: int = 8,
        num_blocks: int = 24,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4.0,
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        io_block_channels: Sequence[int] = (128,),
        pe_mode: str = "ape",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's arguments
        use_skip_connection: bool = True,  # noqa: FBT001, FBT002
        share_mod: bool = False,  # noqa: FBT001, FBT002
        qk_rms_norm: bool = False,  # noqa: FBT001, FBT002
        qk_rms_norm_cross: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__()
        refuse_other_than("pe_mode", pe_mode, "ape")
        refuse_other_than("patch_size", patch_size, 2)
        refuse_other_than("the number of io_block_channels", len(io_block_channels), 1)
        refuse_other_than("use_skip_connection", use_skip_connection, True)  # noqa: FBT003
        self.resolution, self.in_channels, self.model_channels = resolution, in_channels, model_channels
        (io_channels,) = io_block_channels
        heads = heads_from(model_channels, num_heads, num_head_channels)
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation_network(model_channels) if share_mod else None
        self.input_layer = Linear(in_channels, io_channels)
        widths = [io_channels] * num_io_res_blocks
        self.input_blocks = nn.ModuleList(
            SparseResidualBlock(width, after, model_channels)
            for width, after in zip(widths, [*widths[1:], model_channels], strict=True)
        )
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
        self.out_blocks = nn.ModuleList(
            SparseResidualBlock(2 * width, after, model_channels)
            for width, after in zip([model_channels, *widths[1:]], widths, strict=True)
        )
        self.out_layer = Linear(io_channels, out_channels)
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert the torso in place; norms, the time's embedding, input and output layer stay float32."""
        convert_torso([self.input_blocks, self.blocks, self.out_blocks], dtype)

    def prepare(self, condition: Context) -> PreparedCondition:
        """Project a condition [B, L, cond_channels], or views of it, for all blocks; the result serves every step."""
        return PreparedCondition(
            tuple(prepare_contexts(self.blocks, cast_context(condition, torso_dtype(self.blocks))))
        )

    def forward(self, x: SparseTensor, t: Tensor, condition: Context | PreparedCondition) -> SparseTensor:
        """Predict the velocity.

        Args:
            x: [T, in_channels] on voxels at full resolution.
            t: [B] times, 0 to 1000.
            condition: [B, L, cond_channels], a list of views of it, or one that `prepare` has projected.

        Returns:
            [T, out_channels] in the dtype of `x`.

        Raises:
            ValidationFailedError: Features, voxels or times do not fit.
        """
        time = self._time(x, t)
        h, skips = self._encode(x, time)
        tokens = self._transform(h, time, self._contexts(condition))
        return self._decode(h.with_feats(tokens), skips, x, time)

    def predict_guided(
        self, x: SparseTensor, t: Tensor, condition: Context | PreparedCondition
    ) -> tuple[SparseTensor, SparseTensor]:
        """Predict the velocities with a condition and with zeros; what depends on neither is computed once.

        Returns:
            The velocity with the condition, and that with zeros; each as `forward` returns it.
        """
        time = self._time(x, t)
        h, skips = self._encode(x, time)
        positive = self._transform(h, time, self._contexts(condition))
        negative = self._transform(h, time, [ZeroContext()] * len(self.blocks))
        decoded = [self._decode(h.with_feats(tokens), skips, x, time) for tokens in (positive, negative)]
        return decoded[0], decoded[1]

    def _time(self, x: SparseTensor, t: Tensor) -> Tensor:
        if x.feats.shape[1:] != (self.in_channels,) or len(t) != x.voxels.batch_size:
            raise ValidationFailedError(
                f"Features {tuple(x.feats.shape)} of {x.voxels.batch_size} items at {len(t)} times do not fit the "
                "flow network.",
                suggestion=f"Give {self.in_channels} channels and one time for each batch item.",
            )
        embedded: Tensor = self.t_embedder(t).to(torso_dtype(self.blocks))
        return embedded

    def _contexts(self, condition: Context | PreparedCondition) -> Sequence[Context]:
        if isinstance(condition, PreparedCondition):
            return condition.contexts
        return [cast_context(condition, torso_dtype(self.blocks))] * len(self.blocks)

    def _encode(self, x: SparseTensor, time: Tensor) -> tuple[SparseTensor, list[SparseTensor]]:
        """Bring the features to half resolution; also give what each block made."""
        h = x.with_feats(self.input_layer(x.feats).to(time.dtype))
        skips = []
        for index, block in enumerate(self.input_blocks):
            h = block(h.downsample() if index == len(self.input_blocks) - 1 else h, time)
            skips.append(h)
        return h, skips

    def _transform(self, h: SparseTensor, time: Tensor, contexts: Sequence[Context]) -> Tensor:
        """Run the transformer over each batch item's tokens, together where all items have equally many."""
        embedded = absolute_position_embedding(h.voxels.coords[:, 1:], self.model_channels)
        tokens = h.feats + embedded.to(h.feats.dtype)
        time = time if self.adaLN_modulation is None else self.adaLN_modulation(time)
        lengths, items = h.voxels.item_lengths, h.voxels.batch_size
        if len(set(lengths)) == 1:
            return self._run_blocks(tokens.view(items, lengths[0], -1), time, contexts).flatten(0, 1)
        return torch.cat(
            [
                self._run_blocks(part[None], time[item : item + 1], [context_of_item(c, item) for c in contexts])[0]
                for item, part in enumerate(torch.split(tokens, list(lengths)))
                if len(part)
            ]
        )

    def _run_blocks(self, tokens: Tensor, time: Tensor, contexts: Sequence[Context]) -> Tensor:
        for block, context in zip(self.blocks, contexts, strict=True):
            tokens = block(tokens, context, time)
        return tokens

    def _decode(self, h: SparseTensor, skips: Sequence[SparseTensor], x: SparseTensor, time: Tensor) -> SparseTensor:
        """Bring the features back to full resolution and to velocities."""
        for index, (block, skip) in enumerate(zip(self.out_blocks, reversed(skips), strict=True)):
            h = concatenate([h, skip])
            h = block(h.upsample(x.voxels) if index == 0 else h, time)
        normed = plain_layer_norm(h.feats, 1e-5).to(x.feats.dtype)
        return x.with_feats(self.out_layer(normed))


def context_of_item(context: Context, item: int) -> Context:
    """The part of a context that one batch item attends to."""
    one = slice(item, item + 1)
    if isinstance(context, Tensor):
        return context[one]
    if isinstance(context, KeysValues):
        return KeysValues(context.keys[one], context.values[one])
    if isinstance(context, ZeroContext):
        return context
    if isinstance(context, GuidedContext):
        raise ValidationFailedError(
            "The latent's flow takes one pass of guidance at a time.", suggestion="Use `predict_guided`."
        )
    return [cast("Tensor | KeysValues", context_of_item(view, item)) for view in context]
