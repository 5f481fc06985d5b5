"""The model's interface beyond what the goldens hold."""

import re
from dataclasses import replace

import pytest
import torch

import ostrack_fast
from ostrack_fast.config import PRESETS, PUBLISHED_NAMES, ModelConfig, get_config, read_published_yaml
from ostrack_fast.model import OSTrack, build_ostrack, template_mask, vit

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=64, depth=4, num_heads=2, head_channels=16,
    ce_layers=(1, 2), ce_keep_ratio=(0.7, 0.7),
)  # fmt: skip


def images(cfg, batch=2):
    generator = torch.Generator().manual_seed(0)
    sizes = (cfg.template_size, cfg.search_size)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("template_range", ["CTR_POINT", "CTR_REC", "ALL"])
def test_a_batch_equals_its_samples_one_by_one(template_range, batch):
    cfg = replace(TINY, ce_template_range=template_range)
    model = build_ostrack(cfg).double()
    template, search = (x.double() for x in images(cfg, batch))
    mask = template_mask(cfg)
    together = model(template, search, mask)
    for i in range(batch):
        alone = model(template[i : i + 1], search[i : i + 1], mask)
        torch.testing.assert_close(together["pred_boxes"][i : i + 1], alone["pred_boxes"])
        assert torch.equal(together["removed_indexes_s"][1][i : i + 1], alone["removed_indexes_s"][1])


def test_gt_box_takes_boxes_of_different_size_in_one_batch():
    cfg = replace(TINY, ce_template_range="GT_BOX")
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.0, 0.0, 0.9, 0.4], [0.5, 0.5, 0.001, 0.001]])
    mask = template_mask(cfg, boxes)
    assert mask.sum(1).tolist() == [4, 8, 1]
    model = build_ostrack(cfg).double()
    template, search = (x.double() for x in images(cfg, 3))
    together = model(template, search, mask)
    alone = model(template[1:2], search[1:2], mask[1:2])
    torch.testing.assert_close(together["score_map"][1:2], alone["score_map"])


def test_gt_box_without_a_box_says_what_to_pass():
    with pytest.raises(ValueError, match="ce_template_mask"):
        template_mask(replace(TINY, ce_template_range="GT_BOX"))


@pytest.mark.parametrize("template_range", ["CTR_POINT", "GT_BOX"])
def test_no_mask_means_all_template_tokens(template_range):
    """As in the published code, whatever the configured range; only with it are the candidates others."""
    model = build_ostrack(replace(TINY, ce_template_range=template_range)).double()
    z, x = (image.double() for image in images(TINY))
    whole = model(z, x, torch.ones(TINY.template_grid**2, dtype=torch.bool))
    point = model(z, x, template_mask(TINY))
    found = model(z, x)
    assert torch.equal(found["score_map"], whole["score_map"])
    assert not torch.equal(found["removed_indexes_s"][0], point["removed_indexes_s"][0])


def test_keep_rate_of_one_eliminates_nothing():
    out = build_ostrack(TINY)(*images(TINY), ce_keep_rate=1.0)
    assert out["removed_indexes_s"] == [None, None]


def test_eliminated_places_are_zero_and_kept_and_removed_partition_the_grid():
    out = build_ostrack(TINY)(*images(TINY))
    search = out["backbone_feat"][:, TINY.template_grid**2 :]
    removed = torch.cat(out["removed_indexes_s"], dim=1)
    assert TINY.search_tokens() == [64, 64, 45, 32, 32]
    assert removed.shape == (2, 32) and all(len(set(row)) == 32 for row in removed.tolist())
    zero = (search == 0).all(-1)
    assert torch.equal(zero.sum(1), torch.tensor([32, 32]))
    assert zero.gather(1, removed).all()


def test_last_attention_is_a_distribution_over_the_tokens_left():
    attn = build_ostrack(TINY)(*images(TINY))["attn"]
    training = build_ostrack(TINY, training=True)
    assert training(*images(TINY))["attn"] is None
    assert training(*images(TINY), return_last_attn=True)["attn"].shape == attn.shape
    assert build_ostrack(replace(TINY, ce_layers=(), ce_keep_ratio=()))(*images(TINY))["attn"] is None
    assert attn.shape == (2, 2, 16 + 32, 16 + 32)
    torch.testing.assert_close(attn.sum(-1), torch.ones(2, 2, 48))


