"""The suite `training`: all implementations take the same step, and a wrong one is refused."""

from dataclasses import replace

import pytest
import torch

from ostrack_fast.bench import suite_training
from ostrack_fast.bench.case import Comparison, Options, WrongResult
from ostrack_fast.config import ModelConfig, get_config

CPU = torch.device("cpu")
TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=3, num_heads=1, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,), drop_path=0.5,
)  # fmt: skip


@pytest.fixture
def comparison():
    torch.manual_seed(0)
    with torch.inference_mode():  # as the suites run
        yield suite_training.compare(TINY, 4, Options(CPU))


def test_all_implementations_take_the_same_step_again_and_again(comparison):
    assert list(comparison.implementations) == [
        "upstream", "upstream bfloat16", "trainer float32", "trainer bfloat16",
    ]  # fmt: skip
    assert {"trainer bfloat16, torch.compile", "trainer bfloat16, no CUDA graph"} < set(comparison.skipped)
    for _ in range(2):
        for name in comparison.implementations:
            comparison.check(name)
    exact = comparison.implementations["trainer float32"].run()
    for ours, expected in zip(exact, comparison.expected, strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_a_wrong_loss_or_gradient_is_refused(comparison, index):
    implementation = comparison.implementations["trainer bfloat16"]
    right = implementation.run()
    wrong = [each.clone() for each in right]
    wrong[index] = -wrong[index]
    broken = Comparison(comparison.expected, {"it": replace(implementation, run=lambda: tuple(wrong))}, mean_error=True)
    with pytest.raises(WrongResult, match=f"result {index}"):
        broken.check("it")


def test_a_loss_that_is_a_little_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(suite_training, "trainer_step", lambda *_: lambda: (torch.tensor(2.0),))
    monkeypatch.setattr(suite_training, "upstream_step", lambda *_, **how: lambda: (torch.tensor(2.1),))
    with pytest.raises(WrongResult, match=r"trainer float32: the loss is 2, expected is 2\.1"):
        suite_training.compare(TINY, 4, Options(CPU))


def test_cases():
    (case,) = suite_training.cases(Options(CPU))
    assert (case.op, case.batch) == ("training", 8)
    # The pairs have no template box, nor has the upstream network.
    assert get_config("small").template_box and not case.build.args[0].template_box
    cuda = torch.device("cuda")
    (case,) = suite_training.cases(Options(cuda))
    assert case.batch == 32 and "ostrack_256_ce: 128 and 256 px" in case.shape
    # 92 million parameters; three times the 58 GFLOP of a forward pass.
    assert case.bytes == pytest.approx(28 * 92.1e6, rel=0.01) and case.flops == pytest.approx(32 * 3 * 58e9, rel=0.25)
    named = list(suite_training.cases(Options(cuda, names=["small"], batches=[8, 16])))
    assert [one.batch for one in named] == [8, 16]
    assert get_config("small").search_size == 192 and "192" in named[0].shape


def test_what_is_not_wanted_is_not_built(monkeypatch):
    """torch.compile takes minutes."""
    monkeypatch.setattr(suite_training, "trainer_step", lambda *_, **how: pytest.fail("built"))
    comparison = suite_training.compare(TINY, 4, Options(CPU, only=["upstream"]))
    assert list(comparison.implementations) == ["upstream"]
