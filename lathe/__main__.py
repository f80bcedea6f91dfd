"""`python -m lathe`: the same as the command `lathe`."""

import sys

from lathe.cli import main

sys.exit(main())
