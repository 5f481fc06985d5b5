"""Modules with the attributes of those in the published code and its forks, exactly, and a forward of ours.

Written from their interfaces: what their constructors set, what their forward takes and returns.
"""

from math import ceil

import torch
from torch import nn

from .published_like import Attention, CenterPredictor, Mlp


class CEBlock(nn.Module):
    """The published block that eliminates candidates: ids of template and search tokens as tensors."""

    def __init__(self, dim, num_heads, ratio=1.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp, self.drop_path = Attention(dim, num_heads), Mlp(dim, nn.GELU), nn.Identity()
        self.keep_ratio_search = ratio

    def forward(self, x, ids_template, ids, mask=None, ce_template_mask=None, keep_ratio_search=None):
        attended, attn = self.attn(self.norm1(x), mask, True)
        x, template, removed = x + attended, ids_template.shape[1], None
        if self.keep_ratio_search < 1 and (keep_ratio_search is None or keep_ratio_search < 1):
            ratio = self.keep_ratio_search if keep_ratio_search is None else keep_ratio_search
            keep = ceil(ratio * ids.shape[1])
            if keep < ids.shape[1]:
                score = attn[:, :, :template, template:]
                if ce_template_mask is not None:
                    rows = ce_template_mask[:, None, :, None].expand_as(score)
                    score = score[rows].view(*score.shape[:2], -1, score.shape[3])
                order = score.mean(2).mean(1).sort(dim=1, descending=True).indices
                kept = x[:, template:].gather(1, order[:, :keep, None].expand(-1, -1, x.shape[2]))
                ids, removed = ids.gather(1, order[:, :keep]), ids.gather(1, order[:, keep:])
                x = torch.cat((x[:, :template], kept), dim=1)
        return x + self.mlp(self.norm2(x)), ids_template, ids, removed, attn


class TokenCEBlock(CEBlock):
    """The same behind class tokens, which are never eliminated and rank nothing (as in ODTrack)."""

    def forward(self, x, ids_template, ids, mask=None, ce_template_mask=None, keep=None, add_cls_token=False, query=1):
        attended, attn = self.attn(self.norm1(x), mask, True)
        x, removed, first = x + attended, None, query if add_cls_token else 0
        if self.keep_ratio_search < 1:
            template, count = ids_template.shape[1], ceil(self.keep_ratio_search * ids.shape[1])
            score = attn[:, :, first:, first:][:, :, :template, template:]
            rows = ce_template_mask[:, None, :, None].expand_as(score)
            order = score[rows].view(*score.shape[:2], -1, score.shape[3]).mean(2).mean(1).sort(1, True).indices
            kept = x[:, first + template :].gather(1, order[:, :count, None].expand(-1, -1, x.shape[2]))
            ids, removed = ids.gather(1, order[:, :count]), ids.gather(1, order[:, count:])
            x = torch.cat((x[:, : first + template], kept), dim=1)
        return x + self.mlp(self.norm2(x)), ids_template, ids, removed, attn


class PlainBlock(nn.Module):
    """Pre-norm and nothing else; `mask` is never given."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp, self.drop_path = Attention(dim, num_heads), Mlp(dim, nn.GELU), nn.Identity()

    def forward(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class DecisionAttention(nn.Module):
    """Returns a decision beside its result, which is None where it divides nothing (as in GRM)."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.dim, self.num_heads, self.scale = dim, num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x, search_length, threshold=0.0):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).flatten(2)), None


class SplitAttention(nn.Module):
    """Template tokens see the template alone (as in ROMTrack and ODTrack's separate attention)."""

    def __init__(self, dim, num_heads, template):
        super().__init__()
        self.num_heads, self.scale, self.t_size = num_heads, (dim // num_heads) ** -0.5, template
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits, t = q @ k.transpose(-2, -1) * self.scale, self.t_size
        logits[:, :, :t, t:] = float("-inf")
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class BiasedAttention(nn.Module):
    """Biases of queries and values beside a layer without (as in LiteTrack)."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x, len_t):
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attn = (q[:, :, len_t:] @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj(torch.cat((x[:, :len_t], (attn @ v).transpose(1, 2).flatten(2)), dim=1))


class KeepingAttention(nn.Module):
    """Attends to the keys and values of the call before too, by a method of its own (as in ROMTrack)."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def start(self, x):
        _, self.k, self.v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward_test(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        keys, values = torch.cat((k, self.k), 2), torch.cat((v, self.v), 2)
        self.k, self.v = k, v
        attn = self.attn_drop((q @ keys.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj_drop(self.proj((attn @ values).transpose(1, 2).flatten(2)))


class OneTowerLess(CenterPredictor):
    """Size and offset out of one tower (as in EVPTrack)."""

    def __init__(self, dim, channel, feat_sz):
        super().__init__(dim, channel, feat_sz)
        self.conv5_offset = nn.Conv2d(channel // 8, 4, 1)
        for i in range(1, 6):
            delattr(self, f"conv{i}_size")

    def get_score_map(self, x):
        score, both = x, x
        for i in range(1, 6):
            score, both = getattr(self, f"conv{i}_ctr")(score), getattr(self, f"conv{i}_offset")(both)
        score, size = ((each.sigmoid().clamp(1e-4, 1 - 1e-4)) for each in (score, both[:, 2:]))
        return score, size, both[:, :2]


class PatchMerge(nn.Module):
    """Norm and layer, behind a rearrangement (as in HiViT)."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        corners = [x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


def awake(module, seed=0):
    """In evaluation mode, with norms, biases and statistics that all count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            if value.dim() < 2:
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
        for name, value in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return module.eval()
