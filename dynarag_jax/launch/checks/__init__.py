"""What can be found wrong with a configuration before it runs, a file a subject.

Each check is a function from a ``Subject`` to findings. A check that cannot know says nothing.
"""

from dynarag_jax.launch.checks.agreement import check_agreement, check_keys, check_logps
from dynarag_jax.launch.checks.finding import Finding, Subject
from dynarag_jax.launch.checks.lengths import check_candidates, check_lengths
from dynarag_jax.launch.checks.machine import check_disk, check_memory
from dynarag_jax.launch.checks.packages import check_packages
from dynarag_jax.launch.checks.paths import check_paths

CHECKS = (
    check_paths,
    check_packages,
    check_keys,
    check_agreement,
    check_logps,
    check_lengths,
    check_candidates,
    check_memory,
    check_disk,
)
"""In the order in which they are told."""

__all__ = [
    "CHECKS",
    "Finding",
    "Subject",
    "check_agreement",
    "check_candidates",
    "check_disk",
    "check_keys",
    "check_lengths",
    "check_logps",
    "check_memory",
    "check_packages",
    "check_paths",
]
