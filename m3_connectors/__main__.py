"""``python -m m3_connectors``: the command ``m3`` where its script is not on the PATH."""

import sys

from m3_connectors.cli.app import main

sys.exit(main())
