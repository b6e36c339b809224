"""`python -m vram`."""

import sys

from vram.cli import main

sys.exit(main())
