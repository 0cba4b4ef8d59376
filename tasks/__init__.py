"""Tasks: one Prefect task per stage, each around one library function."""
