"""Options that commands with weights have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[
    str | None,
    typer.Option("--config", help="Preset or published yaml file, for weights that do not say how they were made."),
]
