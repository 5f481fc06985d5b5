"""The videos of the evaluation's tests."""

from ..evaluation.conftest import videos

__all__ = ["videos"]
