"""What every training loop shares: schedule, optimizer groups, averaged weights, run state, run log, processes."""
