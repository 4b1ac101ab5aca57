"""``python -m tfbind_store`` is ``tfbind``."""

from tfbind_store.cli import main

if __name__ == "__main__":
    main(prog_name="tfbind")
