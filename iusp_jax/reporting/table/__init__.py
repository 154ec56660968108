"""The paper's table: a grid of runs, its statistics, its report."""
