"""One module a format: each reads its files into a `Dataset` and writes a `Dataset` as its files."""
