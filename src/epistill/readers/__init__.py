"""Records from files of any make: JSON lines and arrays, CSV, parquet, compressed, in a zip."""
