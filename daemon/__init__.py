"""What runs, a module or a folder for each stage, in the order in which data flows."""
