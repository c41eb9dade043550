"""``python -m bella`` is the command ``bella``."""

from bella.cli import main

if __name__ == "__main__":
    main()
