"""Options that commands with weights have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[
    str | None,
    typer.Option("--config", help="Preset or published yaml file, for weights that do not say how they were made."),
]

BoxPrior = Annotated[
    bool, typer.Option("--box-prior", help="Draw the shape of the boxes towards that of the first one.")
]

Smoothing = Annotated[
    bool, typer.Option("--smoothing", help="Prefer boxes of nearly the size and shape of the one before.")
]
