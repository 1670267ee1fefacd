"""The canonical operations as data: a row gives a name, a signature, and the callables of torch that have it.

Signatures are Python's, with torch's own argument names and defaults; names that begin with `_`, and `inplace` and
`out`, say nothing about the operation and are read over. A spelling is

    gelu          torch.gelu and the method x.gelu(), as far as there are such
    F.gelu        torch.nn.functional.gelu
    nn.GELU       a leaf module: its attributes of the signature's names are the operation's
    op.add        operator.add
    T.float       the method only
    torch.rsub    the function only, also of a submodule: torch.linalg.norm

and the variant that writes in place (`relu_`) belongs to each. What differs between rows of one name is stated after
the signature: `kind=avg`.
"""

from __future__ import annotations

Row = tuple[str, str, str]

_CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode='zeros'"
_CONV_T = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, padding_mode='zeros'"
_MAX = "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False; kind=max"
_AVG = "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None"
_RNN = "input, hx=None, *, input_size, hidden_size, num_layers=1, batch_first=False, bidirectional=False"
_CELL = "input, hx=None, *, input_size, hidden_size"

WEIGHTED: tuple[Row, ...] = (
    ("linear", "input, weight, bias=None", "F.linear nn.Linear"),
    ("bilinear", "input1, input2, weight, bias=None", "F.bilinear nn.Bilinear"),
    ("embedding", "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, "
     "sparse=False", "F.embedding nn.Embedding"),
    ("embedding_bag", "input, weight, offsets=None, max_norm=None, norm_type=2, scale_grad_by_freq=False, mode='mean', "
     "sparse=False, per_sample_weights=None, include_last_offset=False, padding_idx=None",
     "F.embedding_bag nn.EmbeddingBag"),
    *((f"conv{n}d", _CONV, f"F.conv{n}d torch.conv{n}d nn.Conv{n}d") for n in (1, 2, 3)),
    *((f"conv_transpose{n}d", _CONV_T, f"F.conv_transpose{n}d torch.conv_transpose{n}d nn.ConvTranspose{n}d")
      for n in (1, 2, 3)),
    ("lstm", _RNN + ", proj_size=0", "nn.LSTM"),
    ("gru", _RNN, "nn.GRU"),
    ("rnn", _RNN + ", nonlinearity='tanh'", "nn.RNN"),
    ("lstm_cell", _CELL, "nn.LSTMCell"),
    ("gru_cell", _CELL, "nn.GRUCell"),
    ("rnn_cell", _CELL + ", nonlinearity='tanh'", "nn.RNNCell"),
)  # fmt: skip

PRODUCTS: tuple[Row, ...] = (
    ("matmul", "input, other", "matmul bmm mm op.matmul op.imatmul linalg.matmul T.__matmul__"),
    ("matmul", "other, input", "T.__rmatmul__"),
    ("addmm", "input, mat1, mat2, beta=1, alpha=1", "addmm"),
    ("baddbmm", "input, batch1, batch2, beta=1, alpha=1", "baddbmm"),
    ("einsum", "equation, *operands", "torch.einsum"),
    ("grouped_mm", "input, mat2, offs=None, bias=None, out_dtype=None", "torch._grouped_mm F.grouped_mm"),
    ("outer", "input, other", "outer ger"),
    ("solve_triangular", "input, other, upper, left=True, unitriangular=False", "torch.linalg.solve_triangular"),
    ("dot", "input, other", "dot linalg.vecdot"),
    ("cdist", "input, other, p=2.0, _compute_mode=None", "torch.cdist"),
    ("cosine_similarity", "input, other, dim=1, eps=1e-8", "F.cosine_similarity nn.CosineSimilarity"),
    ("sdpa", "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False",
     "F.scaled_dot_product_attention"),
    ("softmax", "input, dim=None, _stacklevel=3, dtype=None", "F.softmax nn.Softmax"),
    ("softmax", "input, dim=None, dtype=None", "softmax special.softmax"),
    ("softmax", "input, _=None; dim=-3", "nn.Softmax2d"),
    ("log_softmax", "input, dim=None, _stacklevel=3, dtype=None", "F.log_softmax nn.LogSoftmax"),
    ("log_softmax", "input, dim=None, dtype=None", "log_softmax special.log_softmax"),
)  # fmt: skip

