"""Notices ranks that died, stopped or wait for nobody, names them and ends the run."""
