"""Runs whose truth is known, as the benchmark of estimates makes them."""

from benchmarks.planted_lanes import GAP_S, SIZE, TIMES, simulated_run

__all__ = ["GAP_S", "SIZE", "TIMES", "simulated_run"]
