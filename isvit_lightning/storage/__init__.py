"""Files that are whole or not there, caches, and the parts of a run."""
