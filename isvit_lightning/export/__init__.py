"""How the result leaves the building: packed codes and safe files."""
