"""The model against the published code's outputs (tests/golden), in every configuration stored there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.config import get_config
from ostrack_fast.model import OSTrack, template_mask

from ..golden import seeded

GOLDEN = Path(__file__).parents[1] / "golden"

CASES = {
    "ostrack256": ("ostrack_256", {}, None),
    "ostrack256_ce": ("ostrack_256_ce", {}, None),
    "ostrack256_ce_all": ("ostrack_256_ce", {"ce_template_range": "ALL"}, None),
    "ostrack256_ce_ctr_rec": ("ostrack_256_ce", {"ce_template_range": "CTR_REC"}, None),
    "ostrack256_ce_gt_box": ("ostrack_256_ce", {"ce_template_range": "GT_BOX"}, None),
    "ostrack256_ce_keep085": ("ostrack_256_ce", {}, 0.85),
    "ostrack384": ("ostrack_384", {}, None),
    "ostrack384_ce": ("ostrack_384_ce", {}, None),
}


def seeded_model(cfg, dtype):
    model = OSTrack(cfg).eval()
    model.load_state_dict(seeded.state_dict(model.state_dict(), 1))
    return model.to(dtype)


def seeded_images(cfg, batch, dtype):
    return tuple(
        seeded.image(name, batch, size, 1).to(dtype)
        for name, size in (("template", cfg.template_size), ("search", cfg.search_size))
    )


def relative_error(actual, expected):
    return np.abs(actual.double().cpu().numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_published_code(case, dtype):
    compare(case, dtype, "cpu", 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("case", CASES)
def test_forward_on_a_gpu_equals_the_published_code(case, backend, no_tf32):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with ops.use(backend):
        compare(case, torch.float32, "cuda", 2e-5)


def compare(case, dtype, device, tolerance):
    preset, changes, keep_rate = CASES[case]
    expected = np.load(GOLDEN / f"{case}.npz")
    cfg = replace(get_config(preset), **changes)
    batch = int(expected["batch"])
    template, search = seeded_images(cfg, batch, dtype)
    mask = None
    if cfg.ce_template_range == "GT_BOX":
        mask = template_mask(cfg, torch.from_numpy(expected["template_box"]))
        assert np.array_equal(mask.numpy(), expected["template_mask"])
    elif cfg.ce_template_range != "ALL":
        mask = template_mask(cfg)  # for ALL the published tracker passes None

    with torch.inference_mode():
        inputs = (None if each is None else each.to(device) for each in (template, search, mask))
        out = seeded_model(cfg, dtype).to(device)(*inputs, keep_rate)

    for name in ("score_map", "size_map", "offset_map", "pred_boxes"):
        assert relative_error(out[name], expected[name]) < tolerance, name
    # Stored in float32, whatever the model computed in.
    assert relative_error(out["backbone_feat"][:, ::7, ::13], expected["backbone_feat"]) < max(tolerance, 1e-6)
    assert len(out["removed_indexes_s"]) == len(cfg.ce_layers)
    places = np.tile(np.arange(cfg.search_grid**2), (batch, 1))
    for i, removed in enumerate(out["removed_indexes_s"]):
        removed, score, own_places = (each.cpu() for each in (removed, *out["ce_scores"][i]))
        if dtype == torch.float64:
            assert np.array_equal(removed.numpy(), expected[f"removed_{i}"])
            assert np.array_equal(own_places.numpy(), places)
        # In float32 two candidates of almost the same score may change places in the order, but not be kept or removed
        # for one another.
        assert np.array_equal(removed.sort(1)[0].numpy(), np.sort(expected[f"removed_{i}"], 1))
        own, stored = own_places.argsort(1), places.argsort(1)
        stored_score = np.take_along_axis(expected[f"ce_score_{i}"], stored, 1)
        assert relative_error(score.gather(1, own), stored_score) < tolerance
        order = np.argsort(-expected[f"ce_score_{i}"], axis=1, kind="stable")[:, : score.shape[1] - removed.shape[1]]
        places = np.take_along_axis(places, order, 1)


@pytest.mark.parametrize("case", ["ostrack256_ce", "ostrack384_ce", "ostrack256_ce_all", "ostrack256_ce_ctr_rec"])
def test_template_mask_is_the_published_one(case):
    preset, changes, _ = CASES[case]
    cfg = replace(get_config(preset), **changes)
    grid = cfg.template_grid
    mask = template_mask(cfg).reshape(grid, grid)
    centre = {8: 3, 12: 5}[grid]
    expected = {
        "CTR_POINT": [(centre, centre)],
        "CTR_REC": [(y, x) for y in (centre, centre + 1) for x in (centre, centre + 1)],
        "ALL": [(y, x) for y in range(grid) for x in range(grid)],
    }[cfg.ce_template_range]
    assert [tuple(place) for place in mask.nonzero().tolist()] == expected


def test_state_dict_is_the_published_one():
    for name, shapes in json.loads((GOLDEN / "state_dict_shapes.json").read_text()).items():
        own = {key: list(value.shape) for key, value in OSTrack.from_preset(name).state_dict().items()}
        assert own == shapes
