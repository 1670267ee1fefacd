"""Fourier transforms."""

from __future__ import annotations

from utcompile.ops.row import Row, op
from utcompile.ops.traits import NONE
from utcompile.ops.traits import Axes as A

FOURIER: tuple[Row, ...] = (
    op("fft", "Fourier transform, one axis", NONE, A.UNKNOWN, "input, n=None, dim=-1, norm=None", "torch.fft.fft"),
    op("fft2", "Fourier transform, two axes", NONE, A.UNKNOWN,
       "input, s=None, dim=(-2, -1), norm=None", "torch.fft.fft2"),
    op("fftn", "Fourier transform, given axes", NONE, A.UNKNOWN,
       "input, s=None, dim=None, norm=None", "torch.fft.fftn"),
    op("ifft", "inverse Fourier transform, one axis", NONE, A.UNKNOWN,
       "input, n=None, dim=-1, norm=None", "torch.fft.ifft"),
    op("ifft2", "inverse Fourier transform, two axes", NONE, A.UNKNOWN,
       "input, s=None, dim=(-2, -1), norm=None", "torch.fft.ifft2"),
    op("ifftn", "inverse Fourier transform, given axes", NONE, A.UNKNOWN,
       "input, s=None, dim=None, norm=None", "torch.fft.ifftn"),
    op("rfft", "Fourier transform of real values, one axis", NONE, A.UNKNOWN,
       "input, n=None, dim=-1, norm=None", "torch.fft.rfft"),
    op("rfft2", "Fourier transform of real values, two axes", NONE, A.UNKNOWN,
       "input, s=None, dim=(-2, -1), norm=None", "torch.fft.rfft2"),
    op("rfftn", "Fourier transform of real values, given axes", NONE, A.UNKNOWN,
       "input, s=None, dim=None, norm=None", "torch.fft.rfftn"),
    op("irfft", "inverse transform to real values, one axis", NONE, A.UNKNOWN,
       "input, n=None, dim=-1, norm=None", "torch.fft.irfft"),
    op("irfft2", "inverse transform to real values, two axes", NONE, A.UNKNOWN,
       "input, s=None, dim=(-2, -1), norm=None", "torch.fft.irfft2"),
    op("irfftn", "inverse transform to real values, given axes", NONE, A.UNKNOWN,
       "input, s=None, dim=None, norm=None", "torch.fft.irfftn"),
    op("hfft", "Fourier transform to real values", NONE, A.UNKNOWN,
       "input, n=None, dim=-1, norm=None", "torch.fft.hfft"),
    op("ihfft", "its inverse", NONE, A.UNKNOWN, "input, n=None, dim=-1, norm=None", "torch.fft.ihfft"),
    op("fftshift", "zero frequency to the middle", NONE, A.KEEP, "input, dim=None", "torch.fft.fftshift"),
    op("ifftshift", "zero frequency to the front", NONE, A.KEEP, "input, dim=None", "torch.fft.ifftshift"),
    op("stft", "short-time Fourier transform", NONE, A.UNKNOWN,
       ("input, n_fft, hop_length=None, win_length=None, window=None, center=True, pad_mode='reflect', "
        "normalized=False, onesided=None, return_complex=None"),
       "stft"),
    op("istft", "its inverse", NONE, A.UNKNOWN,
       ("input, n_fft, hop_length=None, win_length=None, window=None, center=True, normalized=False, "
        "onesided=None, length=None, return_complex=False"),
       "istft"),
)  # fmt: skip
