"""03 · The VQ-VAE (van den Oord et al. 2017, "Neural Discrete Representation Learning").

Data: images (B, C, H, W) in 0..1 -> ids (B, h, w), h = H / stride -> images (B, C, H, W).
Shapes: K codes of D numbers each, N vectors in a batch. The arithmetic of the quantizer is that of
DeepMind's sonnet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm.vit import to_pixels

TINY = 1e-12  # added to the weights of a random choice, which must not all be zero


@dataclass(frozen=True)
class VQVAEConfig:
    """The sizes of a ``VQVAE``, and how its codebook moves."""

    codes: int = 128  # K
    dim: int = 16  # D, numbers a code
    widths: tuple[int, ...] = (16, 32, 64)  # channels after each convolution that halves the size
    blocks: int = 1  # residual blocks
    hidden: int = 32  # channels inside a residual block
    channels: int = 3
    # subtracted from the image, so that zero padding is the background
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    variance: float = 1.0  # of the training pixels; the reconstruction loss is measured in it
    beta: float = 0.25  # weight of the commitment loss
    ema: bool = True  # codes follow moving averages; False: the codebook loss moves them
    decay: float = 0.99  # of the moving averages, a step
    epsilon: float = 1e-5  # of the Laplace smoothing
    # a code with a smaller average count (vectors a batch) moves to a vector without a near code
    restart: float = 0.0

    @property
    def stride(self) -> int:
        """Pixels a code, along each side."""
        return 2 ** len(self.widths)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each vector, (N, D), (K, D) -> ids (N,).

    By |z|^2 - 2 z e + |e|^2.
    """
    squares = vectors.pow(2).sum(1, keepdim=True) + codebook.pow(2).sum(1)  # (N, K)
    return (squares - 2 * vectors @ codebook.T).argmin(1)


def kmeans(vectors: Tensor, k: int, *, rounds: int = 10, seed: int = 0) -> Tensor:
    """k centres (k, D) of the vectors (N, D).

    Far-apart starts (k-means++), then Lloyd's rounds. A centre that no vector is
    nearest to stays where it is.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    distance = vectors.new_full((len(vectors),), torch.inf)
    for _ in range(k - 1):
        distance = torch.minimum(distance, (vectors - centres[-1]).pow(2).sum(1) + TINY)
        centres = torch.cat([centres, vectors[torch.multinomial(distance, 1, generator=generator)]])
    for _ in range(rounds):
        counts, sums = tally(vectors, nearest(vectors, centres), k)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
    return centres


def tally(vectors: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many vectors (N, D) chose each code, and their sum: (K,), (K, D)."""
    chosen = F.one_hot(ids, k).to(vectors)  # (N, K)
    return chosen.sum(0), chosen.T @ vectors


class Quantizer(nn.Module):
    """The codebook: each vector of a grid gives way to the nearest of K codes (eq. 1 and 2)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        c = self.config = config
        start = torch.empty(c.codes, c.dim).uniform_(-1, 1) / c.codes
        self.codebook = nn.Parameter(start, requires_grad=not c.ema)  # (K, D)
        self.register_buffer("counts", torch.ones(c.codes))  # N_i, vectors a batch
        self.register_buffer("sums", start.clone())  # m_i

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, D, h, w) -> codes (B, D, h, w), ids (B, h, w), loss.

        The codes pass gradients straight through to z.
        """
        vectors = z.movedim(1, 3)  # (B, h, w, D)
        flat = vectors.detach().flatten(0, 2)
        ids = nearest(flat, self.codebook)
        codes = self.codebook[ids].view_as(vectors)
        commitment = F.mse_loss(vectors, codes.detach())  # third term of eq. 3
        loss = self.config.beta * commitment
        if not self.config.ema:
            loss = loss + F.mse_loss(codes, vectors.detach())  # codebook: second term
        if self.training:
            self.update(flat, ids)
        codes = vectors + (codes - vectors).detach()
        return codes.movedim(3, 1), ids.view(vectors.shape[:3]), loss

    @torch.no_grad()
    def update(self, vectors: Tensor, ids: Tensor) -> None:
        """Moving averages of counts and sums, their quotient (appendix A.1), restarts."""
        c = self.config
        counts, sums = tally(vectors, ids, c.codes)
        self.counts.lerp_(counts, 1 - c.decay)
        self.sums.lerp_(sums, 1 - c.decay)
        if c.ema:
            n = self.counts.sum()  # smoothed, so that no code divides by zero
            smooth = (self.counts + c.epsilon) / (n + c.codes * c.epsilon) * n
            self.codebook.copy_(self.sums / smooth[:, None])
        dead = (self.counts < c.restart).nonzero()[:, 0]
        if len(dead):
            error = (vectors - self.codebook[nearest(vectors, self.codebook)]).pow(2).sum(1) + TINY
            self.place(dead, vectors[torch.multinomial(error, len(dead), replacement=True)])

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Put codes (rows,) on vectors (rows, D), as if one vector had chosen each."""
        self.codebook[rows], self.sums[rows], self.counts[rows] = vectors, vectors, 1.0


def init_relu(module: nn.Module) -> None:
    """Weights of variance 2 / fan_in: signals keep their size through ReLUs.

    He et al. 2015, eq. 10.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        seen: float = module.weight[0, 0].numel()
        if isinstance(module, nn.ConvTranspose2d):  # (in, out, k, k); an output sees k / stride
            seen /= module.stride[0] ** 2
        nn.init.normal_(module.weight, std=(2 / (module.in_channels * seen)) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))): section 4.1."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.look = nn.Conv2d(width, hidden, 3, padding=1)
        self.back = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return x + self.back(F.relu(self.look(F.relu(x))))


