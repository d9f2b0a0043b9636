"""DiffRIR, the reference-based restoration network: S1, which sees the truth, and S2, which has to guess it.

A U-Net of transformer blocks (DIRformer, `G`) restores a painted picture beside what is known of the original; every
block is modulated by one vector, the image prior representation (IPR). S1 computes it from the truth and is the
teacher; S2 draws it by diffusion from what an encoder (CPEN, `condition`) sees. Attributes bear the names of the
published state dict (LLMGA.md §6.2 and its table), so a published file loads as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.diffusion.restoration.config import RGB, WORKING_FACTOR, RestorationConfig
from services.diffusion.restoration.ipr import NEGATIVE_SLOPE, Denoiser, IPRDiffusion

VARIANCE_EPSILON = 1e-5


def join(painted: Tensor, known: Tensor, scale: int) -> Tensor:
    """Return the networks' input: the painted picture, then the reference unshuffled to its size (LLMGA.md §6.1).

    Args:
        painted: (b, 3, h, w), RGB in [0, 1].
        known: (b, 3, scale * h, scale * w), the original with zeros where it is not known.
        scale: Side of the finished picture over that of the painted one.

    Returns:
        (b, 6 | 15 | 51, h, w).
    """
    return torch.cat((painted, functional.pixel_unshuffle(known, scale)), dim=1)


class BiasFreeNorm(nn.Module):
    """Divide by the deviation over the channels, without taking off the mean (LLMGA.md §6.2, "BiasFree LN")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().var(dim=1, keepdim=True, unbiased=False)
        out: Tensor = x * torch.rsqrt(variance + VARIANCE_EPSILON).to(x.dtype) * self.weight[:, None, None]
        return out


class Norm(nn.Module):
    """Hold the norm as `body`, the published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = BiasFreeNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class Modulation(nn.Sequential):
    """Scale and shift every channel by linear functions of the IPR."""

    def __init__(self, channels: int, ipr_channels: int) -> None:
        super().__init__(nn.Linear(ipr_channels, 2 * channels, bias=False))

    def modulate(self, x: Tensor, ipr: Tensor) -> Tensor:
        scale, shift = self(ipr)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = x * scale + shift
        return out


class Attention(nn.Module):
    """Attention between channels: its map is (c/heads, c/heads), whatever the picture's size (Restormer's MDTA)."""

    def __init__(self, channels: int, heads: int, ipr_channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.kernel = Modulation(channels, ipr_channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, ipr: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv_dwconv(self.qkv(self.kernel.modulate(x, ipr)))
        q, k, v = qkv.view(b, 3, len(self.temperature), -1, h * w).unbind(dim=1)  # (b, heads, c/heads, h*w)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        out: Tensor = self.project_out((attention @ v).view(b, c, h, w))
        return out


class FeedForward(nn.Module):
    """Gated feed-forward layer with a depthwise convolution (Restormer's GDFN)."""

    def __init__(self, channels: int, expansion: float, ipr_channels: int) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)
        self.kernel = Modulation(channels, ipr_channels)

    def forward(self, x: Tensor, ipr: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(self.kernel.modulate(x, ipr))).chunk(2, dim=1)
        out: Tensor = self.project_out(functional.gelu(gate) * value)
        return out


class Block(nn.Module):
    """Attention and feed-forward layer, each after a norm and beside a residual."""

    def __init__(self, channels: int, heads: int, config: RestorationConfig) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.attn = Attention(channels, heads, config.ipr_channels)
        self.norm2 = Norm(channels)
        self.ffn = FeedForward(channels, config.ffn_expansion_factor, config.ipr_channels)

    def forward(self, x: Tensor, ipr: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), ipr)
        out: Tensor = x + self.ffn(self.norm2(x), ipr)
        return out


class Blocks(nn.ModuleList):
    """Blocks one after another, all of them modulated by the same IPR."""

    def __init__(self, number: int, channels: int, heads: int, config: RestorationConfig) -> None:
        super().__init__(Block(channels, heads, config) for _ in range(number))

    def forward(self, x: Tensor, ipr: Tensor) -> Tensor:
        for block in self:
            x = block(x, ipr)
        return x


