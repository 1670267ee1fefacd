"""Layers with a weight, products and norms."""

from __future__ import annotations

from utcompile.ops.row import Row, op
from utcompile.ops.traits import NONE
from utcompile.ops.traits import Axes as A
from utcompile.ops.traits import Trait as T

_CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode='zeros'"
_CONV_TRANSPOSE = (
    "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, padding_mode='zeros'"
)
_RNN = "input, hx=None, *, input_size, hidden_size, num_layers=1, batch_first=False, bidirectional=False"
_CELL = "input, hx=None, *, input_size, hidden_size"

WEIGHTED: tuple[Row, ...] = (
    op("linear", "x @ W.T + b in any spelling: addmm, or a product with a parameter that is a matrix, too",
       T.LAYER | T.PRODUCT | T.OUTPUTS_FIRST | T.COUNTED | T.KEEPS_NO_RESULT, A.LINEAR,
       "input, weight, bias=None", "F.linear nn.Linear"),
    op("conv1d", "1-d convolution, of any groups", T.LAYER | T.CONV | T.OUTPUTS_FIRST | T.COUNTED, A.CONV,
       _CONV, "F.conv1d torch.conv1d nn.Conv1d"),
    op("conv2d", "2-d convolution, of any groups", T.LAYER | T.CONV | T.OUTPUTS_FIRST | T.COUNTED, A.CONV,
       _CONV, "F.conv2d torch.conv2d nn.Conv2d"),
    op("conv3d", "3-d convolution, of any groups", T.LAYER | T.CONV | T.OUTPUTS_FIRST | T.COUNTED, A.CONV,
       _CONV, "F.conv3d torch.conv3d nn.Conv3d"),
    op("conv_transpose1d", "1-d transposed convolution", T.LAYER | T.CONV_TRANSPOSE | T.COUNTED, A.CONV,
       _CONV_TRANSPOSE, "F.conv_transpose1d torch.conv_transpose1d nn.ConvTranspose1d"),
    op("conv_transpose2d", "2-d transposed convolution", T.LAYER | T.CONV_TRANSPOSE | T.COUNTED, A.CONV,
       _CONV_TRANSPOSE, "F.conv_transpose2d torch.conv_transpose2d nn.ConvTranspose2d"),
    op("conv_transpose3d", "3-d transposed convolution", T.LAYER | T.CONV_TRANSPOSE | T.COUNTED, A.CONV,
       _CONV_TRANSPOSE, "F.conv_transpose3d torch.conv_transpose3d nn.ConvTranspose3d"),
    op("embedding", "rows of a table, chosen by integers", T.LAYER | T.OUTPUTS_LAST, A.EMBEDDING,
       "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False",
       "F.embedding nn.Embedding"),
    op("lstm", "long short-term memory; several outputs", T.RECURRENT | T.GATED, A.UNKNOWN,
       f"{_RNN}, proj_size=0", "nn.LSTM"),
    op("gru", "gated recurrent unit; several outputs", T.RECURRENT | T.GATED, A.UNKNOWN, _RNN, "nn.GRU"),
    op("rnn", "plain recurrent layer; several outputs", T.RECURRENT, A.UNKNOWN,
       f"{_RNN}, nonlinearity='tanh'", "nn.RNN"),
    op("lstm_cell", "one step of an lstm; several outputs", T.RECURRENT | T.GATED, A.UNKNOWN, _CELL, "nn.LSTMCell"),
    op("gru_cell", "one step of a gru", T.RECURRENT | T.GATED, A.LINEAR, _CELL, "nn.GRUCell"),
    op("rnn_cell", "one step of a plain recurrent layer", T.RECURRENT, A.LINEAR,
       f"{_CELL}, nonlinearity='tanh'", "nn.RNNCell"),
    op("embedding_bag", "sums or means of rows of a table", NONE, A.UNKNOWN,
       ("input, weight, offsets=None, max_norm=None, norm_type=2, scale_grad_by_freq=False, mode='mean', "
        "sparse=False, per_sample_weights=None, include_last_offset=False, padding_idx=None"),
       "F.embedding_bag nn.EmbeddingBag"),
    op("bilinear", "x1 @ W @ x2 + b", T.PRODUCT, A.UNKNOWN,
       "input1, input2, weight, bias=None", "F.bilinear nn.Bilinear"),
)  # fmt: skip

