"""`python -m lorikeet_server`."""

from lorikeet_server.cli import main

if __name__ == "__main__":
    main()
