"""Files and tables to rows."""
