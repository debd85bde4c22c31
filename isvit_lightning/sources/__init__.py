"""Where a float network comes from, and how its images are prepared."""
