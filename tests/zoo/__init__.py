"""Small networks, one per difficulty; importing this package fills ``ZOO``."""

from tests.zoo import constants, mixing, plain
from tests.zoo.base import ZOO, ZooNetwork

__all__ = ["ZOO", "ZooNetwork", "constants", "mixing", "plain"]
