"""The `roots` command: parse, call, print."""
