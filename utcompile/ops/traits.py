"""Properties of operations: their traits, and how they carry axes. Passes use these and list no names."""

from __future__ import annotations

from enum import Enum, Flag, auto


class Trait(Flag):
    """Properties of an operation; a row of the table states those that it has.

    "Numbers" are the elements of the one value that an operation reads.
    """

    # --- what becomes of numbers
    SAME = auto()  # yields the numbers as they are, each in its place
    DROPOUT = auto()  # SAME outside training
    AXES = auto()  # arranges axes: yields every number once
    MOVES = auto()  # each element of its result is one of the numbers: they are moved, repeated or left out
    PADS = auto()  # MOVES, with other elements between, such as zeros
    REPEATS = auto()  # MOVES, each number several times
    CUTS = auto()  # yields one part or several parts
    JOINS = auto()  # puts the numbers of several values next to one another
    VIEW = auto()  # computes and copies nothing: another reading of the same memory
    LAYOUT = auto()  # the class `layout` of patterns

    # --- what is computed of numbers
    ARITHMETIC = auto()  # sums, products and powers, element by element
    COMMUTATIVE = auto()  # its two operands may change places
    COMPARES = auto()  # of two values it yields what is true of them
    MASKS = auto()  # puts other numbers where a condition is true
    ACTIVATION = auto()  # the class `activation` of patterns: an elementwise nonlinearity
    POSITIVE = auto()  # is never below zero
    SATURATES = auto()  # lies between two bounds, which it reaches or approaches
    HOMOGENEOUS = auto()  # g(m x) = m g(x) for every m > 0
    IDENTITY_ABOVE_ZERO = auto()  # g(x) = x for x >= 0
    ODD_PART = auto()  # g(x) - g(-x) = x
    SUMS = auto()  # makes sums of positions and sizes from such sums, so that few sizes represent all
    SUMS_OF_MASKS = auto()  # SUMS where it reads zeros and ones

    # --- layers and products
    LAYER = auto()  # reads one value, with a `weight` and perhaps a `bias`
    CONV = auto()
    CONV_TRANSPOSE = auto()
    NORM = auto()  # the class `norm` of patterns
    AFFINE = auto()  # a norm with a gain and perhaps a shift per channel
    POOL = auto()  # the class `pool` of patterns
    RESAMPLE = auto()  # the class `resample` of patterns
    RECURRENT = auto()  # yields a sequence or a state
    GATED = auto()  # RECURRENT, its weights are those of several gates
    PRODUCT = auto()  # a product with a matrix
    OUTPUTS_FIRST = auto()  # the outputs are the first axis of its weight
    OUTPUTS_LAST = auto()  # the outputs are the last axis of its weight
    COUNTED = auto()  # torch's FlopCounterMode counts its operations
    LISTED = auto()  # in the print of a base that checkpoints carry; the norms and activations are listed too

    # --- what autograd keeps of it for backward
    KEEPS_NOTHING = auto()
    KEEPS_INPUT = auto()
    KEEPS_RESULT = auto()
    KEEPS_NO_RESULT = auto()  # it may keep what it reads
    CHEAP = auto()  # computing it again costs little

    # --- tensors that are made
    MADE = auto()  # of sizes and constants alone, the same in every call
    MADE_LIKE = auto()  # MADE, in the dtype or shape of a tensor whose numbers it does not read
    SIZE_OF_DATA = auto()  # the size of its result depends on numbers


NONE = Trait(0)


class Axes(Enum):
    """How an operation carries the axes of what it reads to its result; the functions are in `graph/flow_….py`."""

    KEEP = "keep"  # those of the first value that it reads
    TOGETHER = "together"  # those of all values that it reads, broadcast
    REDUCE = "reduce"  # without those in `dim`
    ALONG = "along"  # those in `dim` contain other places
    LINEAR = "linear"  # the last contains channels, and becomes new channels
    CONV = "conv"  # the second contains channels, and becomes new channels; space follows
    CHANNEL_NORM = "channel_norm"  # kept; the second contains channels
    LAST_NORM = "last_norm"  # kept; the last contains channels
    RESIZE = "resize"  # cut, padded or pooled to other sizes
    UNKNOWN = "unknown"  # nothing is known of the axes of its result

    # --- each of one operation, or of few
    ADDMM = "addmm"
    CHANNEL_SHUFFLE = "channel_shuffle"
    EINSUM = "einsum"
    EMBEDDING = "embedding"
    EXPAND = "expand"
    FLIP = "flip"
    GETITEM = "getitem"
    JOIN = "join"
    MATMUL = "matmul"
    PERMUTE = "permute"
    PIXELS = "pixels"
    REPEAT = "repeat"
    REPEAT_EACH = "repeat_each"
    RESHAPE = "reshape"
    ROLL = "roll"
    SDPA = "sdpa"
    SELECT = "select"
    STACK = "stack"
    UNFOLD = "unfold"