BINARY: tuple[Row, ...] = (
    ("add", "input, other, alpha=1", "add op.add op.iadd"),
    ("sub", "input, other, alpha=1", "sub subtract op.sub op.isub"),
    ("sub", "other, input, alpha=1", "torch.rsub"),
    ("mul", "input, other", "mul multiply op.mul op.imul"),
    ("div", "input, other, rounding_mode=None", "div divide true_divide op.truediv op.itruediv"),
    ("div", "other, input, rounding_mode=None", "T.__rdiv__ T.__rtruediv__"),
    ("floordiv", "input, other", "floor_divide op.floordiv op.ifloordiv"),
    ("floordiv", "other, input", "T.__rfloordiv__"),
    ("remainder", "input, other", "remainder op.mod op.imod"),
    ("fmod", "input, other", "fmod"),
    ("pow", "input, exponent", "pow op.pow op.ipow float_power"),
    ("pow", "exponent, input", "T.__rpow__"),
    ("maximum", "input, other", "maximum fmax"),
    ("minimum", "input, other", "minimum fmin"),
    ("atan2", "input, other", "atan2 arctan2"),
    ("lerp", "input, end, weight", "lerp"),
    ("addcmul", "input, tensor1, tensor2, value=1", "addcmul"),
    ("addcdiv", "input, tensor1, tensor2, value=1", "addcdiv"),
    *((name, "input, other", f"{name} {long} op.{name}") for name, long in (
        ("eq", ""), ("ne", "not_equal"), ("lt", "less"), ("le", "less_equal"), ("gt", "greater"),
        ("ge", "greater_equal"))),
    *((f"logical_{name}", "input, other", f"logical_{name}") for name in ("and", "or", "xor")),
    *((f"bitwise_{name}", "input, other", f"bitwise_{name} op.{python} op.i{name} T.__{name}__")
      for name, python in (("and", "and_"), ("or", "or_"), ("xor", "xor"))),
    ("isclose", "input, other, rtol=1e-05, atol=1e-08, equal_nan=False", "isclose"),
    ("where", "condition, input, other", "torch.where"),
    ("where", "input, condition, other", "T.where"),
    ("masked_fill", "input, mask, value", "masked_fill"),
    ("clamp", "input, min=None, max=None", "clamp clip"),
    ("clamp", "input, min; max=None", "clamp_min"),
    ("clamp", "input, max; min=None", "clamp_max"),
    ("polar", "abs, angle", "torch.polar"),
    ("complex", "real, imag", "torch.complex"),
)  # fmt: skip

_UNARY = (
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan sinh cosh asin acos atan asinh acosh "
    "atanh erf erfc erfinv floor ceil trunc frac sign sinc lgamma digamma deg2rad rad2deg angle isnan isinf isfinite "
    "logical_not conj i0"
).split()
UNARY: tuple[Row, ...] = (
    *((name, "input", name) for name in _UNARY),
    ("neg", "input", "neg negative op.neg"),
    ("pos", "input", "positive op.pos"),
    ("abs", "input", "abs absolute op.abs"),
    ("bitwise_not", "input", "bitwise_not op.invert"),
    ("round", "input, decimals=0", "round"),
    ("logit", "input, eps=None", "logit"),
    ("nan_to_num", "input, nan=0.0, posinf=None, neginf=None", "nan_to_num"),
    ("bernoulli", "input, _generator=None", "bernoulli"),
)