PRODUCTS: tuple[Row, ...] = (
    op("matmul", "matrix product, batched too", T.PRODUCT | T.OUTPUTS_LAST | T.COUNTED | T.LISTED, A.MATMUL,
       "input, other", "matmul bmm mm op.matmul op.imatmul linalg.matmul T.__matmul__",
       "other, input", "T.__rmatmul__"),
    op("einsum", "product and sum by a formula", T.PRODUCT | T.COUNTED | T.LISTED, A.EINSUM,
       "equation, *operands", "torch.einsum"),
    op("sdpa", "scaled dot-product attention of q, k, v, fused or spelled out", T.COUNTED | T.LISTED, A.SDPA,
       "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False",
       "F.scaled_dot_product_attention"),
    op("softmax", "exponentials that sum to one along an axis", T.LISTED | T.KEEPS_RESULT, A.KEEP,
       "input, dim=None, _stacklevel=3, dtype=None", "F.softmax nn.Softmax",
       "input, dim=None, dtype=None", "softmax special.softmax",
       "input, _=None; dim=-3", "nn.Softmax2d"),
    op("log_softmax", "logarithm of the softmax", T.LISTED | T.KEEPS_RESULT, A.KEEP,
       "input, dim=None, _stacklevel=3, dtype=None", "F.log_softmax nn.LogSoftmax",
       "input, dim=None, dtype=None", "log_softmax special.log_softmax"),
    op("addmm", "a value added to a matrix product", T.PRODUCT, A.ADDMM, "input, mat1, mat2, beta=1, alpha=1", "addmm"),
    op("baddbmm", "a value added to a batched matrix product", T.PRODUCT, A.ADDMM,
       "input, batch1, batch2, beta=1, alpha=1", "baddbmm"),
    op("grouped_mm", "rows of groups times a matrix of each group (mixture of experts)", NONE, A.UNKNOWN,
       "input, mat2, offs=None, bias=None, out_dtype=None", "torch._grouped_mm F.grouped_mm"),
    op("outer", "outer product of two vectors", NONE, A.UNKNOWN, "input, other", "outer ger"),
    op("dot", "dot product of vectors", NONE, A.UNKNOWN, "input, other", "dot linalg.vecdot"),
    op("solve_triangular", "solution of a triangular system", NONE, A.UNKNOWN,
       "input, other, upper, left=True, unitriangular=False", "torch.linalg.solve_triangular"),
    op("cdist", "distances between rows", NONE, A.UNKNOWN, "input, other, p=2.0, _compute_mode=None", "torch.cdist"),
    op("cosine_similarity", "cosine of the angle between vectors", NONE, A.UNKNOWN,
       "input, other, dim=1, eps=1e-8", "F.cosine_similarity nn.CosineSimilarity"),
)  # fmt: skip

NORMS: tuple[Row, ...] = (
    op("batch_norm", "by running or batch statistics of a channel",
       T.LAYER | T.NORM | T.AFFINE | T.KEEPS_NO_RESULT, A.CHANNEL_NORM,
       "input, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05",
       "F.batch_norm nn.BatchNorm1d nn.BatchNorm2d nn.BatchNorm3d nn.SyncBatchNorm",
       ("input, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, "
        "eps=1e-05, _cudnn_enabled=True"),
       "torch.batch_norm"),
    op("layer_norm", "by the statistics of the last axes",
       T.LAYER | T.NORM | T.AFFINE | T.KEEPS_INPUT | T.CHEAP, A.LAST_NORM,
       "input, normalized_shape, weight=None, bias=None, eps=1e-05", "F.layer_norm nn.LayerNorm",
       "input, normalized_shape, weight=None, bias=None, eps=1e-05, _cudnn_enable=True", "torch.layer_norm"),
    op("group_norm", "by the statistics of groups of channels",
       T.LAYER | T.NORM | T.AFFINE | T.KEEPS_INPUT | T.CHEAP, A.CHANNEL_NORM,
       "input, num_groups, weight=None, bias=None, eps=1e-05", "F.group_norm nn.GroupNorm",
       "input, num_groups, weight=None, bias=None, eps=1e-05, _cudnn_enabled=True", "torch.group_norm"),
    op("instance_norm", "by the statistics of a channel of one sample", T.LAYER | T.NORM | T.AFFINE, A.CHANNEL_NORM,
       ("input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, "
        "eps=1e-05"),
       "F.instance_norm nn.InstanceNorm1d nn.InstanceNorm2d nn.InstanceNorm3d"),
    op("rms_norm", "by the root mean square of the last axes",
       T.LAYER | T.NORM | T.AFFINE | T.KEEPS_INPUT | T.CHEAP, A.LAST_NORM,
       "input, normalized_shape, weight=None, eps=None", "F.rms_norm torch.rms_norm nn.RMSNorm"),
    # No NORM: it is measured by neighbours, and patterns mean norms with a gain.
    op("local_response_norm", "by the energy of neighbouring channels", NONE, A.CHANNEL_NORM,
       "input, size, alpha=0.0001, beta=0.75, k=1.0", "F.local_response_norm nn.LocalResponseNorm"),
    # No AFFINE: it has no parameters.
    op("normalize", "to length 1 along an axis", T.NORM, A.KEEP,
       "input, p=2.0, dim=1, eps=1e-12, out=None", "F.normalize"),
)  # fmt: skip
