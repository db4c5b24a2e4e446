"""Faults done to real runs: what dies, hangs, lies or fills up costs no more than it must."""