def test_gradients_reach_every_used_parameter():
    model = build_ostrack(TINY, training=True)
    out = model(*images(TINY))
    (out["score_map"].sum() + out["size_map"].sum() + out["offset_map"].sum()).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"backbone.cls_token", "backbone.pos_embed"}


def test_what_published_trackers_and_actors_read():
    model = build_ostrack(TINY)
    assert (model.head_type, model.aux_loss, model.feat_sz_s, model.feat_len_s) == ("CENTER", False, 8, 64)
    assert (model.box_head.feat_sz, model.backbone.ce_loc, model.backbone.embed_dim) == (8, [1, 2], 64)
    assert [block.keep_ratio_search for block in model.backbone.blocks] == [1.0, 0.7, 0.7, 1.0]
    out = model(*images(TINY))
    assert set(out) >= {
        *("pred_boxes", "score_map", "size_map", "offset_map", "backbone_feat", "attn", "removed_indexes_s")
    }
    maps = out["score_map"], out["size_map"], out["offset_map"]
    boxes, score = model.box_head.cal_bbox(*maps, return_score=True)
    assert torch.equal(boxes, model.box_head.cal_bbox(*maps)) and torch.equal(boxes[:, None], out["pred_boxes"])
    assert torch.equal(score, out["score_map"].flatten(1).amax(1, keepdim=True))
    again = model.forward_head(out["backbone_feat"])
    for name, value in again.items():
        torch.testing.assert_close(value, out[name])


def test_boxes_at_the_peak_of_a_given_map():
    head = build_ostrack(TINY).box_head
    features, truth = torch.randn(2, TINY.embed_dim, 8, 8), torch.zeros(2, 8, 8)
    truth[0, 2, 5] = truth[1, 7, 0] = 1
    score, boxes, size, offset = head(features, truth)
    assert torch.equal(score, head(features)[0]) and not torch.equal(boxes, head(features)[1])
    for row, (y, x) in enumerate(((2, 5), (7, 0))):
        centre = (torch.tensor([x, y]) + offset[row, :, y, x]) / 8
        torch.testing.assert_close(boxes[row], torch.cat((centre, size[row, :, y, x])))


def test_stochastic_depth():
    drop = vit.DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))  # a whole sample at a time
    assert abs(out.mean().item() - 1) < 0.03
    assert torch.equal(drop.eval()(out), out)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("probability", [0.3, 0.999])
def test_a_branch_that_is_left_out_is_not_computed(probability, first):
    """But results and gradients are those of the branch times zero, whether all, some or none are left out."""
    drop, layer = vit.DropPath(probability).train(), torch.nn.Linear(8, 8).double()
    computed, results = [], []

    def branch(x):
        computed.append(len(x))
        return layer(x)[:, first:]

    def multiplied(x, branch, first):
        return x[:, first:] + drop(branch(x))

    for formulation in (drop.residual, multiplied):
        torch.manual_seed(0)
        x = torch.randn(6, 5, 8, dtype=torch.double, requires_grad=True)
        out = formulation(x, branch, first)
        out.square().sum().backward()
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad])
        layer.zero_grad()
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    assert computed[1] == 6 and computed[0] == (6 if probability > 0.9 else 5)


def test_candidates_of_a_sample_without_a_branch_are_judged():
    """A block that eliminates needs every sample's score."""
    model = build_ostrack(replace(TINY, drop_path=0.9)).train()
    torch.manual_seed(0)
    out = model(*images(TINY, 3), template_mask(TINY))
    assert [len(removed) for removed in out["removed_indexes_s"]] == [3, 3]
    out["score_map"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.blocks.parameters())


