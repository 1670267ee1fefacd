"""Pooling, resizing, reductions, sorting and counting."""

from __future__ import annotations

from utcompile.ops.row import Row, op
from utcompile.ops.traits import NONE
from utcompile.ops.traits import Axes as A
from utcompile.ops.traits import Trait as T

_MAX = "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False; kind=max"
_AVG = (
    "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
    "divisor_override=None; kind=avg"
)
_ADAPTIVE_MAX = "input, output_size, return_indices=False; kind=adaptive_max"
_ADAPTIVE_AVG = "input, output_size, return_indices=False; kind=adaptive_avg"
_LP = "input, norm_type, kernel_size, stride=None, ceil_mode=False; kind=lp"
_OVER_TYPED = "input, dim=None, keepdim=False, dtype=None"
_OVER = "input, dim=None, keepdim=False"

POOLING: tuple[Row, ...] = (
    op("pool", "maximum or average over windows, adaptive too", T.POOL | T.LISTED, A.RESIZE,
       _MAX, "F.max_pool1d nn.MaxPool1d F.max_pool2d nn.MaxPool2d F.max_pool3d nn.MaxPool3d",
       _AVG, "F.avg_pool1d nn.AvgPool1d F.avg_pool2d nn.AvgPool2d F.avg_pool3d nn.AvgPool3d",
       _ADAPTIVE_MAX,
       ("F.adaptive_max_pool1d nn.AdaptiveMaxPool1d F.adaptive_max_pool2d nn.AdaptiveMaxPool2d "
        "F.adaptive_max_pool3d nn.AdaptiveMaxPool3d"),
       _ADAPTIVE_AVG,
       ("F.adaptive_avg_pool1d nn.AdaptiveAvgPool1d F.adaptive_avg_pool2d nn.AdaptiveAvgPool2d "
        "F.adaptive_avg_pool3d nn.AdaptiveAvgPool3d"),
       _LP, "F.lp_pool1d nn.LPPool1d F.lp_pool2d nn.LPPool2d F.lp_pool3d nn.LPPool3d"),
    op("mean", "mean over axes", T.LISTED | T.KEEPS_NOTHING, A.REDUCE, _OVER_TYPED, "mean"),
    op("sum", "sum over axes", T.LISTED | T.KEEPS_NOTHING, A.REDUCE, _OVER_TYPED, "sum"),
    op("max", "maximum over axes", NONE, A.REDUCE, _OVER, "amax max"),
    op("min", "minimum over axes", NONE, A.REDUCE, _OVER, "amin min"),
    op("prod", "product over axes", NONE, A.REDUCE, _OVER_TYPED, "prod"),
    op("std", "standard deviation over axes", NONE, A.REDUCE,
       "input, dim=None, unbiased=True, keepdim=False, correction=None", "std"),
    op("var", "variance over axes", NONE, A.REDUCE,
       "input, dim=None, unbiased=True, keepdim=False, correction=None", "var"),
    op("median", "median over axes", NONE, A.REDUCE, _OVER, "median"),
    op("nanmean", "mean, NaN left out", NONE, A.REDUCE, _OVER_TYPED, "nanmean"),
    op("nansum", "sum, NaN left out", NONE, A.REDUCE, _OVER_TYPED, "nansum"),
    op("logsumexp", "log(sum(exp(x))) over axes", NONE, A.REDUCE, _OVER, "logsumexp"),
    op("vector_norm", "norm over axes", NONE, A.REDUCE,
       "input, p='fro', dim=None, keepdim=False, dtype=None", "norm",
       "input, p=None, dim=None, keepdim=False, dtype=None", "torch.linalg.norm",
       "input, p=2, dim=None, keepdim=False, dtype=None", "torch.linalg.vector_norm"),
    op("all", "whether all hold", NONE, A.REDUCE, _OVER, "all"),
    op("any", "whether any holds", NONE, A.REDUCE, _OVER, "any"),
    op("argmax", "place of the maximum", NONE, A.REDUCE, _OVER, "argmax"),
    op("argmin", "place of the minimum", NONE, A.REDUCE, _OVER, "argmin"),
    op("count_nonzero", "how many are not zero", NONE, A.REDUCE, "input, dim=None", "count_nonzero"),
    op("cumsum", "running sum", T.SUMS_OF_MASKS, A.ALONG, "input, dim, dtype=None", "cumsum"),
    op("cumprod", "running product", NONE, A.ALONG, "input, dim, dtype=None", "cumprod"),
    op("cummax", "running maximum; several outputs", NONE, A.ALONG, "input, dim=-1", "cummax"),
    op("logcumsumexp", "running logsumexp", NONE, A.ALONG, "input, dim=-1", "logcumsumexp"),
    op("topk", "largest values and their places; several outputs", NONE, A.ALONG,
       "input, k, dim=-1, largest=True, sorted=True", "topk"),
    op("sort", "values in order and their places; several outputs", NONE, A.ALONG,
       "input, dim=-1, descending=False, stable=False", "sort"),
    op("argsort", "places in order", NONE, A.ALONG, "input, dim=-1, descending=False, stable=False", "argsort"),
    op("diff", "differences of neighbours", T.SUMS, A.ALONG, "input, n=1, dim=-1, prepend=None, append=None", "diff"),
    op("histc", "histogram", NONE, A.UNKNOWN, "input, bins=100, min=0, max=0", "histc"),
    op("bincount", "how often each integer occurs", T.SIZE_OF_DATA, A.UNKNOWN,
       "input, weights=None, minlength=0", "bincount"),
    op("bucketize", "the interval of each value", NONE, A.UNKNOWN,
       "input, boundaries, out_int32=False, right=False", "torch.bucketize"),
    op("searchsorted", "place of each value in a sorted one", NONE, A.UNKNOWN,
       "sorted_sequence, input, out_int32=False, right=False", "torch.searchsorted"),
    op("nonzero", "places that are not zero", T.SIZE_OF_DATA, A.UNKNOWN, "input, as_tuple=False", "nonzero argwhere"),
    op("unique", "different values", T.SIZE_OF_DATA, A.UNKNOWN,
       "input, sorted=True, return_inverse=False, return_counts=False, dim=None", "unique unique_consecutive"),
    op("one_hot", "integers as unit vectors", NONE, A.UNKNOWN, "input, num_classes=-1", "F.one_hot"),
    op("mse_loss", "mean square of a difference", NONE, A.UNKNOWN,
       "input, target, size_average=None, reduce=None, reduction='mean', weight=None", "F.mse_loss"),
    op("interpolate", "resize by interpolation", T.RESAMPLE, A.RESIZE,
       ("input, size=None, scale_factor=None, mode='nearest', align_corners=None, recompute_scale_factor=None, "
        "antialias=False"),
       "F.interpolate nn.Upsample nn.UpsamplingNearest2d nn.UpsamplingBilinear2d"),
    op("pixel_shuffle", "channels moved into space", T.MOVES | T.RESAMPLE, A.PIXELS,
       "input, upscale_factor", "pixel_shuffle F.pixel_shuffle nn.PixelShuffle"),
    op("pixel_unshuffle", "space moved into channels", T.MOVES | T.RESAMPLE, A.PIXELS,
       "input, downscale_factor", "pixel_unshuffle F.pixel_unshuffle nn.PixelUnshuffle"),
    op("channel_shuffle", "channels of groups interleaved", T.MOVES, A.CHANNEL_SHUFFLE,
       "input, groups", "channel_shuffle F.channel_shuffle nn.ChannelShuffle"),
    op("grid_sample", "values at given places", NONE, A.UNKNOWN,
       "input, grid, mode='bilinear', padding_mode='zeros', align_corners=None", "F.grid_sample"),
    op("unfold", "patches as columns", T.PADS, A.UNFOLD,
       "input, kernel_size, dilation=1, padding=0, stride=1", "F.unfold nn.Unfold"),
    op("fold", "patches added together", NONE, A.UNKNOWN,
       "input, output_size, kernel_size, dilation=1, padding=0, stride=1", "F.fold nn.Fold"),
    op("sliding_window", "overlapping windows of an axis", T.MOVES, A.UNKNOWN,
       "input, dimension, size, step", "T.unfold"),
)  # fmt: skip
