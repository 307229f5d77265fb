"""Data of one's own: a function whose arguments stand in the configuration (data.args)."""

import numpy as np
from numpy.typing import NDArray


def stripes(
    n: int = 600, size: int = 12, noise: float = 0.5, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images of stripes in four directions.

    Args:
        n: Images.
        size: Height and width.
        noise: Standard deviation of the noise; the stripes have amplitude 1.
        seed: Of phases, wave lengths and noise.

    Returns:
        x `(n, 1, size, size)` and the class of each, 0 to 3. Validation and test data are split off by the run; a
        function that gives (x, y, x_test, y_test) keeps its own test data.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    angle = (y * np.pi / 4)[:, None, None]
    row, column = np.mgrid[:size, :size]
    along = row * np.sin(angle) + column * np.cos(angle)
    length = rng.uniform(3, 5, (n, 1, 1))
    images = np.sin(2 * np.pi * along / length + rng.uniform(0, 2 * np.pi, (n, 1, 1)))
    return (images + noise * rng.standard_normal(images.shape))[:, None], y
