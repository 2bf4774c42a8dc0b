"""``python -m hipattn``: see `hipattn.cli`."""

import sys

from hipattn.cli import main

sys.exit(main())
