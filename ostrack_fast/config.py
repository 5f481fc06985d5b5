"""Model configurations: frozen dataclasses, named presets, and a reader for the published yaml files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

from .settings import read_yaml

TEMPLATE_RANGES = ("CTR_POINT", "CTR_REC", "ALL", "GT_BOX")

# Type and bounds of the numbers in a configuration, far beyond any network that was ever trained: a configuration from
# a file must not make the program work without end.
_BOUNDS: dict[str, tuple[type, float, float]] = {
    "template_size": (int, 1, 4096),
    "search_size": (int, 1, 4096),
    "template_factor": (float, 0.1, 100),
    "search_factor": (float, 0.1, 100),
    "patch_size": (int, 1, 256),
    "embed_dim": (int, 1, 8192),
    "depth": (int, 1, 128),
    "num_heads": (int, 1, 256),
    "mlp_ratio": (float, 0.1, 64),
    "head_channels": (int, 8, 4096),
    "drop_path": (float, 0, 0.999),
}
_MAX_GRID = 128


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the network's shape and the geometry of its two crops.

    Args:
        template_size, search_size: side of the square crops, pixels; multiples of `patch_size`.
        template_factor, search_factor: side of the crop over sqrt(w*h) of the target.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the ViT, in timm's terms.
        head_channels: width of the first layer of the three head towers, halved four times.
        ce_layers: blocks, counted from 0, that eliminate candidates; empty for none.
        ce_keep_ratio: share of the search tokens each of these blocks keeps. The published 0.7 three times leaves 244,
            190 and 153 of 320 tokens; for a model of one's own 0.75, 2/3 and 0.5 leave 256, 192 and 128, which fill the
            64-row tiles of a GPU's matmuls: a third of the rows less behind the third elimination.
        ce_template_range: which template tokens rank the candidates, one of `TEMPLATE_RANGES`.
        drop_path: stochastic depth of the last block in training, growing linearly from 0.
        template_box: the template's tokens say how much of each the target's box covers (not in the published models,
            whose template is a square around the target, whatever its shape).
    """

    template_size: int = 128
    search_size: int = 256
    template_factor: float = 2.0
    search_factor: float = 4.0
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    head_channels: int = 256
    ce_layers: tuple[int, ...] = ()
    ce_keep_ratio: tuple[float, ...] = ()
    ce_template_range: str = "CTR_POINT"
    drop_path: float = 0.1
    template_box: bool = False

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not _is_number(value, kind) or not low <= value <= high:
                raise ValueError(f"{name}={_short(value)} must be a number ({kind.__name__}) from {low} to {high}")
        for name, kind in (("ce_layers", int), ("ce_keep_ratio", float)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(_is_number(value, kind) for value in values):
                raise ValueError(f"{name}={_short(values)} must be a tuple of numbers, one for each eliminating block")
        for name in ("template_size", "search_size"):
            size = getattr(self, name)
            if size % self.patch_size:
                raise ValueError(f"{name}={size} must be a positive multiple of {self.patch_size}")
            if size // self.patch_size > _MAX_GRID:
                raise ValueError(f"{name}={size} makes a grid of more than {_MAX_GRID} patches of {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}")
        if self.head_channels % 8:
            raise ValueError(f"head_channels={self.head_channels} must be divisible by 8: the towers halve it")
        if len(self.ce_layers) != len(self.ce_keep_ratio):
            raise ValueError(f"{len(self.ce_layers)} ce_layers but {len(self.ce_keep_ratio)} ce_keep_ratio")
        if list(self.ce_layers) != sorted(set(self.ce_layers)) or not all(0 <= i < self.depth for i in self.ce_layers):
            raise ValueError(f"ce_layers={self.ce_layers} must be increasing block numbers in [0, {self.depth})")
        if not all(0 < ratio <= 1 for ratio in self.ce_keep_ratio):
            raise ValueError(f"ce_keep_ratio={self.ce_keep_ratio} must lie in (0, 1]")
        if not isinstance(self.template_box, bool):
            raise ValueError(f"template_box={_short(self.template_box)} must be true or false")
        if self.ce_template_range not in TEMPLATE_RANGES:
            raise ValueError(f"ce_template_range={_short(self.ce_template_range)} is none of {TEMPLATE_RANGES}")

    @property
    def template_grid(self) -> int:
        """Side of the template's token grid."""
        return self.template_size // self.patch_size

    @property
    def search_grid(self) -> int:
        """Side of the search region's token grid, and of the head's maps."""
        return self.search_size // self.patch_size

    def search_tokens(self, keep_rate: float | None = None) -> list[int]:
        """Search tokens that leave each block, first entry: those that enter the first block.

        `keep_rate` overrides every `ce_keep_ratio`, as the published `ce_keep_rate` argument does.
        """
        counts = [self.search_grid**2]
        ratios = dict(zip(self.ce_layers, self.ce_keep_ratio, strict=True))
        for block in range(self.depth):
            ratio = ratios.get(block, 1.0)
            if ratio < 1 and keep_rate is not None:
                ratio = keep_rate
            counts.append(ceil(ratio * counts[-1]))
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as stored in a checkpoint's metadata."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError on a key this version does not know, or an impossible value."""
        if not isinstance(values, dict):
            raise ValueError(f"the configuration is no mapping of settings, but {_short(values)}")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            names = ", ".join(sorted(_short(name) for name in unknown)[:5])
            raise ValueError(f"unknown model settings {names}: was this file written by a newer version?")
        made: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**made)


