"""Batches as torch tensors, whole selections on a device, bins of the stored arrays."""