_PLAIN = "relu relu6 silu sigmoid tanh hardswish hardsigmoid selu mish softsign tanhshrink".split()
_MODULE = {"relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "selu": "SELU"}
ACTIVATION_ROWS: tuple[Row, ...] = (
    *((name, "input, inplace=False", f"F.{name} nn.{_MODULE.get(name, name.capitalize())}") for name in _PLAIN),
    *((name, "input", name) for name in ("relu", "sigmoid", "tanh", "selu")),
    ("sigmoid", "input", "special.expit"),
    ("gelu", "input, approximate='none'", "F.gelu nn.GELU"),
    ("hardtanh", "input, min_val=-1.0, max_val=1.0, inplace=False", "F.hardtanh nn.Hardtanh"),
    ("elu", "input, alpha=1.0, inplace=False", "F.elu nn.ELU"),
    ("celu", "input, alpha=1.0, inplace=False", "celu F.celu nn.CELU"),
    ("leaky_relu", "input, negative_slope=0.01, inplace=False", "F.leaky_relu nn.LeakyReLU"),
    ("rrelu", "input, lower=0.125, upper=0.3333333333333333, training=False, inplace=False", "rrelu F.rrelu nn.RReLU"),
    ("softplus", "input, beta=1, threshold=20", "F.softplus nn.Softplus"),
    ("softshrink", "input, lambd=0.5", "F.softshrink nn.Softshrink"),
    ("hardshrink", "input, lambd=0.5", "hardshrink F.hardshrink nn.Hardshrink"),
    ("threshold", "input, threshold, value, inplace=False", "threshold F.threshold nn.Threshold"),
    ("prelu", "input, weight", "prelu F.prelu nn.PReLU"),
    ("logsigmoid", "input", "F.logsigmoid nn.LogSigmoid"),
    ("quick_gelu", "input", ""),  # recognised where it is spelled out
)

_BATCH_NORM = (
    "input, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05"
)
NORM_ROWS: tuple[Row, ...] = (
    ("batch_norm", _BATCH_NORM, "F.batch_norm nn.BatchNorm1d nn.BatchNorm2d nn.BatchNorm3d nn.SyncBatchNorm"),
    ("batch_norm", _BATCH_NORM + ", _cudnn_enabled=True", "torch.batch_norm"),
    ("layer_norm", "input, normalized_shape, weight=None, bias=None, eps=1e-05", "F.layer_norm nn.LayerNorm"),
    ("layer_norm", "input, normalized_shape, weight=None, bias=None, eps=1e-05, _cudnn_enable=True",
     "torch.layer_norm"),
    ("group_norm", "input, num_groups, weight=None, bias=None, eps=1e-05", "F.group_norm nn.GroupNorm"),
    ("group_norm", "input, num_groups, weight=None, bias=None, eps=1e-05, _cudnn_enabled=True", "torch.group_norm"),
    ("rms_norm", "input, normalized_shape, weight=None, eps=None", "F.rms_norm torch.rms_norm nn.RMSNorm"),
    ("instance_norm", "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, "
     "momentum=0.1, eps=1e-05", "F.instance_norm nn.InstanceNorm1d nn.InstanceNorm2d nn.InstanceNorm3d"),
    ("local_response_norm", "input, size, alpha=0.0001, beta=0.75, k=1.0",
     "F.local_response_norm nn.LocalResponseNorm"),
    ("normalize", "input, p=2.0, dim=1, eps=1e-12, out=None", "F.normalize"),
)  # fmt: skip

DROPOUT: tuple[Row, ...] = (
    ("dropout", "input, p=0.5, training=True, inplace=False",
     "F.dropout F.dropout1d F.dropout2d F.dropout3d nn.Dropout nn.Dropout1d nn.Dropout2d nn.Dropout3d nn.AlphaDropout "
     "nn.FeatureAlphaDropout"),
    ("dropout", "input, p=0.5, training=False, inplace=False", "F.alpha_dropout F.feature_alpha_dropout"),
    ("dropout", "input, p, training", "torch.dropout"),
)  # fmt: skip

POOLING: tuple[Row, ...] = (
    *(("pool", _MAX, f"F.max_pool{n}d nn.MaxPool{n}d") for n in (1, 2, 3)),
    *(("pool", _AVG + "; kind=avg", f"F.avg_pool{n}d nn.AvgPool{n}d") for n in (1, 2, 3)),
    *(("pool", f"input, output_size, return_indices=False; kind=adaptive_{kind}",
       f"F.adaptive_{kind}_pool{n}d nn.Adaptive{kind.capitalize()}Pool{n}d")
      for kind in ("max", "avg") for n in (1, 2, 3)),
    *(("pool", "input, norm_type, kernel_size, stride=None, ceil_mode=False; kind=lp", f"F.lp_pool{n}d nn.LPPool{n}d")
      for n in (1, 2, 3)),
    ("interpolate", "input, size=None, scale_factor=None, mode='nearest', align_corners=None, "
     "recompute_scale_factor=None, antialias=False", "F.interpolate nn.Upsample nn.UpsamplingNearest2d "
     "nn.UpsamplingBilinear2d"),
    ("pixel_shuffle", "input, upscale_factor", "pixel_shuffle F.pixel_shuffle nn.PixelShuffle"),
    ("pixel_unshuffle", "input, downscale_factor", "pixel_unshuffle F.pixel_unshuffle nn.PixelUnshuffle"),
    ("channel_shuffle", "input, groups", "channel_shuffle F.channel_shuffle nn.ChannelShuffle"),
    ("grid_sample", "input, grid, mode='bilinear', padding_mode='zeros', align_corners=None", "F.grid_sample"),
    ("unfold", "input, kernel_size, dilation=1, padding=0, stride=1", "F.unfold nn.Unfold"),
    ("fold", "input, output_size, kernel_size, dilation=1, padding=0, stride=1", "F.fold nn.Fold"),
    ("sliding_window", "input, dimension, size, step", "T.unfold"),
)  # fmt: skip

_REDUCE = "input, dim=None, keepdim=False, dtype=None"
REDUCTIONS: tuple[Row, ...] = (
    *((name, _REDUCE, name) for name in ("mean", "sum", "nanmean", "nansum", "prod")),
    *((name, "input, dim=None, keepdim=False", name) for name in "all any argmax argmin logsumexp median".split()),
    ("max", "input, dim=None, keepdim=False", "amax max"),
    ("min", "input, dim=None, keepdim=False", "amin min"),
    ("std", "input, dim=None, unbiased=True, keepdim=False, correction=None", "std"),
    ("var", "input, dim=None, unbiased=True, keepdim=False, correction=None", "var"),
    ("vector_norm", "input, p='fro', dim=None, keepdim=False, dtype=None", "norm"),
    ("vector_norm", "input, p=None, dim=None, keepdim=False, dtype=None", "torch.linalg.norm"),
    ("vector_norm", "input, p=2, dim=None, keepdim=False, dtype=None", "torch.linalg.vector_norm"),
    ("count_nonzero", "input, dim=None", "count_nonzero"),
    ("one_hot", "input, num_classes=-1", "F.one_hot"),
    ("mse_loss", "input, target, size_average=None, reduce=None, reduction='mean', weight=None", "F.mse_loss"),
    ("glu", "input, dim=-1", "F.glu nn.GLU"),
    *((name, "input, dim, dtype=None", name) for name in ("cumsum", "cumprod")),
    *((name, "input, dim=-1", name) for name in ("cummax", "logcumsumexp")),
    ("topk", "input, k, dim=-1, largest=True, sorted=True", "topk"),
    ("sort", "input, dim=-1, descending=False, stable=False", "sort"),
    ("argsort", "input, dim=-1, descending=False, stable=False", "argsort"),
    ("diff", "input, n=1, dim=-1, prepend=None, append=None", "diff"),
    ("histc", "input, bins=100, min=0, max=0", "histc"),
    ("bincount", "input, weights=None, minlength=0", "bincount"),
    ("bucketize", "input, boundaries, out_int32=False, right=False", "torch.bucketize"),
    ("searchsorted", "sorted_sequence, input, out_int32=False, right=False", "torch.searchsorted"),
    ("nonzero", "input, as_tuple=False", "nonzero argwhere"),
    ("unique", "input, sorted=True, return_inverse=False, return_counts=False, dim=None", "unique unique_consecutive"),
)  # fmt: skip

LAYOUT_ROWS: tuple[Row, ...] = (
    ("reshape", "input, *shape", "view reshape"),
    ("reshape", "input, other", "view_as reshape_as"),
    ("reshape", "input, start_dim=0, end_dim=-1", "flatten ravel"),
    ("reshape", "input, start_dim=1, end_dim=-1", "nn.Flatten"),
    ("reshape", "input, dim, sizes", "unflatten nn.Unflatten"),
    ("reshape", "input, dim=None", "squeeze"),
    ("reshape", "input, dim", "unsqueeze"),
    ("permute", "input, *dims", "permute"),
    ("permute", "input, source, destination", "movedim moveaxis"),
    ("transpose", "input, dim0, dim1", "transpose swapaxes swapdims"),
    ("transpose", "input; dim0=0, dim1=1", "t"),
    ("transpose", "input; dim0=-2, dim1=-1", "adjoint"),
    ("contiguous", "input, memory_format=None", "contiguous clone"),
    ("detach", "input", "detach"),
    ("identity", "input", "nn.Identity"),
    ("to", "input, *target", "to type"),
    ("to", "input, other", "type_as"),
    *(("to", f"input, memory_format=None; dtype={dtype}", f"T.{name}") for name, dtype in (
        ("float", "float32"), ("double", "float64"), ("half", "float16"), ("bfloat16", "bfloat16"), ("long", "int64"),
        ("int", "int32"), ("short", "int16"), ("char", "int8"), ("byte", "uint8"), ("bool", "bool"),
        ("cfloat", "complex64"))),
    ("to", "input, device=None, memory_format=None", "T.cuda"),
    ("to", "input, memory_format=None; device=cpu", "T.cpu"),
    ("roll", "input, shifts, dims=None", "roll"),
    ("flip", "input, *dims", "flip"),
    ("flip", "input; dims=(-1,)", "fliplr"),
    ("expand", "input, *size", "expand"),
    ("expand", "input, size", "broadcast_to"),
    ("expand", "input, other", "expand_as"),
    ("repeat", "input, *repeats", "T.repeat tile"),
    ("repeat_interleave", "input, repeats, dim=None, output_size=None", "repeat_interleave"),
    ("pad", "input, pad, mode='constant', value=None", "F.pad"),
    *(("pad", f"input, pad; mode={mode}, value=None", f"nn.{cls}Pad1d nn.{cls}Pad2d nn.{cls}Pad3d") for cls, mode in (
        ("Zero", "constant"), ("Reflection", "reflect"), ("Replication", "replicate"), ("Circular", "circular"))),
    ("pad", "input, pad, value; mode=constant", "nn.ConstantPad1d nn.ConstantPad2d nn.ConstantPad3d"),
    ("cat", "tensors, dim=0", "torch.cat torch.concat torch.concatenate"),
    ("stack", "tensors, dim=0", "torch.stack"),
    *(("cat", f"tensors; dim={dim}", f"torch.{name}") for name, dim in (("vstack", 0), ("dstack", 2))),
    ("split", "input, split_size_or_sections, dim=0", "split split_with_sizes"),
    ("split", "input, indices_or_sections, dim=0", "tensor_split"),
    ("split", "input, chunks, dim=0", "chunk"),
    ("split", "input, dim=0", "unbind"),
    ("getitem", "input, index", "op.getitem"),
    ("select", "input, dim, index", "select"),
    ("narrow", "input, dim, start, length", "narrow"),
    ("index_select", "input, dim, index", "index_select"),
    ("gather", "input, dim, index, sparse_grad=False", "gather"),
    ("gather", "input, index, dim=None", "take_along_dim"),
    ("masked_select", "input, mask", "masked_select"),
    ("setitem", "input, index, value", "op.setitem"),
    ("copy", "input, src, non_blocking=False", "T.copy"),
    ("fill", "input, value", "T.fill torch.fill"),
    ("fill", "input; value=0", "T.zero"),
    ("scatter", "input, dim, index, src, reduce=None", "scatter"),
    ("scatter_add", "input, dim, index, src", "scatter_add"),
    ("scatter_reduce", "input, dim, index, src, reduce, include_self=True", "scatter_reduce"),
    ("index_copy", "input, dim, index, source", "index_copy"),
    ("index_add", "input, dim, index, source, alpha=1", "index_add"),
    ("index_fill", "input, dim, index, value", "index_fill"),
    ("index_put", "input, indices, values, accumulate=False", "index_put"),
    ("masked_scatter", "input, mask, source", "masked_scatter"),
    ("tril", "input, diagonal=0", "tril"),
    ("triu", "input, diagonal=0", "triu"),
    ("diagonal", "input, offset=0, dim1=0, dim2=1", "diagonal"),
    ("diag_embed", "input, offset=0, dim1=-2, dim2=-1", "diag_embed"),
    ("bitcast", "input, shape", ""),  # x.view(dtype)
    ("as_strided", "input, size, stride, storage_offset=None", "as_strided"),
    ("view_as_complex", "input", "torch.view_as_complex"),
    ("view_as_real", "input", "torch.view_as_real"),
    ("real", "input", "torch.real"),
    ("imag", "input", "torch.imag"),
    ("meshgrid", "*tensors, indexing=None", "torch.meshgrid"),
)  # fmt: skip

_FFT = "input, {size}=None, dim={dim}, norm=None"
SPECTRAL: tuple[Row, ...] = (
    *((name, _FFT.format(size="n", dim=-1), f"torch.fft.{name}") for name in "fft ifft rfft irfft hfft ihfft".split()),
    *((name, _FFT.format(size="s", dim="(-2, -1)"), f"torch.fft.{name}") for name in "fft2 ifft2 rfft2 irfft2".split()),
    *((name, _FFT.format(size="s", dim=None), f"torch.fft.{name}") for name in "fftn ifftn rfftn irfftn".split()),
    *((name, "input, dim=None", f"torch.fft.{name}") for name in ("fftshift", "ifftshift")),
    ("stft", "input, n_fft, hop_length=None, win_length=None, window=None, center=True, pad_mode='reflect', "
     "normalized=False, onesided=None, return_complex=None", "stft"),
    ("istft", "input, n_fft, hop_length=None, win_length=None, window=None, center=True, normalized=False, "
     "onesided=None, length=None, return_complex=False", "istft"),
)  # fmt: skip

# what makes a tensor of no other's numbers, reads a size, or marks a region: no pattern can name these
_MADE = "*, dtype=None, layout=None, device=None, requires_grad=False, _pin_memory=False"
_NEW = "dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, memory_format=None"
CREATED: tuple[Row, ...] = (
    ("arange", f"start=0, end=None, step=1, {_MADE}", "torch.arange"),
    ("linspace", f"start, end, steps, {_MADE}", "torch.linspace"),
    *((name, f"*size, {_MADE.removeprefix('*, ')}", f"torch.{name}") for name in "zeros ones empty rand randn".split()),
    ("full", f"size, fill_value, {_MADE}", "torch.full"),
    ("eye", f"n, m=None, {_MADE}", "torch.eye"),
    ("randint", f"low, high, size, {_MADE}", "torch.randint"),
    ("randperm", f"n, {_MADE}", "torch.randperm"),
    ("tensor", f"data, {_MADE}", "torch.tensor torch.as_tensor torch.scalar_tensor torch.asarray"),
    *((f"{name}_indices", f"row, col, offset=0, {_MADE}", f"torch.{name}_indices") for name in ("tril", "triu")),
    *((f"{name}_like", f"input, {_NEW}", f"torch.{name}_like") for name in "zeros ones empty rand randn".split()),
    ("full_like", f"input, fill_value, {_NEW}", "torch.full_like"),
    *((f"new_{name}", f"input, *size, {_NEW}", f"T.new_{name}") for name in "zeros ones empty".split()),
    ("new_full", f"input, size, fill_value, {_NEW}", "T.new_full"),
    ("new_tensor", f"input, data, {_NEW}", "T.new_tensor"),
    ("multinomial", "input, num_samples, replacement=False", "multinomial"),
    ("size", "input, dim=None", "T.size"),
    *((name, "input", f"T.{name}") for name in "dim numel item tolist requires_grad".split()),
    ("getattr", "input, name", "py.getattr"),
    ("enter_autocast", "*settings", "torch.amp.autocast_mode._enter_autocast"),
    ("exit_autocast", "entered", "torch.amp.autocast_mode._exit_autocast"),
    ("weight_norm", "v, g, dim=0", "torch._weight_norm"),
)

ROWS: tuple[Row, ...] = (
    *WEIGHTED, *PRODUCTS, *BINARY, *UNARY, *ACTIVATION_ROWS, *NORM_ROWS, *DROPOUT, *POOLING, *REDUCTIONS, *LAYOUT_ROWS,
    *SPECTRAL, *CREATED,
)  # fmt: skip


def names_of(rows: tuple[Row, ...]) -> frozenset[str]:
    """The canonical names of some rows."""
    return frozenset(row[0] for row in rows)


ACTIVATIONS = names_of(ACTIVATION_ROWS)
ELEMENTWISE = names_of((*BINARY, *UNARY, *ACTIVATION_ROWS, *DROPOUT))
