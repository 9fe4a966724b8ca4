"""Each replacement gives what it replaces gives, and what cannot be replaced stays and is named."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from flashgen_runtime.engine.replacements import (
    ROTARY_CHUNK,
    FloatEmbedding,
    GatedMLP,
    KernelActivation,
    PackedLinear,
    RotaryTable,
)
from flashgen_runtime.engine.surgery import operate
from tests.runtime_models import PAGED_FAMILIES, tiny_module


class Model(nn.Module):
    """Modules side by side, the last of them the head."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def get_output_embeddings(self) -> Any:
        return getattr(self, "head", None)


def submodules(family: str) -> list[tuple[str, Any]]:
    """The parts of a model that surgery looks at, each with another class or name."""
    module = tiny_module(family)
    return [(type(part).__name__, part) for part in module.modules()]


@pytest.mark.parametrize("family", PAGED_FAMILIES)
def test_nothing_is_left_to_torch(family: str) -> None:
    """In all families of the fast path every linear, norm, activation, router and expert is ours."""
    report = operate(tiny_module(family), dtype=torch.float32, quantization=None)

    assert not report.left
    assert report.replaced["Linear"] + report.replaced["Conv1D"] > 0
    assert any(name.endswith("Embedding") and "Rotary" not in name for name in report.replaced)


PLAIN_MODULES: dict[str, nn.Module] = {
    "linear": nn.Linear(48, 37),
    "linear without bias": nn.Linear(48, 37, bias=False),
    "conv1d": Conv1D(37, 48),
    "layer norm": nn.LayerNorm(48),
    "layer norm without weights": nn.LayerNorm(48, elementwise_affine=False),
    **{name: ACT2FN[name] for name in ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")},
}


@pytest.mark.parametrize("name", PLAIN_MODULES)
def test_module_is_replaced_by_its_equal(name: str) -> None:
    """Torch's and transformers' own modules, by type or by what they do."""
    torch.manual_seed(0)
    original = PLAIN_MODULES[name]
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    model = Model(part=original)
    x = torch.randn(2, 5, 48)

    report = operate(model, dtype=torch.float32, quantization=None)

    assert report.is_complete
    assert model.part is not original
    torch.testing.assert_close(model.part(x), original(x), atol=2e-5, rtol=1e-5)


def parts_of(family: str, word: str) -> nn.Module:
    """The first submodule whose class has the word in its name, with random weights."""
    torch.manual_seed(0)
    part = next(part for name, part in submodules(family) if word in name)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.5)
    return part


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "phi3", "gpt_oss"])
def test_rms_norm_is_recognised(family: str) -> None:
    """Whatever the class is called, with the weight or with one more than the weight as factor."""
    norm = parts_of(family, "RMSNorm")
    model = Model(part=norm)
    x = torch.randn(2, 3, len(norm.get_parameter("weight")))

    operate(model, dtype=torch.float32, quantization=None)

    assert type(model.part).__name__ == "KernelRMSNorm"
    torch.testing.assert_close(model.part(x), norm(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gated_mlp_is_fused(family: str) -> None:
    """Gate and up projection become one linear."""
    mlp = parts_of(family, "MLP")
    model = Model(part=mlp)
    x = torch.randn(2, 3, 48)
    expected = mlp(x)

    operate(model, dtype=torch.float32, quantization=None)

    assert isinstance(model.part, GatedMLP)
    torch.testing.assert_close(model.part(x), expected, atol=1e-3, rtol=1e-4)


class CrookedMLP(nn.Module):
    """Has the parts of a gated MLP and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act_fn = ACT2FN["silu"]

    def forward(self, x: torch.Tensor) -> Any:
        return self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))


class CrookedNorm(nn.Module):
    """Has the attributes of an RMS norm and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_what_only_looks_like_ours_stays() -> None:
    """Recognition asks what a module computes, not what it is called; what stays with weights is named."""
    mlp, norm = CrookedMLP(), CrookedNorm()
    x = torch.randn(3, 8)
    expected = mlp(x)
    model = Model(mlp=mlp, norm=norm)

    report = operate(model, dtype=torch.float32, quantization=None)

    assert (model.mlp, model.norm) == (mlp, norm)
    assert isinstance(mlp.gate_proj, PackedLinear)
    assert dict(report.left) == {"CrookedNorm": 1}
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_oss", "gpt_neox"])
def test_rotary_table_equals_the_rotary_embedding(family: str) -> None:
    """For positions in any order, beyond what was asked before, and for each kind of layer."""
    rotary = parts_of(family, "RotaryEmbedding")
    table = RotaryTable(rotary)
    x = torch.zeros(1)
    arguments = [("sliding_attention",), ("full_attention",)] if family == "gemma3" else [()]

    for positions in (torch.tensor([[5, 0, 3]]), torch.tensor([[7, ROTARY_CHUNK + 3]])):
        for more in arguments:
            for found, expected in zip(table(x, positions, *more), rotary(x, positions, *more), strict=True):
                assert found.shape == expected.shape
                torch.testing.assert_close(found, expected)


def test_embedding_stays_in_its_dtype() -> None:
    """Rows come as float32, scaled where the class scales."""
    scaled = parts_of("gemma3", "ScaledWordEmbedding").to(torch.bfloat16)
    model = Model(plain=nn.Embedding(9, 8, dtype=torch.bfloat16), scaled=scaled)
    ids = torch.tensor([[3, 1]])
    expected = model.plain(ids).float()

    operate(model, dtype=torch.bfloat16, quantization=None)

    assert isinstance(model.plain, FloatEmbedding)
    assert isinstance(model.scaled, FloatEmbedding)
    assert model.plain.table.dtype is torch.bfloat16
    assert torch.equal(model.plain(ids), expected)
    torch.testing.assert_close(model.scaled(ids), scaled.weight[ids].float() * 48**0.5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_equal_the_eager_ones(family: str) -> None:
    """Router and experts together: each class's layout, biases and gate."""
    torch.manual_seed(0)
    module = tiny_module(family)
    module.set_experts_implementation("eager")
    block = module.model.layers[0].mlp
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 20, 48)
    expected = block(x)

    operate(module, dtype=torch.float32, quantization=None)

    found = module.model.layers[0].mlp(x)
    found, expected = (each[0] if isinstance(each, tuple) else each for each in (found, expected))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_linears(quantization: Any) -> None:
    """All linear layers take the format, but the head is never below int8."""
    module = tiny_module("phi3")

    operate(module, dtype=torch.float32, quantization=quantization)

    formats = {name: part.panels.format.name for name, part in module.named_modules() if isinstance(part, PackedLinear)}
    assert formats.pop("lm_head") == "INT8"
    assert set(formats.values()) == {quantization.upper()}


def test_unknown_activation_stays() -> None:
    """One that there is no kernel for."""
    model = Model(part=ACT2FN["relu2"], known=ACT2FN["silu"])

    report = operate(model, dtype=torch.float32, quantization=None)

    assert dict(report.left) == {"ReLUSquaredActivation": 1}
    assert isinstance(model.known, KernelActivation)
