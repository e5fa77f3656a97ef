"""`python -m catga_store` is `catga-store`."""

from catga_store.cli import main

if __name__ == "__main__":
    main()
