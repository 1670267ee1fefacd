"""What training needs beyond the package's own dependencies: the extra `train`."""

from __future__ import annotations

from utcompile.errors import UtcError


def check_accelerate() -> None:
    """Refuse to train without accelerate.

    Raises:
        UtcError: accelerate is not installed, or cannot be imported.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UtcError(
            "training needs the package accelerate",
            why=str(error),
            fix="pip install 'utcompile[train]', or train the model in your own loop: it is an ordinary nn.Module",
            code="train/needs",
        ) from error
