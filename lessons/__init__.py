"""The lessons: the path, the studies, and what they share."""
