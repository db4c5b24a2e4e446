"""Starting a run: which script of launch/ with what, and whether the hosts are fit for it."""
