"""Weights from files, without ever executing what a file contains.

Our own files are safetensors with the configuration in their metadata. The published `.pth.tar` checkpoints pickle
objects of the training code beside the tensors: here the tensors are read, and the rest is looked at as data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PRESETS, PUBLISHED_NAMES, ModelConfig, get_config
from .head import CenterHead
from .hub import find_weights, shipped_weights
from .saving import save_published, save_weights
from .state_dict import find_state, is_ostrack
from .stored import Described, WeightsFile, damaged, open_weights
from .unpickle import ALLOWED as _ALLOWED  # noqa: F401 - what pickles may name, for tests that it stays unchanged
from .unpickle import CheckpointError, Foreign
from .vit import VisionTransformer

__all__ = [
    "CheckpointError",
    "State",
    "find_weights",
    "fitting",
    "load_pretrained",
    "read_notes",
    "read_state",
    "save_published",
    "save_weights",
    "shipped_weights",
]

State = dict[str, Tensor]

_MAX_CONFIG = 1 << 16
# Constants that forks add to the tokens behind the position tables, and that can as well be added to these.
_ADDED = {
    "backbone.temporal_pos_embed_z": "backbone.pos_embed_z",
    "backbone.temporal_pos_embed_x": "backbone.pos_embed_x",
    "backbone.template_segment_pos_embed": "backbone.pos_embed_z",
    "backbone.search_segment_pos_embed": "backbone.pos_embed_x",
}


def load_pretrained(name_or_path: str | Path, cfg: ModelConfig | str | None = None) -> tuple[ModelConfig, State]:
    """Configuration and float32 state dict of shipped weights or of a file; see `OSTrack.from_pretrained`."""
    path = find_weights(name_or_path)
    cfg = None if cfg is None else get_config(cfg)
    file = open_weights(path)
    with damaged(path):
        tensors = find_state(file.content)
        described = {name: file.describe(tensor) for name, tensor in tensors.items()}
        if not is_ostrack(tensors):
            names = ", ".join(list(tensors)[:3])
            raise CheckpointError(
                f"is not an OSTrack checkpoint: it has no backbone.pos_embed_z, and its {len(tensors)} tensors have "
                f"names like {names[:200]}"
            )
        cfg = cfg or _config_in(file, described)
        with torch.device("meta"):
            model = nn.ModuleDict({"backbone": VisionTransformer(cfg), "box_head": CenterHead(cfg)})
        # Before anything is read, so that a file takes no memory that the network does not need.
        _check(described, model, str(path))
        return cfg, fitting(file.read(tensors, torch.float32), model, str(path))


def read_state(path: Path) -> tuple[State, ModelConfig | None]:
    """The tensors of a file of any network by name, and the configuration if the file carries one.

    Raises:
        CheckpointError: the file is of none of the formats named in `stored`, is damaged, or holds no state dict.
    """
    file = open_weights(path)
    with damaged(path):
        return file.read(find_state(file.content)), _carried_config(file)


def read_notes(path: Path) -> dict[str, str]:
    """What a file says of its weights beside the configuration: preset, recipe, licence and the like.

    Raises:
        CheckpointError: as `read_state`.
    """
    file = open_weights(path)
    settings = _settings(file.content)
    found = {**file.metadata, **{key: value for key, value in settings.items() if isinstance(key, str)}}
    notes = {key: value for key, value in found.items() if key in ("preset", "recipe", "licence", "source")}
    name = _config_name(settings)
    if name in PUBLISHED_NAMES:
        notes = {"preset": PUBLISHED_NAMES[name], "recipe": name, **notes}
    return {key: value for key, value in notes.items() if isinstance(value, str)}


def _carried_config(file: WeightsFile) -> ModelConfig | None:
    """The configuration that this package wrote into the file."""
    text = file.metadata.get("config") or _settings(file.content).get("config")
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"{len(text)} characters are too many")
        return ModelConfig.from_dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"its configuration cannot be used: {error}") from error


def _settings(content: Any) -> dict[Any, Any]:
    """The published trainer's `settings`, as data."""
    settings = content.get("settings") if isinstance(content, dict) else None
    if isinstance(settings, Foreign):
        return settings.attributes or settings.items
    return settings if isinstance(settings, dict) else {}


def _config_name(settings: Mapping[Any, Any]) -> str | None:
    """Name of the yaml file that a checkpoint of the published trainer was trained with."""
    for name in (settings.get("config_name"), settings.get("project_path")):
        if isinstance(name, str) and name:
            return name.rpartition("/")[2][:100]
    return None


def _config_in(file: WeightsFile, described: Mapping[str, Described]) -> ModelConfig:
    """The configuration by what the file itself says: metadata, the trainer's settings, and at last the shapes."""
    carried = _carried_config(file)
    if carried is not None:
        return carried
    settings = _settings(file.content)
    name, script = _config_name(settings), settings.get("script_name")
    advice = "pass cfg= (--config on the command line): a preset, a ModelConfig, or the yaml file it was trained with"
    known = PRESETS.get(PUBLISHED_NAMES.get(name or "", name or ""))
    if name is not None and (known is None or script not in (None, "ostrack")):
        trained = f"{script}/{name}" if isinstance(script, str) else name
        raise CheckpointError(
            f"was trained as {trained[:150]!r}, which is no configuration of the published code: which blocks "
            f"eliminate candidates, and how its crops are made, is not in the file; {advice}"
        )
    cfg = known or _config_of_shapes({name: each.shape for name, each in described.items()}, advice)
    factors = settings.get("search_area_factor")
    for kind, used in (("template", cfg.template_factor), ("search", cfg.search_factor)):
        trained_with = factors.get(kind) if isinstance(factors, dict) else None
        if isinstance(trained_with, (int, float)) and trained_with != used:
            raise CheckpointError(
                f"was trained on crops of the {kind} {trained_with} times as large as the target, where this network "
                f"usually takes {used}; {advice}"
            )
    return cfg


