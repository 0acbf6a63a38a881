"""Values of the option accelerator_type."""

from skate.util.accelerators import *  # noqa: F403