class PatchEmbed(nn.Module):
    """The first convolution, as `proj`; from here on the network computes in its weights' precision."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x.to(self.proj.weight.dtype))
        return out


class Resample(nn.Module):
    """Halve or double the sides: a convolution, and a shuffle between channels and pixels."""

    def __init__(self, channels: int, out_channels: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def _down(channels: int) -> Resample:
    return Resample(channels, channels // 2, nn.PixelUnshuffle(2))


def _up(channels: int) -> Resample:
    return Resample(channels, channels * 2, nn.PixelShuffle(2))


class DIRformer(nn.Module):
    """The U-Net: three levels and a latent on the way down, the same back, then the refinement and the tail."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        n, blocks, heads = config.dim, config.num_blocks, config.heads
        self.scale = config.scale
        self.entry = nn.PixelUnshuffle(config.entry_factor)
        self.patch_embed = PatchEmbed(config.entry_channels, n)
        self.encoder_level1 = Blocks(blocks[0], n, heads[0], config)
        self.down1_2 = _down(n)
        self.encoder_level2 = Blocks(blocks[1], 2 * n, heads[1], config)
        self.down2_3 = _down(2 * n)
        self.encoder_level3 = Blocks(blocks[2], 4 * n, heads[2], config)
        self.down3_4 = _down(4 * n)
        self.latent = Blocks(blocks[3], 8 * n, heads[3], config)
        self.up4_3 = _up(8 * n)
        self.reduce_chan_level3 = nn.Conv2d(8 * n, 4 * n, 1, bias=False)
        self.decoder_level3 = Blocks(blocks[2], 4 * n, heads[2], config)
        self.up3_2 = _up(4 * n)
        self.reduce_chan_level2 = nn.Conv2d(4 * n, 2 * n, 1, bias=False)
        self.decoder_level2 = Blocks(blocks[1], 2 * n, heads[1], config)
        self.up2_1 = _up(2 * n)
        self.decoder_level1 = Blocks(blocks[0], 2 * n, heads[0], config)
        self.refinement = Blocks(config.num_refinement_blocks, 2 * n, heads[0], config)
        upsampler = [nn.Conv2d(2 * n, 8 * n, 3, padding=1), nn.PixelShuffle(2)]
        upsampler += [nn.Conv2d(2 * n, 8 * n, 3, padding=1), nn.PixelShuffle(2)]
        self.tail = nn.Sequential(nn.Sequential(*upsampler), nn.Conv2d(2 * n, RGB, 3, padding=1))

    def forward(self, joined: Tensor, ipr: Tensor) -> Tensor:
        """Return the restored picture (b, 3, scale * h, scale * w) in the precision of joined (b, 6 | 15 | 51, h, w).

        Only what is added to the painted picture has the precision of the weights: bfloat16 holds no 8-bit picture.
        """
        x = self.patch_embed(self.entry(joined))
        ipr = ipr.to(x.dtype)
        level1 = self.encoder_level1(x, ipr)
        level2 = self.encoder_level2(self.down1_2(level1), ipr)
        level3 = self.encoder_level3(self.down2_3(level2), ipr)
        x = self.latent(self.down3_4(level3), ipr)
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(x), level3), dim=1)), ipr)
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), level2), dim=1)), ipr)
        x = self.decoder_level1(torch.cat((self.up2_1(x), level1), dim=1), ipr)
        change: Tensor = self.tail(self.refinement(x, ipr)).to(joined.dtype)
        return change + functional.interpolate(joined[:, :RGB], scale_factor=float(self.scale), mode="nearest")


class ResBlock(nn.Module):
    """Two convolutions beside a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out


class CPEN(nn.Module):
    """Compact prior extraction network: from an unshuffled picture to its IPR (b, 4 * n_feats)."""

    def __init__(self, in_channels: int, n_feats: int, n_encoder_res: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, n_feats, 3, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        layers += (ResBlock(n_feats) for _ in range(n_encoder_res))
        for width, out_width in ((n_feats, 2 * n_feats), (2 * n_feats, 2 * n_feats), (2 * n_feats, 4 * n_feats)):
            layers += [nn.Conv2d(width, out_width, 3, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.E = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.mlp = nn.Sequential(
            nn.Linear(4 * n_feats, 4 * n_feats),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(4 * n_feats, 4 * n_feats),
            nn.LeakyReLU(NEGATIVE_SLOPE),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.E(x.to(next(self.parameters()).dtype)))
        return out


class DiffRIRS1(nn.Module):
    """The teacher: its encoder sees the truth beside the input."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        self.config = config
        self.G = DIRformer(config)
        truth_channels = RGB * WORKING_FACTOR**2
        self.E = CPEN(config.entry_channels + truth_channels, config.n_feats, config.n_encoder_res)

    def encode(self, joined: Tensor, truth: Tensor) -> Tensor:
        """Return the IPR (b, ipr_channels) that S2 learns to guess; truth (b, 3, scale * h, scale * w) in [0, 1]."""
        entry = functional.pixel_unshuffle(joined, self.config.entry_factor)
        out: Tensor = self.E(torch.cat((entry, functional.pixel_unshuffle(truth, WORKING_FACTOR)), dim=1))
        return out

    def forward(self, joined: Tensor, truth: Tensor) -> Tensor:
        """Return the restored picture (b, 3, scale * h, scale * w)."""
        out: Tensor = self.G(joined, self.encode(joined, truth))
        return out


class DiffRIRS2(nn.Module):
    """The network that is served."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        self.config = config
        self.G = DIRformer(config)
        self.condition = CPEN(config.entry_channels, config.n_feats, config.n_encoder_res)
        self.denoise = Denoiser(config.ipr_channels, config.n_denoise_res, config.timesteps)
        self.diffusion = IPRDiffusion(
            self.denoise,
            self.condition,
            timesteps=config.timesteps,
            linear_start=config.linear_start,
            linear_end=config.linear_end,
        )

    def encode(self, joined: Tensor) -> Tensor:
        """Return the encoder's vector (b, ipr_channels), the condition c of the diffusion."""
        out: Tensor = self.condition(functional.pixel_unshuffle(joined, self.config.entry_factor))
        return out

    def draw(self, joined: Tensor, x_t: Tensor) -> Tensor:
        """Return the IPR (b, ipr_channels) by diffusion from x_T; it stays in x_T's precision."""
        return self.diffusion.sample(x_t, self.encode(joined).to(x_t.dtype))

    def forward(self, joined: Tensor, x_t: Tensor) -> Tensor:
        """Return the restored picture (b, 3, scale * h, scale * w) from the start x_T (b, ipr_channels)."""
        out: Tensor = self.G(joined, self.draw(joined, x_t))
        return out