def test_every_preset_and_published_name_builds():
    with torch.device("meta"):
        for name in [*PRESETS, *PUBLISHED_NAMES]:
            model = OSTrack.from_preset(name)
            assert not model.training
    assert ostrack_fast.OSTrack is OSTrack
    with pytest.raises(ValueError, match="unknown preset 'nonsense'"):
        OSTrack.from_preset("nonsense")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_size": 250}, "multiple of 16"),
        ({"num_heads": 7}, "divisible"),
        ({"ce_layers": (3,)}, "ce_keep_ratio"),
        ({"ce_layers": (5, 3), "ce_keep_ratio": (0.7, 0.7)}, "increasing"),
        ({"ce_layers": (1,), "ce_keep_ratio": (0.0,)}, "lie in"),
        ({"ce_template_range": "CENTER"}, "none of"),
        ({"depth": 10**9}, "depth=1000000000 must be a number"),
        ({"depth": 12.0}, "depth=12.0"),
        ({"depth": True}, "depth=True"),
        ({"template_factor": "2"}, "template_factor='2'"),
        ({"search_factor": float("nan")}, "search_factor=nan"),
        ({"search_factor": -4}, "search_factor=-4"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"patch_size": 1, "search_size": 4096}, "grid of more than"),
        ({"ce_layers": [3], "ce_keep_ratio": (0.7,)}, "must be a tuple"),
        ({"ce_layers": ("3",), "ce_keep_ratio": (0.7,)}, "must be a tuple"),
        ({"ce_layers": (3,), "ce_keep_ratio": (float("nan"),)}, "lie in"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(ModelConfig(), **changes)


def test_published_yaml(tmp_path):
    path = tmp_path / "vitb_384_mae_ce_32x4_ep300.yaml"
    path.write_text(
        """
DATA: {SEARCH: {SIZE: 384, FACTOR: 5.0}, TEMPLATE: {SIZE: 192, FACTOR: 2.0}}
MODEL:
  BACKBONE: {TYPE: vit_base_patch16_224_ce, STRIDE: 16, CE_LOC: [3, 6, 9], CE_KEEP_RATIO: [0.7, 0.7, 0.7],
             CE_TEMPLATE_RANGE: CTR_POINT}
  HEAD: {TYPE: CENTER, NUM_CHANNELS: 256}
TRAIN: {DROP_PATH_RATE: 0.1}
TEST: {SEARCH_FACTOR: 5.0, SEARCH_SIZE: 384, TEMPLATE_FACTOR: 2.0, TEMPLATE_SIZE: 192}
"""
    )
    assert read_published_yaml(path) == get_config("ostrack_384_ce")
    assert get_config(str(path)) == get_config("ostrack_384_ce")
    text = path.read_text()
    for old, new, message in (
        ("CENTER", "CORNER", "CORNER"),
        ("STRIDE: 16", "STRIDE: 16, CAT_MODE: partition", "order of tokens 'partition'"),
        ("SEARCH: {SIZE: 384", "SEARCH: {GRID: {TYPE: qp}, SIZE: 384", "warped search region"),
        ("STRIDE: 16", "STRIDE: x", "patch_size='x'"),
        ("[3, 6, 9]", "3", "CE_LOC is no list, but 3"),
        ("[3, 6, 9]", "{3: 1, 6: 1, 9: 1}", "CE_LOC is no list, but dict"),
        ("{TYPE: CENTER, NUM_CHANNELS: 256}", "7", "section HEAD is no mapping"),
        ("DATA: {", "DATA: {{", "line [23]: .*correct the yaml"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
            read_published_yaml(path)
    path.write_text("a: 1")
    with pytest.raises(ValueError, match="no MODEL section"):
        read_published_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as yaml"):
        read_published_yaml(path)


def test_config_round_trip():
    assert ModelConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match="newer"):
        ModelConfig.from_dict({"wings": 2})
    with pytest.raises(ValueError, match="no mapping"):
        ModelConfig.from_dict([1])


def test_kept_counts_that_fill_tiles():
    """What the documentation of `ce_keep_ratio` says of tokens left, the template's included."""
    published = get_config("ostrack_256_ce")
    full = replace(published, ce_keep_ratio=(0.75, 2 / 3, 0.5))
    for cfg, left in ((published, [320, 244, 190, 153]), (full, [320, 256, 192, 128])):
        assert sorted({cfg.template_grid**2 + count for count in cfg.search_tokens()}, reverse=True) == left
