"""Zarr arrays whose shards exist only once a receipt says so."""
