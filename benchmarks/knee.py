"""Where a curve of latency against rate turns upwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A bend less deep than this, as a share of the curve's own range, is noise.
LEAST_BEND = 0.05


def knee(rates: Sequence[float], latencies: Sequence[float]) -> int | None:
    """Return the index of the point that lies farthest below the chord from the first point to the last.

    The points are in the order of rising load. Both axes are scaled to the curve's own range first, so that the units
    do not matter. None where there are fewer than three points, the curve is flat or nearly straight, or it bends the
    other way.
    """
    points = np.array([rates, latencies], dtype=np.float64).T
    if len(points) < 3:
        return None
    extent = np.ptp(points, axis=0)
    if not extent.all():
        return None
    scaled = (points - points.min(axis=0)) / extent
    along = scaled[-1] - scaled[0]
    length = float(np.hypot(*along))
    if length == 0:
        return None
    offset = scaled - scaled[0]
    below = (offset[:, 0] * along[1] - offset[:, 1] * along[0]) / length
    deepest = int(below.argmax())
    return deepest if below[deepest] >= LEAST_BEND else None
