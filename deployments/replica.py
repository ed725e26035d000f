"""What a process does because it is a Serve replica: it serves for long, on one event loop."""

from __future__ import annotations

import gc

# Python's own first threshold, 700, is met several times within one request, whose objects die without any collector:
# with 64 requests under way collecting took a quarter of the ingress' own CPU time (docs/adr/0014).
_ALLOCATIONS = 10_000


def in_replica() -> bool:
    """Whether this process is a replica of a Serve deployment."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


def settle() -> None:
    """In a replica that has loaded what it needs: collect garbage seldom, and never look at what was loaded again.

    A collection of everything goes through the million objects of torch and its like, and stops the event loop for
    90 ms. Elsewhere nothing is changed, since what is loaded in a test or a notebook may well go again.
    """
    if not in_replica():
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 10, 10)
