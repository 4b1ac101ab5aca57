"""The catalog in DuckDB: typed reads, immutable copies for readers, SQL from strangers."""
