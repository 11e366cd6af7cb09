"""`python -m hkd`."""

from hkd.cli.main import main

if __name__ == "__main__":
    main()
