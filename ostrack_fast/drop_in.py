"""`accelerate`: the engine in place of a network of the published code, or of a fork of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from .config import ModelConfig, get_config
from .devices import full_float32
from .engine import Engine
from .inputs import check_flag
from .model import OSTrack
from .model.checkpoint import fitting
from .read_network import plain_names, read_config, read_layers, unwrapped
from .swap import Report, swap_modules

_MAPS = ("score_map", "size_map", "offset_map")
# What `verify` allows: the largest difference of a map, as a share of the map's largest number.
_TOLERANCE = 1e-3


class AcceleratedNetwork(nn.Module):
    """Takes and returns what the given network does, and tracks on an `Engine`.

    Its submodules, parameters and buffers are the given network's own, and so is every attribute that it lacks:
    `backbone`, `box_head`, `head_type`, `state_dict()`, hooks. Calls that the engine does not serve go to the given
    network: in training mode, with `ce_keep_rate` or `return_last_attn`, with images that need a gradient or are of
    other sizes, with hooks on any module. Weights that were changed are taken over at the next call.
    """

    engine: Engine

    def __init__(self, network: nn.Module, make_engine: Callable[[], Engine], engine: Engine):
        super().__init__()
        inner = unwrapped(network)
        # Beside the registry of modules: its submodules are registered here, under their own names.
        self.__dict__.update(original=network, _inner=inner, _make_engine=make_engine, engine=engine)
        for registry in ("_modules", "_parameters", "_buffers"):
            getattr(self, registry).update(getattr(inner, registry))
        self._members = list(inner.modules())
        self._weights = [*inner.parameters(), *inner.buffers()]
        self._packed_version = self._current_version()
        self._embedded: tuple[Tensor, Tensor | None] | None = None
        self.train(False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_inner" not in self.__dict__:
                raise
            return getattr(self.__dict__["_inner"], name)

    def train(self, mode: bool = True) -> AcceleratedNetwork:
        self.original.train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AcceleratedNetwork:
        """Moves and conversions (`.to`, `.half`) of the network; the engine stays where it was made."""
        self.original._apply(fn)
        self._weights = [*self._inner.parameters(), *self._inner.buffers()]
        self._packed_version = -1
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._packed_version = -1
        return self._inner.load_state_dict(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the given network's forward: template, search, ce_template_mask, ce_keep_rate, return_last_attn.

        A template is embedded when it or the mask first comes, and kept until one of them holds other numbers.

        Returns:
            `pred_boxes`, `score_map`, `size_map`, `offset_map`, on the device of `search`, float32, without a
            gradient. What else the given network returns (`backbone_feat`, `attn`, `removed_indexes_s`) is computed,
            by the given network, when it is asked for.
        """
        call = _understood(*args, **kwargs)
        if call is None or not self._serves(*call):
            return self.original(*args, **kwargs)
        # Inside torch.inference_mode the engine would make buffers that no later call may write to.
        with torch.inference_mode(False), torch.no_grad():
            found = self._track(*call)
        return self.original(*args, **kwargs) if found is None else _Outputs(found, self.original, args, kwargs)

    def _serves(self, template: Tensor, search: Tensor, mask: Tensor | None) -> bool:
        cfg = self.engine.cfg
        rows = template.shape[0] if template.dim() else 0
        sizes = ((template, cfg.template_size), (search, cfg.search_size))
        if any(image.shape != (rows, 3, size, size) for image, size in sizes) or rows == 0:
            return False
        tokens = cfg.template_grid**2
        if mask is not None and (mask.dtype != torch.bool or mask.shape not in ((tokens,), (rows, tokens))):
            return False
        if torch.is_grad_enabled() and (template.requires_grad or search.requires_grad):
            return False
        return not self.training and not any(
            each.training or each._forward_hooks or each._forward_pre_hooks for each in self._members
        )

    def _track(self, template: Tensor, search: Tensor, mask: Tensor | None) -> dict[str, Tensor] | None:
        version = self._current_version()
        if version != self._packed_version:
            self.engine, self._packed_version, self._embedded = self._make_engine(), version, None
        if self._embedded is None or not _same((template, mask), self._embedded):
            self._embedded = None
            chosen = _whole(mask, template, self.engine.cfg)
            counts = chosen.sum(-1).flatten()
            if not bool((counts == counts[0]).all()) or not bool(counts[0]):
                return None  # the published code averages over such masks in its own way, or fails
            self.engine.set_template(template, chosen)
            self._embedded = template.clone(), None if mask is None else mask.clone()
        return {name: value.to(search.device) for name, value in self.engine.forward(search).items()}

    def _current_version(self) -> int:
        """Grows with every change of a weight in place, by an optimizer or by `copy_`."""
        return sum(0 if each.is_inference() else each._version for each in self._weights)


