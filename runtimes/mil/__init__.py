"""ML Programs of Core ML packages, read and executed anywhere: a reader of their files, and MIL's operations in numpy."""
