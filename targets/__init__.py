"""What can be built for: one file, one artifact format."""
