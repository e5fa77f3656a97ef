"""`python -m catga_store` is `catga-store`."""

import sys

from catga_store.cli import main

if __name__ == "__main__":
    sys.exit(main())
