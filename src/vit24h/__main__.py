"""`python -m vit24h`, which `accelerate launch -m vit24h` needs: the `vit24h` command."""

import sys

from vit24h.cli import main

sys.exit(main())
