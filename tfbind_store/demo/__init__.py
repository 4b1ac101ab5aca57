"""A small invented genome, and its run."""