def _config_of_shapes(shapes: Mapping[str, tuple[int, ...]], advice: str) -> ModelConfig:
    """The first preset of these sizes. Elimination leaves no trace in them: one that eliminates is preferred."""

    def size(name: str, dimension: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[dimension] if len(shape) > dimension else None

    numbers = [re.match(r"backbone\.blocks\.(\d{1,4})\.", name) for name in shapes]
    sizes = {
        "width": size("backbone.pos_embed_z", 2),
        "template tokens": size("backbone.pos_embed_z", 1),
        "search tokens": size("backbone.pos_embed_x", 1),
        "patch": size("backbone.patch_embed.proj.weight", 3),
        "blocks": max((int(number[1]) + 1 for number in numbers if number), default=None),
        "hidden width": size("backbone.blocks.0.mlp.fc1.weight", 0),
        "head channels": size("box_head.conv1_ctr.0.weight", 0),
    }
    for cfg in sorted(PRESETS.values(), key=lambda cfg: not cfg.ce_layers):
        expected = (
            *(cfg.embed_dim, cfg.template_grid**2, cfg.search_grid**2, cfg.patch_size, cfg.depth),
            *(int(cfg.embed_dim * cfg.mlp_ratio), cfg.head_channels),
        )
        if all(size in (None, wanted) for size, wanted in zip(sizes.values(), expected, strict=True)):
            return cfg
    found = ", ".join(f"{title} {value}" for title, value in sizes.items() if value is not None)
    raise CheckpointError(f"carries no configuration and its shapes ({found}) fit no preset: {advice}")


def fitting(state: Mapping[str, Tensor], model: nn.Module, what: str) -> State:
    """The state dict in float32, as `model.load_state_dict` takes it.

    The class token, its position table and BatchNorm's counters, which no inference reads, may be missing and become
    zeros. Constants that forks add to the tokens are added to the position tables.

    Args:
        model: has the names, shapes and types that are wanted; it may be on the meta device. It is not changed.
        what: names the state dict in errors.

    Raises:
        CheckpointError: the state dict does not fit, or holds numbers that are not finite.
    """
    _check({name: Described(tuple(value.shape), value.dtype) for name, value in state.items()}, model, what)
    fitted = {}
    for name, expected in model.state_dict().items():
        value = state.get(name)
        if value is None:
            dtype = torch.float32 if expected.is_floating_point() else expected.dtype
            value = torch.zeros(expected.shape, dtype=dtype, device="cpu")
        elif expected.is_floating_point():
            value = value.to(torch.float32)
            if not bool(torch.isfinite(value).all()):
                count = int((~torch.isfinite(value)).sum())
                raise CheckpointError(
                    f"{what}: {name} holds {count} numbers that are not finite: the training failed, or the file is "
                    "damaged"
                )
        fitted[name] = value
    for extra, table in _ADDED.items():
        if extra in state:
            fitted[table] = fitted[table] + state[extra].to(torch.float32)
    return fitted


def _check(described: Mapping[str, Described], model: nn.Module, what: str) -> None:
    expected = model.state_dict()
    unread = {name for name in expected if name.endswith((".num_batches_tracked", ".cls_token", ".pos_embed"))}
    missing = sorted(expected.keys() - described.keys() - unread)
    unexpected = sorted(described.keys() - expected.keys() - _ADDED.keys())
    wrong, kinds = [], []
    for name in sorted(expected.keys() & described.keys()):
        shape, dtype, problem = described[name]
        if problem:
            raise CheckpointError(f"{what}: the tensor {name} {problem}")
        if shape != tuple(expected[name].shape):
            wrong.append(f"{name} {shape} instead of {tuple(expected[name].shape)}")
        elif dtype.is_floating_point != expected[name].dtype.is_floating_point or dtype.is_complex:
            kinds.append(f"{name} {dtype} instead of {expected[name].dtype}")
    for name in sorted(_ADDED.keys() & described.keys()):
        shape, dtype, problem = described[name]
        table = tuple(expected[_ADDED[name]].shape)
        if problem or not dtype.is_floating_point:
            raise CheckpointError(f"{what}: the tensor {name} {problem or f'is of the type {dtype}'}")
        if len(shape) != 3 or any(n not in (1, m) for n, m in zip(shape, table, strict=True)):
            wrong.append(f"{name} {shape}, which is to be added to {table}")
    lists = ("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong), ("wrong type", kinds)
    problems = [
        f"{title} {len(names)} ({', '.join(names[:3])[:300]}{', ...' if len(names) > 3 else ''})"
        for title, names in lists
        if names
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit the configuration: {'; '.join(problems)}")
