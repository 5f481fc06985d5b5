"""`accelerate`: the published network and forks of it, by their own attributes and their own way to be called."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ostrack_fast import OSTrack, accelerate, build_ostrack
from ostrack_fast.model import template_mask
from ostrack_fast.read_network import read_config

from .published_like import Published, published

MAPS = ("score_map", "size_map", "offset_map", "pred_boxes")
T = 16


def images(batch=1, template=64, search=128, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in (template, search)]


def some_tokens(batch=1, begin=5, end=8):
    mask = torch.zeros(batch, T, dtype=torch.bool)
    mask[:, begin:end] = True
    return mask


def fast(network, *args, **kwargs):
    return accelerate(network, *args, **{"device": "cpu", "dtype": "float32", "mode": "network", **kwargs})


@torch.no_grad()
def assert_same(accelerated, network, *args, names=MAPS, **kwargs):
    found, expected = accelerated(*args, **kwargs), network(*args, **kwargs)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"ce": None},
        {"heads": 4, "dim": 64, "depth": 3, "ce": ((0, 2), (0.5, 0.9))},
        {"template": 96, "search": 192, "channel": 32},
        {"ce": ((1, 2), (1.0, 0.7))},
        {"eps": 1e-3},
    ],
    ids=["ce", "plain", "heads", "sizes", "ratio-of-one", "eps"],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_published_network_as_it_is(how, batch):
    network = published(**how)
    accelerated = fast(network)
    z, x = images(batch, how.get("template", 64), how.get("search", 128))
    tokens = accelerated.engine.cfg.template_grid**2
    mask = torch.zeros(batch, tokens, dtype=torch.bool)
    mask[:, 5:9] = True
    assert_same(accelerated, network, z, x)
    assert_same(accelerated, network, template=z, search=x, ce_template_mask=mask)
    assert type(accelerated(z, x)) is not dict  # it is the engine that answered


def test_the_stand_in_has_the_published_attributes_and_no_others():
    """The published backbone keeps the blocks that eliminate, and every block its own ratio."""
    network = published()
    assert not hasattr(network.backbone, "ce_keep_ratio") and not hasattr(network, "cfg")
    assert network.backbone.ce_loc == [1, 2]
    theirs, own = network.state_dict(), build_ostrack(read_config(network, "x")).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in own.items()}


def test_our_own_network():
    model = build_ostrack(read_config(published(), "x"))
    model.load_state_dict(published().state_dict())
    accelerated = fast(model)
    z, x = images()
    assert_same(accelerated, model, z, x)
    assert_same(accelerated, model, z, x, template_mask(model.cfg))
    assert accelerated.cfg is model.cfg and accelerated.box_head is model.box_head


def test_what_the_engine_does_not_do_comes_from_the_network():
    network = published()
    accelerated = fast(network)
    z, x = images()
    names = [*MAPS, "backbone_feat", "attn"]
    assert accelerated.backbone is network.backbone and accelerated.head_type == "CENTER"
    assert (accelerated.feat_sz_s, accelerated.feat_len_s) == (8, 64)
    assert list(accelerated.state_dict()) == list(network.state_dict())
    assert_same(accelerated, network, z, x, names=names)
    assert_same(accelerated, network, z, x, ce_keep_rate=0.5, names=names)
    assert_same(accelerated, network, z, x, some_tokens(), 1, True, names=names)
    found = accelerated(z, x)
    assert found.get("nothing") is None and len(found["removed_indexes_s"]) == 2 and "attn" in found
    with pytest.raises(KeyError, match="nothing"):
        found["nothing"]
    with pytest.raises(AttributeError, match="wings"):
        accelerated.wings  # noqa: B018
    with pytest.raises(TypeError, match="unknown"):
        accelerated(z, x, unknown=1)
    with pytest.raises(RuntimeError):
        accelerated(z[:, :, :32], x)  # as the network itself fails


def test_other_masks_are_the_networks():
    """Rows that choose different numbers of tokens mean something of their own in the published code."""
    network = published()
    accelerated = fast(network)
    z, x = images(2)
    accelerated(z, x)
    uneven = some_tokens(2)
    uneven[1, 5] = False
    with pytest.raises(RuntimeError):
        network(z, x, uneven)
    with pytest.raises(RuntimeError):
        accelerated(z, x, uneven)
    assert_same(accelerated, network, z, x, some_tokens(2))


def test_a_training_step_reaches_the_networks_parameters_and_the_engine():
    network = published()
    accelerated = fast(network)
    z, x = images(2)
    before = accelerated(z, x)["score_map"]
    accelerated.train()
    assert network.training and network.backbone.training
    optimizer = torch.optim.SGD(accelerated.parameters(), 0.5)
    accelerated(z, x, ce_keep_rate=0.8)["score_map"].square().sum().backward()
    assert network.backbone.blocks[0].attn.qkv.weight.grad is not None
    optimizer.step()
    accelerated.eval()
    assert not network.training
    assert (accelerated(z, x)["score_map"] - before).abs().max() > 1e-3
    assert_same(accelerated, network, z, x)


def test_weights_changed_afterwards_are_taken_over():
    network = published()
    accelerated = fast(network)
    z, x = images()
    accelerated(z, x)
    with torch.no_grad():
        network.box_head.conv5_size.bias.add_(1)
    assert_same(accelerated, network, z, x)
    accelerated.load_state_dict(published(seed=3).state_dict())
    assert_same(accelerated, network, z, x)
    assert_same(accelerated, published(seed=3), z, x)
    accelerated.half().float()
    assert_same(accelerated, network, z, x)


def test_images_that_need_a_gradient_get_one():
    accelerated = fast(published())
    z, x = images()
    x.requires_grad_()
    accelerated(z, x)["score_map"].sum().backward()
    assert x.grad is not None and accelerated(z, x.detach())["score_map"].grad_fn is None


def test_hooks_run():
    network = published()
    accelerated = fast(network)
    z, x = images()
    seen = []
    handle = accelerated.backbone.blocks[1].attn.register_forward_hook(lambda m, i, o: seen.append(o[1]))
    assert_same(accelerated, network, z, x)
    assert len(seen) == 2
    handle.remove()
    accelerated(z, x)
    assert len(seen) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", ["in place", "numpy", "data"])
@pytest.mark.parametrize("what", ["template", "mask"])
def test_a_changed_template_or_mask_is_seen(mode, change, what):
    network = published()
    accelerated = fast(network)
    with mode():
        z, x = images()
        z, mask = torch.from_numpy(z.numpy().copy()), torch.from_numpy(some_tokens().numpy().copy())
        accelerated(z, x, mask)
        target, new = (z, images(seed=7)[0]) if what == "template" else (mask, some_tokens(begin=0, end=3))
        if change == "in place":
            target.copy_(new)
        elif change == "numpy":
            target.numpy()[...] = new.numpy()
        else:
            target.data[...] = new
        found, expected = accelerated(z, x, mask), network(z, x, mask)
        torch.testing.assert_close(found["score_map"], expected["score_map"], rtol=1e-4, atol=2e-5)
    assert_same(accelerated, network, z.clone(), x.clone(), mask.clone())


def test_a_template_is_embedded_once(monkeypatch):
    accelerated = fast(published())
    calls = []
    embed = accelerated.engine.set_template
    monkeypatch.setattr(accelerated.engine, "set_template", lambda *a: calls.append(1) or embed(*a))
    z, x = images()
    accelerated(z, x)
    accelerated(z, x)
    accelerated(z.clone(), x)
    assert len(calls) == 1
    accelerated(z, x, some_tokens())
    accelerated(z, x)
    assert len(calls) == 3


def test_wrapped_networks():
    network = published()
    z, x = images()
    compiled = torch.compile(network, backend="eager")
    for wrapped in (nn.DataParallel(network), compiled, nn.DataParallel(compiled)):
        accelerated = fast(wrapped)
        assert accelerated.backbone is network.backbone
        assert list(accelerated.state_dict()) == list(network.state_dict())
        assert_same(accelerated, network, z, x)
    network.backbone = torch.compile(network.backbone, backend="eager")
    assert_same(fast(network), network, z, x)
    assert fast(fast(network)).original is network


class WithTables(Published):
    """As DropTrack: further tables added to the tokens."""

    def __init__(self, **how):
        super().__init__(**how)
        self.backbone.temporal_pos_embed_z = nn.Parameter(torch.randn(1, 16, 64))
        self.backbone.temporal_pos_embed_x = nn.Parameter(torch.randn(1, 64, 64))
        self.backbone.search_segment_pos_embed = nn.Parameter(torch.randn(1, 1, 64))
        tokens = self.backbone.tokens

        def added(z, x):
            z, x = tokens(z, x)
            b = self.backbone
            return z + b.temporal_pos_embed_z, x + b.temporal_pos_embed_x + b.search_segment_pos_embed

        self.backbone.tokens = added


def test_constant_tables_are_folded_in():
    torch.manual_seed(0)
    network = WithTables().eval()
    assert_same(fast(network), network, *images())


def squared(network):
    forward = network.forward

    def own(*args, **kwargs):
        out = forward(*args, **kwargs)
        return {**out, "score_map": out["score_map"] ** 2}

    network.forward = own


def moved_boxes(network):
    forward = network.forward

    def own(*args, **kwargs):
        out = forward(*args, **kwargs)
        return {**out, "pred_boxes": out["pred_boxes"] * 1.1}

    network.forward = own


def hooked(network):
    network.backbone.blocks[1].register_forward_hook(lambda module, given, out: (out[0] * 0.5, *out[1:]))


def only_with_a_mask(network):
    forward = network.forward

    def own(template, search, ce_template_mask=None, **kwargs):
        return forward(template, search, None, **kwargs)

    network.forward = own


@pytest.mark.parametrize("change", [squared, moved_boxes, hooked, only_with_a_mask])
def test_a_network_that_computes_something_else_is_refused(change):
    network = published()
    change(network)
    with pytest.raises(ValueError, match=r"different results with.*differs by [\d.e+-]+ times"):
        fast(network)
    assert fast(network, verify=False).engine.cfg.ce_layers == (1, 2)


def test_what_the_engine_lacks_is_named():
    class TanhGELU(nn.Module):
        def forward(self, x):
            return nn.functional.gelu(x, approximate="tanh")

    for act in (nn.ReLU, TanhGELU):
        with pytest.raises(ValueError, match=r"backbone.blocks\[0\].mlp.act is no exact GELU"):
            fast(published(act=act))
    network = published()
    network.backbone.blocks[2].attn.scale = 1.0
    with pytest.raises(ValueError, match=r"blocks\[2\].attn.scale is 1 instead of 0.176"):
        fast(network)
    network = published()
    network.backbone.cat_mode = "template_central"
    with pytest.raises(ValueError, match="cat_mode is 'template_central'"):
        fast(network)
    network = published()
    network.backbone.blocks[1].attn.num_heads = 4
    with pytest.raises(ValueError, match=r"num_heads differ between blocks: \[2, 4\]"):
        fast(network)
    network = published()
    network.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the given Published does not fit.*unexpected 2 \(adapter.bias"):
        fast(network)
    with pytest.raises(ValueError, match="the given Linear is not built like the published OSTrack"):
        fast(nn.Linear(2, 2))


def test_a_network_of_another_interface_is_refused():
    network = published()
    forward = network.forward
    network.forward = lambda template, search: forward(template, search)
    with pytest.raises(ValueError, match="does not take a template"):
        fast(network)
    network.forward = lambda *args, **kwargs: tuple(forward(*args, **kwargs).values())
    with pytest.raises(ValueError, match="does not return score_map"):
        fast(network)


def test_a_configuration_must_agree_with_the_network():
    network = published()
    cfg = read_config(network, "x")
    explicit = replace(cfg, ce_template_range="ALL", search_factor=5.0)
    assert fast(network, explicit).engine.cfg == explicit
    for change, where in (
        ({"num_heads": 4}, r"num_heads=4, but the given Published has 2, by backbone.blocks\[i\].attn.num_heads"),
        ({"ce_keep_ratio": (0.7, 0.5)}, "keep_ratio_search"),
        ({"ce_layers": (), "ce_keep_ratio": ()}, "keep_ratio_search"),
        ({"ce_layers": (0, 3)}, "keep_ratio_search"),
    ):
        with pytest.raises(ValueError, match=where):
            fast(network, replace(cfg, **change))
    with pytest.raises(ValueError, match="template_size=128"):
        fast(network, "ostrack_256_ce")


def test_reduced_precision_is_verified_in_float32():
    network = published()
    accelerated = fast(network, dtype="bfloat16")
    assert accelerated.engine.dtype == torch.bfloat16
    error = (accelerated(*images())["score_map"] - network(*images())["score_map"]).abs().max()
    assert 0 < error < 0.05


def test_a_half_precision_network_is_verified_in_float32():
    network = published().bfloat16()
    assert fast(network).engine.cfg.depth == 4
    assert network.backbone.norm.weight.dtype == torch.bfloat16


def test_subclasses_of_our_own_are_compared_too():
    class Own(OSTrack):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return {**out, "size_map": 1 - out["size_map"]}

    model = Own(read_config(published(), "x"))
    with pytest.raises(ValueError, match="size_map differs by"):
        fast(model)


def test_templates_in_numpy_memory():
    buffer = np.zeros((1, 3, 64, 64), np.float32)
    network = published()
    accelerated = fast(network)
    z, x = torch.from_numpy(buffer), images()[1]
    accelerated(z, x)
    buffer[:] = images(seed=9)[0].numpy()
    assert_same(accelerated, network, z, x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@torch.no_grad()
def test_on_a_gpu(dtype):
    """Whose convolutions of float32 are rounded to TF32 as PyTorch comes."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = published().cuda()
    z, x = (image.cuda() for image in images())
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        accelerated = fast(network, device="cuda", dtype=dtype)
        found = accelerated(z, x)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = network(z, x)
    assert type(found) is not dict  # it is the engine that answered
    for name in MAPS[:3]:
        error = (found[name] - expected[name]).abs().median() / expected[name].std()
        assert error < {"float32": 1e-4, "float16": 0.02}[dtype], name


@pytest.mark.parametrize("wrong", [None, "small", 3])
def test_what_is_no_network_is_refused(wrong):
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module, is needed"):
        accelerate(wrong)


@pytest.mark.parametrize("mode", ["auto", "network", "ops"])
def test_a_flag_is_true_or_false(mode):
    with pytest.raises(TypeError, match="verify must be True or False, got 'no'"):
        accelerate(torch.nn.Linear(2, 2), verify="no", mode=mode)
