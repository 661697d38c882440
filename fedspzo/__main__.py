"""``python -m fedspzo``."""

import sys

from fedspzo.cli import main

sys.exit(main())