_CE: dict[str, Any] = {"ce_layers": (3, 6, 9), "ce_keep_ratio": (0.7, 0.7, 0.7)}
_256 = ModelConfig()
_384 = ModelConfig(template_size=192, search_size=384, search_factor=5.0)
_LARGE = ModelConfig(embed_dim=1024, depth=24, num_heads=16, ce_layers=(6, 12, 18), ce_keep_ratio=(0.7, 0.7, 0.7))

PRESETS: dict[str, ModelConfig] = {
    "ostrack_256": _256,
    "ostrack_256_ce": replace(_256, **_CE),
    "ostrack_384": _384,
    "ostrack_384_ce": replace(_384, **_CE),
    "ostrack_256_ce_got10k": replace(_256, **_CE),
    "ostrack_384_ce_got10k": replace(_384, **_CE),
    "ostrack_large_256_ce": _LARGE,
    "small": ModelConfig(
        template_size=96,
        search_size=192,
        embed_dim=384,
        depth=8,
        num_heads=6,
        head_channels=96,
        ce_layers=(3, 5),
        ce_keep_ratio=(0.7, 0.7),
        drop_path=0.0,
        template_box=True,
    ),
}

PUBLISHED_NAMES: dict[str, str] = {
    "vitb_256_mae_32x4_ep300": "ostrack_256",
    "vitb_256_mae_ce_32x4_ep300": "ostrack_256_ce",
    "vitb_384_mae_32x4_ep300": "ostrack_384",
    "vitb_384_mae_ce_32x4_ep300": "ostrack_384_ce",
    "vitb_256_mae_ce_32x4_got10k_ep100": "ostrack_256_ce_got10k",
    "vitb_384_mae_ce_32x4_got10k_ep100": "ostrack_384_ce_got10k",
}


def get_config(name: str | ModelConfig) -> ModelConfig:
    """The preset of this name, or of the published yaml file of this name; or what a yaml file (its path) says.

    A configuration is itself.

    Raises:
        TypeError: it is none of these. ValueError: there is no such preset, or the file cannot be used.
        FileNotFoundError: there is no such file.
    """
    if isinstance(name, ModelConfig):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a configuration must be a ModelConfig or the name of a preset, got {type(name).__name__}")
    if name.endswith((".yaml", ".yml")):
        return read_published_yaml(name)
    key = PUBLISHED_NAMES.get(name, name)
    if key not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join([*PRESETS, *PUBLISHED_NAMES])}")
    return PRESETS[key]


def preset_of(cfg: ModelConfig) -> str | None:
    """The name of the first preset that is this configuration."""
    return next((name for name, preset in PRESETS.items() if preset == cfg), None)


_BACKBONES: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": {},
    "vit_base_patch16_224_ce": {},
    "vit_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_large_patch16_224_ce": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


def read_published_yaml(path: str | Path) -> ModelConfig:
    """Read the model part of a yaml file of the published code (its `experiments/ostrack/*.yaml`).

    Raises:
        ValueError: it is no such file, or names something that this package does not implement, saying what.
    """
    document = read_yaml(path)
    try:
        return _published(document)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _published(document: dict[Any, Any]) -> ModelConfig:
    if "MODEL" not in document:
        raise ValueError("it has no MODEL section: not a yaml file of the published code")
    backbone, head = _section(document, "MODEL", "BACKBONE"), _section(document, "MODEL", "HEAD")
    kind = backbone.get("TYPE", "vit_base_patch16_224")
    ce = isinstance(kind, str) and kind.endswith("_ce")
    grids = (_section(document, part, "SEARCH") for part in ("DATA", "TEST"))
    for what, value, supported in (
        ("backbone", kind, list(_BACKBONES)),
        ("head", head.get("TYPE", "CENTER"), ["CENTER"]),
        ("order of tokens", backbone.get("CAT_MODE", "direct") if ce else "direct", ["direct"]),
        ("warped search region", any("GRID" in each for each in grids), [False]),
    ):
        if value not in supported:
            raise ValueError(f"{what} {_short(value)} is not supported, only {', '.join(map(str, supported))}")
    template, search = _section(document, "DATA", "TEMPLATE"), _section(document, "DATA", "SEARCH")
    test, train = _section(document, "TEST"), _section(document, "TRAIN")
    return ModelConfig(
        template_size=template.get("SIZE", 128),
        search_size=search.get("SIZE", 256),
        template_factor=test.get("TEMPLATE_FACTOR", template.get("FACTOR", 2.0)),
        search_factor=test.get("SEARCH_FACTOR", search.get("FACTOR", 4.0)),
        patch_size=backbone.get("STRIDE", 16),
        head_channels=head.get("NUM_CHANNELS", 256),
        ce_layers=_list(backbone, "CE_LOC") if ce else (),
        ce_keep_ratio=_list(backbone, "CE_KEEP_RATIO") if ce else (),
        ce_template_range=backbone.get("CE_TEMPLATE_RANGE", "ALL") if ce else "CTR_POINT",
        drop_path=train.get("DROP_PATH_RATE", 0.1),
        **_BACKBONES[kind],
    )


def _section(document: dict[Any, Any], *keys: str) -> dict[Any, Any]:
    """A section of a yaml file; an absent one is empty."""
    for key in keys:
        inner = document.get(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"the section {key} is no mapping, but {_short(inner)}")
        document = inner
    return document


def _list(section: dict[Any, Any], key: str) -> tuple[Any, ...]:
    """A list of a section; an absent one is empty."""
    value = section.get(key) or ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{key} is no list, but {_short(value)}")
    return tuple(value)