def encoder(c: VQVAEConfig) -> nn.Sequential:
    """(B, C, H, W) -> (B, D, h, w): strided convolutions, residual blocks, 1 x 1."""
    layers: list[nn.Module] = []
    for before, after in pairwise((c.channels, *c.widths)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    blocks = [ResidualBlock(c.widths[-1], c.hidden) for _ in range(c.blocks)]
    return nn.Sequential(*layers[:-1], *blocks, nn.ReLU(), nn.Conv2d(c.widths[-1], c.dim, 1))


def decoder(c: VQVAEConfig) -> nn.Sequential:
    """(B, D, h, w) -> (B, C, H, W): 3 x 3, residual blocks, transposed convolutions."""
    blocks = [ResidualBlock(c.widths[-1], c.hidden) for _ in range(c.blocks)]
    layers: list[nn.Module] = []
    for before, after in pairwise((*reversed(c.widths), c.channels)):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    return nn.Sequential(nn.Conv2d(c.dim, c.widths[-1], 3, padding=1), *blocks, *layers)


class VQVAE(nn.Module):
    """Encoder, quantizer, decoder: images to a grid of ids, and back."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = encoder(config)
        self.quantizer = Quantizer(config)
        self.decoder = decoder(config)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.apply(init_relu)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in 0..1 -> (B, D, h, w), before the codebook."""
        c, shape = self.config, tuple(images.shape)
        fits = len(shape) == 4 and shape[1] == c.channels and min(shape) > 0
        if not fits or shape[2] % c.stride or shape[3] % c.stride:
            raise ValueError(
                f"images must be (B, {c.channels}, H, W), H and W multiples of {c.stride}; "
                f"got {shape}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floats in 0..1, got {images.dtype}")
        low, high = images.aminmax()
        if not images.is_meta and not 0 <= low <= high <= 1:  # nor NaN
            span = f"{images.dtype} in {low:g}..{high:g}"
            raise ValueError(f"images must be floats in 0..1, got {span}")
        return self.encoder((images - self.mean).to(self.mean.dtype))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> the same, not clamped, ids (B, h, w), and the quantizer's loss."""
        codes, ids, loss = self.quantizer(self.encode(images))
        return self.decoder(codes) + self.mean, ids, loss

    def loss(self, images: Tensor) -> Tensor:
        """Eq. 3: squared error in units of the pixels' variance, and the quantizer's."""
        reconstruction, _, loss = self(images)
        return F.mse_loss(reconstruction, images) / self.config.variance + loss

    @torch.no_grad()
    def start_codes(self, images: Tensor, seed: int = 0) -> None:
        """Put the codes on k-means centres of the encoder's vectors of (B, C, H, W)."""
        vectors = self.encode(images).movedim(1, 3).flatten(0, 2)
        k = self.config.codes
        self.quantizer.place(torch.arange(k), kmeans(vectors, k, seed=seed))

    @torch.no_grad()
    def encode_to_ids(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in 0..1 -> ids (B, h, w)."""
        z = self.encode(images).movedim(1, 3)
        return nearest(z.flatten(0, 2), self.quantizer.codebook).view(z.shape[:3])

    @torch.no_grad()
    def decode_ids(self, ids: Tensor) -> Tensor:
        """ids (B, h, w), any grid -> images (B, C, stride * h, stride * w) in 0..1."""
        c = self.config
        if ids.ndim != 3 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids must be integers (B, h, w), got {ids.dtype} {tuple(ids.shape)}")
        outside = ids[(ids < 0) | (ids >= c.codes)]
        if len(outside):
            raise ValueError(f"id {outside[0].item()} is outside the codebook of {c.codes}")
        return (self.decoder(self.quantizer.codebook[ids].movedim(3, 1)) + self.mean).clamp(0, 1)


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio of images in 0..1, in dB: -10 log10 of the mean squared error."""
    if images.shape != others.shape:
        raise ValueError(f"images {tuple(images.shape)} are compared with {tuple(others.shape)}")
    return -10 * torch.log10(F.mse_loss(images, others)).item()


def perplexity(ids: Tensor, k: int) -> float:
    """exp(entropy) of the shares of k codes: 1 where one does all, k where all share."""
    if not ids.numel() or ids.min() < 0 or ids.max() >= k:
        raise ValueError(f"need ids of {k} codes, got {ids.unique().tolist()[:5]}")
    share = torch.bincount(ids.flatten(), minlength=k) / ids.numel()
    return torch.special.entr(share).sum().exp().item()


def to_unit(images: Sequence[Image.Image]) -> Tensor:
    """PIL images -> (B, 3, H, W) in 0..1."""
    return to_pixels(images, mean=(0, 0, 0), std=(1, 1, 1))
