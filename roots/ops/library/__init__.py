"""The kernel libraries: what they are built from, how they are built, and how they are loaded.

`targets`, `toolchain`, `ninja`, `build` and `stamp` need neither torch nor the rest of ROOTS:
setup.py imports them by path. `cache`, `load` and the command `python -m roots.ops.library` do.
"""
