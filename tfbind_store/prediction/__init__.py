"""Binding of any factor in any context, along a genome, in loci, and of variants."""
