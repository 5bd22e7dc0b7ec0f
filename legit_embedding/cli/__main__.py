"""`python -m legit_embedding.cli`."""

from legit_embedding.cli import main

main()
