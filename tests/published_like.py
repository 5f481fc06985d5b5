"""A network with the outside of the published one: its attributes and forward arguments, exactly, and no others.

Written from the published code's interface. Its attributes are those that `VisionTransformerCE`, `CEBlock`,
`CenterPredictor` and `OSTrack` of that code have; the blocks keep their own ratio, the backbone keeps none.
"""

from math import ceil

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)
        self.rpe = False

    def forward(self, x, mask=None, return_attention=False):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attn = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            attn = attn.masked_fill(mask[:, None, None], float("-inf"))
        attn = self.attn_drop(attn.softmax(-1))
        x = self.proj((attn @ v).transpose(1, 2).flatten(2))
        return (x, attn) if return_attention else x


class Mlp(nn.Module):
    def __init__(self, dim, act):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), act(), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class CEBlock(nn.Module):
    def __init__(self, dim, num_heads, ratio, act, eps):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp, self.drop_path = Attention(dim, num_heads), Mlp(dim, act), nn.Identity()
        self.keep_ratio_search = ratio

    def forward(self, x, template, ids, mask=None, ce_template_mask=None, keep=None):
        attended, attn = self.attn(self.norm1(x), mask, True)
        x, removed = x + attended, None
        if self.keep_ratio_search < 1 and (keep is None or keep < 1):
            score = attn[:, :, :template, template:]
            if ce_template_mask is not None:
                rows = ce_template_mask[:, None, :, None].expand_as(score)
                score = score[rows].view(*score.shape[:2], -1, score.shape[3])
            order = score.mean((1, 2)).sort(dim=1, descending=True).indices
            count = ceil((self.keep_ratio_search if keep is None else keep) * ids.shape[1])
            kept = x[:, template:].gather(1, order[:, :count, None].expand(-1, -1, x.shape[2]))
            ids, removed = ids.gather(1, order[:, :count]), ids.gather(1, order[:, count:])
            x = torch.cat((x[:, :template], kept), dim=1)
        return x + self.mlp(self.norm2(x)), ids, removed, attn


class VisionTransformerCE(nn.Module):
    def __init__(self, template, search, dim, depth, heads, ce_loc, ce_keep_ratio, act=nn.GELU, eps=1e-6):
        super().__init__()
        self.patch_size, self.embed_dim, self.num_features = 16, dim, dim
        self.cat_mode, self.add_cls_token, self.add_sep_seg, self.return_inter = "direct", False, False, False
        self.patch_embed = nn.Module()
        self.patch_embed.proj, self.patch_embed.norm = nn.Conv2d(3, dim, 16, 16), nn.Identity()
        self.cls_token, self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)), None
        self.pos_embed, self.pos_drop = nn.Parameter(torch.zeros(1, 197, dim)), nn.Dropout(0.0)
        # Transposed, as they come from an interpolated grid.
        self.pos_embed_z = nn.Parameter(torch.randn(1, dim, (template // 16) ** 2).transpose(1, 2))
        self.pos_embed_x = nn.Parameter(torch.randn(1, dim, (search // 16) ** 2).transpose(1, 2))
        self.ce_loc = ce_loc
        ratios = dict(zip(ce_loc or (), ce_keep_ratio or (), strict=True))
        self.blocks = nn.Sequential(*(CEBlock(dim, heads, ratios.get(i, 1.0), act, eps) for i in range(depth)))
        self.norm = nn.LayerNorm(dim, eps)

    def tokens(self, z, x):
        z, x = (self.patch_embed.proj(image).flatten(2).transpose(1, 2) for image in (z, x))
        return z + self.pos_embed_z, x + self.pos_embed_x

    def forward(self, z, x, ce_template_mask=None, ce_keep_rate=None, tnc_keep_rate=None, return_last_attn=False):
        z, x = self.tokens(z, x)
        template, cells = z.shape[1], x.shape[1]
        ids = torch.arange(cells, device=x.device).repeat(len(x), 1)
        x, gone = torch.cat((z, x), dim=1), []
        for i, block in enumerate(self.blocks):
            x, ids, removed, attn = block(x, template, ids, None, ce_template_mask, ce_keep_rate)
            if self.ce_loc is not None and i in self.ce_loc:
                gone.append(removed)
        x = self.norm(x)
        search = x.new_zeros(len(x), cells, x.shape[2])
        search = search.scatter(1, ids[:, :, None].expand(-1, -1, x.shape[2]), x[:, template:])
        return torch.cat((x[:, :template], search), dim=1), {"attn": attn, "removed_indexes_s": gone}


class CenterPredictor(nn.Module):
    def __init__(self, dim, channel, feat_sz):
        super().__init__()
        self.feat_sz, self.stride, self.img_sz = feat_sz, 16, 16 * feat_sz
        for name, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
            widths = [dim, *(channel // 2**i for i in range(4))]
            for i in range(4):
                layers = nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()
                self.add_module(f"conv{i + 1}_{name}", nn.Sequential(*layers))
            self.add_module(f"conv5_{name}", nn.Conv2d(widths[4], outputs, 1))

    def cal_bbox(self, score, size, offset, return_score=False):
        peak = score.flatten(1).argmax(1)
        values = torch.cat((offset, size), dim=1).flatten(2)[torch.arange(len(peak), device=peak.device), :, peak]
        cell = torch.stack((peak % self.feat_sz, peak // self.feat_sz), dim=1)
        return torch.cat(((cell + values[:, :2]) / self.feat_sz, values[:, 2:]), dim=1)

    def get_score_map(self, x):
        maps = []
        for name in ("ctr", "size", "offset"):
            y = x
            for i in range(1, 6):
                y = self.get_submodule(f"conv{i}_{name}")(y)
            maps.append(y if name == "offset" else y.sigmoid().clamp(1e-4, 1 - 1e-4))
        return maps

    def forward(self, x, gt_score_map=None):
        score, size, offset = self.get_score_map(x)
        return score, self.cal_bbox(score, size, offset), size, offset


class Published(nn.Module):
    def __init__(self, template=64, search=128, dim=64, depth=4, heads=2, channel=16, ce=((1, 2), (0.7, 0.7)), **how):
        super().__init__()
        loc, ratio = ([*each] for each in ce) if ce else (None, None)
        self.backbone = VisionTransformerCE(template, search, dim, depth, heads, loc, ratio, **how)
        self.box_head = CenterPredictor(dim, channel, search // 16)
        self.aux_loss, self.head_type = False, "CENTER"
        self.feat_sz_s, self.feat_len_s = search // 16, (search // 16) ** 2

    def forward(self, template, search, ce_template_mask=None, ce_keep_rate=None, return_last_attn=False):
        x, aux = self.backbone(template, search, ce_template_mask, ce_keep_rate, return_last_attn=return_last_attn)
        out = self.forward_head(x)
        out.update(aux, backbone_feat=x)
        return out

    def forward_head(self, cat_feature, gt_score_map=None):
        features = cat_feature[:, -self.feat_len_s :].transpose(1, 2).unflatten(2, (self.feat_sz_s, self.feat_sz_s))
        score, boxes, size, offset = self.box_head(features, gt_score_map)
        return {"pred_boxes": boxes[:, None], "score_map": score, "size_map": size, "offset_map": offset}


def published(seed=0, **how):
    """In evaluation mode, with norms, biases and statistics that all count."""
    torch.manual_seed(seed)
    network = Published(**how)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() < 2:
                value.add_(0.1 * torch.randn_like(value))
            elif name.startswith("box_head"):
                nn.init.xavier_normal_(value)
        for name, value in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.add_(0.1 * torch.rand_like(value))
    return network.eval()
