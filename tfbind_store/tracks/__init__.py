"""bigWigs binned to the grid, and the tables that say what each is of."""
