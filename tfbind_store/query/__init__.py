"""Choose rows with SQL and read them back as batches: numpy and integers only, no torch.

``labels`` says which bins are bound; ``splits`` and ``leaks`` keep what is held out apart; ``negatives`` finds unbound
bins; ``selection`` writes the chosen rows down; ``sampler`` and ``loader`` bring them to a head.
"""
