"""Reports of runs and sweeps: terminal output, tables and HTML pages."""
