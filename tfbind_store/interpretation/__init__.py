"""Which bases and which residues a prediction rests on."""
