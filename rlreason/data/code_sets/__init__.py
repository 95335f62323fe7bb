"""Code data sets as the hub has them, read into problems of the verifier ``code``. docs/data.md has the table."""
