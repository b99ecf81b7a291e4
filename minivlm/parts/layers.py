"""The pieces every model is built from: attention, MLPs, norms.

Shapes: B batch, T tokens (queries), S tokens that are attended to (keys), D width, h heads,
d = D / h. Each model keeps its paper's block in its own module and puts it together from these.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a config calls ``name``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, h * d) -> (B, h, T, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, T, d) -> (B, T, h * d)."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1): q (B, h, T, d) -> (B, h, T, d).

    k and v: (B, h, S, d), or fewer heads that divide h, each for a group of query heads.
    mask: True = may attend, broadcastable to (B, h, T, S).
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"a mask is boolean, True = may attend; got {mask.dtype}")
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The softmax inside ``attend``, kept to be looked at: (B, h, T, S), rows sum to 1."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


Maybe = Tensor | None  # an argument that may be left out


class LayerCache:
    """The keys and values of one layer, of all tokens so far: (B, h, S, d) each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens held (S)."""
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append those of the new tokens (B, h, T, d), return all."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.keys, self.values = k, v
        return k, v


class Attention(nn.Module):
    """Multi-head attention: learned projections to q, k, v and out (Vaswani 2017, section 3.2.2).

    With a ``memory`` it is cross-attention: the queries come from x, keys and values from the
    memory.
    """

    def __init__(
        self, width: int, heads: int, *, bias: bool = True, memory_width: int | None = None
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(memory_width or width, width, bias=bias)
        self.v = nn.Linear(memory_width or width, width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        mask: Maybe = None,
        memory: Maybe = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, T, D), mask broadcastable to (B, h, T, S) -> (B, T, D).

        memory: (B, S, memory width), or None for x itself. cache: keeps the keys and values, which
        then are those of all tokens so far.
        """
        memory = self._checked(x if memory is None else memory, len(x))
        q = split_heads(self.q(x), self.heads)  # (B, h, T, d)
        k = split_heads(self.k(memory), self.heads)  # (B, h, S, d)
        v = split_heads(self.v(memory), self.heads)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.out(merge_heads(attend(q, k, v, mask)))

    def weights(self, x: Tensor, mask: Maybe = None, memory: Maybe = None) -> Tensor:
        """Who looks at whom: (B, h, T, S)."""
        memory = self._checked(x if memory is None else memory, len(x))
        q, k = split_heads(self.q(x), self.heads), split_heads(self.k(memory), self.heads)
        return attention_weights(q, k, mask)

    def _checked(self, memory: Tensor, rows: int) -> Tensor:
        """The memory; ValueError unless it is (rows, S, memory width)."""
        width, got = self.k.in_features, tuple(memory.shape)
        if len(got) != 3 or got[::2] != (rows, width):
            raise ValueError(f"the memory must be ({rows}, S, {width}), got {got}")
        return memory


class MLP(nn.Module):
    """Linear, activation, Linear: D -> hidden -> D (or ``out``)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        act: str = "gelu",
        *,
        out: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.act = activation(act)
        self.down = nn.Linear(hidden, out or width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out)."""
        return self.down(self.act(self.up(x)))


class SwiGLU(nn.Module):
    """down(act(gate x) * up x): the gated MLP of Llama (Shazeer 2020, eq. 6)."""

    def __init__(self, width: int, hidden: int, act: str = "silu", *, bias: bool = False):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.act = activation(act)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(self.act(self.gate(x)) * self.up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight: no mean, no bias (Zhang & Sennrich 2019, eq. 4).

    The mean square is taken in float32.
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def check_ids(input_ids: Tensor, vocab_size: int, length: int | None = None) -> None:
    """ValueError unless ids are integers (B, T), all rows of an embedding table of ``vocab_size``.

    With a ``length``, the number of positions: also unless 1 <= T <= length.
    """
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or input_ids.dtype not in (torch.long, torch.int):
        raise ValueError(f"input_ids must be (B, T) of integers, got {input_ids.dtype} {shape}")
    outside = input_ids[(input_ids < 0) | (input_ids >= vocab_size)]
    if len(outside):
        raise ValueError(f"token id {outside[0].item()} is outside the vocabulary of {vocab_size}")
    if length is not None and not 0 < shape[1] <= length:
        raise ValueError(f"input_ids must be (B, T) with 1 <= T <= {length}, got {shape}")


def init_weights(module: nn.Module) -> None:
    """For ``apply``: normal weights of variance 1 / (3 fan_in), no bias, embeddings of std 0.02.

    At ViT-B's fan_in of 768 that is the usual std of 0.02; a narrower toy needs wider weights to
    pass on as much signal.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, std=(3 * module.weight[0].numel()) ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
