"""The `vit24h` command with a CPU for a GPU: it watches the driver's device file as a run on a GPU does.

Started in a container by test_container.py, which takes the right to that file away.
"""

import sys

from vit24h import cli
from vit24h.engine import device
from vit24h.gpu_loss import lost_access

device.lost_gpu = lambda _device: lost_access()
sys.exit(cli.main())
