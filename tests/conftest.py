"""What holds for every test."""

from __future__ import annotations

import torch

# Each of the parallel workers would take all cores: two on a machine of two would fight over them.
torch.set_num_threads(1)
