"""The reference's trainers: files in, one optimizer step per call."""
