"""OSTrack with frozen weights, laid out for speed.

Everything that does not change between frames is done once: BatchNorm is folded into the convolutions and LayerNorm's
affine into the linear layer behind it, the head's three towers run side by side as one, a target's template is embedded
when it is set. The residual stream stays float32 whatever the compute dtype.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..ops import OPS
from ..ops.layers import (
    CropPatches,
    FrameTail,
    Layer,
    conv3x3,
    crop_patches,
    cross_attention,
    cut_patches,
    frame_tail,
    head_maps,
    linear,
    restore_conv3x3,
    result_dtype,
)
from .ostrack import OSTrack
from .vit import Block, box_embedding

_NOT_PROFILING: AbstractContextManager = nullcontext()


def stage(name: str) -> AbstractContextManager:
    """A range of this name in the traces of `torch.profiler`; nearly free while none is recorded."""
    return record_function(name) if torch.autograd._profiler_enabled() else _NOT_PROFILING


def skips_unused_queries(device: torch.device) -> bool:
    """Whether additional launches are worth the queries that they leave out.

    Every query left out saves time on a CPU. On a GPU the extra launches should cost more: not measured yet.
    """
    return device.type == "cpu"


class _FrozenBlock(NamedTuple):
    qkv: Layer | None
    q: Layer | None  # with kv instead of qkv, where some tokens need no query
    kv: Layer | None
    proj: Layer
    fc1: Layer
    fc2: Layer
    keep: int | None  # candidates that this block's elimination keeps; None where it eliminates none


class Template(NamedTuple):
    """What does not change between frames: the template's tokens with positions, and the first block's qkv of them.

    tokens is (B,T+S,C) float32: each frame writes the S tokens of its search region behind the template's T. Nothing
    else changes them. qkv is (B,T+S,3C) in the dtype of activations, written likewise; (B,T,3C) where the
    first block computes all of it anew, as on a GPU.
    """

    tokens: Tensor
    qkv: Tensor


class FrozenOSTrack:
    """The network of an `OSTrack` in evaluation mode, its weights folded and laid out for the kernels that run here.

    Args:
        dtype: compute dtype of the matmuls: float32, float16, bfloat16, or int8, whose activations are bfloat16 where a
            processor rounds to it in one instruction, else float32.
        candidate_elimination: False keeps all candidates, whatever the configuration says.
        consume: free each block's weights as soon as they are packed, so that no weight is in memory twice. The model
            cannot be used afterwards.

    Attributes:
        candidates: (B,K) int64, the cells of the search region that the last call's elimination left; None before.
        qkv_rows: the number of rows of a `Template`'s qkv.
        recordable: whether all that a call computes may be `Recordings` of kernels.
    """

    def __init__(
        self,
        model: OSTrack,
        device: torch.device,
        dtype: torch.dtype,
        candidate_elimination: bool = True,
        consume: bool = False,
    ):
        if not model.runs_frozen:
            raise ValueError(f"{type(model).__name__} has layers that this does not compute: track with it instead")
        cfg = self.cfg = model.cfg
        self.device, self.compute_dtype = device, dtype
        self.dtype = result_dtype(dtype)
        # The number of parameters without the class token and the position table, which are never read.
        self.parameters = sum(each.numel() for each in model.parameters()) - sum(
            each.numel() for each in (model.backbone.cls_token, model.backbone.pos_embed)
        )
        self.candidates: Tensor | None = None
        self.recordable = device.type == "cpu"
        self._skips_unused_queries = skips_unused_queries(device)
        self.qkv_rows = cfg.template_grid**2 + (cfg.search_grid**2 if self._skips_unused_queries else 0)
        self._cross_attention = cross_attention(cfg.num_heads, cfg.embed_dim // cfg.num_heads, self.dtype, device)
        backbone = model.backbone
        projection = backbone.patch_embed.proj
        # The patch embedding reads pixels, whose range int8 does not resolve, once a frame.
        self._cut_patches = cut_patches(cfg.patch_size, device)
        self._patch = self._linear(projection.weight.flatten(1), cast(Tensor, projection.bias), dtype=self.dtype)
        self._template_position = _float(backbone.pos_embed_z, device)
        self._box_embed = None if backbone.box_embed is None else _float(backbone.box_embed, device)
        self._search_position = _float(backbone.pos_embed_x, device)
        self._ids = torch.arange(cfg.search_grid**2, dtype=torch.int64, device=device)
        ratios = dict(zip(cfg.ce_layers, cfg.ce_keep_ratio, strict=True)) if candidate_elimination else {}
        left = cfg.search_grid**2
        self._blocks: list[_FrozenBlock] = []
        for index, block in enumerate(cast("list[Block]", backbone.blocks)):
            keep = ceil(ratios.get(index, 1) * left)
            last = index == cfg.depth - 1
            # The first block keeps one qkv layer, because the template's part of its result is computed beforehand.
            split_qkv = self._skips_unused_queries and index > 0 and (keep < left or last)
            self._blocks.append(self._frozen_block(block, keep if keep < left else None, split_qkv))
            if consume:
                block.to("meta")
                _return_freed_memory()
            left = keep
        self.eliminates = any(block.keep is not None for block in self._blocks)
        self._bind_ops()
        norm = backbone.norm
        self._freeze_head(model.box_head, (_float(norm.weight, device), _float(norm.bias, device), norm.eps), left)

    def _bind_ops(self) -> None:
        """Choose the backends of the ops for tensors as the blocks will have them."""
        cfg = self.cfg
        template, candidates, width = cfg.template_grid**2, cfg.search_grid**2, cfg.embed_dim
        tokens = torch.empty(1, template + candidates, width, dtype=torch.float32, device=self.device)
        mask = torch.empty(template, dtype=torch.bool, device=self.device)
        qkv = self._heads(tokens.to(self.dtype).repeat(1, 1, 3), 3)
        self._attention_op = OPS["attention"].bind(qkv, mask)
        self._eliminate_op = OPS["eliminate"].bind(tokens, tokens[:, :candidates, 0], self._ids[None], 1)

    def _linear(self, weight: Tensor, bias: Tensor, norm: nn.LayerNorm | None = None, **how: Any) -> Layer:
        weight, bias = weight.detach().double(), bias.detach().double()
        if norm is not None:
            bias = bias + weight @ norm.bias.detach().double()
            weight = weight * norm.weight.detach().double()
            how["norm_eps"] = norm.eps
        return linear(_float(weight, self.device), _float(bias, self.device), **{"dtype": self.compute_dtype, **how})

    def _frozen_block(self, block: Block, keep: int | None, split_qkv: bool) -> _FrozenBlock:
        qkv, proj, fc1, fc2 = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
        width = self.cfg.embed_dim
        return _FrozenBlock(
            None if split_qkv else self._linear(qkv.weight, qkv.bias, block.norm1),
            self._linear(qkv.weight[:width], qkv.bias[:width], block.norm1) if split_qkv else None,
            self._linear(qkv.weight[width:], qkv.bias[width:], block.norm1) if split_qkv else None,
            self._linear(proj.weight, proj.bias),
            self._linear(fc1.weight, fc1.bias, block.norm2, activation="gelu"),
            self._linear(fc2.weight, fc2.bias),
            keep,
        )

    def _freeze_head(self, head: nn.Module, norm: tuple[Tensor, Tensor, float], tokens: int) -> None:
        towers = ("ctr", "offset", "size")
        layers = []
        for layer in range(1, 5):
            folded = [_folded(cast(nn.Sequential, head.get_submodule(f"conv{layer}_{tower}"))) for tower in towers]
            layers.append([_float(torch.cat(parts), self.device) for parts in zip(*folded, strict=True)])
        (weight, bias), *others = layers
        self._first_convolution = restore_conv3x3(weight, bias, norm, tokens, self.cfg.search_grid, self.compute_dtype)
        self._convolutions = [conv3x3(w, b, groups=len(towers), dtype=self.compute_dtype) for w, b in others]
        last = [cast(nn.Conv2d, head.get_submodule(f"conv5_{tower}")) for tower in towers]
        # In float32: half precision would resolve a position on the grid no better than to a pixel of the crop.
        parts = [layer.weight.detach().flatten(1) for layer in last]
        bias = torch.cat([cast(Tensor, layer.bias).detach() for layer in last])
        self._last = self._linear(torch.block_diag(*parts), bias, dtype=torch.float32)
        self._head_maps = head_maps(self.device)
        self._tail_weights = _float(torch.cat(parts), self.device), _float(bias, self.device)

    def tail(self, window: Tensor) -> FrameTail | None:
        """What follows `features` in a frame as one kernel; None where there is none."""
        return frame_tail(*self._tail_weights, window)

    def crop_patches(self) -> CropPatches | None:
        """The search crop in patches; None where no kernel cuts it so."""
        cfg = self.cfg
        return crop_patches(cfg.search_factor, cfg.search_size, cfg.patch_size, self.dtype, self.device)

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Template:
        """Template images (B,3,Z,Z) -> their part of the network's input, computed once.

        `box`: as `VisionTransformer.embed_template`.
        """
        cfg, batch = self.cfg, len(template)
        rows = cfg.template_grid**2
        tokens = torch.empty(batch, rows + cfg.search_grid**2, cfg.embed_dim, dtype=torch.float32, device=self.device)
        position = self._template_position
        if self._box_embed is not None:
            position = position + box_embedding(self._box_embed, box, cfg)
        embedded = self._embedded(template, position, tokens[:, :rows])
        qkv = torch.empty(batch, self.qkv_rows, 3 * cfg.embed_dim, dtype=self.dtype, device=self.device)
        cast(Layer, self._blocks[0].qkv)(embedded, out=qkv[:, :rows])
        return Template(tokens, qkv)

    def _embedded(self, image: Tensor, position: Tensor, out: Tensor | None = None) -> Tensor:
        with stage("patch embedding"):
            if not (self.device.type == "cpu" and image.dtype == torch.float32):  # which a layer rounds as it reads it
                image = image.to(self.dtype)
            patches = image if image.dim() == 3 else self._cut_patches(image)
            return self._patch(patches, position.expand(len(image), -1, -1), out)

    def layers(self) -> Iterator[tuple[str, Layer, int]]:
        """Every linear layer and convolution of a frame, in order: (name, layer, rows for one target).

        A linear layer's input is (B, rows, layer.inputs); that of "conv1" to "conv4" is (B,F,F,layer.inputs) with
        F*F = rows. "patch embedding", "proj" and "fc2" take a residual. "taps" replaces "conv1" where the head's first
        convolution multiplies the tokens that are left instead of the restored map.
        """
        template, cells = self.cfg.template_grid**2, self.cfg.search_grid**2
        yield "patch embedding", self._patch, cells
        tokens, left = template + cells, cells
        for block in self._blocks:
            left = left if block.keep is None else block.keep
            # Nothing reads the template's tokens after the last attention.
            after = left if block is self._blocks[-1] and block.keep is None else template + left
            if block.qkv is not None:
                yield "qkv", block.qkv, tokens
            else:
                for rows in (after,) if block.keep is None else (template, left):
                    yield "q", cast(Layer, block.q), rows
                yield "kv", cast(Layer, block.kv), tokens
            yield "proj", block.proj, tokens if block.qkv is not None and block.keep is not None else after
            yield "fc1", block.fc1, after
            yield "fc2", block.fc2, after
            tokens = after
        first = self._first_convolution
        yield ("taps", first.layer, left) if first.multiplies_tokens else ("conv1", first.layer, cells)
        for index, convolution in enumerate(self._convolutions, 2):
            yield f"conv{index}", convolution, cells
        yield "conv5", self._last, cells

    def __call__(self, template: Template, search: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Templates, search image (B,3,X,X), mask (T,) or (B,T) -> score (B,1,F,F), size and offset maps (B,2,F,F).

        The image is in `self.dtype`, or on a CPU in float32. It may come in patches, (B,F*F,3*P*P), as `crop_patches`
        gives it.
        """
        x = self.features(template, search, mask)
        with stage("maps"):
            return self._head_maps(self._last(x.flatten(1, 2)))

    def features(self, template: Template, search: Tensor, mask: Tensor | None) -> Tensor:
        """The same inputs -> what the maps are computed of: (B,F,F,3C), the towers for score, offset and size."""
        tokens, self.candidates = self._tokens_left(template, search, mask)
        with stage("norm, restoration, head"):
            x = self._first_convolution(tokens, self.candidates)
            for convolution in self._convolutions:
                x = convolution(x)
        return x

    def _tokens_left(self, template: Template, search: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The backbone: search tokens (B,K,C) that are left, and their cells (B,K)."""
        tokens, rows = template.tokens, self.cfg.template_grid**2
        self._embedded(search, self._search_position, tokens[:, rows:])
        ids = self._ids.expand(len(tokens), -1)
        for index, block in enumerate(self._blocks):
            if block.qkv is None:
                tokens, ids, rows = self._attention_skipping_queries(block, tokens, ids, rows, mask)
            else:
                computed = template.qkv if index == 0 and self._skips_unused_queries else None
                tokens, ids, rows = self._attention(block, tokens, ids, rows, mask, computed)
            with stage("norm, fc1, gelu"):
                hidden = block.fc1(tokens)
            with stage("fc2, residual"):
                tokens = block.fc2(hidden, tokens, tokens)
        return tokens[:, rows:], ids

    def _attention(
        self,
        block: _FrozenBlock,
        tokens: Tensor,
        ids: Tensor,
        rows: int,
        mask: Tensor | None,
        template_qkv: Tensor | None,
    ) -> tuple[Tensor, Tensor, int]:
        """Attention, projection and elimination.

        Args:
            rows: number of template tokens, which come first.
            template_qkv: where the template's rows of qkv are, if they are computed already; the others are written.

        Returns the tokens and cells that are left, and the number of template tokens in them.
        """
        with stage("norm, qkv"):
            layer, qkv = cast(Layer, block.qkv), template_qkv
            if qkv is None:
                qkv = layer(tokens)
            else:
                layer(tokens[:, rows:], out=qkv[:, rows:])
        with stage("attention and score"):
            attended, score, _ = self._attention_op(self._heads(qkv, 3), mask if block.keep is not None else None)
        if block is self._blocks[-1] and block.keep is None:
            # Nothing reads the template's tokens after the last attention.
            attended, tokens, rows = attended[:, rows:].contiguous(), tokens[:, rows:].contiguous(), 0
        with stage("projection, residual"):
            # The first block's input stays: the template's tokens in it serve the next frame.
            out = None if block is self._blocks[0] else tokens
            tokens = block.proj(attended, tokens, out)
        if block.keep is not None:
            with stage("elimination"):
                tokens, ids, _ = self._eliminate_op(tokens, cast(Tensor, score), ids, block.keep)
        return tokens, ids, rows

    def _attention_skipping_queries(
        self, block: _FrozenBlock, tokens: Tensor, ids: Tensor, rows: int, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, int]:
        """The same without unused queries: those of eliminated candidates, and in the last block the template's.

        Scores need only the template's queries, so eliminated tokens contribute keys and values but no queries.
        """
        with stage("norm, qkv"):
            kv = self._heads(cast(Layer, block.kv)(tokens), 2)
        if block.keep is None:
            tokens, rows = tokens[:, rows:], 0
            attended = kv.new_empty(tokens.shape)
            self._attend_queries(block, tokens, kv, None, attended)
        else:
            batch, _, channels = tokens.shape
            attended = kv.new_empty(batch, rows + block.keep, channels)
            score = self._attend_queries(block, tokens[:, :rows], kv, mask, attended[:, :rows])
            with stage("elimination"):
                tokens, ids, _ = self._eliminate_op(tokens, cast(Tensor, score), ids, block.keep)
            self._attend_queries(block, tokens[:, rows:], kv, None, attended[:, rows:])
        with stage("projection, residual"):
            return block.proj(attended, tokens, tokens), ids, rows

    def _attend_queries(
        self, block: _FrozenBlock, tokens: Tensor, kv: Tensor, mask: Tensor | None, out: Tensor
    ) -> Tensor | None:
        """Attention with the queries of these tokens, written to `out`; returns the score, if there is a mask."""
        with stage("norm, qkv"):
            queries = self._heads(cast(Layer, block.q)(tokens))
        with stage("attention and score"):
            return self._cross_attention(queries, kv, mask, out)[1]

    def _heads(self, x: Tensor, *parts: int) -> Tensor:
        """(B,N,parts*C) -> (B,N,parts,H,D)"""
        heads = self.cfg.num_heads
        return x.view(*x.shape[:2], *parts, heads, self.cfg.embed_dim // heads)


def _folded(block: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a convolution with its BatchNorm folded in."""
    convolution, norm = cast(nn.Conv2d, block[0]), cast(nn.BatchNorm2d, block[1])
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    factor = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    bias = (cast(Tensor, convolution.bias).detach().double() - mean) * factor + norm.bias.detach().double()
    return convolution.weight.detach().double() * factor[:, None, None, None], bias


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps it, and packed weights do not fit the gaps of single weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _float(value: Tensor, device: torch.device) -> Tensor:
    # A copy, so that the model may go on training. Dense, as kernels read it: the published code makes its position
    # tables by a transposition.
    return value.detach().to(device, torch.float32, copy=True).contiguous()