class _Outputs(dict):
    """The engine's outputs; the given network's others on demand."""

    def __init__(self, found: dict[str, Tensor], network: nn.Module, args: tuple, kwargs: dict[str, Any]):
        super().__init__(found)
        self._call = network, args, kwargs

    def __missing__(self, key: str) -> Any:
        network, args, kwargs = self._call
        with torch.no_grad():
            others = network(*args, **kwargs)
        if key not in others:
            raise KeyError(key)
        for name, value in others.items():
            self.setdefault(name, value)
        return self[key]

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


def _understood(
    template: Any = None,
    search: Any = None,
    ce_template_mask: Any = None,
    ce_keep_rate: Any = None,
    return_last_attn: Any = False,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Template, search and mask of a call that the engine may serve, or None."""
    known = not others and ce_keep_rate is None and not return_last_attn
    images = isinstance(template, Tensor) and isinstance(search, Tensor)
    mask = ce_template_mask is None or isinstance(ce_template_mask, Tensor)
    return (template, search, ce_template_mask) if known and images and mask else None


def _whole(mask: Tensor | None, template: Tensor, cfg: ModelConfig) -> Tensor:
    """The mask, or all template tokens, as None means in the published code."""
    if mask is not None:
        return mask
    return torch.ones(len(template), cfg.template_grid**2, dtype=torch.bool, device=template.device)


def _same(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> bool:
    """Whether the numbers are the same. A tensor does not know of changes through NumPy or `.data`."""
    return all(
        x is y if x is None or y is None else x.device == y.device and x.dtype == y.dtype and torch.equal(x, y)
        for x, y in zip(a, b, strict=True)
    )


def _box_difference(out: dict[str, Tensor]) -> float:
    """Between a network's box and the one that its own maps say, in units of the crop.

    The engine's maps are not asked: they may have their maximum in another cell of almost the same score. Of cells of
    the same score, any may be the network's.
    """
    score, size, offset = (out[name][0].double().cpu().flatten(1) for name in _MAPS)
    cells, side = torch.arange(score.shape[1], dtype=torch.int64, device="cpu"), out["score_map"].shape[-1]
    centres = (torch.stack((cells % side, cells // side)) + offset) / side
    best = torch.cat((centres, size))[:, score[0] == score.max()]
    return float((best - out["pred_boxes"].double().cpu().reshape(4, 1)).abs().amax(0).min())


@overload
def accelerate(
    network: nn.Module,
    cfg: ModelConfig | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    verify: bool = True,
    *,
    mode: Literal["auto"] = "auto",
    inputs: Any = None,
) -> nn.Module: ...


@overload
def accelerate(
    network: nn.Module,
    cfg: ModelConfig | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    verify: bool = True,
    *,
    mode: Literal["network"],
    inputs: Any = None,
) -> AcceleratedNetwork: ...


@overload
def accelerate(
    network: nn.Module,
    cfg: ModelConfig | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    verify: bool = True,
    *,
    mode: Literal["ops"],
    inputs: Any = None,
) -> Report: ...


def accelerate(
    network: nn.Module,
    cfg: ModelConfig | str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    verify: bool = True,
    *,
    mode: Literal["auto", "network", "ops"] = "auto",
    inputs: Any = None,
) -> nn.Module | Report:
    """Make an `OSTrack` of this package, of the published code, or of any fork of it faster, for tracking.

    The whole network, on an engine, where it computes nothing else than this package does: everything is read from the
    network, sizes from its parameters; heads, eliminating blocks and their ratios, activation and epsilons from its
    modules. Else its modules, one by one and in place. It is put into evaluation mode, and otherwise not changed.

    Args:
        network: DataParallel and torch.compile around it are unwrapped.
        cfg: a configuration that the network is known to have, or a preset's name. The network is read all the same.
        device, dtype: of the `Engine`. Modules are replaced on the device where they are.
        verify: run the network before and after on the same inputs, in float32, and compare.
        mode: "network", the whole network; "ops", its modules; "auto", with a warning its modules where the whole
            network does not fit and no `cfg` is given.
        inputs: what the network is called with, to check and count its modules: a tuple of arguments, a dict of
            keyword arguments, or a function of the network that runs it as its tracker does. By default a template and
            a search image, if the network has position tables that tell their sizes. Modules that have not been called
            are checked at their first call.

    Returns:
        "network": an `AcceleratedNetwork`. "ops": a `swap.Report` of the replaced modules, whose `restore()` undoes
        everything. "auto": the `AcceleratedNetwork`, or the given network, of which `swap.report_of` tells the report.

    Raises:
        TypeError: it is no network, or `verify` no flag.
        ValueError: the network has a part that the engine lacks, contradicts `cfg`, or gives other results than the
            engine: the message says which, where, and by how much. With "ops" and "auto": none of its modules can be
            replaced, it gives other results with them, or `inputs` do not fit it.

    >>> self.network = ostrack_fast.accelerate(self.network)  # in the tracker's __init__
    """
    if isinstance(network, AcceleratedNetwork):
        network = network.original
    if not isinstance(network, nn.Module):
        raise TypeError(f"a network, a torch.nn.Module, is needed, got {type(network).__name__}")
    check_flag("verify", verify)
    if mode == "ops":
        return swap_modules(unwrapped(network), inputs, device, dtype, verify)
    if mode not in ("auto", "network"):
        raise ValueError(f"mode {mode!r} is none of auto, network, ops")
    try:
        return _whole_network(network, cfg, device, dtype, verify)
    except ValueError as error:
        if mode == "network" or cfg is not None:
            raise
        reason = error
    try:
        report = swap_modules(unwrapped(network), inputs, device, dtype, verify)
    except ValueError as error:
        raise ValueError(f"{reason}; and its modules cannot be replaced one by one: {error}") from reason
    warnings.warn(f"modules are replaced one by one, {report}, because the engine does not fit: {reason}", stacklevel=2)
    return network


def _whole_network(
    network: nn.Module,
    cfg: ModelConfig | str | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    verify: bool,
) -> AcceleratedNetwork:
    expected = None if cfg is None else get_config(cfg)
    network.eval()

    def copied() -> OSTrack:
        return _copied(network, expected)

    def make_engine(dtype: str | torch.dtype = dtype) -> Engine:
        return Engine(copied(), device, dtype)

    engine = make_engine()
    if verify:
        _verify(network, engine if engine.dtype == torch.float32 else make_engine(torch.float32))
    return AcceleratedNetwork(network, make_engine, engine)


def _copied(network: nn.Module, expected: ModelConfig | None) -> OSTrack:
    """An OSTrack of this package with the network's configuration and weights."""
    inner = unwrapped(network)
    what = f"the given {type(inner).__name__}"
    cfg = read_config(inner, what, expected)
    with torch.device("meta"):
        model = OSTrack(cfg)
    state = {plain_names(name): value.detach() for name, value in inner.state_dict().items()}
    model.load_state_dict(fitting(state, model, what), assign=True)
    read_layers(inner, model, what)
    return model.eval()


def _verify(network: nn.Module, engine: Engine) -> None:
    """Compare the networks. A tie between candidates may fall either way, so a second try on other images counts."""
    tokens = engine.cfg.template_grid**2
    # What torch.compile wraps computes the same, and need not be compiled for it.
    network = getattr(network, "_orig_mod", network)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters()):
        network = deepcopy(network).float()
    for chosen in (None, tokens // 2) if engine.network.eliminates else (None,):
        mask = None if chosen is None else (torch.arange(tokens, dtype=torch.int64, device="cpu") >= chosen)[None]
        differences = []
        for seed in (0, 1):
            differences.append(_difference(network, engine, mask, seed))
            if differences[-1][0] <= _TOLERANCE:
                break
        else:
            share, name = min(differences)
            raise ValueError(
                f"the given {type(unwrapped(network)).__name__} and the engine give different results "
                f"{'without' if mask is None else 'with'} a template mask: {name} differs by {share:.2g} times its "
                f"largest number, which may be {_TOLERANCE:g}. The network computes something that its parameters do "
                "not show, such as a forward of its own or hooks"
            )


def _difference(network: nn.Module, engine: Engine, mask: Tensor | None, seed: int) -> tuple[float, str]:
    """The largest difference of an output as a share of its largest number, and that output's name."""
    cfg = engine.cfg
    generator = torch.Generator().manual_seed(seed)
    like = next(
        (p for p in network.parameters() if p.is_floating_point()), torch.empty(0, dtype=torch.float32, device="cpu")
    )
    template, search = (
        torch.randn(1, 3, size, size, generator=generator, dtype=torch.float32, device="cpu")
        for size in (cfg.template_size, cfg.search_size)
    )
    try:
        with torch.no_grad(), full_float32(like.device.type):
            theirs = network(template.to(like), search.to(like), None if mask is None else mask.to(like.device))
    except Exception as error:
        raise ValueError(
            f"the given {type(unwrapped(network)).__name__} does not take a template (1,3,{cfg.template_size},"
            f"{cfg.template_size}), a search image (1,3,{cfg.search_size},{cfg.search_size}) and a mask: {error}"
        ) from error
    if not isinstance(theirs, dict) or not all(isinstance(theirs.get(name), Tensor) for name in _MAPS):
        raise ValueError(f"the given {type(unwrapped(network)).__name__} does not return {', '.join(_MAPS)}")
    with torch.no_grad(), full_float32(engine.device.type):
        engine.set_template(template, _whole(mask, template, cfg))
        ours = engine.forward(search)
    compared = []
    for name in _MAPS:
        a, b = ours[name].double().cpu(), theirs[name].double().cpu()
        if a.shape != b.shape:
            raise ValueError(f"{name} has the shape {tuple(b.shape)} in the given network, {tuple(a.shape)} here")
        compared.append((float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)), name))
    if isinstance(theirs.get("pred_boxes"), Tensor):
        compared.append((_box_difference(theirs), "pred_boxes"))
    return max(compared, key=lambda pair: pair[0] if pair[0] == pair[0] else float("inf"))
